"""The parts of a transformer, found in its native sites: stacks of layers, and what each layer is made of.

What is found here are candidates. A layer's attention is often several modules inside each other, of which
one returns what the layer adds to the residual, another that sum; and a norm may stand between a module and
the addition. Which candidate is right is decided by numbers, in `identity`.

By structure: a layer is an entry of a `ModuleList` that maps a residual stream `[batch, tokens, d]` to
another; an MLP is what else in a layer maps the stream to itself with two or more weight matrices; without
such a module, it is the span from the first linear module outside attention to the last. By name: whether a
module is attention, a norm, or, in a layer with several mappings or no attention, an MLP.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from glassworks.graph.sites import FOLDED, Axis, Site, SiteTable

_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_NOT_ATTENTION = re.compile(r"norm|dropout|embedding|mask|softmax", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|dense", re.IGNORECASE)
_NORM = re.compile(r"norm|ln_?f|^ln", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """One call of a module: the orders of its input and its output event."""

    path: str
    call: int
    start: int
    end: int


@dataclass(frozen=True)
class Candidate:
    """A module that may be a sublayer, what it reads, and what the layer may add to the residual."""

    path: str
    input: Site | None
    output: Site


@dataclass(frozen=True)
class Block:
    """One layer: what enters it, what leaves it, and candidates for each of its sublayers by role.

    `others` are candidates for what the layer adds besides: a state-space mixer, for one.
    """

    span: Span
    input: Site
    output: Site
    roles: dict[str, tuple[Candidate, ...]] = field(default_factory=dict)
    others: tuple[tuple[Candidate, ...], ...] = ()


@dataclass(frozen=True)
class Stack:
    """The layers of a model, or of its encoder or decoder."""

    path: str
    tokens: Axis
    width: Axis
    blocks: tuple[Block, ...]


class Passage:
    """A forward pass as nested spans, over the native sites of a table."""

    def __init__(self, module: nn.Module, table: SiteTable) -> None:
        self.table = table
        self.modules = dict(module.named_modules())
        self.spans = self._spans()
        self.leaves: dict[int, dict[tuple[int | str, ...], Site]] = {}
        for site in table.sites.values():
            self.leaves.setdefault(site.order, {}).setdefault(site.item, site)

    def _spans(self) -> list[Span]:
        orders = self.table.by_event
        starts = [(event, order) for order, event in enumerate(self.table.events) if event.port == "input"]
        return [Span(e.path, e.call, order, orders[e.path, "output", e.call]) for e, order in starts]

    def inside(self, span: Span) -> list[Span]:
        return [other for other in self.spans if span.start < other.start and other.end < span.end]

    def stream(self, order: int, tokens: Axis, width: Axis | None = None) -> Site | None:
        """The first tensor at the event that is a residual stream, shown as [batch, tokens, d].

        `tokens`: the label of the second axis, or their number where it is always the same.
        """
        for site in sorted(self.leaves.get(order, {}).values(), key=lambda s: s.item != () and s.item[0] == 1):
            *rows, last = site.axes or ("",)
            if not isinstance(last, int) or width not in (None, last):
                continue
            if rows == ["batch", tokens]:
                return site
            if len(rows) == 1 and FOLDED.get(str(rows[0])) == ("batch", tokens):
                return replace(site, axes=("batch", tokens, last), unfold=True)
        return None

    def is_attention(self, span: Span) -> bool:
        kind, name = self.table.kinds[span.path], span.path.rpartition(".")[2]
        named = _ATTENTION.search(kind) or _ATTENTION.search(name)
        return bool(named) and not _NOT_ATTENTION.search(kind) and self.matrices(span) > 0

    def is_norm(self, span: Span) -> bool:
        kind, name = self.table.kinds[span.path], span.path.rpartition(".")[2]
        return bool(_NORM.search(kind) or _NORM.search(name)) and self.matrices(span) == 0

    def matrices(self, span: Span) -> int:
        return sum(parameter.ndim >= 2 for parameter in self.modules[span.path].parameters())


def find_stacks(passage: Passage, *, encoder_decoder: bool) -> dict[str, Stack]:
    """The stacks of layers that are found, by name: `""`, or `encoder` and `decoder`."""
    if not any("seq" in site.axes for site in passage.table.sites.values()):
        fixed = [stack for tokens in _counts(passage) for stack in _all_stacks(passage, (tokens,))]
        return {"": max(fixed, key=lambda stack: len(stack.blocks))} if fixed else {}
    found = sorted(_all_stacks(passage), key=lambda stack: len(stack.path))
    outer = [s for i, s in enumerate(found) if not any(s.path.startswith(f"{o.path}.") for o in found[:i])]
    wanted = {"encoder": "source", "decoder": "seq"} if encoder_decoder else {"": "seq"}
    best = {}
    for name, tokens in wanted.items():
        stacks = [stack for stack in outer if stack.tokens == tokens]
        if stacks:
            best[name] = max(stacks, key=lambda stack: (_has_attention(passage, stack), len(stack.blocks)))
    return best


def _counts(passage: Passage) -> set[Axis]:
    """Numbers of tokens that a model which always has the same may have: sizes of the middle one of three axes."""
    return {site.axes[1] for site in passage.table.sites.values() if len(site.axes) == 3 and site.axes[0] == "batch"}


def _has_attention(passage: Passage, stack: Stack) -> bool:
    return any(passage.is_attention(span) for block in stack.blocks for span in passage.inside(block.span))


def _all_stacks(passage: Passage, labels: Sequence[Axis] = ("seq", "source")) -> Iterator[Stack]:
    for path, module in passage.modules.items():
        if not isinstance(module, nn.ModuleList) or not all(any(entry.children()) for entry in module):
            continue
        entries = {f"{path}.{name}" if path else name for name, _ in module.named_children()}
        spans = [span for span in passage.spans if span.path in entries]
        if not entries or {span.path for span in spans} != entries:
            continue
        for tokens in labels:
            blocks = [_block(passage, span, tokens) for span in spans]
            real = tuple(block for block in blocks if block is not None)
            if real and len(real) == len(blocks):
                yield Stack(path, tokens, real[0].output.axes[-1], real)


def _block(passage: Passage, span: Span, tokens: Axis) -> Block | None:
    output = passage.stream(span.end, tokens)
    into = output and passage.stream(span.start, tokens, output.axes[-1])
    return Block(span, into, output) if into and output and not (into.unfold or output.unfold) else None


def with_sublayers(passage: Passage, stack: Stack) -> Stack:
    """The stack with candidates for what is in each layer."""
    return replace(stack, blocks=tuple(_with_roles(passage, stack, block) for block in stack.blocks))


def _with_roles(passage: Passage, stack: Stack, block: Block) -> Block:
    inner = passage.inside(block.span)
    attention = _outermost([span for span in inner if passage.is_attention(span)])
    rest = [span for span in inner if not any(_overlap(span, other) for other in attention)]
    mappings = [span for span in rest if passage.matrices(span) >= 2 and _maps_stream(passage, stack, span)]
    crossing = [span for span in attention if stack.tokens == "seq" and _reads_source(passage, span)]
    plain = [span for span in attention if span not in crossing]
    mlps, others = _split(passage, _outermost(mappings), bool(attention))
    tops = {"attn": plain[:1], "cross_attn": crossing[:1], "mlp": mlps[:1]}
    starts = sorted(span.start for span in (*attention, *_outermost(mappings)))
    roles = {role: _candidates(passage, stack, block, top[0], starts) for role, top in tops.items() if top}
    if "mlp" not in roles and (attention or not others):
        roles["mlp"] = _linear_pair(passage, stack, block, rest)
    extra = tuple(_candidates(passage, stack, block, span, starts) for span in (*plain[1:], *mlps[1:], *others))
    return replace(block, roles={role: found for role, found in roles.items() if found}, others=extra)


def _split(passage: Passage, tops: list[Span], has_attention: bool) -> tuple[list[Span], list[Span]]:
    """MLPs, and what is none. Without attention in the layer a mixer looks like an MLP: names decide."""
    named = [s for s in tops if _MLP.search(passage.table.kinds[s.path]) or _MLP.search(s.path.rpartition(".")[2])]
    mlps = named if named or not has_attention else tops
    return mlps, [span for span in tops if span not in mlps]


def _outermost(spans: Sequence[Span]) -> list[Span]:
    return [s for s in spans if not any(o.start < s.start and s.end < o.end for o in spans)]


def _overlap(one: Span, other: Span) -> bool:
    return one.start <= other.end and other.start <= one.end


def _maps_stream(passage: Passage, stack: Stack, span: Span) -> bool:
    ends = (passage.stream(order, stack.tokens, stack.width) for order in (span.start, span.end))
    return all(end is not None for end in ends)


def _reads_source(passage: Passage, span: Span) -> bool:
    return any("source" in site.axes for site in passage.leaves.get(span.start, {}).values())


def _candidates(
    passage: Passage, stack: Stack, block: Block, top: Span, starts: Sequence[int]
) -> tuple[Candidate, ...]:
    """The module, then those inside it that return a stream, then what follows before the next sublayer.

    What reads and what writes may be two modules: a single projection inside a module reads for itself only.
    """
    until = min((start for start in starts if start > top.end), default=block.span.end)
    after = [span for span in passage.spans if top.end < span.end < until]
    found = []
    for span in (top, *passage.inside(top), *after):
        output = passage.stream(span.end, stack.tokens, stack.width)
        whole = passage.matrices(span) >= 2 and span not in after and _maps_stream(passage, stack, span)
        reads = span if whole else top
        if output is not None:
            found.append(Candidate(reads.path, passage.stream(reads.start, stack.tokens), output))
    return tuple(found)


def _linear_pair(passage: Passage, stack: Stack, block: Block, rest: Sequence[Span]) -> tuple[Candidate, ...]:
    """A layer without an MLP module: from its first linear module to its last."""
    linears = [s for s in rest if passage.matrices(s) == 1 and not any(passage.modules[s.path].children())]
    if len(linears) < 2:
        return ()
    into = passage.stream(linears[0].start, stack.tokens, stack.width)
    after = [span for span in rest if span.end > linears[-1].end]
    ends = [passage.stream(span.end, stack.tokens, stack.width) for span in (linears[-1], *after)]
    return tuple(Candidate(block.span.path, into, end) for end in ends if into is not None and end is not None)


def find_embedding(passage: Passage, stack: Stack, vocab: int, *, preferred: str | None, since: int) -> Span | None:
    """The call that turns token ids into vectors, before the stack's first layer."""
    end = stack.blocks[0].span.start
    spans = [span for span in passage.spans if since <= span.start and span.end < end]
    spans = [span for span in spans if passage.stream(span.end, stack.tokens) is not None]
    named = [span for span in spans if span.path == preferred]
    tables = [s for s in spans if isinstance(m := passage.modules[s.path], nn.Embedding) and m.num_embeddings >= vocab]
    return next(iter(named or tables), None)


def find_norm(passage: Passage, stack: Stack) -> Span | None:
    """The norm of what the last layer returns: beside the stack or what holds it, before any projection."""
    after = [span for span in passage.spans if span.start > stack.blocks[-1].span.end]
    for span in after:
        beside = stack.path.startswith(span.path.rpartition(".")[0])
        if beside and passage.is_norm(span):
            reads, writes = (passage.stream(order, stack.tokens, stack.width) for order in (span.start, span.end))
            return span if reads is not None and writes is not None else None
        if passage.matrices(span) > 0:
            return None
    return None
