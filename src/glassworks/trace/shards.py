"""One pass as one safetensors file: token ids of its rows without padding, where each row starts, and its saves.

    ids                int64 [tokens]    offsets    int64 [rows + 1]: row r has the ids offsets[r]:offsets[r + 1]
    saves.NAME         the save; its tokens, if it has an axis of them, follow each other as the ids do
    steps.K.NAME       the same of entry K of a save with an entry a step
    ... .ROW           of a save that is ragged in several axes: a tensor a row

The header says how each is laid out (`layout`), so that a file is read back without knowing what was run.
"""

import mmap
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from glassworks.errors import InputError
from glassworks.graph import wire
from glassworks.trace.pieces import Form, Ids, Item, Part, Pieces, Total, Whole
from glassworks.trace.tensors import dtype_name, from_blob, to_blob

Tensors = dict[str, torch.Tensor]


def encoded(chunk: Ids, parts: Iterable[tuple[Form, Part]]) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a file, and the layout of each save."""
    lengths = torch.tensor([0, *map(len, chunk)])
    tensors = {"ids": torch.tensor([token for ids in chunk for token in ids]), "offsets": lengths.cumsum(0)}
    layout: dict[str, Any] = {}
    for form, part in parts:
        entries = []
        for k, item in enumerate(part.items):
            key = f"steps.{k}.{form.name}" if part.listed else f"saves.{form.name}"
            entries.append(_put(item, key, form, k, tensors))
        layout[form.name] = {"listed": part.listed, "entries": entries}
    return tensors, layout


def _put(item: Item, key: str, form: Form, k: int, tensors: Tensors) -> dict[str, Any]:
    """Add the tensors of one entry; gives its layout."""
    if isinstance(item, Whole):
        return _kept(key, form, item.value, tensors, {"kind": "whole"})
    if isinstance(item, Total):
        own = {"kind": "total", "count": item.count, "dtype": dtype_name(item.dtype)}
        return _kept(key, form, torch.view_as_real(item.sum) if item.sum.is_complex() else item.sum, tensors, own)
    like = next(piece for piece in item if piece is not None)
    full = [torch.zeros_like(like) if piece is None else piece for piece in item]
    axis = form.token_axis(k)
    if axis is not None:
        own = {"kind": "tokens", "axis": axis, "sizes": [piece.shape[axis] for piece in full]}
        return _kept(key, form, torch.cat(full, dim=axis), tensors, own)
    if len({piece.shape for piece in full}) == 1:
        assert form.axis is not None
        return _kept(key, form, torch.stack(full, dim=form.axis), tensors, {"kind": "rows", "axis": form.axis})
    for row, piece in enumerate(full):
        _kept(f"{key}.{row}", form, piece, tensors, {})
    return {"kind": "each", "key": key, "rows": len(full)}


def _kept(key: str, form: Form, value: torch.Tensor, tensors: Tensors, layout: dict[str, Any]) -> dict[str, Any]:
    if dtype_name(value.dtype) not in wire.ITEM_BYTES:
        raise InputError(
            f"the save {form.name!r} is {dtype_name(value.dtype)}, which a safetensors file cannot hold: cast it in "
            f"the block; known: {', '.join(wire.ITEM_BYTES)}"
        )
    tensors[key] = value.detach().cpu()
    return {**layout, "key": key}


def packed(tensors: Tensors, message: dict[str, Any]) -> bytes:
    """The bytes of a file."""
    return wire.pack({"pass": message}, {key: to_blob(tensor) for key, tensor in tensors.items()})


class Shard:
    """A file, read where it is asked for.

    Raises:
        WireError: it is not whole, or not one of ours.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        message, self._blobs = wire.unpack(view)
        self.message: dict[str, Any] = message["pass"]

    @cached_property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids, a tuple a row."""
        ids, offsets = self._tensor("ids").tolist(), self._tensor("offsets").tolist()
        return [tuple(ids[start:end]) for start, end in pairwise(offsets)]

    def part(self, name: str) -> Part:
        """One save."""
        own = self.message["layout"][name]
        return Part(own["listed"], tuple(self._item(entry) for entry in own["entries"]))

    def _item(self, entry: dict[str, Any]) -> Item:
        key = entry["key"]
        match entry["kind"]:
            case "whole":
                return Whole(self._tensor(key))
            case "total":
                dtype = getattr(torch, entry["dtype"])
                found = self._tensor(key)
                return Total(torch.view_as_complex(found) if dtype.is_complex else found, entry["count"], dtype)
            case "tokens":
                return _list(torch.split(self._tensor(key), entry["sizes"], dim=entry["axis"]))
            case "rows":
                return _list(self._tensor(key).unbind(entry["axis"]))
        return _list([self._tensor(f"{key}.{row}") for row in range(entry["rows"])])

    def _tensor(self, key: str) -> torch.Tensor:
        return from_blob(self._blobs[key])


def _list(pieces: Sequence[torch.Tensor]) -> Pieces:
    return list(pieces)
