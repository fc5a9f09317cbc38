"""How a saved value is cut into rows of real tokens, and how rows of several passes become one value again.

A save of one pass is a `Part`: of each entry (one, or one a step) a tensor a row without padding, or a sum with its
count, or the value as it is. Knows nothing of who runs the passes or where parts are kept.

Surprises: `h[:, 1:]` and `h[:, :-1]` are token axes too, shorter by one, and padding at the left is taken off both in
the same way; a row that has ended has no piece, so that it neither counts in a mean nor depends on who ended later.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import torch

from glassworks.errors import GraphError
from glassworks.graph.sites import FOLDED

_T = TypeVar("_T")


class Tokens(NamedTuple):
    """An axis with a place for each token of `stream` (`seq` or `source`), less the first or last `short`."""

    stream: str
    short: int


Label = int | str | Tokens | None
"""A constant size, `batch`, a folded axis, tokens, `?` for what depends on sizes otherwise, None: differs by step."""

Ids = Sequence[tuple[int, ...]]
Alive = Sequence[Sequence[bool]]

Passes = Sequence[Sequence[int]]
"""The numbers of the rows of each pass."""


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over rows (and tokens) in a wide format, and over how many places."""

    sum: torch.Tensor
    count: int
    dtype: torch.dtype

    def __add__(self, other: "Total") -> "Total":
        return Total(self.sum + other.sum, self.count + other.count, self.dtype)

    def result(self, reduce: str) -> torch.Tensor:
        """In the format of the value; means of whole numbers are float64, their sums int64."""
        if reduce == "mean":
            wide = self.sum if _has_fractions(self.sum.dtype) else self.sum.double()
            return (wide / self.count).to(self.dtype if _has_fractions(self.dtype) else torch.float64)
        return self.sum.to(self.dtype) if _has_fractions(self.dtype) else self.sum


@dataclass(frozen=True, slots=True)
class Whole:
    """A value that has no rows."""

    value: torch.Tensor


Pieces = list[torch.Tensor | None]
Item = Pieces | Total | Whole


@dataclass(frozen=True, slots=True)
class Part:
    """What one pass gave for one save. `listed`: an entry a step."""

    listed: bool
    items: tuple[Item, ...]


NEVER = Part(False, ())
"""Of a save whose steps never came, or whose branch was not taken."""

NOT_TAKEN = object()
"""In the place of a value whose branch no pass has taken."""


