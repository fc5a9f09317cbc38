"""A Value: in a block, a name for what will be computed; after it, the tensor that was saved.

In a block every operation on a Value records a node. A Value that came from a site, or is a view of one that did, also
writes: index assignment and in-place methods go through to the site and move this handle on to the new value, while
whatever used or saved it before keeps what it was. After the block a saved Value acts as its tensor in every way.
"""

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from glassworks.errors import GraphError, NotSaved, NotTaken, ScopeError, UnknownOperation, WriteError
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref, refs_in
from glassworks.graph.text import argument as spell
from glassworks.graph.views import CASTS, is_view, may_be_view
from glassworks.trace import binding
from glassworks.trace.gradients import gradient_of
from glassworks.trace.operators import Operators
from glassworks.trace.positions import Positions, with_positions
from glassworks.trace.recorder import Recorder, caller

_NOTHING = object()
_EINOPS = str(Path("einops", "_backends.py"))
_APPLY = torch.autograd.Function.apply.__code__
_ADVICE = {
    "device": "values live where the model is, model.device",
    "cpu": "save it, and move what you get after the block",
    "cuda": "values live where the model is; save it, and move what you get after the block",
    "data": "save it, and use .value after the block",
    "backward": "write t.backward(loss)",
    "requires_grad_": "gradients need no preparation: t.backward(loss), then value.grad",
    "retain_grad": "gradients need no preparation: t.backward(loss), then value.grad",
    **{name: f"write {instead}" for name, instead in binding.INSTEAD.items()},
}


