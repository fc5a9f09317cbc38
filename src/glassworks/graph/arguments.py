"""Arguments that no operation may have, whoever wrote them: what would leave the graph, or change what it was given.

Surprises: `embedding(..., max_norm=)` and the `inplace` flag of activations change weights, also by position; the
dropout of attention draws from the global generator; `to` takes a device as a string, `view` another number format.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from glassworks.graph.nodes import Dtype, Ref

_INPLACE_AT = {
    "relu": 1, "silu": 1, "mish": 1, "relu6": 1, "hardsigmoid": 1, "hardswish": 1, "selu": 1, "elu": 2,
    "celu": 2, "leaky_relu": 2, "hardtanh": 3, "threshold": 3, "dropout": 3,
}  # fmt: skip
"""Position of the `inplace` flag among the arguments of an activation."""
_MAX_NORM_AT = 3
_DROPOUT_AT = 4
WATCHED = frozenset([*_INPLACE_AT, "embedding", "to", "view", "view_as", "scaled_dot_product_attention"])
"""The operations of which some argument is refused."""


def refusal(name: str, args: Sequence[Any], keywords: Sequence[tuple[str, Any]]) -> str | None:
    """Why a call cannot be permitted, with what to write instead; None if it can.

    Args:
        args: the tensor that the operation works on first. keywords: (name, value).
    """
    plain = name.rstrip("_")
    flag = _INPLACE_AT.get(plain)
    if flag is not None and len(args) > flag and args[flag] not in (False, None):
        return f"{name}(inplace=True) is not permitted; write {plain}_, which works on a copy"
    if plain == "embedding" and len(args) > _MAX_NORM_AT and args[_MAX_NORM_AT] is not None:
        return "embedding: the argument max_norm= is not permitted: it changes the weight in place"
    if plain == "to" and any(isinstance(value, str) for value in plain_values(args, keywords)):
        return "to: a device cannot be named: values live where the model is"
    if plain in ("view", "view_as") and any(type(value) is Dtype for value in plain_values(args, keywords)):
        return "view: another dtype over the same bytes is not permitted; write .to(dtype)"
    if plain == "scaled_dot_product_attention" and _dropout(args, keywords) not in (0, None):
        return f"{plain}: dropout_p= is not permitted: it draws from the global generator; write dropout on its result"
    return None


def _dropout(args: Sequence[Any], keywords: Sequence[tuple[str, Any]]) -> Any:
    return args[_DROPOUT_AT] if len(args) > _DROPOUT_AT else dict(keywords).get("dropout_p")


def plain_values(args: Sequence[Any], keywords: Sequence[tuple[str, Any]]) -> Iterator[Any]:
    """What stands in arguments, however nested, references left out."""
    yield from _plain((tuple(args), tuple(value for _, value in keywords)))


def _plain(value: Any) -> Iterator[Any]:
    kind = type(value)
    if kind is Ref:
        return
    if isinstance(value, tuple) and kind is not Dtype:
        for item in value:
            yield from _plain(item)
    else:
        yield value
