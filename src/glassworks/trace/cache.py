"""`t.cache(...)`: the final values of many sites at once, by name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from glassworks.errors import GraphError, UnknownSite
from glassworks.graph.nodes import Line
from glassworks.trace.recorder import Recorder
from glassworks.trace.value import Value


class Cache(Mapping[str, Any]):
    """A mapping from site name to tensor, once the block has ended.

    The sites are read when the block ends, after all its writes; in a live block, when the pass leaves them.
    """

    def __init__(self, recorder: Recorder, sites: str | Sequence[str], *, device: str, dtype: Any, line: Line) -> None:
        listed = isinstance(sites, Sequence) and all(isinstance(pattern, str) for pattern in sites)
        if not listed:
            raise GraphError(
                f"t.cache takes a pattern of site names, such as 'layers.*.output', or a list of them; got {sites!r}\n"
                f"  at {line}"
            )
        patterns = [sites] if isinstance(sites, str) else list(sites)
        table = recorder.table
        self.names: list[str] = []
        for pattern in patterns:
            wanted = re.compile(_as_regex(pattern))
            found = [name for name in table.sites if wanted.fullmatch(name)]
            if not found:
                raise UnknownSite(f"no site matches {pattern!r}: {table.why_not(pattern)}\n  at {line}")
            self.names += [name for name in sorted(found, key=lambda n: table.sites[n].order) if name not in self.names]
        self._device, self._dtype, self._line = device, dtype, line
        self._values: dict[str, Value] = {}
        self._scope = (recorder.invoke, recorder.steps, recorder.single)
        for name in self.names:
            recorder.later(name, partial(self._read, name), line)

    def _read(self, name: str, recorder: Recorder) -> None:
        before = recorder.invoke, recorder.steps, recorder.single
        recorder.invoke, recorder.steps, recorder.single = self._scope
        value = Value(recorder, recorder.read(name, self._line), self._line, name)
        recorder.save(value, value, None if recorder.is_name(name) else name, None, self._line)
        self._values[name] = value
        recorder.invoke, recorder.steps, recorder.single = before

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(f"{name!r} is not in this cache; it has {', '.join(self.names[:6])} ...")
        value = self._values[name].value
        return [self._placed(item) for item in value] if isinstance(value, list) else self._placed(value)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<cache of {len(self.names)} sites: {', '.join(self.names[:4])}{' ...' if len(self.names) > 4 else ''}>"


def _as_regex(pattern: str) -> str:
    """`*` stands for one part of a name, `**` for any number of them."""
    parts = {"**": ".*", "*": "[^.]*"}
    return "".join(parts.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*|\*)", pattern))
