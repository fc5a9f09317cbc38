"""Sites that a pass of several requests does not show in the shapes of a lone run: whoever asks for one runs by itself.

Seen in one recorded pass, not read off names: what a family returns beside its own attention, for example, is missing
where attention is ours, and a mask is not there or is of another size.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from glassworks.graph.sites import ATTENTION_PORTS, Site, SiteTable
from glassworks.model.record import Seen

Place = tuple[int, tuple[Any, ...]]


def unlike(table: SiteTable, seen: Iterable[Seen], sizes: Mapping[str, int]) -> frozenset[str]:
    """Names of the sites whose tensor did not pass, or passed in another shape than the table says for these sizes.

    What passes inside attention is left out: a shared pass shows it in a way of its own.
    """
    shapes = {
        (order, item): tuple(leaf.tensor.shape)
        for event in seen
        if (order := table.by_event.get(event.key)) is not None
        for item, leaf in event.leaves.items()
    }
    native = [site for site in table.sites.values() if not (site.unfold or site.heads or site.swapped)]
    places = {_place(site) for site in native if not _fits(site, shapes.get(_place(site)), sizes)}
    return frozenset(
        name
        for name, site in table.sites.items()
        if _place(site) in places and table.event_of(site).port not in ATTENTION_PORTS
    )


def _place(site: Site) -> Place:
    return site.order, site.item


def _fits(site: Site, shape: tuple[int, ...] | None, sizes: Mapping[str, int]) -> bool:
    try:
        return shape == site.shape(sizes)
    except KeyError:  # an axis that these sizes say nothing of
        return False
