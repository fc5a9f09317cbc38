"""Scores and probabilities of attention as sites: shown only where attention, written out, gives what it gave.

Every attention that can be watched is written out once, on a small run; the model must return what it returned
before. Each gets two more events, after those of its query, key and value.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glassworks.errors import ModelError
from glassworks.graph.sites import Event, Site, SiteTable
from glassworks.model.attention import LISTENING, Listener, listening_config
from glassworks.model.record import undisturbed
from glassworks.model.runs import small_runs

WHY_NONE = "written out in plain operations, the attention of {kind} does not give what it gives otherwise"

Place = tuple[str, int]
"""An attention module, and which call of it."""

Shown = dict[tuple[Place, str], Tensor]
"""What passed at a place, by port."""


def with_probabilities(module: nn.Module, table: SiteTable) -> SiteTable:
    """The table with `scores` and `probs` of the attention modules in it; without, where they cannot be had."""
    places = [(event.path, event.call) for event in table.events if event.port == "value"]
    shown = _written_out(module, sorted({path for path, _ in places})) if places else {}
    after: dict[int, list[tuple[Event, Site]]] = {}
    for path, call in places:
        if ((path, call), "probs") in shown:
            order = table.by_event[path, "value", call]
            query = table.sites[_name(table, path, call, "query")].axes
            key = table.sites[_name(table, path, call, "key")].axes
            axes = (*query[:3], key[2])
            after[order] = [
                _event(table, path, call, port, axes, shown[(path, call), port]) for port in ("scores", "probs")
            ]
    return _inserted(table, after)


def _written_out(module: nn.Module, paths: Sequence[str]) -> Shown:
    """What every attention showed while all were written out; empty if the model returned something else."""
    run = small_runs(module)[0]
    shown: Shown = {}
    with undisturbed(module):
        plain = _first(run.call(module))
        try:
            with _listening(module, paths, shown):
                other = _first(run.call(module))
        except (ModelError, RuntimeError, TypeError, ValueError):
            return {}
    return shown if _agree(plain, other) else {}


def _agree(plain: Tensor, other: Tensor) -> bool:
    if type(plain) is not Tensor or plain.device.type == "meta":  # no numbers
        return plain.shape == other.shape
    scale = float(plain.double().abs().max()) or 1.0
    return float((plain.double() - other.double()).abs().max()) <= max(1e-4, 8 * torch.finfo(plain.dtype).eps) * scale


def _first(returned: Any) -> Tensor:
    values = (
        returned.values() if hasattr(returned, "values") else returned if isinstance(returned, tuple) else [returned]
    )
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())


@contextmanager
def _listening(module: nn.Module, paths: Sequence[str], shown: Shown) -> Iterator[None]:
    modules = dict(module.named_modules())
    with ExitStack() as stack:
        for path in paths:
            own, config = modules[path], modules[path].config
            stack.callback(setattr, own, "config", config)
            own.config = listening_config(config)
            calls: list[Any] = []
            stack.callback(own.register_forward_pre_hook(_before(own, path, calls, shown)).remove)
            stack.callback(own.register_forward_hook(lambda _, __, ___, calls=calls: LISTENING.reset(calls[-1])).remove)
        yield


def _before(own: nn.Module, path: str, calls: list[Any], shown: Shown) -> Any:
    def before(_: nn.Module, __: Any) -> None:
        call = len(calls)

        def tell(port: str, tensor: Tensor) -> Tensor:
            shown[(path, call), port] = tensor
            return tensor

        calls.append(LISTENING.set(Listener(own, tell, materialise=lambda: True)))

    return before


def _name(table: SiteTable, path: str, call: int, port: str) -> str:
    own = f"{path}." if table.calls[path] == 1 else f"{path}.call({call})."
    return f"{own}attention.{port}"


def _event(
    table: SiteTable, path: str, call: int, port: str, axes: tuple[Any, ...], tensor: Tensor
) -> tuple[Event, Site]:
    name = _name(table, path, call, port)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Event(path, port, call, {"leaf": name}), Site(name, -1, (), axes, dtype)


def _inserted(table: SiteTable, after: dict[int, list[tuple[Event, Site]]]) -> SiteTable:
    """The table with more events after some; the orders of all that follow move on."""
    events: list[Event] = []
    moved: dict[int, int] = {}
    added: dict[str, Site] = {}
    for order, event in enumerate(table.events):
        moved[order] = len(events)
        events.append(event)
        for own, site in after.get(order, ()):
            added[site.name] = replace(site, order=len(events))
            events.append(own)
    sites = {name: replace(site, order=moved[site.order]) for name, site in table.sites.items()}
    return replace(table, events=tuple(events), sites=sites | added)
