"""How a worker is, said twice a second by a thread of its own, so that it is also said during a pass that takes long.

From it the other side learns which job to blame if the pass never ends: `pass_s` grows, `at` has the jobs that are in
it, and `node_of` is the one whose own nodes, or whose own pass, run just now.
"""

import os
import resource
import sys
import threading
import time
from pathlib import Path

from glassworks.serve.runner import Event, Key, Runner, Says

PULSE_S = 0.5
_STATM = Path("/proc/self/statm")


def beat(runner: Runner, says: Says, over: threading.Event) -> None:
    """Say how things are, and how far each job is, until it is over."""
    told: dict[Key, float] = {}
    while not over.wait(PULSE_S):
        says.stats({"cpu_s": time.process_time(), **_memory(), **runner.figures()})
        now = runner.progress()
        new = [(key, far) for key, far in now.items() if told.get(key) != far]
        events: list[Event] = [(*key, None, "progress", {"progress": round(far, 4)}) for key, far in new]
        says.events(events)
        told = now


def _memory() -> dict[str, int]:
    """Bytes of this process in memory, now and at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if not _STATM.exists():
        return {"resident_bytes": peak, "peak_bytes": peak}
    now = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"resident_bytes": now, "peak_bytes": max(now, peak)}
