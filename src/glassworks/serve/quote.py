"""The price of a whole request, before any model work: each node, all of them together, what is held, what is saved.

Walks the nodes that will run on meta tensors, with the sizes of the rows that came with them: in a generation once for
the prompt and once for a later step. What a node costs is `pricing`'s and `graph.price`'s; how often it runs and when
its value is let go is placement's. Nodes whose size depends on numbers are left for the run, and named to it.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from glassworks.errors import GlassworksError, LimitExceeded
from glassworks.graph.backend import Experiment
from glassworks.graph.limits import Limits
from glassworks.graph.nodes import ALL_ROWS, Node, Steps
from glassworks.graph.place import Plan, place_inputs
from glassworks.graph.price import FREE, Price
from glassworks.graph.sites import SiteTable
from glassworks.serve.pricing import NeedsValues, quote, tensors_in
from glassworks.trace.shapes import Shapes

LATE = None
"""The value of a node of which nothing is known before it runs."""
_ADVICE = {"result_bytes": "save less: a slice, fewer layers, or reduce='mean'"}
_USUAL_ADVICE = "use fewer rows, a slice, or smaller operands"


@dataclass(slots=True)
class Bill:
    """What the requests's nodes come to so far."""

    limits: Limits
    total: Price = FREE
    saved_bytes: int = 0
    saves: list[dict[str, Any]] = field(default_factory=list)

    def node(self, price: Price, runs: int, line: str) -> None:
        """Add a node. LimitExceeded names the limit and both figures."""
        within("node_flops", price.flops, self.limits.node_flops, line)
        within("node_bytes", price.bytes, self.limits.node_bytes, line)
        self.total = self.total.plus(price.times(runs))
        within("request_flops", self.total.flops, self.limits.request_flops, line)
        within("request_bytes", self.total.bytes, self.limits.request_bytes, line)

    def saved(self, size_bytes: int, line: str) -> None:
        """Add what goes back."""
        self.saved_bytes += size_bytes
        within("result_bytes", self.saved_bytes, self.limits.result_bytes, line)


def within(limit: str, asked: int, allowed: int, line: str) -> None:
    """LimitExceeded: over a limit of what a node or a request may cost. Without a line, who runs the node adds it."""
    if asked > allowed:
        where = f"\n  at {line}" if line else ""
        raise LimitExceeded(
            f"{limit}: {asked} asked for, {allowed} allowed; {_ADVICE.get(limit, _USUAL_ADVICE)}{where}"
        )


def quote_request(
    experiments: Sequence[Experiment],
    limits: Limits,
    table_of: Callable[[Experiment], SiteTable],
    *,
    times: Sequence[int] | None = None,
) -> "Quote":
    """Refuse what costs too much.

    Args:
        times: how often each experiment runs; None: once.

    Raises:
        LimitExceeded: names the node's line, the limit and both figures.
        Exception: what torch raises at the shapes of a node, with its line.
    """
    bill = Bill(limits)
    late, forwards, tokens = [], 0, 0
    for number, experiment in enumerate(experiments):
        try:
            walk = _Walk(experiment, table_of(experiment), bill, 1 if times is None else times[number])
            late.append(walk.everything())
            forwards += walk.times * len(walk.plan.forwards) * walk.steps
            tokens += walk.times * walk.tokens
        except GlassworksError as error:
            if len(experiments) == 1:
                raise
            raise type(error)(f"experiment {number} of {len(experiments)}: {error}") from None
    return Quote(late, forwards, tokens, bill.total, bill.saved_bytes)


