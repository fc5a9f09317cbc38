"""What runs the jobs of a worker: the seam between its connection and its model, and the words for both.

`together` runs them through an engine, `one_by_one` in order. Neither knows of sockets: what they say goes to a `Says`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from glassworks.client.content import Body
from glassworks.serve.answers import Answer

if TYPE_CHECKING:
    from glassworks.serve.host import ModelHost

JSON, BYTES = "application/json", "application/octet-stream"
Key = tuple[str, int]
"""A job and its fence: the same job handed out again is another run."""
Event = tuple[str, int, int | None, str, dict[str, Any]]
"""(job, fence, source, kind, data); `source` counts what a run says again when it is repeated, None for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job to be run.

    Attributes:
        job, fence: which, and the how-manieth time it is handed out. user: whose; jobs of one user may share beginnings
            of prompts, and turns are given out between users, in proportion to their weights.
        kind: `experiments` or `completion`. streams: whether tokens are wanted as they come.
        seed: of what draws without a seed of its own. body: a framed verdict, request and large tensors.
    """

    job: str
    fence: int
    user: str
    weight: float
    kind: str
    streams: bool
    seed: int
    body: bytearray

    @property
    def key(self) -> Key:
        return self.job, self.fence


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job that has ended. `compute_s`: its part of the model's seconds; `forwards`: passes that it took part in."""

    key: Key
    answer: Answer
    media: str = JSON
    compute_s: float = 0.0
    forwards: int = 0


class Says(Protocol):
    """Who is told of what happens."""

    def events(self, events: list[Event]) -> None: ...
    def done(self, done: Done) -> None: ...
    def answer(self, n: int, status: int, body: Body) -> None: ...
    def stats(self, figures: dict[str, Any]) -> None: ...


class Runner(Protocol):
    """Runs jobs, in the one thread that calls it.

    Attributes:
        host: the model. together: how many jobs the last step ended, where jobs share passes; elsewhere 0.
    """

    host: "ModelHost"
    together: int

    def begin(self, order: Order, says: Says) -> None:
        """Take a job in; one that cannot be run ends at once."""

    def test(self, n: int, says: Says) -> None:
        """Run one token through the model, among the others, and answer 200 if it gives what it gave at first."""

    def step(self, says: Says) -> bool:
        """Go on a little; whether anything is left to do."""

    def cancel(self, key: Key, says: Says) -> None:
        """A job ends before it goes on; nothing if it has ended."""

    def drop(self) -> None:
        """Forget all jobs: nobody waits for them any more."""

    # From any thread, also while a step is under way.

    def stop(self, key: Key) -> None:
        """A job that is to be called off need not begin another pass."""

    def about(self) -> dict[str, Any]:
        """What runs: said once, when somebody connects."""

    def figures(self) -> dict[str, Any]:
        """What was done so far, and what is being done now."""

    def progress(self) -> dict[Key, float]:
        """How far each job is, from 0 to 1."""
