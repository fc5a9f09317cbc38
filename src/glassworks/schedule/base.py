"""What a scheduler knows of the requests, and what it may decide. Plain data, a clock's reading in, a decision out.

The engine and the simulator keep the same records and ask the same function before every iteration; neither devices nor
tensors appear here. A *token* is computed once its keys and values exist; every step computes what is *pending*: the
rest of the prompt, or the one token that the step before produced.

Surprise: a decision may name a job that cannot run at once (its blocks are still on their way, or the store is short of
some). The mechanism then leaves it out of this iteration; it never waits inside one.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

UNLIMITED = sys.maxsize


class Place(Enum):
    """Where the keys and values of a job are."""

    NOWHERE = "nowhere"  # nothing is computed yet, or it was dropped
    DEVICE = "device"
    LEAVING = "leaving"  # being copied to the host; its blocks are free after the copy's fence
    HOST = "host"
    COMING = "coming"  # being copied to the device, where its blocks are held already


@dataclass(slots=True, eq=False)
class Job:
    """One request, as a scheduler sees it.

    Attributes:
        arrival_s: when it came. user: whose it is, for `fair`; weight: what that user's share is in proportion to.
        prompt_tokens, max_new_tokens: of each row. rows: how many rows of the batch it takes.
        expected_tokens: how many it will produce: a prediction, or the truth for the oracle; None: nobody knows.
        chunkable: its prompt may be computed in parts. recomputable: it may be dropped and computed again.
        computed_tokens: whose keys and values exist, in each row. produced_tokens: so far.
        whole_blocks: it takes so many blocks at once, however many tokens it has; None: as it needs them.
        place, held_blocks: where they are, and how many blocks of the device they hold; own_blocks: those of them that
            no other job shares, which leaving sets free.
        level, used_s, queued: a policy's: its queue, the time it has used there, its turn in it.
        last_served_s: when it last ran; its arrival at first. served: in how many iterations since it last came back.
        kept_tokens: how many it had produced when it was last dropped; negative: it never was.
    """

    id: int
    arrival_s: float
    prompt_tokens: int
    max_new_tokens: int
    user: str = ""
    weight: float = 1.0
    rows: int = 1
    expected_tokens: float | None = None
    chunkable: bool = True
    recomputable: bool = True
    whole_blocks: int | None = None
    computed_tokens: int = 0
    produced_tokens: int = 0
    place: Place = Place.NOWHERE
    held_blocks: int = 0
    own_blocks: int = 0
    level: int = 0
    used_s: float = 0.0
    queued: int = 0
    last_served_s: float = field(default=-1.0)
    served: int = 0
    kept_tokens: int = 0

    def __post_init__(self) -> None:
        if self.last_served_s < 0:
            self.last_served_s = self.arrival_s

    @property
    def pending_tokens(self) -> int:
        """What is still to be computed in each row before it produces its next token."""
        return self.prompt_tokens + self.produced_tokens - self.computed_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the token of the step before is pending."""
        return self.pending_tokens > 1 or self.computed_tokens == 0

    def blocks(self, tokens: int, block_tokens: int) -> int:
        """Blocks that hold so many tokens of each row."""
        return self.rows * math.ceil(tokens / block_tokens) if self.whole_blocks is None else self.whole_blocks


@dataclass(frozen=True, slots=True)
class Limits:
    """What one iteration may hold: `rows`, and `tokens` computed in it (a prompt that may not be cut may exceed it,
    if it is the only one that begins)."""

    rows: int = 16
    tokens: int = 512


@dataclass(frozen=True, slots=True)
class Memory:
    """The KV store now, in blocks. `instant`: copies end before the iteration that asked for them begins."""

    block_tokens: int = 16
    total_blocks: int = UNLIMITED
    free_blocks: int = UNLIMITED
    host_free_blocks: int = UNLIMITED
    instant: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """One iteration. `run`: jobs, and how many tokens of each row to compute. `leave`, `come`: jobs whose blocks are
    to be copied to the host and back. `drop`: jobs to be computed again later."""

    run: tuple[tuple[Job, int], ...] = ()
    leave: tuple[Job, ...] = ()
    come: tuple[Job, ...] = ()
    drop: tuple[Job, ...] = ()


class Scheduler(Protocol):
    """Decides. Whoever performs the decisions (drop, leave, come, then run) keeps the jobs' places, blocks and tokens;
    the scheduler keeps the rest."""

    def arrive(self, job: Job, now_s: float) -> None:
        """A job has come, or has come back after it was dropped."""

    def charge(self, job: Job, seconds: float, now_s: float) -> None:
        """A job took part in an iteration of `seconds`, which ended at `now_s`. Its tokens are counted already."""

    def finish(self, job: Job, now_s: float) -> None:
        """A job has ended, whatever the way."""

    def decide(self, jobs: Sequence[Job], *, now_s: float, limits: Limits, memory: Memory) -> Decision:
        """What the next iteration does. `jobs`: all that have arrived and not ended."""
