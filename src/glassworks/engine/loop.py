"""The one generation loop: padded rows, transformers' cache, one forward a step.

Step 0 reads the prompt (of an encoder-decoder: the encoder's prompt and the start token), step k the k-th new token.
The loop knows nothing of graphs: interpreters see the sites of each step as it is performed.
"""

from collections.abc import Mapping
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


def generate(
    runtime: Runtime, batch: Batch, interpreter: Interpreter, sampler: Sampler, *,
    max_new_tokens: int, seed: int, encoder_decoder: bool, last_token_only: bool, positions: int,
) -> Generated:  # fmt: skip
    """Generate until every row has ended, `max_new_tokens` are there, or nothing more is needed.

    Args:
        last_token_only: nobody looks at the prompt's logits, so only the last is computed, where the model can.
        positions: how many tokens a row may have; 0: without end.

    Raises:
        InputError: a live row would grow longer than the model's positions.
    """
    last_step = interpreter.forward.last_step
    rows = len(batch.numbers)
    live = torch.ones(rows, dtype=torch.bool, device=batch.ids.device)
    fresh: list[torch.Tensor] = []
    alive: list[torch.Tensor] = []
    cache: dict[str, Any] = {}
    stream = _Stream(batch, sampler, encoder_decoder)
    for step in range(max(max_new_tokens, 1)):
        samples = step < max_new_tokens and (last_step is None or step < last_step)
        if positions and step:
            stream.keep_within(positions, live)
        alive.append(live.clone())
        interpreter.begin(
            step,
            sizes=stream.sizes(),
            slots=stream.slots(),
            live=_live_invokes(batch, live),
            complete=samples,
        )
        extra = {"logits_to_keep": 1} if step == 0 and last_token_only else {}
        returned = runtime.step((), {**stream.inputs(), **extra}, [interpreter], cache)
        commit(interpreter)
        if not samples:
            break
        token = sampler.next(stream.seen, returned["logits"][:, -1], seed=seed, step=step, rows=batch.numbers)
        token = torch.where(live, token, torch.full_like(token, sampler.pad))
        fresh.append(token)
        for end in sampler.eos:
            live = live & (token != end)
        live = live & ~stopped(interpreter, live)
        if not bool(live.any()):
            break
        stream.extend(token, returned)
    tokens = torch.stack(fresh, dim=1) if fresh else torch.zeros(rows, 0, dtype=torch.long)
    return Generated(tokens, alive, len(alive))


def _live_invokes(batch: Batch, live: torch.Tensor) -> frozenset[int]:
    """Invokes with a live row."""
    return frozenset(
        invoke for invoke, start in batch.starts.items() if bool(live[start : start + len(batch.lengths[invoke])].any())
    )


class _Stream:
    """What enters the model at each step."""

    def __init__(self, batch: Batch, sampler: Sampler, encoder_decoder: bool) -> None:
        self._batch, self._two = batch, encoder_decoder
        self._step = 0
        self._mask = batch.mask
        self._positions = batch.positions
        self._kwargs = dict(batch.kwargs)
        self._encoded: Any = None
        if encoder_decoder:
            start = torch.full((len(batch.numbers), 1), sampler.start, device=batch.ids.device)
            self.seen = self._kwargs.pop("decoder_input_ids", start)
        else:
            self.seen = batch.ids
        self._entering = self.seen

    def sizes(self) -> Mapping[str, int]:
        own = {"batch": len(self._batch.numbers), "seq": self._entering.shape[1], "context": self.seen.shape[1]}
        return {**own, "source": self._batch.ids.shape[1]}

    def slots(self) -> Mapping[int, Any]:
        if self._two:
            return self._batch.slots("source", tokens=self._entering.shape[1])
        return self._batch.slots("seq", tokens=1 if self._step else None, before=self._step)

    def inputs(self) -> dict[str, Any]:
        mask = {"attention_mask": self._mask.long()} if self._batch.padded else {}
        if self._two:
            encoder = {"input_ids": self._batch.ids} if self._encoded is None else {"encoder_outputs": self._encoded}
            return {**self._kwargs, **encoder, **mask, "decoder_input_ids": self._entering}
        return {**self._kwargs, "input_ids": self._entering, **mask, "position_ids": self._positions}

    def extend(self, token: torch.Tensor, returned: Any) -> None:
        """A new token for each row."""
        self._step += 1
        self._entering = token[:, None]
        self.seen = torch.cat([self.seen, self._entering], dim=1)
        if self._two:
            from transformers.modeling_outputs import BaseModelOutput

            self._encoded = BaseModelOutput(last_hidden_state=returned["encoder_last_hidden_state"])
            return
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1

    def keep_within(self, positions: int, live: torch.Tensor) -> None:
        """Refuse a token beyond the last position of the model; a row that has ended waits at the last."""
        used = self.seen.shape[1] if self._two else int(self._positions[live].max()) + 1
        if used > positions:
            raise InputError(
                f"the generation would go on to {used} tokens in a row; this model has {positions} positions: ask for "
                f"fewer new tokens, or shorten the prompt"
            )
        self._positions = self._positions.clamp(max=positions - 1)
