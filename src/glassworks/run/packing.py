"""The packed runtime: one forward pass for the tokens of many requests, over an unmodified model.

For the time of a step the model's configurations name our attention function, which hands each request's tokens to
`packed`. Called at any other time, or from another thread, it calls what was there before, so the user's module stays
the user's. Whether a model can be packed is not read off its name: a few random tokens are packed and compared with the
same tokens alone, and each attention must come by exactly once. A model that fails is refused with the reason.

Surprises this file settles:
- Families that ignore the registered function would run, and mix their rows in silence: the comparison sees them.
- Rotary embeddings that depend on the longest position of the batch agree on short texts: their kinds are refused.
- A model whose function is given something unknown (a bias, a mask of its own) is refused, since it would be ignored.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, RLock
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glassworks.errors import ModelError
from glassworks.graph.nodes import ALL_ROWS
from glassworks.graph.sites import ATTENTION_PORTS, SiteTable
from glassworks.memory.arena import Arena
from glassworks.memory.blocks import Geometry, LayerShape
from glassworks.memory.kv import KVStore, Table
from glassworks.model.record import record
from glassworks.model.runs import Run
from glassworks.run.eager import EagerRuntime, Watch
from glassworks.run.frame import Frame
from glassworks.run.interpret import Interpreter
from glassworks.run.modules import Stopped
from glassworks.run.packed import STEP, PackedStep, Span
from glassworks.run.registered import GIVEN, looking, named, register, window_differs, within
from glassworks.run.rows import Slot
from glassworks.run.unlike import unlike

_NAMINGS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_NAMINGS_LOCK = Lock()
_DYNAMIC = frozenset({"dynamic", "longrope"})
_KNOWN = frozenset({"full_attention", "sliding_attention"})
_BLOCK_TOKENS = 4
"""Of the store of the self-check: its prompts cross several blocks."""


@dataclass(slots=True)
class Part:
    """One request's share of a step.

    Attributes:
        ids: tokens to compute. table: where its keys and values are. interpreter: what looks on, if anything does.
        keep: for how many of its last tokens logits are wanted.
    """

    ids: Sequence[int]
    table: Table
    interpreter: Interpreter | None = None
    keep: int = 1


@dataclass(slots=True)
class Returned:
    """What a step gave.

    Attributes:
        logits: for each part `[keep, vocab]`; None if the pass ended before them.
        failures: part -> what its graph raised; the others are not touched by it.
    """

    logits: list[Tensor] | None
    failures: dict[int, Exception]


@dataclass(slots=True)
class Speaking:
    """Whose nodes execute at this moment of a shared pass, if anybody's: for another thread to read."""

    frame: Frame | None = None


