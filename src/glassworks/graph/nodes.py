"""What a graph is made of: frozen nodes, and the few kinds of argument that a node may hold.

A node's inputs are `Ref`s to earlier nodes; everything else in its arguments is plain data. Lines of the user's
source stand beside the nodes, never inside them: two people who write the same experiment write the same graph.

Kinds (`target` in brackets; `args`):

    read       [site]                                 the current value at a site
    write      [site]        (value)                  replace it; cast and broadcast to the site
    skip       [site]        (value)                  the same, and spare the module's work where nothing needs it
    call       [operation]   arguments as in torch    a permitted operation; a name that ends in `_` works on a copy
    update     [operations]  (base, views, value)     a copy of base in which a view of it was overwritten
    item       []            (tuple, k)               one of several results
    module     [path]        arguments                a module of the model, or `unembed`, as a pure function
    parameter  [path]        ()                       a weight of the model
    constant   [trains or ''] (k)                     the graph's k-th captured tensor; one that gradients reach
    input      [name]        (shape, dtype)           a tensor given to `run`
    result     []            ()                       the new tokens of a generation
    backward   []            (loss)                   derivatives of a loss
    grad       []            (value, backward)        read a gradient
    grad_write []            (value, backward, new)   replace it on its way to earlier sites
    save       [name]        (value)                  keep a value; `reduce`, `each` (an entry a step)
    cond       []            (pred, a, b)             a where the predicate's one element holds, else b
    state      []            (init)                   what is carried from step to step begins as this
    carried    []            (state, carry ...)       the state now: assigned earlier in this step, or carried into it
    carry      []            (state, value)           assign the state
    stop       []            (value)                  end the rows where the value holds, after this step's token
    log        []            (text or value ...)      a line for the author; always needed
    apply      [name]        (k, value ...)           the graph's k-th function of the author's, whole; `results`
    effect     [name]        (k, value ...)           the same, always needed

A branch of a condition is no graph of its own: its nodes stand among the others with a *guard*, `when`. A node whose
guard does not hold is not run.
"""

from types import CodeType
from typing import Any, NamedTuple

ALL_ROWS = -1
"""The invoke number of what was written outside any invoke: it concerns every row."""

Steps = tuple[int, int | None]
"""Half-open range of generation steps; `None` for its end means as long as the row lives."""

Guards = tuple[tuple[int, bool], ...]
"""Predicates, outermost first, each with what it must be."""

GUARDED = frozenset({"call", "item", "update", "module", "save", "cond", "stop", "log", "apply", "effect"})
"""Kinds that may have a guard. Reads and captured tensors in a branch happen either way and harm nobody; a write in a
branch is a write of a `cond`."""


class Ref(NamedTuple):
    """The result of an earlier node, by its position in the graph."""

    node: int


class Slice(NamedTuple):
    """`start:stop:step` of an index; each is an int, a Ref or None."""

    start: Any
    stop: Any
    step: Any


class Listed(tuple[Any, ...]):
    """A Python list among arguments: torch indexes by a list otherwise than by a tuple."""

    __slots__ = ()


class Dtype(NamedTuple):
    """A number format by its torch name, such as `float32`."""

    name: str


class Node(NamedTuple):
    """One step of an experiment. `deps` are the nodes that its arguments refer to, in order, then its predicates."""

    kind: str
    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    deps: tuple[int, ...]
    invoke: int
    steps: Steps | None
    when: Guards = ()

    @property
    def operands(self) -> tuple[int, ...]:
        """The nodes that the arguments refer to."""
        return self.deps[: len(self.deps) - len(self.when)]


NOTHING = Node("result", "", (), (), (), ALL_ROWS, None)
"""A node that nothing needs, to stand in the place of one that is not to be run: others keep their numbers."""


class Line(NamedTuple):
    """Where the user wrote a node: a code object and an instruction, resolved only when somebody asks."""

    code: CodeType
    instruction: int

    @property
    def file(self) -> str:
        return self.code.co_filename

    @property
    def number(self) -> int:
        for start, end, number in self.code.co_lines():
            if start <= self.instruction < end and number is not None:
                return int(number)
        return self.code.co_firstlineno

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


class SentLine(NamedTuple):
    """A line that came over the wire: the file's own name without its folders, and the number."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


AnyLine = Line | SentLine


def refs_in(value: Any) -> list[int]:
    """The nodes that an argument refers to, in order of appearance."""
    if type(value) is Ref:
        return [value.node]
    if isinstance(value, tuple):
        return [node for item in value for node in refs_in(item)]
    return []


def replace_refs(value: Any, put: Any) -> Any:
    """The argument with each Ref replaced by `put(node)` and lists and slices made Python's own again."""
    kind = type(value)
    if kind is Ref:
        return put(value.node)
    if kind is tuple:
        return tuple([replace_refs(item, put) for item in value])
    if kind is Slice:
        return slice(*[replace_refs(item, put) for item in value])
    if kind is Listed:
        return [replace_refs(item, put) for item in value]
    return value
