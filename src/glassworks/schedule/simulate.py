"""What a policy would do to a workload: the engine's own scheduler, run against a cost table and a clock of its own.

Time jumps from one iteration to the next; nothing is computed. An iteration costs what the table says of its rows, the
tokens that they attend to and the tokens of prompts in it. Copies of KV blocks run beside it at the link's speed.

The scheduler sees what it would see in an engine: no true lengths, but for the oracle `srpt`, and, where it predicts,
the truth with a log-normal error, unless another predictor is given (a drawn trace has nothing to learn from).
"""

import math
from collections.abc import Sequence

import numpy as np

from glassworks.errors import GlassworksError, InputError
from glassworks.measure.table import CostTable
from glassworks.schedule import scheduler
from glassworks.schedule.arrivals import Arrivals
from glassworks.schedule.base import UNLIMITED, Job, Limits, Scheduler
from glassworks.schedule.cost import OPT_13B, IterationCost
from glassworks.schedule.lengths import Noisy, Predictor
from glassworks.schedule.report import Report
from glassworks.schedule.store import LimitedKV, Store


def simulate(
    arrivals: Arrivals,
    *,
    policy: str | Scheduler = "mlfq",
    cost: CostTable | None = None,
    rows: int = 16,
    tokens: int = 2048,
    starvation_s: float | None = None,
    predictor: Predictor | Noisy | None = None,
    inner: str | None = None,
    kv: LimitedKV | None = None,
    seed: int = 0,
) -> Report:
    """Runs all requests to their end.

    Args:
        policy: a name, as for the engine, or a scheduler of your own (to which the next four are left).
        cost: of iterations; None: like OPT-13B on one accelerator, as in FastServe.
        rows, tokens: of an iteration, at most.
        starvation_s, inner: as for the engine.
        predictor: of output lengths, where the policy predicts; None: the truth with an error of sigma 0.8.
        kv: the store; None: without bounds.
        seed: of the errors of predictions.

    Raises:
        InputError: a request that cannot fit the store, or an unknown policy.
    """
    costs = IterationCost(OPT_13B if cost is None else cost)
    kv = LimitedKV() if kv is None else kv
    learned = None if isinstance(predictor, Noisy) else predictor
    if isinstance(policy, str):
        name = f"fair over {inner or 'mlfq'}" if policy == "fair" else policy
        believed = IterationCost(OPT_13B if cost is None else cost)
        deciding = scheduler(policy, cost=believed, starvation_s=starvation_s, predictor=learned, inner=inner)
    else:
        name, deciding = type(policy).__name__, policy
    jobs = _jobs(arrivals, kv)
    if "srpt" in (policy, inner):
        _expect(jobs, arrivals.output_tokens.tolist())
    elif learned is None and "srpt-predicted" in (policy, inner):
        noisy = predictor if isinstance(predictor, Noisy) else Noisy()
        _expect(jobs, noisy.predictions(arrivals.output_tokens.tolist(), seed=seed))
    run = _Run(arrivals, jobs, deciding, costs, Limits(rows, tokens), Store(kv))
    run.all()
    return run.report(name)


def _jobs(arrivals: Arrivals, kv: LimitedKV) -> list[Job]:
    most = int(arrivals.output_tokens.max())
    columns = (arrivals.arrival_s, arrivals.prompt_tokens, arrivals.output_tokens)
    times, prompts, outputs = (column.tolist() for column in columns)
    jobs = [Job(i, times[i], prompts[i], most, arrivals.users[i]) for i in range(len(times))]
    if kv.device_blocks != UNLIMITED:
        for job, output in zip(jobs, outputs, strict=True):
            need = job.blocks(job.prompt_tokens + output, kv.block_tokens)
            if need > kv.device_blocks:
                raise InputError(
                    f"request {job.id} needs {need} blocks for {job.prompt_tokens} + {output} tokens; the device has "
                    f"{kv.device_blocks}: give it more, or leave the request out"
                )
    return jobs


def _expect(jobs: Sequence[Job], expected_tokens: Sequence[float]) -> None:
    for job, expected in zip(jobs, expected_tokens, strict=True):
        job.expected_tokens = float(expected)