class PackedRuntime:
    """Performs packed steps of one model.

    Attributes:
        speaking: whose nodes execute now. unlike: sites that a packed step does not show as a lone run does.

    Raises:
        ModelError: this model cannot be packed; the message says why.
    """

    def __init__(self, eager: EagerRuntime, table: SiteTable) -> None:
        self.eager, self.table = eager, table
        self.module = eager.module
        self._takes_logits = False
        self.speaking = Speaking()
        with _NAMINGS_LOCK:
            self._naming = _NAMINGS.setdefault(self.module, _Naming())
        self._configs = _configs(self.module)
        self._refuse_by_configuration()
        self._layers: dict[nn.Module, int] = {}
        self._windows: dict[nn.Module, int] = {}
        self.geometry = self._probed()
        self._check()
        self.unlike = self._unlike_alone()

    # What a model must be.

    def _refuse_by_configuration(self) -> None:
        import inspect

        takes = inspect.signature(self.module.forward).parameters
        if self.table.encoder_decoder or self.table.plain:
            raise ModelError("only decoders that read tokens are packed")
        if "position_ids" not in takes:
            raise ModelError("it takes no position_ids, so its rows could not be told apart")
        self._takes_logits = "logits_to_keep" in takes
        for config in self._configs:
            refuse_dynamic_rotary(config)
            if getattr(config, "attn_temperature_tuning", None):
                raise ModelError("its queries are scaled by their place in the batch")
            unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN)
            if unknown:
                raise ModelError(f"it has layers of kind {', '.join(unknown)}, whose state is not keys and values")

    def _probed(self) -> Geometry:
        """What attention is given, seen in one small run.

        Raises:
            ModelError: no attention came by, or it was given something unknown.
        """
        seen: list[tuple[nn.Module, LayerShape, torch.dtype]] = []

        def look(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **given: Any
        ) -> tuple[Tensor, None]:
            if window_differs(mask, given.get("sliding_window")):
                raise ModelError("its masks have another window than its attention function is told")
            if unknown := sorted(name for name, own in given.items() if name not in GIVEN and isinstance(own, Tensor)):
                raise ModelError(f"its attention is given {', '.join(unknown)}, which the packed one does not know")
            seen.append((module, LayerShape(key.shape[1], key.shape[-1], value.shape[-1]), key.dtype))
            return _of_the_shape(query, value), None

        try:
            with self._ours(), looking(look), torch.no_grad():
                self._forward([1, 2], [0, 1], None)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise ModelError(f"it does not run without a mask and a cache: {error}") from error
        if not seen:
            raise ModelError("its attention is not called through transformers' AttentionInterface")
        if len({module for module, _, _ in seen}) != len(seen) or len({dtype for _, _, dtype in seen}) > 1:
            raise ModelError("its attention modules are called more than once, or differ in their number format")
        self._layers = {module: k for k, (module, _, _) in enumerate(seen)}
        self._windows = _windows(self.module.config, self._layers)
        return Geometry(tuple(shape for _, shape, _ in seen), seen[0][2])

    def _check(self) -> None:
        """Compare packed rows, cut and continued, with the same rows alone.

        Raises:
            ModelError: they differ.
        """
        device = self.eager.device or torch.device("cpu")
        vocabulary = self.table.vocab or 3
        source = torch.Generator().manual_seed(0)
        lengths = (7, 2, 11)
        rows = [torch.randint(0, vocabulary, (n,), generator=source).tolist() for n in lengths]
        arena = Arena("self-check", self.geometry.token_bytes * _BLOCK_TOKENS * 16)
        store = KVStore(self.geometry, [arena], block_tokens=_BLOCK_TOKENS, device=device)
        tables = [store.open() for _ in rows]
        for cut in (slice(0, 1), slice(1, -1), slice(-1, None)):
            parts = []
            for row, table in zip(rows, tables, strict=True):
                if row[cut]:
                    store.grow(table, table.tokens + len(row[cut]))
                    parts.append(Part(row[cut], table))
            returned = self.step(parts, store)
        assert returned.logits is not None
        with torch.no_grad():
            alone = [self.module(torch.tensor([row], device=device), use_cache=False).logits[0, -1] for row in rows]
        for ours, theirs in zip(returned.logits, alone, strict=True):
            if (error := agree(ours[0], theirs)) is not None:
                raise ModelError(f"packed, its rows give other logits than alone (by {error:.1e})")

    def _unlike_alone(self) -> frozenset[str]:
        """Sites that are not there in a packed step, or have another shape."""

        def look(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
            return _of_the_shape(query, value), None

        tokens = [1, 2, 1]
        run = Run((), self._inputs(tokens, range(len(tokens))), {"batch": 1, "seq": len(tokens)})
        with self._ours(), looking(look):
            return unlike(self.table, record(self.module, run, self.table.within), run.sizes)

    # A step.

    def step(self, parts: Sequence[Part], store: KVStore) -> Returned:
        """One forward pass over the tokens of all parts; their tables must have grown to hold them.

        Every part's graph sees its own tokens, in the shapes of a lone run; what it raises ends that part alone.
        """
        order = sorted(range(len(parts)), key=lambda k: (len(parts[k].ids) > 1, len(parts[k].table.blocks)))
        spans, start = [], 0
        for k in order:
            part = parts[k]
            spans.append(Span(start, len(part.ids), part.table.tokens, part.table.blocks, part.interpreter))
            start += len(part.ids)
        step = PackedStep(spans, store.pool, self._layers, store.block_tokens, windows=self._windows)
        ids = [token for k in order for token in parts[k].ids]
        positions = [at for own in spans for at in range(own.past, own.context)]
        keeps = [parts[k].keep for k in order]
        kept = [at for own, keep in zip(spans, keeps, strict=True) for at in range(own.end - keep, own.end)]
        self._place(spans, keeps, start)
        looking = [own.interpreter for own in spans if own.interpreter is not None]
        # nobody looks on at a chunk of a prompt, whose keys and values are needed in every layer
        whole = any(part.keep or part.interpreter is None for part in parts)
        watch = RowsWatch(self.eager, looking, step, self.speaking, to_the_end=whole)
        with self._ours(), within(step), torch.no_grad():
            logits = self._watched(watch, ids, positions, kept)
        if logits is not None and step.calls != len(self._layers):
            raise ModelError(
                f"{step.calls} of {len(self._layers)} attentions came by: its layers are not what they were"
            )
        for own in spans:
            if own.interpreter is not None:
                own.interpreter.places = None
        for k in order:
            parts[k].table.tokens += len(parts[k].ids)
        failures = {k: error for k in order for look, error in watch.failures.items() if look is parts[k].interpreter}
        return Returned(None if logits is None else _divided(logits, order, keeps), failures)

    def _watched(self, watch: "RowsWatch", ids: Sequence[int], positions: Sequence[int], kept: Sequence[int]) -> Any:
        modules = self.eager.modules
        with suppress(Stopped), modules.watched(watch.visits, watch, attending=watch.inner.attending):
            return self._forward(ids, positions, kept)
        return None

    def _forward(self, ids: Sequence[int], positions: Sequence[int], kept: Sequence[int] | None) -> Tensor:
        """Logits of the tokens at `kept`, `[kept, vocab]`; None: of all."""
        given = self._inputs(ids, positions)
        every = kept is None or len(kept) == len(ids)
        at = None if every else torch.tensor(kept, dtype=torch.long, device=self.eager.device)
        if self._takes_logits and at is not None:
            given["logits_to_keep"] = at
        returned = self.module(**given)
        logits: Tensor = returned["logits"][0]
        return logits if at is None or self._takes_logits else logits.index_select(0, at)

    def _inputs(self, ids: Sequence[int], positions: Sequence[int]) -> dict[str, Any]:
        device = self.eager.device
        tokens, at = torch.tensor([ids], device=device), torch.tensor([list(positions)], device=device)
        return {"input_ids": tokens, "position_ids": at, "use_cache": False}

    def _place(self, spans: Sequence[Span], keeps: Sequence[int], total: int) -> None:
        """Tell each interpreter where its tokens are: among all, among those that have logits, and in attention."""
        ends = [self.table.sites[name].order for name in ("lm_head.input", "logits") if name in self.table.sites]
        cut = min(ends, default=len(self.table.events)) if self._takes_logits else len(self.table.events)
        first, kept = 0, sum(keeps)
        for own, keep in zip(spans, keeps, strict=True):
            if own.interpreter is not None:
                sizes = {"batch": 1, "context": own.context}
                among = _slots(own.start, own.count, own.context), {**sizes, "seq": total}
                head = _slots(first, keep, own.context), {**sizes, "seq": kept}
                alone = _slots(0, own.count, own.context, whole=True), {**sizes, "seq": own.count}
                own.interpreter.places = _Places(self.table, cut, among, head, alone)
            first += keep

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """Within the block the model's attention is ours."""
        register()
        with self._naming.ours(self._configs):
            yield


class _Naming:
    """Who has a model's configurations name our function: one thread at a time, since several engines may have one
    model; within one thread it nests."""

    def __init__(self) -> None:
        self._lock, self._depth = RLock(), 0

    @contextmanager
    def ours(self, configs: Sequence[Any]) -> Iterator[None]:
        """Within the block these configurations name our function."""
        with self._lock:
            self._depth += 1
            try:
                with named(configs if self._depth == 1 else ()):
                    yield
            finally:
                self._depth -= 1


Placed = tuple[Mapping[int, Slot], Mapping[str, int]]


class _Places:
    """Where one request's tokens are at each event."""

    __slots__ = ("_alone", "_among", "_cut", "_head", "_table")

    def __init__(self, table: SiteTable, cut: int, among: Placed, head: Placed, alone: Placed) -> None:
        self._table, self._cut, self._among, self._head, self._alone = table, cut, among, head, alone

    def __call__(self, order: int) -> Placed:
        if self._table.events[order].port in ATTENTION_PORTS:
            return self._alone
        return self._head if order >= self._cut else self._among


def _slots(first: int, count: int, context: int, *, whole: bool = False) -> dict[int, Slot]:
    width = {} if whole else {"seq": count}
    own = Slot(0, 1, width, {}, whole, {} if whole else {"seq": first})
    return {0: own, ALL_ROWS: own}


class RowsWatch(Watch):
    """A packed pass: each graph sees its own rows, and what one raises ends that one.

    Attributes:
        failures: interpreter -> what it raised.
    """

    def __init__(
        self, eager: EagerRuntime, interpreters: Sequence[Interpreter], step: PackedStep | None, speaking: Speaking, *,
        to_the_end: bool,
    ) -> None:  # fmt: skip
        super().__init__(eager.modules, interpreters)
        self._step, self._only, self._outputs, self._speaking = step, None, {}, speaking
        self.failures: dict[Interpreter, Exception] = {}
        self.spared = frozenset()
        if to_the_end:
            self.last = None

    def _tell(self, event: int, raw: Any, *, stop: bool = True) -> Any:
        speaking = None if self._step is None else self._step.speaking
        for own in self.interpreters if speaking is None else (speaking,):
            if event in own.actions and own not in self.failures:
                token = STEP.set(None)  # a graph may run the model: that is no part of this step
                self._speaking.frame, began_s = own.frame, perf_counter()
                try:
                    raw = own.at(event, raw)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
                    self.failures[own] = error
                finally:
                    own.frame.spent_s += perf_counter() - began_s
                    self._speaking.frame = None
                    STEP.reset(token)
        if event == self.last and stop:
            raise Stopped
        return raw


def agree(ours: Tensor, theirs: Tensor) -> float | None:
    """None if logits agree as far as their number format goes; else by how much they do not."""
    scale = float(theirs.double().abs().max()) or 1.0
    error = float((ours.double() - theirs.double()).abs().max())
    return None if error <= max(1e-4, 16 * torch.finfo(theirs.dtype).eps) * scale else error


def refuse_dynamic_rotary(config: Any) -> None:
    """ModelError: what a rotary embedding gives a row depends on the longest in the batch."""
    if rotary := sorted(_rotary_kinds(config) & _DYNAMIC):
        raise ModelError(f"its rotary embedding ({', '.join(rotary)}) depends on the longest row of a batch")


def _divided(logits: Tensor, order: Sequence[int], keeps: Sequence[int]) -> list[Tensor]:
    pieces = dict(zip(order, torch.split(logits, list(keeps)), strict=True))
    return [pieces[k] for k in range(len(order))]


def _configs(module: nn.Module) -> list[Any]:
    """The configurations that a model's modules read, each once."""
    found = {
        id(own): own for m in module.modules() if hasattr(own := getattr(m, "config", None), "_attn_implementation")
    }
    return list(found.values())


def _of_the_shape(query: Tensor, value: Tensor) -> Tensor:
    """Something of the shape of what attention gives."""
    wide = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return wide.transpose(1, 2).contiguous()


def _windows(config: Any, layers: Iterable[nn.Module]) -> dict[nn.Module, int]:
    """Of attention modules for which transformers' own cache keeps no more than a window: how wide that is."""
    from transformers import DynamicCache

    kept = DynamicCache(config=config).layers
    widths = {k: layer.sliding_window for k, layer in enumerate(kept) if getattr(layer, "is_sliding", False)}
    return {module: widths[k] for module in layers if (k := getattr(module, "layer_idx", -1)) in widths}


def _rotary_kinds(config: Any) -> set[str]:
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [given, *[own for own in given.values() if isinstance(own, Mapping)]]
    return {str(own.get("rope_type", own.get("type", ""))) for own in each}