_FIELDS = ("labels", "tokens", "reduce", "start", "is_result", "is_branch")


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of one save before it runs.

    Attributes:
        labels: of its axes, or None where they are not known. tokens: the stream that the prompts' tokens are.
        reduce: `"mean"`, `"sum"` or None. start: the generation step of its first entry; None: of no generation.
        is_result: whether it is the new tokens themselves. is_branch: whether a pass may not take it.
    """

    name: str
    labels: tuple[Label, ...] | None
    tokens: str
    reduce: str | None
    start: int | None
    is_result: bool
    is_branch: bool

    @property
    def axis(self) -> int | None:
        """The axis of rows, or of rows and tokens folded."""
        axes = [k for k, label in enumerate(self.labels or ()) if label == "batch" or label in FOLDED]
        return axes[0] if axes else None

    @property
    def is_folded(self) -> bool:
        return self.labels is not None and self.axis is not None and self.labels[self.axis] != "batch"

    def token_axis(self, k: int) -> int | None:
        """Of entry `k`, the one axis of a row's own tokens; None where there is none, or several."""
        reads_prompt = not self.start and (k == 0 or self.start is None)
        if self.is_result or (self.is_folded and reads_prompt):
            return 0 if self.is_result else self.axis
        others = [label for label in self.labels or () if label != "batch"]
        axes = [n for n, label in enumerate(others) if self._has_padding(label, reads_prompt)]
        return axes[0] if len(axes) == 1 else None

    def _has_padding(self, label: Label, reads_prompt: bool) -> bool:
        """Whether places of an axis are padding where rows differ in length. What attention reads always has it."""
        if not isinstance(label, Tokens):
            return False
        if label.stream == "context":
            return self.tokens == "seq"
        return reads_prompt and label.stream == self.tokens

    def to_json(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_json(cls, name: str, value: dict[str, Any]) -> "Form":
        """The inverse of `to_json`."""
        labels = value["labels"]
        if labels is not None:
            labels = tuple(Tokens(*label) if isinstance(label, list) else label for label in labels)
        return cls(name, labels, *[value[field] for field in _FIELDS[1:]])

    # A pass, cut.

    def cut(self, value: Any, chunk: Ids, alive: Alive) -> Part:
        """The part of one pass: `value` as the backend gave it, or None where its steps never came."""
        if value is None:
            return NEVER
        items = value if isinstance(value, list) else [value]
        return Part(isinstance(value, list), tuple(self._item(item, chunk, k, alive) for k, item in enumerate(items)))

    def _item(self, value: torch.Tensor, chunk: Ids, k: int, alive: Alive) -> Item:
        if self.axis is None:
            return Whole(value)
        step = None if self.start is None else self.start + k
        pieces: Pieces = list(self._pieces(value, chunk, alive, reads_prompt=not step))
        if step is not None and alive and not self.is_result:
            live = alive[min(step, len(alive) - 1)]
            pieces = [piece if lives else None for piece, lives in zip(pieces, live, strict=True)]
        return pieces if self.reduce is None else self._total(pieces)

    def _pieces(self, value: torch.Tensor, chunk: Ids, alive: Alive, *, reads_prompt: bool) -> list[torch.Tensor]:
        axis, labels = self.axis, self.labels
        assert axis is not None
        assert labels is not None
        longest = max(len(ids) for ids in chunk)
        if self.is_folded:
            value = value.reshape(*value.shape[:axis], len(chunk), -1, *value.shape[axis + 1 :])
            labels = (*labels[: axis + 1], Tokens(FOLDED[str(labels[axis])][1], 0), *labels[axis + 1 :])
        others = [label for k, label in enumerate(labels) if k != axis]
        found = []
        for row, ids in enumerate(chunk):
            piece = value.select(axis, row)
            for dim, label in enumerate(others):
                if self._has_padding(label, reads_prompt):
                    padding = min(longest - len(ids), piece.shape[dim])
                    piece = piece.narrow(dim, padding, piece.shape[dim] - padding)
            if self.is_result and alive:
                piece = piece[: sum(live[row] for live in alive)]
            found.append(piece)
        return found

    def _total(self, pieces: Pieces) -> Total:
        """The sum over rows, and over tokens where the value has them."""
        assert self.labels is not None
        others = [label for label in self.labels if label != "batch"]
        axes = [k for k, label in enumerate(others) if isinstance(label, Tokens) or label in FOLDED]
        live = [piece for piece in pieces if piece is not None]
        wide = [_wide(piece) for piece in live]
        sums = [piece.sum(dim=axes) if axes else piece for piece in wide]
        count = sum(math.prod(piece.shape[k] for k in axes) for piece in live)
        return Total(torch.stack(sums).sum(dim=0), count, live[0].dtype)

    # Passes, joined.

    def gather(self, parts: list[Part], part: Part) -> None:
        """Add a pass's part to those so far; of a reduction only the sum is kept."""
        if self.reduce is None or not parts:
            parts.append(part)
        else:
            parts[0] = _added(parts[0], part)

    def join(self, parts: Sequence[Part], rows: Passes) -> Any:
        """The value over all passes, which held `rows`, in the order of the rows; ragged rows are a list."""
        entries = max((len(part.items) for part in parts), default=0)
        if self.is_branch and not entries:
            return NOT_TAKEN
        listed = any(part.listed for part in parts)
        found = [self._joined([_entry(part, k) for part in parts], rows, listed=listed) for k in range(entries)]
        return found if listed or not found else found[0]

    def _joined(self, items: Sequence[Item | None], rows: Passes, *, listed: bool) -> Any:
        """One entry. Rows that had ended by then hold zeros, those that did not take a branch None."""
        first = next(item for item in items if item is not None)
        if isinstance(first, Whole):
            if sum(item is not None for item in items) > 1:
                raise GraphError(f"the save {self.name!r} has no axis of rows that several passes could be joined over")
            return first.value
        if isinstance(first, Total):
            assert self.reduce is not None
            return reduce(Total.__add__, [item for item in items if isinstance(item, Total)]).result(self.reduce)
        pieces: Pieces = []
        for item, numbers in zip(items, rows, strict=True):
            pieces += item if isinstance(item, list) else [None] * len(numbers)
        pieces = in_order(pieces, rows)
        if self.is_branch and any(item is None for item in items) and not listed:
            return [piece if piece is None else piece.clone() for piece in pieces]
        like = next(piece for piece in pieces if piece is not None)
        full = [torch.zeros_like(like) if piece is None else piece for piece in pieces]
        if len({piece.shape for piece in full}) > 1:
            return [piece.clone() for piece in full]
        assert self.axis is not None
        whole = torch.stack(full, dim=self.axis)
        return whole.flatten(self.axis, self.axis + 1) if self.is_folded else whole


def in_order(each: Sequence[_T], rows: Passes) -> list[_T]:
    """What there is of each row, pass by pass, in the order of the rows."""
    numbers = [number for own in rows for number in own]
    return [one for _, one in sorted(zip(numbers, each, strict=True), key=lambda pair: pair[0])]


def together(alive: Sequence[Alive]) -> Alive:
    """Which rows were live at each step, of the rows of several passes or invokes together."""
    steps = max((len(own) for own in alive), default=0)
    never = [[False] * len(own[0]) if own else [] for own in alive]
    at = [[own[step] if step < len(own) else never[k] for k, own in enumerate(alive)] for step in range(steps)]
    return [[live for rows in own for live in rows] for own in at]


def alive_in_order(alive: Sequence[Alive], rows: Passes) -> Alive:
    """`together`, in the order of the rows."""
    return [in_order(step, rows) for step in together(alive)]


def _entry(part: Part, k: int) -> Item | None:
    return part.items[k] if k < len(part.items) else None


def _added(first: Part, second: Part) -> Part:
    """The sums of two parts, entry by entry; one of them may have more."""
    both = zip_longest(first.items, second.items)
    items = [a + b if isinstance(a, Total) and isinstance(b, Total) else a or b for a, b in both]
    return Part(first.listed or second.listed, tuple(items))  # type: ignore[arg-type]


def _has_fractions(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _wide(value: torch.Tensor) -> torch.Tensor:
    """In a format that sums of many lose nothing in."""
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value.long()