class _Run:
    """One simulation as it goes."""

    def __init__(
        self,
        arrivals: Arrivals,
        jobs: list[Job],
        deciding: Scheduler,
        cost: IterationCost,
        limits: Limits,
        store: Store,
    ) -> None:
        self._arrivals, self._jobs, self._deciding = arrivals, jobs, deciding
        self._cost, self._limits, self._store = cost, limits, store
        self._outputs: list[int] = arrivals.output_tokens.tolist()
        self._active: dict[int, Job] = {}
        self._arrived = 0
        self._now_s, self._busy_s, self._idle_s, self._iterations, self._rows = 0.0, 0.0, 0.0, 0, 0
        self._first_s = [math.nan] * len(jobs)
        self._end_s = [math.nan] * len(jobs)

    def all(self) -> None:
        """Until every request has ended."""
        while self._active or self._arrived < len(self._jobs):
            self._arrive()
            self._store.settle(self._now_s)
            if not (self._active and self._iterate()):
                self._wait()

    def report(self, policy: str) -> Report:
        """What came of it."""
        times, store = self._arrivals.arrival_s, self._store
        return Report(
            policy=policy, arrivals=self._arrivals.name, arrival_s=times, latency_s=np.array(self._end_s) - times,
            ttft_s=np.array(self._first_s) - times, output_tokens=self._arrivals.output_tokens,
            busy_s=self._busy_s, idle_s=self._idle_s, iterations=self._iterations,
            rows=self._rows / max(1, self._iterations), swaps=store.swaps, drops=store.drops,
            dropped_tokens=store.dropped_tokens, peak_blocks=store.peak_blocks,
        )  # fmt: skip

    def _arrive(self) -> None:
        jobs = self._jobs
        while self._arrived < len(jobs) and jobs[self._arrived].arrival_s <= self._now_s:
            job = jobs[self._arrived]
            self._arrived += 1
            self._active[job.id] = job
            self._deciding.arrive(job, self._now_s)

    def _iterate(self) -> bool:
        """One iteration; False: nothing could run."""
        memory = self._store.memory()
        decision = self._deciding.decide(
            list(self._active.values()), now_s=self._now_s, limits=self._limits, memory=memory
        )
        for job in self._store.perform(decision, self._now_s):
            self._deciding.arrive(job, self._now_s)
        ran = [(job, n) for job, n in decision.run if self._store.grow(job, job.computed_tokens + n)]
        if not ran:
            return False
        seconds = self._seconds(ran)
        self._now_s += seconds
        self._busy_s += seconds
        self._iterations += 1
        self._rows += len(ran)
        for job, tokens in ran:
            self._advance(job, tokens, seconds)
        return True

    def _seconds(self, ran: Sequence[tuple[Job, int]]) -> float:
        context = prefill = 0
        for job, tokens in ran:
            context += job.computed_tokens
            if job.is_prefilling:
                prefill += tokens
        return self._cost.seconds(rows=len(ran), context_tokens=context, prefill_tokens=prefill)

    def _advance(self, job: Job, tokens: int, seconds: float) -> None:
        job.computed_tokens += tokens
        if job.pending_tokens == 0:
            job.produced_tokens += 1
            if job.produced_tokens == 1:
                self._first_s[job.id] = self._now_s
        self._deciding.charge(job, seconds, self._now_s)
        if job.produced_tokens == self._outputs[job.id]:
            self._end_s[job.id] = self._now_s
            self._store.release(job)
            del self._active[job.id]
            self._deciding.finish(job, self._now_s)

    def _wait(self) -> None:
        """Until something comes: a request, or the end of a copy."""
        coming = self._jobs[self._arrived].arrival_s if self._arrived < len(self._jobs) else math.inf
        until_s = min(coming, self._store.next_s())
        if until_s == math.inf:
            if self._active:
                raise GlassworksError(
                    f"{len(self._active)} jobs are left, the first is {next(iter(self._active.values()))}, and the "
                    f"scheduler runs none although nothing is on its way"
                )
            return
        if not self._active:
            self._idle_s += until_s - self._now_s
        self._now_s = max(self._now_s, until_s)
