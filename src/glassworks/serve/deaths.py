"""How workers ended: who watches them writes a line for each, who has to tell people reads it.

The supervisor is the parent, and so the only one whom the kernel tells; jobs are the web process's. Between them is a
file.
"""

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from glassworks.units import spelled

_KEPT = 1000
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a worker.

    Attributes:
        code: as it exited, None if a signal ended it. peak_bytes: the most memory it held.
        from_outside: by SIGKILL, and the kernel ended nothing for want of memory while it ran: somebody, or something,
            that knows nothing of jobs.
    """

    pid: int
    code: int | None
    signal: int | None
    peak_bytes: int
    from_outside: bool = False

    def __str__(self) -> str:
        how = f"exited with code {self.code}" if self.signal is None else f"was ended by {self._signal(self.signal)}"
        return f"it {how}, and held {spelled(self.peak_bytes)} at most"

    def _signal(self, number: int) -> str:
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
        why = "from outside, as it seems" if self.from_outside else "out of memory, perhaps"
        return f"{name} ({why})" if number == signal.SIGKILL else name


def memory_kills() -> int | None:
    """How many processes the kernel has ended for want of memory so far; None: it does not say."""
    try:
        counts = dict(line.split() for line in _VMSTAT.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def record(path: Path, death: Death) -> None:
    """Add a line; the file keeps the last ones only."""
    lines = path.read_text().splitlines()[-_KEPT:] if path.exists() else []
    unfinished = path.with_suffix(".part")
    unfinished.write_text("\n".join([*lines, json.dumps(asdict(death))]) + "\n")
    os.replace(unfinished, path)


def death_of(path: Path, pid: int) -> Death | None:
    """How the worker with this process id ended, if that is known yet."""
    if not path.exists():
        return None
    for line in reversed(path.read_text().splitlines()):
        found = json.loads(line)
        if found["pid"] == pid:
            return Death(**found)
    return None
