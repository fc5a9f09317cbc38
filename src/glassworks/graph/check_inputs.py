"""What a stranger's experiments may run on: rows, tokens, keywords of the model, and how to generate.

Surprises:
- Keywords go to the model's own forward, so at a model of tokens they are a list of permitted names, and their tensors
  are bounded as prompts are: some take memory, some change what the model returns, some are prompts themselves.
- Generation options are a list of permitted names: among transformers' own are some that run code from a repository.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from glassworks.errors import InputError, UnknownSite
from glassworks.graph.backend import Generation, Inputs, Rows
from glassworks.graph.limits import Limits, check_text, within
from glassworks.graph.options import beams_of, check_options
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import Blob

BEAMS = 16
"""How many beams a row may have."""
LOOKED_INTO = 16
"""How many modules one request may look into."""
ROW_KEYWORDS = frozenset(["attention_mask", "position_ids", "token_type_ids"])
"""Keywords with a number for each token of the prompts."""
DECODER_KEYWORDS = frozenset(["decoder_input_ids", "decoder_attention_mask"])
"""Keywords with a number for each token of prompts of their own."""


def check_inputs(inputs: Inputs, table: SiteTable, limits: Limits) -> None:
    """Refuse prompts and arguments that are over a limit or cannot be.

    Raises:
        LimitExceeded: names the limit and both figures.
        InputError: names the invoke and the row, or the keyword.
    """
    tokens = 0
    for k, rows in enumerate(inputs.invokes):
        _check_rows(rows, table, limits, f"invoke {k}")
        tokens += sum(map(len, rows.ids)) + _check_keywords(rows, table, limits, f"invoke {k}")
    within("rows", sum(row_counts(inputs)), limits.rows, "send fewer prompts at once")
    within("tokens", tokens, limits.tokens, "send fewer or shorter prompts at once")


def row_counts(inputs: Inputs) -> tuple[int, ...]:
    """Rows of each invoke; an invoke without token ids counts as one."""
    return tuple(max(1, len(rows.ids)) for rows in inputs.invokes)


def _check_rows(rows: Rows, table: SiteTable, limits: Limits, where: str) -> None:
    if not (rows.ids or ((rows.args or rows.kwargs) and (table.plain or not table.vocab))):
        raise InputError(f"{where} has no rows: give at least one prompt")
    for r, row in enumerate(rows.ids):
        if not row:
            raise InputError(f"{where}: row {r} has no tokens: give at least one")
        within(f"tokens_per_row ({where}, row {r})", len(row), limits.tokens_per_row, "shorten the prompt")
        _check_tokens(row, table, f"{where}, row {r}")
        if table.positions and len(row) > table.positions:
            raise InputError(f"{where}, row {r}: {len(row)} tokens; this model has {table.positions} positions")
    for name in rows.kwargs:
        if (why := table.why_not_argument(name)) is not None:
            raise InputError(f"{where}: {why}")
    for text in (leaf for leaf in leaves([rows.args, dict(rows.kwargs)]) if isinstance(leaf, str)):
        check_text(text, where)


def _check_tokens(row: Sequence[int], table: SiteTable, where: str) -> None:
    if table.vocab and row and (min(row) < 0 or max(row) >= table.vocab):
        wrong = next(token for token in row if not 0 <= token < table.vocab)
        raise InputError(f"{where}: token {wrong} is not in 0..{table.vocab - 1}, this model's vocabulary")


def _check_keywords(rows: Rows, table: SiteTable, limits: Limits, where: str) -> int:
    """What goes to a model of tokens beside them; gives how many tokens that is."""
    if table.plain or not table.vocab:
        return 0
    if rows.args:
        raise InputError(f"{where}: a model of tokens takes no arguments without names, got {len(rows.args)}")
    tokens = 0
    for name, value in rows.kwargs.items():
        own = f"{where}: the keyword {name[:40]!r}"
        if name not in ROW_KEYWORDS | DECODER_KEYWORDS:
            known = ", ".join(sorted(ROW_KEYWORDS | DECODER_KEYWORDS))
            raise InputError(f"{own} is not permitted at a service; known: {known}")
        if not isinstance(value, Blob) or value.dtype not in ("int64", "bool") or len(value.shape) != 2:
            raise InputError(f"{own} must be a tensor of int64, or of bool, [rows, tokens]")
        count, longest = len(rows.ids), max(map(len, rows.ids))
        if value.shape[0] not in (1, count) or (name in ROW_KEYWORDS and value.shape[1] != longest):
            given = list(value.shape)
            raise InputError(f"{own} is {given}; the prompts are {count} rows of at most {longest} tokens")
        within(f"tokens_per_row ({own})", value.shape[1], limits.tokens_per_row, "shorten it")
        _check_numbers(name, value, table, limits, own)
        tokens += value.shape[0] * value.shape[1] if name in DECODER_KEYWORDS else 0
    return tokens


def _check_numbers(name: str, value: Blob, table: SiteTable, limits: Limits, where: str) -> None:
    """Numbers that a model looks up are where it has something: on an accelerator a miss ends everybody's process."""
    numbers = memoryview(value.data).cast("B").cast("q" if value.dtype == "int64" else "B")
    if not value.shape[1]:
        raise InputError(f"{where} has no tokens")
    if name == "decoder_input_ids":
        _check_tokens(numbers, table, where)
    elif min(numbers) < 0 or max(numbers) >= limits.tokens_per_row:
        raise InputError(f"{where} must hold numbers from 0 to {limits.tokens_per_row - 1}")


def check_generation(generation: Generation, limits: Limits) -> None:
    """Refuse options that are not permitted, and more new tokens than are allowed."""
    within("max_new_tokens", generation.max_new_tokens, limits.max_new_tokens, "generate in several requests")
    check_options(generation.options)
    within("num_beams", beams_of(generation.options), BEAMS, "search with fewer beams")


def leaves(value: Any) -> Iterator[Any]:
    """What stands at the ends of a structure."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def check_within(paths: Collection[str], table: SiteTable) -> None:
    """Refuse to look into what is no module, or into too many at once.

    Raises:
        LimitExceeded: names both figures. UnknownSite: names the path.
    """
    within("modules whose operations are sites", len(paths), LOOKED_INTO, "ask in several requests")
    for path in sorted(paths):
        if path not in table.kinds:
            raise UnknownSite(f"{table.family} has no module {path[:200]!r} whose operations could be sites")
