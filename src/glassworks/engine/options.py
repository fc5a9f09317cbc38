"""What goes into an engine and comes out of it besides requests: its options, checked, and what it has done."""

from dataclasses import dataclass
from typing import Any

from glassworks.engine.requests import Request
from glassworks.errors import InputError
from glassworks.graph.graph import Graph
from glassworks.measure.clock import RealClock, VirtualClock
from glassworks.measure.table import CostTable
from glassworks.memory.budget import KVBudget
from glassworks.run.frame import Frame


@dataclass(slots=True)
class Stats:
    """What an engine has done so far.

    Attributes:
        iterations: scheduled ones. steps: forward passes that requests share, packed or padded. rows: of all those
            passes together. alone_steps: passes of what runs by itself.
        prompt_tokens, new_tokens: computed, and made. shared_tokens: of prompts, taken over from others.
        swaps_out, swaps_in, drops: how often keys and values left, came back, or were forgotten to be computed again.
        seconds: spent in iterations.
    """

    iterations: int = 0
    steps: int = 0
    rows: int = 0
    alone_steps: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    shared_tokens: int = 0
    swaps_out: int = 0
    swaps_in: int = 0
    drops: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Now:
    """What an engine is doing at one moment.

    Attributes:
        since_s: when its iteration began, or in it what runs by itself now, by `time.perf_counter()`; None: none is
            under way.
        at: the experiments that take part. own: whose own pass or nodes run just now, if anybody's.
    """

    since_s: float | None
    at: tuple[Frame, ...]
    own: Frame | None


def check_options(policy: Any, kv: Any, clock: Any, cost: Any, starvation_s: Any, predictor: Any, inner: Any) -> None:
    """InputError: an option of an engine that cannot be; says what it may be."""
    wanted = {"kv": (kv, KVBudget), "cost": (cost, CostTable)}
    for name, (value, kind) in wanted.items():
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} is a gw.{kind.__name__}, got {value!r}")
    if clock is not None and not isinstance(clock, RealClock | VirtualClock):
        raise InputError(f"clock is a RealClock or a VirtualClock of glassworks.measure, got {clock!r}")
    if starvation_s is not None and not isinstance(starvation_s, int | float):
        raise InputError(f"starvation_s is a number of seconds, got {starvation_s!r}")
    if isinstance(policy, str):
        return
    if not all(callable(getattr(policy, name, None)) for name in ("arrive", "charge", "finish", "decide")):
        raise InputError(f"policy is a name, or a Scheduler (see glassworks.schedule.base); got {policy!r}")
    if (starvation_s, predictor, inner) != (None, None, None):
        raise InputError("starvation_s, predictor and inner are for a policy by name; a scheduler has its own")


def check_inputs(graph: Graph, request: Request) -> None:
    """InputError: inputs that the graph has not, or has and was not given."""
    wanted = {node.target for node in graph.nodes if node.kind == "input"}
    if wanted != set(request.inputs):
        raise InputError(
            f"the graph has the inputs {', '.join(sorted(wanted)) or 'none'}; "
            f"the request gives {', '.join(sorted(request.inputs)) or 'none'}"
        )
