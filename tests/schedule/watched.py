"""Workloads made by hand, and a scheduler that writes down what it was asked and what it said."""

import numpy as np

from glassworks.measure.table import CostTable
from glassworks.schedule import scheduler
from glassworks.schedule.arrivals import Arrivals
from glassworks.schedule.cost import IterationCost

STEP_S = 0.01
EVEN = CostTable.of_iterations(iteration_s=STEP_S, row_s=0, context_token_s=0, prefill_token_s=0)
"""Every iteration takes the same time, whatever is in it."""


def requests(rows, name="by hand"):
    """From (arrival_s, prompt, output) or (arrival_s, prompt, output, user)."""
    times, prompts, outputs, *users = zip(*rows, strict=True)
    names = users[0] if users else ("",) * len(rows)
    return Arrivals(np.array(times, float), np.array(prompts), np.array(outputs), tuple(names), name)


class Watched:
    """Passes everything on to a scheduler, and keeps the decisions with the times and the states then."""

    def __init__(self, inner):
        self.inner = inner
        self.decisions, self.charges, self.ends = [], [], {}

    def arrive(self, job, now_s):
        self.inner.arrive(job, now_s)

    def charge(self, job, seconds, now_s):
        self.charges.append((job.id, seconds, now_s))
        self.inner.charge(job, seconds, now_s)

    def finish(self, job, now_s):
        self.ends[job.id] = job
        self.inner.finish(job, now_s)

    def decide(self, jobs, *, now_s, limits, memory):
        ready = sum(job.rows for job in jobs)
        decision = self.inner.decide(jobs, now_s=now_s, limits=limits, memory=memory)
        self.decisions.append((now_s, ready, memory, decision))
        return decision

    def longest_waits_s(self):
        """Of each job, between two ends of iterations in which it took part."""
        last, longest = {}, {}
        for job, _, now_s in self.charges:
            since = now_s - last.get(job, self.ends[job].arrival_s)
            longest[job] = max(longest.get(job, 0.0), since)
            last[job] = now_s
        return longest


def watched(policy, *, cost=EVEN, **more):
    return Watched(scheduler(policy, cost=IterationCost(cost), **more))
