"""The check of a request for text, with the model's tokenizer and site table, and without weights.

Its prompts become token ids by the code that a local model has for it; its graph, if it has one, is checked and priced
as an experiment's is, once for each length of prompt, and counted for every choice.

Surprises:
- The graph has one invoke, sees one row, and has no named inputs: a tensor that it needs is captured in it. What it
  saves is no part of the answer.
- A prompt and its new tokens must fit into the model's positions; a chat that does not say how many it wants gets what
  fits.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from glassworks.errors import GlassworksError, InputError, ModelError
from glassworks.graph.backend import Experiment, Generation, Inputs, Rows
from glassworks.graph.check import check_request
from glassworks.graph.check_inputs import check_inputs
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits, within
from glassworks.graph.messages import Request
from glassworks.graph.sites import SiteTable
from glassworks.serve.openai import Asked
from glassworks.serve.openai_fields import Unfit
from glassworks.serve.openai_prompts import Prompt
from glassworks.serve.quote import quote_request
from glassworks.trace.prompts import Text, rows_of
from glassworks.trace.results import with_results

Row = tuple[int, ...]


def completion_verdict(
    asked: Asked, table: SiteTable, text: Text | None, limits: Limits, table_of: Callable[[Experiment], SiteTable]
) -> dict[str, Any]:
    """What the model is to do, as JSON values.

    A quote's own, `late` for each prompt, and: `prompts` (ids), each with `n` choices; `max_new_tokens`, `options`,
    `stop` and `logprobs` as a `gw.Request` has them; `seed` if one was asked for (see `openai.seeds_of`); whether the
    body has a `graph`; and the `form` of the answer.

    Args:
        text: the model's tokenizer.
        table_of: as for `check_request`.

    Raises:
        GlassworksError: with the field as its `param`.
        Exception: what torch raises at the shapes of a node, with its line, and `param`.
    """
    form = asked.form
    if text is None or table.plain or not table.vocab:
        raise Unfit(f"the model {form.model[:200]!r} has no tokenizer: it completes no text", param="model")
    with concerning("n"):
        within("rows", len(asked.prompts) * form.n, limits.rows, "ask for fewer choices or prompts at once")
    rows = [_row(asked, prompt, text) for prompt in asked.prompts]
    new = _new_tokens(asked, rows, table, limits)
    with concerning(asked.prompt_name):
        for row in rows:
            check_inputs(_inputs(row), table, limits)
        within("tokens", form.n * sum(map(len, rows)), limits.tokens, "send fewer or shorter prompts at once")
    own = {
        "tensors": [], "prompts": rows, "n": form.n, "max_new_tokens": new, "options": asked.options,
        "stop": list(form.stop), "logprobs": asked.logprobs, "seed": asked.seed, "graph": asked.graph is not None,
        "form": asdict(form),
    }  # fmt: skip
    with concerning("graph"):
        return {**_priced(asked, rows, new, table, limits, table_of), **own}


def unknown_model(name: str, known: Sequence[str]) -> ModelError:
    """The refusal of a model that is not here."""
    error = ModelError(f"this service has no model {name[:200]!r}; it has: {', '.join(known)}")
    error.param, error.code = "model", "model_not_found"  # type: ignore[attr-defined]
    return error


@contextmanager
def concerning(param: str) -> Iterator[None]:
    """What is raised inside says which field it is about, unless it does."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "param"):
            error.param = param  # type: ignore[attr-defined]
        raise


# Prompts.


def _row(asked: Asked, prompt: Prompt, text: Text) -> Row:
    with concerning(asked.prompt_name):
        if not asked.form.chat:
            return rows_of(prompt, text)[0]
        try:
            return rows_of(prompt, text)[0]
        except (GlassworksError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - a chat template refuses messages in its own words
            raise InputError(f"the chat template of this model does not take these messages: {error}") from None


def _inputs(row: Row) -> Inputs:
    return Inputs((Rows((row,)),))


def _new_tokens(asked: Asked, rows: Sequence[Row], table: SiteTable, limits: Limits) -> int:
    """How many new tokens each choice may have."""
    longest = 1 if table.encoder_decoder else max(map(len, rows))
    room = table.positions + 1 - longest  # the last token is made and not read
    if asked.max_new_tokens is None:
        return min(limits.max_new_tokens, max(room, 1)) if table.positions else limits.max_new_tokens
    with concerning(asked.max_tokens_name):
        name = f"max_new_tokens ({asked.max_tokens_name})"
        within(name, asked.max_new_tokens, limits.max_new_tokens, "ask for the rest in another request")
    if table.positions and asked.max_new_tokens > room:
        raise Unfit(
            f"this model has {table.positions} positions; the prompt has {longest} tokens and {asked.max_new_tokens} "
            f"new ones are asked for: shorten the prompt, or ask for at most {max(room, 0)}",
            param=asked.prompt_name if room < 1 else asked.max_tokens_name, code="context_length_exceeded",
        )  # fmt: skip
    return asked.max_new_tokens


# Graphs.


def _priced(
    asked: Asked, rows: Sequence[Row], new: int, table: SiteTable, limits: Limits,
    table_of: Callable[[Experiment], SiteTable],
) -> dict[str, Any]:  # fmt: skip
    """The graph is checked and priced for prompts of each length; the quote, with `late` for each prompt."""
    graph, generation = _graph(asked), Generation(new, asked.options)
    of_length = {len(row): row for row in rows}
    counts = Counter(map(len, rows))
    experiments = tuple(Experiment(graph, _inputs(row), generation) for row in of_length.values())
    check_request(Request(asked.form.model, experiments), table, limits, table_of=table_of)
    times = [asked.form.n * counts[length] for length in of_length]
    quote = quote_request(experiments, limits, table_of, times=times)
    late = dict(zip(of_length, quote.late, strict=True))
    return {**quote.to_json(), "late": [late[len(row)] for row in rows]}


def _graph(asked: Asked) -> Graph:
    """The graph that takes part, as an engine runs it: all steps, whatever the graph needs."""
    graph = Graph(()) if asked.graph is None else Graph.decode(asked.graph)
    if graph.invokes != 1:
        raise InputError(f"the graph of a completion has one invoke, got {graph.invokes}")
    for n, node in enumerate(graph.nodes):
        if node.kind == "input":
            raise InputError(
                f"a completion has no named inputs, and the graph has {node.target[:40]!r}: capture the tensor in the "
                f"graph\n  at {graph.where(n)}"
            )
    return with_results(graph)