@dataclass(frozen=True, slots=True)
class Quote:
    """What is known of a request that may run.

    Attributes:
        late: for each experiment, the nodes that can be priced only when they run.
        forwards: how many forward passes it takes, at most.
        tokens: how many tokens the model computes in them, about: prompts in each pass, and new ones.
        total: of the nodes that could be priced. result_bytes: of what goes back, as far as its size is known.
    """

    late: list[list[int]]
    forwards: int
    tokens: int
    total: Price
    result_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As a verdict has it."""
        price = {"flops": self.total.flops, "bytes": self.total.bytes, "result_bytes": self.result_bytes}
        return {"late": self.late, "forwards": self.forwards, "tokens": self.tokens, **price}


@dataclass(frozen=True, slots=True)
class _Constant:
    """A captured tensor of which only the form is needed."""

    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Source:
    """A graph in the place of a recorder."""

    nodes: tuple[Node, ...]
    lines: tuple[Any, ...]
    constants: tuple[Any, ...]
    table: SiteTable


def meta_of(value: Any) -> Any:
    """A blob, a constant, a tensor or a number as a meta tensor; LATE for anything else."""
    if isinstance(value, bool | int | float | complex):
        return torch.empty((), dtype=torch.tensor(value).dtype, device="meta")
    if not isinstance(value, HasForm):
        return LATE
    return torch.empty(tuple(value.shape), dtype=getattr(torch, str(value.dtype).removeprefix("torch.")), device="meta")


@runtime_checkable
class HasForm(Protocol):
    """What has the form of a tensor."""

    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> Any: ...


class _Walk:
    """One experiment, which runs so many times."""

    def __init__(self, experiment: Experiment, table: SiteTable, bill: Bill, times: int = 1) -> None:
        self.experiment, self.table, self.bill, self.times = experiment, table, bill, times
        self.graph = experiment.graph
        generation = experiment.generation
        self.steps = 1 if generation is None else max(1, generation.max_new_tokens)
        self.plan: Plan = place_inputs(self.graph, table, experiment.inputs, generating=generation is not None)
        self.phases = [_Phase(self, later=False)] + ([_Phase(self, later=True)] if self.steps > 1 else [])
        self.passes = Counter(n for forward in self.plan.forwards for _, own in forward.actions for n in own)
        self.spent: dict[int, Price] = {}

    @property
    def tokens(self) -> int:
        """Tokens that the model computes, about; a row without tokens counts as one."""
        generation, invokes = self.experiment.generation, self.experiment.inputs.invokes
        prompts = sum(max(1, sum(map(len, own.ids))) for own in invokes)
        rows = sum(max(1, len(own.ids)) for own in invokes)
        beams = 1 if generation is None else generation.options.get("num_beams", 1)
        new = 0 if generation is None else rows * generation.max_new_tokens
        return len(self.plan.forwards) * beams * (prompts + new)

    def everything(self) -> list[int]:
        """Bill each node that runs; gives those that are left for the run."""
        self.bill.saves.append({})
        for n in sorted(self.plan.needed):
            self._bill(n)
            self._bill_saved(n)
        Held(self).check()
        return sorted({n for phase in self.phases for n in phase.late})

    def _bill(self, n: int) -> None:
        runs = self._runs(n)
        prices = [phase.price(n, count) for phase, count in zip(self.phases, runs, strict=False)]
        for price, count in zip(prices, runs, strict=False):
            self.bill.node(price, count * max(1, self.passes[n]) * self.times, self.graph.where(n))
        self.spent[n] = max(prices, key=lambda price: price.bytes)

    def _bill_saved(self, n: int) -> None:
        """What goes back for a node: a save, or the gradient of a captured tensor that trains."""
        node = self.graph.nodes[n]
        if node.kind != "save" and not (node.kind == "constant" and node.target):
            return
        single = self.plan.steps[n] is None or ("single", True) in node.kwargs
        counts = (1, 0) if single else self._runs(n)
        sizes = [_size_bytes(phase.values[n]) for phase in self.phases]
        own = sum(size * count for size, count in zip(sizes, counts, strict=False))
        self.bill.saved(own * self.times, self.graph.where(n))
        if node.kind == "save" and single:
            self.bill.saves[-1][node.target] = self.phases[0].values[n]

    def _runs(self, n: int) -> tuple[int, int]:
        """How often a node runs over the prompt, and in later steps, at most."""
        scope = self.plan.steps[n]
        if scope is None:
            return 1, 0
        start, end = scope[0], self.steps if scope[1] is None else min(scope[1], self.steps)
        return (1 if start == 0 else 0), max(0, end - max(1, start))

    def knows_width(self, path: str) -> bool:
        """Whether the scan found how wide the one tensor is that a module gives."""
        return path == "unembed" or self.table.widths.get(path, (0, 0))[1] > 0

    def sizes(self, invoke: int, steps: Steps | None, *, later: bool) -> dict[str, int | None]:
        """Sizes of the axes of a site at one of the two moments of a generation."""
        inputs = self.experiment.inputs
        own = inputs.invokes if invoke == ALL_ROWS else inputs.invokes[invoke : invoke + 1]
        longest = max((len(row) for rows in own for row in rows.ids), default=1)
        seq = longest if not self.table.encoder_decoder else max(map(_decoder_length, own), default=1)
        beyond = self.steps > 1 and ((later and steps != (0, 1)) or (steps is not None and steps[0] > 0))
        rows, context = sum(len(rows.ids) or 1 for rows in own), seq
        if beyond:  # of several steps the longest counts
            context += steps[0] if steps is not None and steps[1] == steps[0] + 1 else self.steps - 1
        return {"batch": rows, "seq": 1 if beyond else seq, "source": longest, "context": context}


def _decoder_length(rows: Any) -> int:
    given = getattr(rows.kwargs.get("decoder_input_ids"), "shape", None)
    return int(given[-1]) if given else 1


class _Phase:
    """The nodes of an experiment at one moment: over the prompt, or at a later step."""

    def __init__(self, walk: _Walk, *, later: bool) -> None:
        self.walk, self.later = walk, later
        graph = walk.graph
        constants = tuple(_Constant(meta_of(constant)) for constant in graph.constants)
        source = _Source(graph.nodes, tuple(map(graph.where, range(len(graph)))), constants, walk.table)
        self.shapes = Shapes(source, lambda invoke, steps: walk.sizes(invoke, steps, later=later), perform=self._call)
        self.values: dict[int, Any] = {}
        self.late: list[int] = []
        self._price = FREE

    def price(self, n: int, runs: int) -> Price:
        """The price of a node, whose inputs have been priced; its value is known from here on, or LATE."""
        node, self._price = self.walk.graph.nodes[n], FREE
        known = all(self.values[d] is not LATE for d in node.operands)
        sure = runs > 0 and not self.later and not node.when
        self.values[n] = self._looked_at(n, node, sure=sure) if known else LATE
        if self.values[n] is not LATE:
            self.shapes.given(n, self.values[n])
        elif runs and node.kind in ("call", "module", "update"):
            self.late.append(n)
        return self._price

    def _looked_at(self, n: int, node: Node, *, sure: bool) -> Any:
        """What `_value` gives, or its error with the line; one of a step or a branch that may never come waits."""
        line = f"\n  at {self.walk.graph.where(n)}"
        try:
            return self._value(n, node)
        except NeedsValues:
            return LATE
        except GlassworksError as error:
            raise type(error)(str(error) if line in str(error) else f"{error}{line}") from None
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            if not sure:
                return LATE
            error.add_note(line.removeprefix("\n"))
            raise

    def _value(self, n: int, node: Node) -> Any:
        match node.kind:
            case "read" if not self._knows_axes(node):
                return LATE
            case "input":
                return self._input(node)
            case "result":
                rows = self.walk.sizes(node.invoke, None, later=False)["batch"]
                return torch.empty(rows or 1, self.walk.steps, dtype=torch.int64, device="meta")
            case "module":
                return self._module(n, node)
            case "write" | "skip" | "save" | "state":
                return self.values[node.deps[0]]
            case "carry":
                return self.values[node.deps[1]]
            case "cond":
                return self._either(*node.operands[1:])
            case "carried" | "stop" | "log":
                return LATE
            case "backward":
                self._price = self._derivatives()
        value = self.shapes.settled(n)
        if node.kind in ("update", "grad", "grad_write", "constant"):
            self._price = Price(_elements(value), _size_bytes(value))
        return value

    def _either(self, a: int, b: int) -> Any:
        """What a condition gives, where both branches agree on its form. (A state may grow from step to step.)"""
        forms = [[(tensor.shape, tensor.dtype) for tensor in tensors_in(self.values[k])] for k in (a, b)]
        return self.values[a] if forms[0] == forms[1] else LATE

    def _knows_axes(self, node: Node) -> bool:
        sizes = self.walk.sizes(node.invoke, node.steps, later=self.later)
        labels = [
            part for axis in self.walk.table[node.target].axes if isinstance(axis, str) for part in axis.split("*")
        ]
        return all(label in sizes for label in labels)

    def _call(self, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._price, found = quote(self.walk.graph.nodes[n].target, args, kwargs)
        return found

    def _input(self, node: Node) -> Any:
        """What was given, or what an earlier experiment saves; what the author expects of it decides nothing."""
        experiment = self.walk.experiment
        if node.target in experiment.links:
            number, save = experiment.links[node.target]
            return self.walk.bill.saves[number].get(save, LATE)
        return meta_of(experiment.inputs.named[node.target])

    def _module(self, n: int, node: Node) -> Any:
        given = [tensor for d in node.operands for tensor in tensors_in(self.values[d])]
        self._price = module_price(self.walk.table, node.target, given)
        return self.shapes.settled(n) if self.walk.knows_width(node.target) else LATE

    def _derivatives(self) -> Price:
        """Twice the work of the nodes so far; the model's own is bounded by its rows and tokens."""
        return Price(2 * sum(price.flops for price in self.walk.spent.values()), 0)


