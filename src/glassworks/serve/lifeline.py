"""A process that ends when its parent does, however the parent ended: it holds one end of a pipe, and waits
for its close.

A signal on the parent's death (Linux's prctl) is tied to the thread that started the child, and other systems
lack it.
"""

import os
import threading
import time
from collections.abc import Callable

GRACE_S = 5.0


def end_with(fd: int, stop: Callable[[], None]) -> None:
    """When the pipe `fd` closes at its other end, call `stop`; if that is not enough within the grace, end
    anyway."""

    def wait() -> None:
        while os.read(fd, 1):
            pass
        stop()
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=wait, name="glassworks-lifeline", daemon=True).start()
