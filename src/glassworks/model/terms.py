"""What a tensor is a sum of, traced through additions: the identities of a model that has no numbers yet.

Each tensor is a linear combination of atoms. Addition and multiplication by a Python number combine; whatever
else makes a tensor makes a new atom. Two tensors with the same combination are equal whatever the weights
are.

Combinations belong to storages, not to tensors: a view of a whole storage has its values, and a change in
place reaches every view. A tensor that is only a part of its storage is an atom of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Combination = Mapping[int, float]

_aten = torch.ops.aten
_COPIES = {_aten.clone.default, _aten._to_copy.default}
_SUMS = {_aten.add.Tensor: 1.0, _aten.add_.Tensor: 1.0, _aten.sub.Tensor: -1.0, _aten.sub_.Tensor: -1.0}
_PRODUCTS = {_aten.mul.Tensor: 1.0, _aten.mul_.Tensor: 1.0, _aten.div.Tensor: -1.0, _aten.div_.Tensor: -1.0}
"""Operation -> the power that the second operand is taken to."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, keeps the combination of every tensor that is made, and its storage: ids must not recur."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._atoms = count()
        self._known: dict[int, Combination] = {}
        self._kept: list[Any] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        combination = self._result(func, args, kwargs or {})
        outputs = func(*args, **(kwargs or {}))
        changed = list(_written(func, args, kwargs or {}))
        for tensor in changed:
            self._set(tensor, combination)
        if combination is not None and not changed:
            self._set(outputs, combination)
        return outputs

    def of(self, tensor: Tensor) -> Combination:
        """The combination that is the tensor now."""
        if not _is_whole(tensor):
            return {next(self._atoms): 1.0}
        key = tensor.untyped_storage()._cdata
        if key not in self._known:
            self._set(tensor, None)
        return self._known[key]

    def _set(self, tensor: Any, combination: Combination | None) -> None:
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            known = combination is not None and _is_whole(tensor)
            self._known[storage._cdata] = combination if known and combination else {next(self._atoms): 1.0}
            self._kept.append(storage)

    def _result(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Combination | None:
        """The combination of what the operation makes, if it is one."""
        match args:
            case (Tensor() as one, *_) if func in _COPIES and kwargs.get("dtype", one.dtype).is_floating_point:
                return self.of(one)
            case (Tensor() as one, Tensor() as other) if func in _SUMS and one.shape == other.shape:
                return combine(self.of(one), self.of(other), _SUMS[func] * kwargs.get("alpha", 1))
            case (Tensor() as one, float() | int() as factor) if func in _PRODUCTS and factor != 0:
                return combine({}, self.of(one), float(factor) ** _PRODUCTS[func])
        return None


def combine(one: Combination, other: Combination, scale: float) -> Combination:
    """one + scale * other, without what cancels."""
    sums = {atom: one.get(atom, 0.0) + scale * other.get(atom, 0.0) for atom in {**one, **other}}
    return {atom: value for atom, value in sums.items() if abs(value) > 1e-9}


def _is_whole(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operation changes in place."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from value if isinstance(value, (tuple, list)) else (value,)