def _elements(value: Any) -> int:
    return sum(tensor.numel() for tensor in tensors_in(value))


def _size_bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))


def module_price(table: SiteTable, path: str, given: Sequence[torch.Tensor]) -> Price:
    """A module of the model called on tensors: each weight meets each position, each position each other."""
    native = table.modules.get(path, path)
    inside = [
        shape
        for name, (_, shape) in table.parameters.items()
        if native in ("", "unembed") or name.startswith(f"{native}.")
    ]
    if path == "unembed":
        inside = [shape for shape in inside if len(shape) == 1 or table.vocab in shape]
    first = max(given, key=torch.Tensor.numel, default=torch.empty((), device="meta"))
    width = max([1, *[size for shape in inside for size in shape]])
    if table.kinds.get(native) == "Embedding":
        return Price(first.numel(), 4 * first.numel() * width)
    positions = first.numel() // max(1, *first.shape[-1:])
    seen = first.shape[-2] if first.ndim > 1 else 1
    weights = sum(math.prod(shape) for shape in inside)
    pairs = 4 * first.numel() * seen if len(inside) > 2 else 0
    return Price(2 * weights * positions + pairs, 4 * positions * width)


class Held:
    """What is in memory at once: a value from the moment it is computed until nothing needs it, a view with its base.

    In a generation nothing is let go before its end.
    """

    def __init__(self, walk: _Walk) -> None:
        self.walk, self.nodes = walk, walk.graph.nodes
        self.root: dict[int, int] = {}
        for n in sorted(walk.plan.needed):
            base = self.nodes[n].deps[0] if self.nodes[n].deps else n
            self.root[n] = n if walk.spent[n].bytes or base == n else self.root[base]

    def check(self) -> None:
        """LimitExceeded: names the node at which it is too much."""
        users: dict[int, int] = {}
        plan, allowed = self.walk.plan, self.walk.bill.limits.held_bytes
        order = [*plan.prelude, *[n for f in plan.forwards for _, members in f.actions for n in members]]
        for n in order:
            users[self.root[n]] = users.get(self.root[n], 0) + 1
        held = 0
        for n in order:
            held += self.walk.spent[n].bytes
            within("held_bytes", held, allowed, self.walk.graph.where(n))
            for released in plan.releases.get(n, ()):
                root = self.root[released]
                users[root] -= 1
                held -= self.walk.spent[root].bytes if users[root] == 0 else 0
