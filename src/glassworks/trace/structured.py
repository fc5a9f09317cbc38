"""Structures of native events: what a module returned, with Values for its tensors, and how it is written."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from glassworks.errors import GraphError, UnknownSite
from glassworks.graph.nodes import Line
from glassworks.graph.sites import SiteTable
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.value import Value, plain_of


def write_site(recorder: Recorder, name: str, value: Any, line: Line) -> None:
    """`site = value`, also as the second half of `site += 1`, whose first has written already."""
    if not (type(value) is Value and value._site == name and value._version == recorder.version(name) > 0):
        recorder.write(name, recorder.node_of(value, line), line)


def is_leaf(structure: Any) -> bool:
    """Whether the structure is one tensor."""
    return "leaf" in structure


def leaves_of(structure: Any) -> list[str]:
    """Names of the sites of all tensors in it."""
    [(kind, inner)] = structure.items()
    if kind == "leaf":
        return [inner]
    if kind in ("tuple", "list"):
        return [leaf for item in inner for leaf in leaves_of(item)]
    return [leaf for item in inner.values() for leaf in leaves_of(item)] if kind == "dict" else []


class Structure(SimpleNamespace):
    """A mapping that a module returned: by attribute and by key. `.save()` saves every tensor in it."""

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__[key] if isinstance(key, str) else list(self.__dict__.values())[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Write to the site of one tensor of the mapping."""
        held, line = self.__dict__[key], caller()
        if not isinstance(held, Value) or held._site is None:
            raise GraphError(f"{key!r} of this mapping is no tensor of the model's\n  at {line}")
        block = held._block
        block.write(held._site, block.node_of(value, line), line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def save(self) -> "Structure":
        for value in self.__dict__.values():
            _save(value)
        return self


class Several(tuple[Any, ...]):
    """A tuple that a module returned. `.save()` saves every tensor in it."""

    __slots__ = ()

    def save(self) -> "Several":
        for item in self:
            _save(item)
        return self


def _save(value: Any) -> None:
    if isinstance(value, Value | Structure | Several):
        value.save()


def structured(recorder: Recorder, table: SiteTable, structure: Any) -> Any:
    """Read every tensor of the structure."""
    if structure is None:
        raise UnknownSite(f"this module has no single call in a forward pass\n  at {caller()}")
    line = caller()

    def build(spec: Any) -> Any:
        [(kind, inner)] = spec.items()
        if kind == "leaf":
            return Value(recorder, recorder.read(inner, line), line, inner)
        if kind in ("tuple", "list"):
            return Several(build(item) for item in inner)
        if kind == "dict":
            return Structure(**{key: build(item) for key, item in inner.items()})
        return None

    return build(structure)


def write_structure(recorder: Recorder, structure: Any, value: Any, line: Any) -> None:
    """Assign to each tensor of a native structure its counterpart in `value`."""
    [(kind, inner)] = structure.items()
    if kind == "leaf":
        if isinstance(value, Value | torch.Tensor | float | int):
            recorder.write(inner, recorder.node_of(value, line), line)
            return
    elif kind in ("tuple", "list") and isinstance(value, tuple | list) and len(value) == len(inner):
        for spec, item in zip(inner, value, strict=True):
            if leaves_of(spec):
                write_structure(recorder, spec, item, line)
        return
    elif kind == "dict" and isinstance(value, Mapping | Structure) and set(value) == set(inner):
        for key, spec in inner.items():
            if leaves_of(spec):
                write_structure(recorder, spec, value[key], line)
        return
    raise GraphError(
        f"the module returns {_shape_of(structure)}; write that structure, or one of its tensors\n  at {line}"
    )


def _shape_of(structure: Any) -> str:
    [(kind, inner)] = structure.items()
    if kind in ("tuple", "list"):
        return f"a {kind} of {len(inner)}"
    return f"a mapping with {', '.join(inner)}" if kind == "dict" else "one tensor"


def values(tree: Any) -> Any:
    """The tensors of saved Values in any nesting of lists, tuples and mappings; what a module returned is a dict."""
    if isinstance(tree, Structure):
        return {key: values(item) for key, item in tree.__dict__.items()}
    if type(tree) is dict:
        return {key: values(item) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        items = [values(item) for item in tree]
        return items if isinstance(tree, list) else type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return plain_of(tree)
