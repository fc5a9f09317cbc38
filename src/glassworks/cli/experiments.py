"""The two experiments of the demo, written as a user of the package would write them.

Each has a value with its numbers, so that the same experiment on another backend can be compared bit by bit.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import glassworks as gw

if TYPE_CHECKING:
    from glassworks.trace.facade import Model


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A logit lens over one prompt.

    Attributes:
        graph: saves `words <place>` and `sure <place>`, both `[batch, seq]`, for the embedding and each layer.
        prompt: what it ran over. tokens: of the prompt. places: from the bottom up.
        saves: what it saved. texts: the words of each place.
    """

    graph: gw.Graph
    prompt: str
    tokens: list[str]
    places: list[str]
    saves: dict[str, torch.Tensor]
    texts: dict[str, list[str]]

    @classmethod
    def of(cls, model: "Model", prompt: str) -> "Lens":
        """Record it once, and run it over the prompt."""
        places = {"embed": model.embed, **{f"layer {k}": layer for k, layer in enumerate(model.layers)}}
        with model.record() as t:
            for name, part in places.items():
                best = model.unembed(part.output).softmax(-1).max(-1)
                best.indices.save(f"words {name}")
                best.values.save(f"sure {name}")
        saves = dict(model.run(t.graph, prompt))
        texts = {name: [model.decode(token) for token in saves[f"words {name}"][0].tolist()] for name in places}
        tokens = [model.tokenizer.decode(token) for token in model.encode(prompt)]
        return cls(graph=t.graph, prompt=prompt, tokens=tokens, places=list(places), saves=saves, texts=texts)

    def rows(self) -> list[tuple[str, list[str], list[float]]]:
        """For each place from the bottom up: its name, the most likely tokens, and their probabilities."""
        return [(name, self.texts[name], self.saves[f"sure {name}"][0].tolist()) for name in self.places]

    @property
    def answer(self) -> str:
        """What the last place says after the last token."""
        return self.texts[self.places[-1]][-1]

    def again(self, model: "Model") -> dict[str, torch.Tensor]:
        """The same graph on another model."""
        return dict(model.run(self.graph, self.prompt))

    def equals(self, saves: dict[str, torch.Tensor]) -> bool:
        """Whether these are the same bits."""
        return saves.keys() == self.saves.keys() and all(torch.equal(self.saves[name], saves[name]) for name in saves)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One vector of the residual stream moved from one prompt into another, for each layer and each position.

    Attributes:
        graph: of the trace. prompts: into which, out of which. tokens: of the two prompts, as long as each other.
        landmark: the position of the landmark's last token. clean: what the first prompt is answered untouched.
        logits: `[layers, positions, vocab]`, after the last token. words: the most likely token of each.
        moved: `[layers, positions]`: how much of the way the odds went from the one prompt's to the other's, 0 to 1.
        forwards: how many forward passes it took.
    """

    graph: gw.Graph
    prompts: tuple[str, str]
    tokens: tuple[list[str], list[str]]
    landmark: int
    clean: str
    logits: torch.Tensor
    words: list[list[str]]
    moved: torch.Tensor
    forwards: int

    @classmethod
    def of(cls, model: "Model", prompts: tuple[str, str], answers: tuple[str, str]) -> "Sweep":
        """Run it as one trace, an invoke a cell."""
        trace = _trace(model, prompts)
        logits = trace.logits()
        ours, theirs = (model.token(answer) for answer in answers)
        start, end, odds = (found[..., theirs] - found[..., ours] for found in (*trace.clean, logits))
        return cls(
            graph=trace.block.graph,
            prompts=prompts,
            tokens=trace.tokens,
            landmark=trace.landmark,
            clean=model.decode(trace.clean[0].argmax(-1)),
            logits=logits,
            words=[[model.decode(token) for token in row] for row in logits.argmax(-1).tolist()],
            moved=(odds - start) / (end - start),
            forwards=trace.block.forwards,
        )

    def again(self, model: "Model") -> torch.Tensor:
        """The logits of the same sweep on another model."""
        return _trace(model, self.prompts).logits()

    def equals(self, logits: torch.Tensor) -> bool:
        """Whether these are the same bits."""
        return torch.equal(self.logits, logits)


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """What a sweep kept: last logits `[1, vocab]` of both clean prompts and of each cell."""

    block: Any
    tokens: tuple[list[str], list[str]]
    landmark: int
    clean: tuple[Any, Any]
    cells: list[list[Any]]

    def logits(self) -> torch.Tensor:
        return torch.stack([torch.cat(gw.values(row)) for row in self.cells])


def _trace(model: "Model", prompts: tuple[str, str]) -> _Trace:
    prompt, other = prompts
    with model.trace() as t:
        with t.invoke(other) as outof:
            source = [layer.output for layer in model.layers]
            theirs = model.logits[:, -1].save()
        with t.invoke(prompt) as into:
            ours = model.logits[:, -1].save()
        cells: list[list[Any]] = [[] for _ in model.layers]
        for k, layer in enumerate(model.layers):
            for position in range(len(into.tokens[0])):
                with t.invoke(prompt):
                    layer.output[:, position] = source[k][:, position]
                    cells[k].append(model.logits[:, -1].save())
        landmark = into.find("Eiffel Tower")[0]
        tokens = into.tokens[0], outof.tokens[0]
    return _Trace(block=t, tokens=tokens, landmark=landmark, clean=(ours, theirs), cells=cells)
