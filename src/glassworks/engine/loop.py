"""The one generation loop: what enters the model at each step, what comes out, and who has ended.

Step 0 reads the prompt (of an encoder-decoder: the encoder's prompt and the start token), step k the k-th new token. A
`Generating` holds the rows of one experiment between two steps and knows nothing of who performs the forward passes:
a padded batch with transformers' cache (`generate`), or the packed batch of an `Engine`, which shares each pass among
many of them. Interpreters see the sites of each step as it is performed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glassworks.engine.batch import Batch
from glassworks.engine.sampling import Sampler
from glassworks.errors import InputError
from glassworks.run.base import Runtime
from glassworks.run.control import commit, stopped
from glassworks.run.interpret import Interpreter


class Generated:
    """New tokens, int64 `[batch, new]`, and for each step which rows were live when it ran, bool `[batch]`."""

    def __init__(self, tokens: torch.Tensor, alive: list[torch.Tensor], steps: int) -> None:
        self.tokens, self.alive, self.steps = tokens, alive, steps


class Generating:
    """Rows on their way.

    Args:
        interpreter: of the graph that looks on; None: there is none.
        last_token_only: nobody looks at the prompt's logits, so only the last is computed, where the model can.
        positions: how many tokens a row may have; 0: without end.

    Attributes:
        step: the one that is next, or under way. ended: there is none.
        new: the tokens of each row so far. live: rows that have not ended. alive: `live` as it was at each step.
        computed: how many columns of the batch the cache holds; 0: it is computed again.
        logits: of the last `take`, `[batch, vocab]`.
    """

    def __init__(
        self, batch: Batch, interpreter: Interpreter | None, sampler: Sampler, *, max_new_tokens: int, seed: int,
        encoder_decoder: bool = False, last_token_only: bool = False, positions: int = 0,
    ) -> None:  # fmt: skip
        self.batch, self.interpreter, self.sampler = batch, interpreter, sampler
        self.max_new_tokens, self.positions = max_new_tokens, positions
        self._seed, self._two, self._last_token_only = seed, encoder_decoder, last_token_only
        self._last_step = None if interpreter is None else interpreter.forward.last_step
        rows = len(batch.numbers)
        self.step, self.ended, self.computed = 0, False, 0
        self.new: list[list[int]] = [[] for _ in range(rows)]
        self.live = [True] * rows
        self.alive: list[list[bool]] = []
        self.logits: torch.Tensor | None = None
        self._lengths = [length for own in batch.lengths.values() for length in own]
        self._kwargs = dict(batch.kwargs)
        self._encoded: Any = None
        if encoder_decoder:
            start = torch.full((rows, 1), sampler.start, device=batch.ids.device)
            self._first = self._kwargs.pop("decoder_input_ids", start)
        else:
            self._first = batch.ids

    # One step.

    def begin(self) -> None:
        """A step is about to be performed.

        Raises:
            InputError: a live row would grow longer than the model's positions.
        """
        if self.positions and self.step:
            self._keep_within(self.positions)
        self.alive.append(list(self.live))
        if self.interpreter is not None:
            self.interpreter.begin(
                self.step, sizes=self._sizes(), slots=self._slots(), live=self._live_invokes(), complete=self.samples
            )

    def take_back(self) -> bool:
        """Undo `begin`, since the step was broken off and will be performed again; whether it could be undone: not
        once something that came of it was taken."""
        if self.ended or not len(self.alive) == self.step + 1 == len(self.new[0]) + 1:
            return False
        self.alive.pop()
        return True

    @property
    def samples(self) -> bool:
        """Whether this step gives a token: it is asked for, and something is still to come."""
        return self.step < self.max_new_tokens and (self._last_step is None or self.step < self._last_step)

    def take(self, logits: torch.Tensor | None, returned: Any = None) -> None:
        """A step has been performed.

        Args:
            logits: of the last token of each row, `[batch, vocab]`; None if this step gives no token.
            returned: by the model, of an encoder-decoder.
        """
        self.logits = logits
        self.took(None if logits is None or not self.samples else self.chosen(logits), returned)

    def chosen(self, logits: torch.Tensor) -> list[int]:
        """The next token of each row."""
        ids = self.seen if self.sampler.looks_back else self._first
        found = self.sampler.next(ids, logits, seed=self._seed, step=self.step, rows=self.batch.numbers)
        return found.tolist()  # type: ignore[no-any-return]

    def took(self, tokens: Sequence[int] | None, returned: Any = None) -> None:
        """A step has been performed and has given these tokens, one a row; None: it gives none, and is the last."""
        ends = self._stopped()
        if self.interpreter is not None:
            commit(self.interpreter)
            self.interpreter.end()
        if tokens is None:
            self.ended = True
            return
        for row, token in enumerate(tokens):
            own = token if self.live[row] else self.sampler.pad
            self.new[row].append(own)
            self.live[row] = self.live[row] and own not in self.sampler.eos and not ends[row]
        self.computed = self.columns - 1
        if self._two:
            from transformers.modeling_outputs import BaseModelOutput

            self._encoded = BaseModelOutput(last_hidden_state=returned["encoder_last_hidden_state"])
        self.step += 1
        self.ended = not any(self.live) or self.step >= self.max_new_tokens

    def _stopped(self) -> list[bool]:
        """The rows that the graph has ended in this step."""
        if self.interpreter is None or not self.interpreter.closing:
            return [False] * len(self.live)
        return stopped(self.interpreter, torch.tensor(self.live)).tolist()  # type: ignore[no-any-return]

    # What enters the model.

    @property
    def columns(self) -> int:
        """How many columns the padded batch has so far."""
        return int(self._first.shape[1]) + len(self.new[0])

    @property
    def seen(self) -> torch.Tensor:
        """What each row holds so far, padded at the left: int64 `[batch, columns]`."""
        if not self.new[0]:
            return self._first  # type: ignore[no-any-return]
        return torch.cat([self._first, torch.tensor(self.new, device=self._first.device)], dim=1)

    def inputs(self) -> dict[str, Any]:
        """What a model with transformers' cache is called with, in this step."""
        extra = {"logits_to_keep": 1} if self.computed == 0 and self._last_token_only else {}
        if self._two:
            own = {"attention_mask": self.batch.mask.long()} if self.batch.padded else {}
            encoder = {"input_ids": self.batch.ids} if self._encoded is None else {"encoder_outputs": self._encoded}
            return {**self._kwargs, **encoder, **own, "decoder_input_ids": self.seen[:, self.computed :], **extra}
        positions = self._positions()[:, self.computed :]
        own = {"attention_mask": self._mask().long()} if self.batch.padded else {}
        return {**self._kwargs, "input_ids": self.seen[:, self.computed :], **own, "position_ids": positions, **extra}

    def _mask(self) -> torch.Tensor:
        own = self.batch.mask
        return torch.cat([own, own.new_ones(len(own), len(self.new[0]))], dim=1) if self.new[0] else own

    def _positions(self) -> torch.Tensor:
        positions = (self._mask().long().cumsum(-1) - 1).clamp(min=0)
        return positions.clamp(max=self.positions - 1) if self.positions else positions

    def _sizes(self) -> Mapping[str, int]:
        source = int(self.batch.ids.shape[1])
        entering = int(self._first.shape[1]) if self.step == 0 else 1
        return {"batch": len(self.live), "seq": entering, "context": self.columns, "source": source}

    def _slots(self) -> Mapping[int, Any]:
        if self._two:
            return self.batch.slots("source", tokens=self._sizes()["seq"])
        return self.batch.slots("seq", tokens=1 if self.step else None, before=self.step)

    def _live_invokes(self) -> frozenset[int]:
        starts, lengths = self.batch.starts, self.batch.lengths
        return frozenset(own for own, at in starts.items() if any(self.live[at : at + len(lengths[own])]))

    def _keep_within(self, positions: int) -> None:
        """Refuse a token beyond the last position of the model; a row that has ended waits at the last."""
        longest = max(length for length, live in zip(self._lengths, self.live, strict=True) if live)
        used = self.columns if self._two else longest + self.step
        if used > positions:
            raise InputError(
                f"the generation would go on to {used} tokens in a row; this model has {positions} positions: ask for "
                f"fewer new tokens, or shorten the prompt"
            )

    def generated(self) -> Generated:
        """What came of it."""
        tokens = torch.tensor(self.new, dtype=torch.long, device=self.batch.ids.device)
        alive = [torch.tensor(live, device=tokens.device) for live in self.alive]
        return Generated(tokens.reshape(len(self.new), -1), alive, len(self.alive))


def perform(runtime: Runtime, own: Generating, cache: dict[str, Any]) -> None:
    """One step of a padded batch with transformers' cache, which the caller keeps from step to step."""
    own.begin()
    interpreters = [] if own.interpreter is None else [own.interpreter]
    returned = runtime.step((), own.inputs(), interpreters, cache)
    own.take(None if returned is None else returned["logits"][:, -1], returned)
