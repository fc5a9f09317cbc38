"""Tensors as the constants of a graph, and as bytes on the wire.

A constant holds the user's tensor by reference; its bytes are made only when somebody asks. numpy has no bf16, so
bytes are taken through a view of the storage as `uint8`.
"""

from dataclasses import dataclass
from typing import Any

import torch

from glassworks.graph.wire import Blob


@dataclass(frozen=True, slots=True, eq=False)
class TensorConstant:
    """A captured tensor."""

    tensor: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def blob(self) -> Blob:
        return to_blob(self.tensor)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` -> `"float32"`."""
    return str(dtype).removeprefix("torch.")


def to_blob(tensor: torch.Tensor) -> Blob:
    """A copy of the values, row-major, as bytes."""
    flat = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.numel() == 1:  # one element is contiguous whatever its stride, and a view of its bytes asks for 1
        flat = flat.clone(memory_format=torch.contiguous_format)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return Blob(dtype_name(tensor.dtype), tuple(tensor.shape), data)


def from_blob(blob: Blob) -> torch.Tensor:
    """A tensor of its own memory with the values of a blob."""
    dtype = getattr(torch, blob.dtype)
    if not blob.size_bytes:
        return torch.zeros(blob.shape, dtype=dtype)
    return torch.frombuffer(bytearray(blob.data), dtype=torch.uint8).view(dtype).reshape(blob.shape)


def as_tensor(value: Any) -> torch.Tensor:
    """The tensor of a constant, whichever form it is in; numbers and arrays as torch takes them."""
    if isinstance(value, TensorConstant):
        return value.tensor
    return from_blob(value) if isinstance(value, Blob) else torch.as_tensor(value)


def as_leaf(value: Any) -> TensorConstant | None:
    """A tensor as a constant; None for what is none."""
    if isinstance(value, torch.Tensor):
        return TensorConstant(value)
    return value if isinstance(value, TensorConstant) else None
