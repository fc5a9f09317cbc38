"""Who runs next: policies, the decision they share, and a simulator of both. No torch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from glassworks.errors import InputError
from glassworks.schedule.base import Scheduler
from glassworks.schedule.cost import IterationCost
from glassworks.schedule.fair import Fair
from glassworks.schedule.fcfs import Fcfs
from glassworks.schedule.guarded import PolicyScheduler
from glassworks.schedule.lengths import Learned, Predictor
from glassworks.schedule.mlfq import Mlfq
from glassworks.schedule.policy import Policy
from glassworks.schedule.predicted import Predicted
from glassworks.schedule.srpt import Srpt

POLICIES: Mapping[str, Callable[[IterationCost], Policy]] = MappingProxyType(
    {"fcfs": Fcfs, "srpt": Srpt, "srpt-predicted": Predicted, "mlfq": Mlfq}
)
"""By name; `fair` is besides, over any of them."""
NAMES = (*POLICIES, "fair")


def scheduler(
    policy: str = "mlfq",
    *,
    cost: IterationCost | None = None,
    starvation_s: float | None = None,
    predictor: Predictor | None = None,
    inner: str | None = None,
) -> Scheduler:
    """The scheduler of that name.

    Args:
        policy: `fcfs`, `srpt` (an oracle), `srpt-predicted`, `mlfq`, or `fair` (between users).
        cost: what iterations cost; the caller tells it what it observes. None: a guess.
        starvation_s: a job that was not served for so long goes first, whatever the policy. None: it may wait for ever.
        predictor: of output lengths, for jobs that come without; None: one that learns, where the policy asks.
        inner: with `fair` only: who of one user's jobs goes first; None: `mlfq`.

    Raises:
        InputError: no such policy, or `inner` without `fair`.
    """
    chosen = _chosen(policy, inner)
    if predictor is None and chosen == "srpt-predicted":
        predictor = Learned()
    own = POLICIES[chosen](IterationCost() if cost is None else cost)
    return PolicyScheduler(Fair(own) if policy == "fair" else own, starvation_s=starvation_s, predictor=predictor)


def _chosen(policy: str, inner: str | None) -> str:
    """The name of the policy that orders one user's jobs."""
    if policy not in NAMES:
        raise InputError(f"expected a policy, one of {', '.join(NAMES)}; got {policy!r}")
    if policy != "fair":
        if inner is not None:
            raise InputError(f"inner={inner!r} is for policy='fair', which is over another; got policy={policy!r}")
        return policy
    if inner is not None and inner not in POLICIES:
        raise InputError(f"expected an inner policy, one of {', '.join(POLICIES)}; got {inner!r}")
    return inner or "mlfq"


__all__ = ["NAMES", "POLICIES", "IterationCost", "Learned", "PolicyScheduler", "Predictor", "scheduler"]
