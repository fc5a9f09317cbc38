"""Everything that is decided about a stranger's bytes before any model work: read, checked, priced.

The same code in the process that a service has for it and, for `gw.connect(model)`, in the caller's own. Holds no
weights: the site table says all that is needed of the model.
"""

import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from glassworks.client.backend import table_from_bytes
from glassworks.client.content import Body, Whole, joined, size_of
from glassworks.errors import GlassworksError, LimitExceeded, RemoteError, WireError
from glassworks.graph.backend import Experiment, Inputs
from glassworks.graph.check import check_request
from glassworks.graph.check_inputs import check_inputs, check_within
from glassworks.graph.limits import Limits
from glassworks.graph.messages import (
    Request,
    decode_files,
    decode_inputs,
    decode_request,
    decode_tensor,
    encode_inputs,
)
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import Absent, Blob, digest
from glassworks.model.text import TokenizerText
from glassworks.serve.answers import Answer, refusal, status_of
from glassworks.serve.completions import completion_verdict, unknown_model
from glassworks.serve.openai import read, status_here
from glassworks.serve.quote import quote_request
from glassworks.serve.tokenizers import text_of

_LOG = logging.getLogger("glassworks.serve")
Ask = Callable[[str, bytes], Body]
"""A question of the check's: (what, about what) -> the answer."""


class Checks:
    """What may run, by the site tables of the models that it was told of."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._tables: dict[str, SiteTable] = {}
        self._tokenizers: dict[str, Whole] = {}
        self._texts: dict[str, TokenizerText | None] = {}

    @property
    def tables(self) -> Iterable[SiteTable]:
        """The site tables."""
        return self._tables.values()

    def learn(self, model: str, table: Whole, tokenizer: Whole = b"") -> None:
        """Take in a site table, and the files of a tokenizer as one message."""
        self._tables[model] = table_from_bytes(table)
        if tokenizer:
            self.learn_tokenizer(model, tokenizer)

    def learn_tokenizer(self, model: str, tokenizer: Whole) -> None:
        """Take in the files of a tokenizer; they are read when they are first needed, which takes seconds."""
        self._tokenizers[model] = tokenizer
        self._texts.pop(model, None)

    def text(self, model: str) -> TokenizerText | None:
        """The tokenizer of a model. ModelError: its files are none."""
        if model not in self._texts:
            files = self._tokenizers.get(model)
            self._texts[model] = None if files is None else text_of(decode_files(memoryview(files)))
        return self._texts[model]

    def check(self, what: str, about: str, body: Body, ask: Ask) -> Answer:
        """200 and a verdict, as JSON, or the refusal.

        Args:
            what: `run` for a request, `inputs` for what a site table depends on, `tensor` for a large tensor,
                `completion` for OpenAI's body of a request for text, which is refused by OpenAI's statuses.
            about: the model; of a tensor the digest; of a completion `chat` or `text`.
            ask: answers `sites`: the table for encoded inputs, with the operations inside some modules; and `tensors`:
                the forms of large tensors, for their digests, null for one that is not there.
        """
        status = status_here if what == "completion" else status_of
        try:
            data = memoryview(joined(body))
            match what:
                case "inputs":
                    inputs, within = decode_inputs(data)
                    check_inputs(inputs, self._tables[about], self.limits)
                    check_within(within, self._tables[about])
                    verdict: dict[str, Any] = {}
                case "tensor":
                    verdict = _tensor(about, decode_tensor(data))
                case "completion":
                    verdict = self._completion(about, data, ask)
                case _:
                    verdict = self._request(about, self._tables[about], data, ask)
            return 200, json.dumps(verdict).encode()
        except _NotSent as error:
            return refusal(409, RemoteError(str(error)))
        except GlassworksError as error:
            return refusal(status(error), error)
        except MemoryError:
            return refusal(status(full := out_of_memory(self.limits, size_of(body))), full)
        except Exception as error:  # noqa: BLE001 - torch's own words on a node's shapes, or a fault of ours
            if getattr(error, "__notes__", None):
                return refusal(400 if what == "completion" else 422, error)
            _LOG.exception("a check failed")
            return refusal(500, RemoteError("the check of this request failed; the service's log says why"))

    def _request(self, model: str, table: SiteTable, body: memoryview, ask: Ask) -> dict[str, Any]:
        request = decode_request(body)
        if request.model != model:
            raise WireError(f"request: the message is for the model {request.model!r} and was sent to {model!r}")
        table_of = partial(_table_of, table, ask, {})
        check_request(request, table, self.limits, table_of=table_of)
        tensors = _large_tensors(request, ask)
        quote = quote_request(request.experiments, self.limits, table_of)
        return {**quote.to_json(), "tensors": tensors}

    def _completion(self, about: str, body: memoryview, ask: Ask) -> dict[str, Any]:
        asked = read(body, chat=about == "chat")
        model = asked.form.model
        if model not in self._tables:
            raise unknown_model(model, list(self._tables))
        table = self._tables[model]
        table_of = partial(_table_of, table, ask, {})
        return completion_verdict(asked, table, self.text(model), self.limits, table_of)


class _NotSent(Exception):
    """A request speaks of tensors that its author has not sent, or not for a long time."""


def _tensor(said: str, blob: Blob) -> dict[str, Any]:
    if digest(blob) != said:
        raise WireError(f"the tensor's digest is {digest(blob)}, and it was sent as {said}")
    return {"dtype": blob.dtype, "shape": list(blob.shape)}


def _large_tensors(request: Request, ask: Ask) -> list[str]:
    """The digests of the tensors that a request has elsewhere, once each; they are there, and what it says of them."""
    every = [constant for experiment in request.experiments for constant in experiment.graph.constants]
    absent = {constant.digest: constant for constant in every if isinstance(constant, Absent)}
    if not absent:
        return []
    there = json.loads(joined(ask("tensors", json.dumps(list(absent)).encode())))
    missing = [each for each in absent if there[each] is None]
    if missing:
        raise _NotSent(f"{len(missing)} of {len(absent)} large tensors are not here: send {', '.join(missing[:3])} ...")
    for each, constant in absent.items():
        if there[each] != [constant.dtype, list(constant.shape)]:
            given = f"{constant.dtype} of shape {list(constant.shape)}"
            raise WireError(f"request: large: {each} is {there[each][0]} of shape {there[each][1]}, not {given}")
    return list(absent)


def _table_of(table: SiteTable, ask: Ask, known: dict[int, SiteTable], experiment: Experiment) -> SiteTable:
    """The table of the model; of a plain module, for inputs of these shapes; with the operations that a graph names."""
    within = experiment.graph.within
    if not table.plain and within <= set(table.within):
        return table
    if id(experiment) not in known:
        check_within(within, table)
        inputs = experiment.inputs if table.plain else Inputs(())
        known[id(experiment)] = table_from_bytes(joined(ask("sites", encode_inputs(inputs, within=within))))
    return known[id(experiment)]


def out_of_memory(limits: Limits, body_bytes: int) -> LimitExceeded:
    """The refusal of a request that took too much memory to look at."""
    return LimitExceeded(
        f"check_bytes: reading and checking this request of {body_bytes} bytes needs more than the "
        f"{limits.check_bytes} bytes that are allowed; send smaller graphs, or fewer tokens"
    )
