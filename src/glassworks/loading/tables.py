"""Site tables by what is asked of them: with the operations inside some modules, for inputs of some shapes."""

from dataclasses import replace
from threading import Lock
from typing import Any

import torch

from glassworks.errors import InputError
from glassworks.graph.backend import Inputs, Rows
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import Blob
from glassworks.model.anatomy import build_table
from glassworks.model.runs import image_shape
from glassworks.model.scan import scan
from glassworks.trace.tensors import TensorConstant, as_tensor

_KEPT = 32
"""How many tables of one model are kept."""


class ModelTables:
    """The tables of a Hugging Face model: one, and one for each set of modules that somebody looks into."""

    def __init__(self, module: torch.nn.Module, table: SiteTable) -> None:
        self._module, self._table = module, table
        self._known = frozenset(table.within)
        self._more: dict[frozenset[str], SiteTable] = {}
        self._sized: dict[Any, SiteTable] = {}
        self._lock = Lock()

    def __call__(self, inputs: Inputs | None, within: frozenset[str]) -> SiteTable:
        """The table with the operations inside the modules at the paths `within`."""
        if within <= self._known:
            return self._table
        with self._lock:
            if within not in self._more:
                if len(self._more) >= _KEPT:
                    self._more.clear()
                self._more[within] = build_table(self._module, within=within)
            return self._more[within]


class ImageTables(ModelTables):
    """The tables of a Hugging Face model that reads images: each invoke is a pass of its own, of known size."""

    def __init__(self, module: torch.nn.Module, table: SiteTable) -> None:
        super().__init__(module, replace(table, plain=True, shareable=False))
        self._shape = image_shape(module)

    def __call__(self, inputs: Inputs | None, within: frozenset[str]) -> SiteTable:
        """The table for so many images. InputError: they are of another size than the model's own."""
        table = replace(super().__call__(inputs, within), plain=True, shareable=False) if within else self._table
        images = None if inputs is None or not inputs.invokes else _images(inputs.invokes[0])
        if images is None:
            return table
        if tuple(images.shape[1:]) != self._shape:
            raise InputError(
                f"this model reads images {list(self._shape)} (channels, height, width), got {list(images.shape[1:])}"
            )
        key = (within, int(images.shape[0]))
        if key not in self._sized:
            if len(self._sized) >= _KEPT:
                self._sized.clear()
            sizes = {"batch": int(images.shape[0])}
            sites = {
                name: replace(site, axes=tuple(sizes.get(str(axis), axis) for axis in site.axes))
                for name, site in table.sites.items()
            }
            self._sized[key] = replace(table, sites=sites, plain=True, shareable=False)
        return self._sized[key]


def _images(rows: Rows) -> Any:
    found = rows.kwargs.get("pixel_values", rows.args[0] if rows.args else None)
    if found is None:
        raise InputError(f"this model reads images: give pixel_values=, got {', '.join(rows.kwargs) or 'nothing'}")
    return found


class PlainTables:
    """Site tables of a module that is not transformers', by the shapes of its inputs."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._by_shapes: dict[Any, SiteTable] = {}
        self._lock = Lock()
        children = {
            path: tuple(name for name, _ in own.named_children())
            for path, own in module.named_modules(remove_duplicate=False)
        }
        self._bare = SiteTable(
            family=type(module).__name__,
            events=(),
            sites={},
            children=children,
            kinds={path: type(own).__name__ for path, own in module.named_modules(remove_duplicate=False)},
            parameters={
                name: (str(p.dtype).removeprefix("torch."), tuple(p.shape))
                for name, p in module.named_parameters(remove_duplicate=False)
            },
            plain=True,
            shareable=False,
        )

    def __call__(self, inputs: Inputs | None, within: frozenset[str]) -> SiteTable:
        """The table for inputs of these shapes; without inputs, the modules only."""
        if inputs is None or not inputs.invokes:
            return self._bare
        own = inputs.invokes[0]
        named = _shapes(tuple(own.kwargs.items())) if own.kwargs else ()
        key = (_shapes(own.args), named, self._module.training, within)
        table = self._by_shapes.get(key)
        return self._scanned(key, own, within) if table is None else table

    def _scanned(self, key: Any, own: Rows, within: frozenset[str]) -> SiteTable:
        with self._lock:
            if key not in self._by_shapes:
                args, kwargs = _tensors(own.args), _tensors(dict(own.kwargs))
                self._by_shapes[key] = scan(self._module, inputs=(args, kwargs), plain=True, within=within)
            return self._by_shapes[key]


def _shapes(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.shape, tree.dtype
    if isinstance(tree, tuple | list):
        return tuple([_shapes(item) for item in tree])
    if isinstance(tree, dict):
        return tuple((key, _shapes(item)) for key, item in tree.items())
    shape = getattr(tree, "shape", None)
    return (type(tree), tree) if shape is None else (tuple(shape), tree.dtype)


def _tensors(tree: Any) -> Any:
    if isinstance(tree, tuple | list):
        return type(tree)(_tensors(item) for item in tree)
    if isinstance(tree, dict):
        return {key: _tensors(item) for key, item in tree.items()}
    return as_tensor(tree) if isinstance(tree, TensorConstant | Blob) else tree
