"""Messages as bytes: one `.safetensors` file whose header carries JSON beside the tensors.

The layout is the public one of safetensors (8 bytes little-endian header length, JSON header, data), so that the
library reads our files. It is read here by hand, because the library's reader of bytes drops the metadata and its
numpy loader refuses bf16; and it is read strictly: every offset is checked before a byte is looked at.
"""

import hashlib
import json
import math
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from glassworks.errors import WireError

ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "uint16": 2, "uint32": 4, "uint64": 8, "complex64": 8,
}  # fmt: skip
_TO_WIRE = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "complex64": "C64",
}  # fmt: skip
_FROM_WIRE = {wire: name for name, wire in _TO_WIRE.items()}
_HEADER_LIMIT_BYTES = 64 * 2**20
LARGE_BYTES = 2**20
"""Tensors above this travel once, and are then known by their digest."""
_KEY = "glassworks"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_SHORT.maxlevel = 3


@dataclass(frozen=True, slots=True)
class Blob:
    """A tensor as bytes: dtype by its torch name, shape, and the values in row-major order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def blob(self) -> "Blob":
        return self

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and digest(self) == digest(other)

    def __hash__(self) -> int:
        return hash(digest(self))


@dataclass(frozen=True, slots=True)
class Absent:
    """A tensor that is elsewhere: its form, and the digest by which it is known there."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    def blob(self) -> "Blob":
        raise WireError(f"the tensor {self.digest} is not in this message")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Constant(Protocol):
    """A captured tensor, in whatever form a layer above holds it."""

    @property
    def dtype(self) -> Any: ...

    @property
    def shape(self) -> Any: ...

    def blob(self) -> Blob:
        """The values as bytes."""


def digest(blob: Blob) -> str:
    """SHA-256 of dtype, shape and values: equal digests mean equal bits."""
    found = hashlib.sha256(f"{blob.dtype}{list(blob.shape)}".encode() + b"\0")
    found.update(blob.data)
    return found.hexdigest()


def absent_from_json(value: Any, where: str) -> Absent:
    """A tensor that is elsewhere, from `[digest, dtype, shape]`. WireError names `where`."""
    good = isinstance(value, list) and len(value) == 3 and all(isinstance(part, str) for part in value[:2])
    if not good or len(value[0]) != 64 or not set(value[0]) <= set("0123456789abcdef") or value[1] not in ITEM_BYTES:
        raise WireError(f"{where} must be [digest, dtype, shape], got {spell(value)}")
    if not _are_sizes(value[2]) or len(value[2]) > 64:
        raise WireError(f"{where}: the shape must be a list of sizes")
    return Absent(value[1], tuple(value[2]), value[0])


def pack(message: Mapping[str, Any], blobs: Mapping[str, Blob]) -> bytes:
    """A message and its tensors as the bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(message, allow_nan=False, separators=(",", ":"))}}
    offset = 0
    for name, blob in blobs.items():
        end = offset + blob.size_bytes
        header[name] = {
            "dtype": _TO_WIRE[blob.dtype],
            "shape": list(blob.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *[bytes(blob.data) for blob in blobs.values()]])


def unpack(data: bytes | memoryview) -> tuple[dict[str, Any], dict[str, Blob]]:
    """The inverse of `pack`; tensors are views of `data`.

    Raises:
        WireError: names the header field or the byte range that is wrong.
    """
    view = memoryview(data)
    header, start = _header(view)
    message = _message(header.pop("__metadata__", None))
    body = view[start:]
    blobs: dict[str, Blob] = {}
    expected = 0
    entries = [(name, _entry(name, value)) for name, value in header.items()]
    for name, (dtype, shape, begin, end) in sorted(entries, key=lambda entry: entry[1][2:]):
        if begin != expected or end > len(body):
            raise WireError(
                f"tensor {spell(name)}: bytes {begin}:{end} do not follow {expected} or pass the end, {len(body)}"
            )
        if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
            raise WireError(f"tensor {spell(name)}: {dtype} of shape {list(shape)} does not fill bytes {begin}:{end}")
        blobs[name] = Blob(dtype, shape, body[begin:end])
        expected = end
    if expected != len(body):
        raise WireError(f"bytes {expected}:{len(body)} after the last tensor belong to nothing")
    return message, blobs


def spell(value: Any) -> str:
    """A foreign value as a message shows it: short, however long or deep it is."""
    return _SHORT.repr(value)[:100]


def _header(view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < 8:
        raise WireError(f"bytes 0:8 must hold the header's length; got {len(view)} bytes in all")
    (size,) = struct.unpack("<Q", view[:8])
    if size > min(len(view) - 8, _HEADER_LIMIT_BYTES):
        raise WireError(
            f"bytes 0:8 give a header of {size} bytes; {len(view) - 8} follow, {_HEADER_LIMIT_BYTES} are allowed"
        )
    header = json_of(bytes(view[8 : 8 + size]), f"bytes 8:{8 + size}")
    if not isinstance(header, dict):
        raise WireError(f"bytes 8:{8 + size} must hold a JSON object, got {type(header).__name__}")
    return header, 8 + size


def _message(metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        raise WireError(f"header field __metadata__.{_KEY} must be a JSON text")
    message = json_of(metadata[_KEY], f"header field __metadata__.{_KEY}")
    if not isinstance(message, dict):
        raise WireError(f"header field __metadata__.{_KEY} must hold a JSON object")
    return message


def json_of(text: bytes | str, where: str) -> Any:
    """A JSON value, read strictly: UTF-8, no NaN, no field twice. WireError names `where`."""

    def refuse(name: str) -> Any:
        raise WireError(f"{where}: {name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise WireError(f"{where}: a field stands twice")
        return found

    try:
        plain = text if isinstance(text, str) else text.decode()  # json itself would guess at other encodings
        return json.loads(plain, parse_constant=refuse, object_pairs_hook=unique)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"{where} are not JSON: {str(error)[:200]}") from None


def _entry(name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WireError(f"header field {spell(name)} must have dtype, shape and data_offsets")
    dtype = _FROM_WIRE.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise WireError(f"header field {spell(name)}: unknown dtype {spell(value['dtype'])}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise WireError(f"header field {spell(name)}: shape and data_offsets must be lists of sizes")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)
