"""Who writes a block: a task of an event loop, or else a thread. Each has at most one open block of a model.

Tasks of one loop share its thread, and one may open a block while another waits inside of its own.
"""

from asyncio import _get_running_loop, current_task
from collections.abc import Hashable
from threading import get_ident


def author() -> Hashable:
    """The task that runs here, or the thread's number."""
    if _get_running_loop() is None:
        return get_ident()
    return current_task() or get_ident()
