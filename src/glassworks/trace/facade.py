"""The model that people hold: blocks, its parts, its tokenizer. It is given a Backend and cannot tell which."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from glassworks.errors import GraphError, InputError
from glassworks.graph.backend import Backend, Experiment, Generation, Inputs, Results, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.passes import joined
from glassworks.graph.sites import SiteTable
from glassworks.trace.block import Block, check_graph
from glassworks.trace.collect import Job, handed_over, run_over
from glassworks.trace.inside import Result
from glassworks.trace.live import LiveBlock
from glassworks.trace.parts import Core, Part, at_path, call_module, child_of
from glassworks.trace.progress import shown_progress
from glassworks.trace.prompts import Text, prompt_rows, rows_of
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.reductions import reductions_of
from glassworks.trace.rows import make_rows
from glassworks.trace.session import Session
from glassworks.trace.show import render
from glassworks.trace.stored import StoredResults, run_to
from glassworks.trace.value import Value
from glassworks.trace.waiting import Awaited


class Reply:
    """What a model said. `tokens`: the new ids; `text`: what they spell."""

    __slots__ = ("text", "tokens")

    def __init__(self, tokens: list[int], text: str) -> None:
        self.tokens, self.text = tokens, text

    def __repr__(self) -> str:
        return f"Reply({self.text!r})"

    def __str__(self) -> str:
        return self.text


class RunsModels(Protocol):
    """What `model.on` takes: a `gw.Engine`."""

    @property
    def backend(self) -> Backend:
        """Where blocks run."""

    def runs(self, model: "Model") -> bool:
        """Whether it runs this model."""


class Model(Part):
    """A model behind a backend.

    Its parts are attributes, standard names first: `model.layers[3].mlp`, `model.transformer.h[0]`; `model["a.b"]`
    takes any path. `print(model)` lists what it has.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(core, None, "")

    # Blocks.

    def trace(self, *prompt: Any, rows: int | None = None, seed: int = 0, wait: bool = True, **arguments: Any) -> Block:
        """A block over one forward pass.

        Args:
            prompt: a text, token ids, a chat, or a list of these; of a plain module, its arguments. Without one, rows
                are added by `t.invoke`.
            rows: at most so many rows a pass. seed: of random nodes.
            wait: if False, the block becomes a job, `t.job`, and a saved Value waits for it when it is used; a model of
                this process runs it at once.
            arguments: go to the model.

        In a task of an event loop `async with model.trace(...) as t:` lets the loop go on while the block runs; many
        are awaited at once with `asyncio.gather`, a block a task.

        Example:
            with model.trace("The Eiffel Tower is in the city of") as t:
                top = model.logits[:, -1].argmax(-1).save()
        """
        self._check_one_pass(arguments)
        own = [make_rows(self._core, prompt, arguments)] if prompt or "input_ids" in arguments else []
        if not own and arguments and self._core.table.plain:
            own = [make_rows(self._core, prompt, arguments)]
        elif not own and arguments:
            raise InputError(
                f"arguments without a prompt: {', '.join(arguments)}; give them to t.invoke\n  at {caller()}"
            )
        return Block(self._core, rows=own, at_most=rows, seed=seed, wait=wait)

    def live(self, *prompt: Any, seed: int = 0, **arguments: Any) -> LiveBlock:
        """A block over one forward pass that runs line by line: Values hold their tensors.

        The lines come in the order of the forward pass. The model stands still between the sites that they touch, and
        is left as it was when the block ends, however it ends.

        Args:
            prompt, seed, arguments: as for `trace`.

        Raises:
            OrderError: in the block, at a site that the pass has left behind.

        Example:
            with model.live("The Eiffel Tower is in the city of"):
                for layer in model.layers:
                    if layer.output[:, -1].norm() > 40:
                        layer.output[:, -1] *= 0.5
                print(model.decode(model.logits[:, -1].argmax(-1)))
        """
        self._check_one_pass(arguments)
        if "rows" in arguments and not self._core.table.plain:
            raise InputError(f"rows= bounds the rows of each of several passes; a live block is one\n  at {caller()}")
        return LiveBlock(self._core, make_rows(self._core, prompt, arguments), seed=seed)

    def _check_one_pass(self, arguments: Mapping[str, Any]) -> None:
        if "max_new_tokens" in arguments and not self._core.table.plain:
            raise InputError(
                f"max_new_tokens belongs to model.generate(...); this is one forward pass\n  at {caller()}"
            )

    def generate(
        self,
        *prompt: Any,
        max_new_tokens: int = 64,
        rows: int | None = None,
        seed: int = 0,
        wait: bool = True,
        **options: Any,
    ) -> Block:
        """A block over a generation: step 0 reads the prompt, step k the k-th new token.

        Args:
            prompt, rows, seed, wait: as for `trace`. max_new_tokens: 0 only reads the prompt.
            options: transformers' names: do_sample, temperature, top_k, top_p, repetition_penalty, eos_token_id ...
        """
        own = [make_rows(self._core, prompt, {})] if prompt else []
        generation = Generation(max_new_tokens, options)
        return Block(self._core, rows=own, at_most=rows, generation=generation, seed=seed, wait=wait)

    def record(self) -> Block:
        """A block that is written down and does not run: `t.graph`, for `model.run`, to store or to send.

        The edits of an edited model are not in it: they belong to the model that runs it.
        """
        return Block(self._core, rows=[Rows(ids=())], finish=lambda block: None, has_edits=False)

    def session(self, *, wait: bool = True) -> Session:
        """Several blocks as one job: values flow between them; nothing runs until it ends. `wait`: as for `trace`."""
        return Session(self._core, wait=wait)

    def edit(self) -> "Edit":
        """`with model.edit() as edited:` makes a model that always runs the block; this one stays as it is."""
        return Edit(self._core)

    # Runs.

    def run(
        self,
        graph: Graph,
        prompts: Any,
        *,
        rows: int = 64,
        to: str | Path | None = None,
        progress: bool | None = None,
        max_new_tokens: int | None = None,
        wait: bool = True,
        **inputs: Any,
    ) -> "Results | StoredResults | Awaited":
        """Run a stored graph over prompts, at most `rows` of one length a pass: a row is what it is alone.

        Args:
            graph: of `model.record()`, or loaded. prompts: as for `trace`; a list is many rows.
            to: a folder that each pass is written to as it is done; a run that was cut short goes on where the folder
                ends. See `gw.results`.
            progress: a bar on standard error; None: with `to` on a terminal.
            wait: if False, all passes become one job, `.job` of the mapping that is given; its first use, or awaiting
                it, waits for it. In an event loop `run_async` spares the loop the submission too.
            max_new_tokens: for a graph that generates. inputs: tensors for the graph's named inputs; others go to the
                model, those with a row for each prompt row by row.

        Returns:
            A mapping by save name. Rows are joined along their axis, as the prompts are; ragged rows are a list.

        Raises:
            InputError: the folder holds something else, or cannot be written.
        """
        if self._core.table.plain and to is not None:
            raise InputError("to= takes prompts of tokens; a plain module runs in one pass: save what it gives")
        if to is not None and not wait:
            raise InputError("to= writes each pass as it is done, and so waits: leave out wait=False, or to=")
        own = self._to_run(graph, prompts, rows=rows, max_new_tokens=max_new_tokens, inputs=inputs)
        if not wait:
            experiments, join = _handed_over(own)
            return Awaited(self._core.backend.submit(experiments), join)
        if isinstance(own, Experiment):
            return self._core.backend.run(own.graph, own.inputs)
        with shown_progress(len(own.prompts), wanted=progress, worth_it=to is not None) as done:
            return run_over(own, done) if to is None else run_to(to, own, self._core.name, done)

    async def run_async(
        self, graph: Graph, prompts: Any, *, rows: int = 64, max_new_tokens: int | None = None, **inputs: Any
    ) -> Results:
        """As `run`, in a task: its event loop goes on meanwhile. All passes are one job, which is called off if the
        task is cancelled.

        Example:
            first, second = await asyncio.gather(model.run_async(graph, prompts), other.run_async(graph, prompts))
        """
        own = self._to_run(graph, prompts, rows=rows, max_new_tokens=max_new_tokens, inputs=inputs)
        experiments, join = _handed_over(own)
        return join(await self._core.backend.run_session_async(experiments))

    def _to_run(
        self, graph: Graph, prompts: Any, *, rows: int, max_new_tokens: int | None, inputs: dict[str, Any]
    ) -> Experiment | Job:
        """What a run is: one experiment on a plain module, or a loop over prompts."""
        graph = check_graph(graph)
        if type(rows) is not int or rows < 1:
            raise InputError(f"rows must be a positive int, got {rows!r}")
        wanted = {node.target for node in graph.nodes if node.kind == "input"}
        if missing := sorted(wanted - set(inputs)):
            raise InputError(f"the graph has inputs that were not given: {', '.join(missing)}")
        named = {name: inputs.pop(name) for name in sorted(wanted)}
        generation = None if max_new_tokens is None else Generation(max_new_tokens)
        if generation is None and any(node.steps is not None or node.kind == "result" for node in graph.nodes):
            raise InputError("this graph speaks of generation steps: give max_new_tokens=")
        table = self._core.table
        if table.plain:
            own = prompts if isinstance(prompts, tuple) else (prompts,)
            one = Experiment(self.with_edits(graph), Inputs((Rows(args=own, kwargs=inputs),), named=named))
            reductions_of(graph, self._core.backend.sites(one.inputs), one.inputs.invokes, generating=False)
            return one
        for name in inputs:
            if (why := table.why_not_argument(name)) is not None:
                raise InputError(f"{why}; the graph has no input of that name either\n  at {caller()}")
        return Job(
            backend=self._core.backend, graph=self.with_edits(graph),
            prompts=prompt_rows(prompts, self._core.text, vocab=table.vocab, positions=table.positions),
            rows=rows, named=named, kwargs=inputs, generation=generation,
        )  # fmt: skip

    def with_edits(self, graph: Graph) -> Graph:
        """The graph behind this model's edits."""
        prefix = self._core.prefix
        if prefix is None:
            return graph
        return joined(prefix, graph)

    def on(self, engine: "RunsModels") -> "Model":
        """The same model, whose blocks run on an engine, among its requests.

        Raises:
            InputError: the engine runs another model.

        Example:
            engine = gw.Engine(model)
            shared = model.on(engine)
            with shared.trace("The Eiffel Tower is in the city of"):
                top = shared.logits[:, -1].argmax(-1).save()
        """
        core = self._core
        if not engine.runs(self):
            raise InputError(f"this engine runs another model: make one of this, gw.Engine(model)\n  at {caller()}")
        own = Core(
            engine.backend, text=core.text, table=core.table, name=core.name, device=core.device, prefix=core.prefix
        )
        own.frozen = core.frozen
        return Model(own)

    def complete(self, prompt: Any, *, max_new_tokens: int = 64, seed: int = 0, **options: Any) -> Any:
        """What the model says next, at once.

        Args:
            prompt: as for `trace`; a list gives a list. options: as for `generate`.

        Returns:
            A `Reply` with `.tokens` (the new ones) and `.text`.
        """
        rows = rows_of(prompt, self._core.text)
        with self.generate([list(row) for row in rows], max_new_tokens=max_new_tokens, seed=seed, **options) as t:
            pass
        result, alive = t.result, t.alive
        replies = []
        for k, row in enumerate(result.tolist()):
            count = sum(bool(live[k]) for live in alive) if max_new_tokens else 0
            ids = row[:count]
            replies.append(Reply(ids, self._core.text.decode(ids) if self._core.text else ""))
        return replies if _is_many(prompt) else replies[0]

    # Text.

    @property
    def text(self) -> Text:
        """The tokenizer, as blocks use it."""
        if self._core.text is None:
            raise InputError("this model has no tokenizer; gw.wrap(model, tokenizer=...) gives it one")
        return self._core.text

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself, as transformers made it; None if the model has none."""
        return None if self._core.text is None else self._core.text.tokenizer

    def encode(self, prompt: Any) -> list[int]:
        """Token ids of one prompt, special tokens included."""
        return list(rows_of(prompt, self.text)[0])

    def decode(self, ids: Any) -> Any:
        """The text of token ids: a Value, a tensor, an int or a list; rows give a list of texts."""
        plain = ids.value if isinstance(ids, Value) else ids
        listed = plain.tolist() if isinstance(plain, torch.Tensor) else plain
        if isinstance(listed, int):
            return self.text.decode([listed])
        if listed and isinstance(listed[0], list | tuple | torch.Tensor):
            return [self.decode(row) for row in listed]
        if isinstance(plain, torch.Tensor) and plain.ndim == 1 and len(listed) == 1:
            return self.text.decode(listed)
        return self.text.decode([int(item) for item in listed])

    def token(self, text: str) -> int:
        """The id of a text that is one token, such as `" Paris"`; refused unless it is."""
        if not isinstance(text, str):
            raise InputError(f"model.token takes a text, such as ' Paris'; got {text!r}\n  at {caller()}")
        try:
            return self.text.token(text)
        except InputError as error:
            raise InputError(f"{error}\n  at {caller()}") from None

    # Sites of the whole model.

    @property
    def logits(self) -> Any:
        """`[batch, seq, vocab]`; of a classifier `[batch, classes]`."""
        recorder, line = self._core.scoped(), caller()
        recorder.table["logits"]
        return Value(recorder, recorder.read("logits", line), line, "logits")

    @logits.setter
    def logits(self, value: Any) -> None:
        recorder, line = self._core.scoped(), caller()
        recorder.table["logits"]
        if type(value) is Value and value._site == "logits" and value._version == recorder.version("logits") > 0:
            return
        recorder.write("logits", recorder.node_of(value, line), line)

    @property
    def ids(self) -> Any:
        """The token ids that enter this step: int64 `[batch, seq]`."""
        recorder, line = self._core.scoped(), caller()
        recorder.table["ids"]
        return Value(recorder, recorder.read("ids", line), line, "ids")

    def unembed(self, resid: Any) -> Value:
        """Everything between the last residual `[..., d_model]` and the logits `[..., vocab]`, as a pure function."""
        return call_module(self._core, "unembed", (resid,), {})

    # What it is.

    @property
    def backend(self) -> Backend:
        """Where graphs of this model run."""
        return self._core.backend

    @property
    def table(self) -> SiteTable:
        """The site table."""
        return self._core.table

    @property
    def device(self) -> torch.device:
        """Where captured tensors go; never `meta`."""
        return torch.device(self._core.device() if callable(self._core.device) else self._core.device)

    def _child(self, name: str) -> Any:
        return child_of(self._core, None, "", name)

    def _item(self, key: int | str) -> Any:
        if isinstance(key, int):
            return super()._item(key)
        return at_path(self._core, key)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("logits", "output", "input"):
            raise GraphError(
                f"sites are written as model.<part>.output = value; the model has no site {name!r}\n  at {caller()}"
            )
        object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise GraphError(
            "a wrapped model runs in blocks: `with model.trace(prompt) as t:`, or model.complete(prompt); to call the "
            f"plain module, call the module that you wrapped\n  at {caller()}"
        )

    def __repr__(self) -> str:
        return f"<{self._core.name}>\n{render(self._core.table)}"


class Edit:
    """`with model.edit() as edited:`; the sites in the block are `edited`'s."""

    def __init__(self, core: Core) -> None:
        self._core = Core(
            core.backend,
            text=core.text,
            table=core.table,
            name=core.name,
            device=core.device,
            prefix=core.prefix,
        )
        self._core.frozen = core.frozen

    def __enter__(self) -> Model:
        self._block = Block(self._core, finish=self._keep)
        self._block.__enter__()
        self._recorder.is_edit = True
        return Model(self._core)

    @property
    def _recorder(self) -> Recorder:
        return self._block._own()

    def _keep(self, block: Block) -> None:
        if self._recorder.saved:
            raise GraphError(
                f"an edit has no results: take the save out, and save in a block of the edited model\n  at {caller()}"
            )
        written = [d.frozen() for d in self._recorder.derived.values() if isinstance(d, Result) and d.is_written]
        self._core.frozen = {**self._core.frozen, **dict(written)}
        self._core.prefix = block.graph

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)


def _handed_over(own: Experiment | Job) -> tuple[list[Experiment], Callable[[list[Results]], Results]]:
    """A run as experiments, and what makes one of their results."""
    return ([own], lambda found: found[0]) if isinstance(own, Experiment) else handed_over(own)


def _is_many(prompt: Any) -> bool:
    """Whether a prompt stands for several, whose answers come as a list."""
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, Mapping):
        return torch.as_tensor(prompt["input_ids"]).ndim == 2
    if isinstance(prompt, torch.Tensor):
        return prompt.ndim == 2
    first = prompt[0]
    return not (isinstance(first, int) or (isinstance(first, Mapping) and "role" in first))