class Value(Operators):
    """A tensor of the forward pass that has a name but, until the block ends, no numbers."""

    __array_ufunc__ = None  # numpy on the left leaves the operation to us
    __array_priority__ = 1000

    __slots__ = (
        "__weakref__",
        "_block",
        "_echo",
        "_line",
        "_node",
        "_parent",
        "_result",
        "_site",
        "_unsure",
        "_version",
        "_view",
    )

    def __init__(self, block: Recorder, node: int, line: Line, site: str | None = None) -> None:
        self._block = block
        self._node = node
        self._line = line
        self._site = site
        self._version = block.version(site) if site is not None and block._written else 0
        self._parent: Value | None = None
        self._unsure: str | None = None
        self._echo: Any = None
        self._view = node
        self._result: Any = _NOTHING

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Its class, for `isinstance`. To einops it is a tensor: what that calls on tensors, a Value records.

        A custom `autograd.Function` asks too, before it calls `forward` on what is no tensor: there its own backward
        would be lost in silence, so it is refused.
        """
        frame = sys._getframe(1)
        if frame.f_code.co_filename.endswith(_EINOPS):
            return torch.Tensor
        if frame.f_code is _APPLY and not self._ended():
            name = frame.f_locals["cls"].__name__
            raise UnknownOperation(
                f"{name} is an autograd.Function, whose own backward cannot be recorded: write gw.apply({name}.apply, "
                f"value), which keeps it whole\n  at {caller()}"
            )
        return type(self)

    # What a Value is.

    def node_in(self, block: Recorder, line: Line) -> int:
        """This value as a node of `block`, which a session may bring from an earlier one."""
        if self._block is block:
            return self._node
        if block.partner is not None:
            return block.partner.bring(self, block, line)  # type: ignore[no-any-return]
        if self._block.closed and self._result is not _NOTHING:
            return block.capture(self.value, line)
        raise ScopeError(
            f"a Value of one block is used in another; save it and use it after its block, or open both in one "
            f"`with model.session():`\n  value at {self._line}\n  used at  {line}"
        )

    @property
    def value(self) -> torch.Tensor:
        """The tensor (or the list, with an entry a step) that was saved. NotSaved names the line of the read."""
        if self._result is not _NOTHING:
            return self._result  # type: ignore[no-any-return]
        if isinstance(self._echo, NotTaken):
            raise NotTaken(str(self._echo))
        if isinstance(self._echo, str) or self._block.failure is not None:
            raise NotSaved(f"{self._echo or self._block.failure}\n  at {self._line}")
        if self._block.closed:
            raise NotSaved(
                f"this value was not saved, so it is gone: write .save() on it in the block\n  at {self._line}"
            )
        return self._block.numbers(self._node, "its numbers")

    def _numbers(self, what: str) -> torch.Tensor:
        """The tensor, for what cannot be recorded; in an open block only a live one has it."""
        return self.value if self._ended() else self._block.numbers(self._node, what)

    def save(self, name: str | None = None, reduce: str | None = None) -> "Value":
        """Keep the value: after the block this Value, and the one returned, act as its tensor.

        Args:
            name: under which results and stored graphs know it; numbered if not given.
            reduce: `"mean"` or `"sum"` over rows (and real tokens, where the value has them); in `model.run` over all.
        """
        block, line = self._block, caller()
        if reduce is not None and reduce not in ("mean", "sum"):
            raise GraphError(f"reduce must be 'mean', 'sum' or None, got {reduce!r}\n  at {line}")
        kept = self._twin()
        block.save(self, kept, name, reduce, line)
        return kept

    def never_came(self, also: "Value") -> None:
        """There is no result: the steps that this value was saved in were not reached."""
        self._echo = also._echo = "this value has no entry: the steps that it was saved in never came"

    def was_not_taken(self, also: "Value", where: str) -> None:
        """There is no result: the branch that this value was saved in was not taken."""
        self._echo = also._echo = NotTaken(
            "this value was saved in a branch of gw.cond that was not taken: save what gw.cond returns, or look at the "
            f"predicate first\n  saved at {where}"
        )

    def _twin(self) -> "Value":
        """Another handle on what this one is now, so that a save stays what it was when this one moves on."""
        twin = Value.__new__(Value)
        twin._block, twin._node, twin._line, twin._site = self._block, self._node, self._line, self._site
        twin._version, twin._parent, twin._view = self._version, self._parent, self._view
        twin._unsure, twin._echo, twin._result = self._unsure, None, _NOTHING
        return twin

    def deliver(self, result: Any, also: "Value") -> None:
        """The backend's answer for this value, and for the handle that it was saved through."""
        self._result = also._result = result

    def waits_for(self, job: Any) -> None:
        """The answer is still to come: `job.settle()` brings it. The first look at it comes by `__getattr__`."""
        self._echo = job
        del self._result

    def waits_no_more(self) -> None:
        """The answer has come, and is about to be delivered."""
        self._echo, self._result = None, _NOTHING

    # Shape, without running.

    def _meta(self) -> Any:
        if self._result is not _NOTHING or self._block.closed:
            return self.value
        return self._block.shape_of(self._node)

    @property
    def shape(self) -> Any:
        """A `torch.Size`; in a generation an axis that differs from step to step is None (a plain tuple then)."""
        return self._meta().shape

    @property
    def dtype(self) -> torch.dtype:
        return self._meta().dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __len__(self) -> int:
        if self._result is not _NOTHING:
            return len(self._result)
        shape = self.shape
        if not shape:
            raise TypeError("len() of a value with no axes")
        if shape[0] is None:
            raise GraphError(f"the length differs from step to step\n  at {caller()}")
        return int(shape[0])

    def __iter__(self) -> Iterator[Any]:
        if self._result is not _NOTHING:
            return iter(self._result)
        return iter([self[k] for k in range(len(self))])

    @property
    def T(self) -> "Value":
        return self.permute(*reversed(range(self.ndim)))  # type: ignore[no-any-return]

    def where(self, condition: Any, other: Any) -> "Value":
        """This value where `condition` holds, `other` elsewhere."""
        return torch.where(condition, self, other)  # type: ignore[call-overload,no-any-return]

    # Recording.

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        value = _first_open((args, tuple(kwargs.values())))
        if value is None:
            return func(*plain_of(args), **plain_of(kwargs))
        return value._block.function(func, args, kwargs)

    def _perform(self, name: str, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._result is not _NOTHING:
            return getattr(self._result, name)(*plain_of(args), **plain_of(kwargs))
        return self._call(target, args, kwargs)

    def _perform_in_place(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._block.closed:
            return getattr(self.value, target)(*plain_of(args), **plain_of(kwargs))
        return self.in_place(target, args, kwargs, caller())

    def _call(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        block = self._recording(args)
        if block is None:
            return binding.bound(target)(self.value, *plain_of(args), **plain_of(kwargs or {}))
        return self.joined(block.call(target, (self, *args), kwargs or {}, caller()))

    def joined(self, found: Any) -> Any:
        """The results of an operation on this value; those that are views of it know it."""
        if type(found) is Value:
            found._join(self)
        elif type(found) is tuple:
            for item in found:
                item._join(self)
        return found

    def _recording(self, args: tuple[Any, ...]) -> Recorder | None:
        """Where an operation on this value is written: its own block, or the open one that it is used in."""
        block = self._block
        if block.partner is not None and self._result is _NOTHING:
            return block.partner.open or block
        if not block.closed:
            return block
        other = _first_open(args)
        return other._block if other is not None else None

    def _join(self, parent: "Value") -> None:
        """Remember a view of a site's value, so that writing to it writes to the site."""
        if parent._site is None and parent._parent is None and parent._unsure is None:
            return
        node = self._own()
        if is_view(node) or (node.target in CASTS and self.dtype == parent.dtype):
            self._parent, self._version, self._view = parent, parent._version, self._node
            self._unsure = parent._unsure
        elif may_be_view(node) and node.target not in CASTS:
            self._unsure = node.target

    def _own(self) -> Node:
        node = self._block.nodes[self._node]
        return self._block.nodes[node.deps[0]] if node.kind == "item" else node

    def __getitem__(self, index: Any) -> Any:
        if self._result is not _NOTHING or self._block.closed:
            return self.value[plain_of(with_positions(index))]
        if type(index) is str:
            raise GraphError(f"a Value is indexed as a tensor is, not by a name; got {index!r}\n  at {caller()}")
        return self._call("getitem", (index,))

    def __setitem__(self, index: Any, value: Any) -> None:
        if self._block.closed:
            self.value[plain_of(with_positions(index))] = plain_of(value)
            return
        if type(value) is Value and value._parent is self and value._echo is not None:
            own = self._block.argument(with_positions(index), [], caller())
            if value._echo == (len(self._block.nodes), own):
                return  # the second half of `value[index] += 1`: the first has written already
        self.in_place("setitem_", (index, value), {}, caller())

    def in_place(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], line: Line) -> "Value":
        """An operation in place: on a site's value or a view of one it writes; on any other it moves this handle on."""
        block = self._block
        if self._unsure is not None:
            raise WriteError(
                f"{self._unsure} may give a copy, or show one element at several places, so it is not known what a "
                f"write to its result would change: write to {self._unsure}(...).clone(), or to the site\n"
                f"  at {line}"
            )
        if block.branches is not None:
            for value in self._up():
                block.branches.remember(value, "_node", "_version", "_echo")
        chain = self._chain(line)
        new = block.call(target, (self, *args), kwargs, line)
        if chain:
            self._write_through(chain, new._node, line)
        else:
            self._node = new._node
        return self

    def _up(self) -> "list[Value]":
        """This value, the one that it is a view of, and so on."""
        chain: list[Value] = [self]
        while chain[-1]._parent is not None:
            chain.append(chain[-1]._parent)
        return chain

    def _chain(self, line: Line) -> "list[Value]":
        """This value, the one that it is a view of, and so on to the site's; each as it is now. Empty: no site's."""
        chain, block = self._up(), self._block
        root = chain[-1]
        if root._site is None:
            return []
        if block.refused and (reason := next((block.refused[v._view] for v in chain if v._view in block.refused), "")):
            raise WriteError(f"{reason}\n  at {line}")
        derived, read = block.derived.get(root._site), block.nodes[root._view]
        scope = (read.invoke, read.steps) if derived is None else derived.scopes[root._view]
        if scope != (block.invoke, block.steps):
            raise ScopeError(
                f"{root._site} was read in other rows or steps than those that are open here: write it where it was "
                f"read\n  read at  {root._line}\n  write at {line}"
            )
        now = self._block.version(root._site)
        if root._version != now:
            raise WriteError(
                f"{root._site} was written since this value was read; read it again to write to it\n"
                f"  read at  {self._line}\n  write at {line}"
            )
        for value in reversed(chain[:-1]):
            if value._version != now:  # another view of the same value was written
                value._node, value._version = value._replay(line), now
        return chain

    def _write_through(self, chain: "list[Value]", new: int, line: Line) -> None:
        """Replace this value, a site's or a view of one, by node `new`, up to the site."""
        root, block = chain[-1], self._block
        assert root._site is not None
        views = [value._view for value in reversed(chain[:-1])]
        whole = new if not views else self._update(root._node, views, new, line)
        block.write(root._site, whole, line)
        root._node, self._node = whole, new
        padded = block.may_pad(block.invoke) and root._site not in block.derived
        if padded:
            root._node = block.read(root._site, line)  # as the site has it now: padding is 0
        for value in reversed(chain):
            value._version = block.version(root._site)
            if value is not root and (padded or value is not self):
                value._node = value._replay(line)
        self._echo = (len(block.nodes), block.nodes[self._view].args[-1]) if views else None

    def _update(self, base: int, views: list[int], new: int, line: Line) -> int:
        """A copy of node `base` in which the view that `views` lead to is overwritten by node `new`."""
        block = self._block
        args = (Ref(base), tuple(_view_step(block, n) for n in views), Ref(new))
        return block.add(Node("update", "", args, (), tuple(refs_in(args)), ALL_ROWS, None), line)

    def _replay(self, line: Line) -> int:
        """The view that this is of its parent, taken again now that the parent has moved on."""
        assert self._parent is not None
        return self._again(self._parent._node, line)

    def _again(self, base: int, line: Line) -> int:
        """The view that this is of its parent, taken of another node."""
        block = self._block
        node = block.nodes[self._view]
        call = block.nodes[node.deps[0]] if node.kind == "item" else node
        fresh = block.add(call._replace(args=(Ref(base), *call.args[1:]), deps=(base, *call.deps[1:])), line)
        if node.kind != "item":
            return fresh
        return block.add(node._replace(args=(Ref(fresh), node.args[1]), deps=(fresh,)), line)

    # Gradients.

    @property
    def grad(self) -> Any:
        """The gradient of the last `t.backward` above; after the block, the tensor's own."""
        if self._block.closed:
            return self.value.grad
        return self.grad_of(None, caller())

    @grad.setter
    def grad(self, new: Any) -> None:
        if self._block.closed:
            self.value.grad = plain_of(new)
            return
        line = caller()
        if (self._parent._site if self._parent is not None else self._site) in self._block.derived:
            raise WriteError(f"the gradient of a derived site is read only: write that of attn.output\n  at {line}")
        block = self._block
        own = gradient_of(block, self._node, self._backward(line))
        if not (type(new) is Value and new._site == own.name and new._version == block.version(own.name) > 0):
            block.write(own.name, block.node_of(new, line), line)

    def grad_of(self, backward: int | None, line: Line) -> "Value":
        """The gradient of one backward, by its node; the last if none is named."""
        block = self._block
        if block.derived and (found := self._derived_grad(backward, line)) is not None:
            return found
        own = gradient_of(block, self._node, self._backward(line) if backward is None else backward)
        return Value(block, own.read(line), line, own.name)

    def _derived_grad(self, backward: int | None, line: Line) -> "Value | None":
        """Of a derived site, or a view of one: through what it is derived from."""
        views: list[Value] = [self]
        while views[-1]._parent is not None:
            views.append(views[-1]._parent)
        derived = self._block.derived.get(views[-1]._site or "")
        if derived is None:
            return None
        found: Value = derived.gradient(backward, line)
        for view in reversed(views[:-1]):
            found = Value(self._block, view._again(found._node, line), line)
        return found

    def _backward(self, line: Line) -> int:
        found = [n for n, node in enumerate(self._block.nodes) if node.kind == "backward"]
        if not found:
            raise GraphError(f"no gradient yet: write t.backward(loss) above this line\n  at {line}")
        return found[-1]

    # What would need numbers.

    def __bool__(self) -> bool:
        return bool(self._numbers("bool()"))

    def __float__(self) -> float:
        return float(self._numbers("float()"))

    def __int__(self) -> int:
        return int(self._numbers("int()"))

    def __index__(self) -> int:
        return self._numbers("an index").__index__()

    def item(self) -> Any:
        return self._numbers(".item()").item()

    def tolist(self) -> Any:
        found = self._numbers(".tolist()")
        return found if isinstance(found, list) else found.tolist()

    def numpy(self) -> Any:
        return self._numbers(".numpy()").numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        array = self._numbers("numpy").detach().cpu().numpy()
        return array if dtype is None else array.astype(dtype)

    def _ended(self) -> bool:
        return self._result is not _NOTHING or self._block.closed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "_result":
            self._echo.settle()
            return self._result
        if self._ended():
            return getattr(self.value, name)
        if self._block.is_live and name in ("device", "cpu"):
            return getattr(self._block.numbers(self._node, name), name)
        if name in _ADVICE:
            raise UnknownOperation(f"a Value has no {name!r} in a block: {_ADVICE[name]}\n  at {caller()}")
        near = difflib.get_close_matches(name, binding.attributes(), n=3)
        hint = f"; the nearest: {', '.join(near)}" if near else ""
        error = UnknownOperation(f"a Value has no operation {name!r}{hint}\n  at {caller()}")
        raise error

    def __reduce__(self) -> Any:
        return _itself, (self.value,)

    def __copy__(self) -> Any:
        return self.value

    def __deepcopy__(self, memo: Any) -> Any:
        import copy

        return copy.deepcopy(self.value, memo)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        if hasattr(self._echo, "settle"):
            return f"<Value that waits for {self._echo!r}>"
        if self._result is not _NOTHING:
            return repr(self._result)
        if self._block.closed:
            untaken = isinstance(self._echo, NotTaken)
            return f"<Value that was not {'taken' if untaken else 'saved'}, read at {self._line}>"
        if self._block.is_live:
            return repr(self.value)
        node = self._block.nodes[self._node]
        what = node.target if node.kind == "read" else f"{node.kind} {node.target}({', '.join(map(spell, node.args))})"
        return f"<Value %{self._node}: {what}>"

    def __format__(self, spec: str) -> str:
        if not (spec or self._ended() or self._block.is_live):
            return repr(self)
        return format(self._numbers(f"the format {spec!r}"), spec)


def _itself(value: Any) -> Any:
    return value


def _view_step(block: Recorder, n: int) -> tuple[Any, ...]:
    """A view as data: (operation, its other arguments, keyword arguments); of several results also which."""
    node = block.nodes[n]
    if node.kind == "item":
        call = block.nodes[node.deps[0]]
        return (call.target, call.args[1:], call.kwargs, node.args[1])
    return (node.target, node.args[1:], node.kwargs)


def _first_open(tree: Any) -> Value | None:
    """The first Value of a block that is still open."""
    if type(tree) is Value:
        return None if tree._block.closed else tree
    if type(tree) in (tuple, list):
        for item in tree:
            found = _first_open(item)
            if found is not None:
                return found
    if type(tree) is slice:
        return _first_open((tree.start, tree.stop, tree.step))
    return None


def plain_of(tree: Any) -> Any:
    """The same with saved Values replaced by their tensors."""
    if type(tree) is Value:
        return tree.value
    if type(tree) is Positions:
        return tree.__index__()
    if type(tree) in (tuple, list):
        return type(tree)(plain_of(item) for item in tree)
    if type(tree) is dict:
        return {key: plain_of(item) for key, item in tree.items()}
    if type(tree) is slice:
        return slice(plain_of(tree.start), plain_of(tree.stop), plain_of(tree.step))
    return tree
