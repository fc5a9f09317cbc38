"""Who waits for news of which job: any thread tells, and whoever waits on the event loop wakes up and looks.

What the news is stands in the ledger. News that nobody has looked at yet is one piece of news, however much there is.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock


class Watcher:
    """One who waits, on the event loop that it was made on."""

    def __init__(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()

    def wake(self) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)

    async def news(self, timeout_s: float) -> bool:
        """Wait for news, or for so long; whether there were any."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


class Hub:
    """Watchers by job."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watchers: dict[str, set[Watcher]] = {}

    @contextmanager
    def watch(self, id: str) -> Iterator[Watcher]:
        """Be told of a job from here on: look after this has begun, not before."""
        watcher = Watcher()
        with self._lock:
            self._watchers.setdefault(id, set()).add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                others = self._watchers[id]
                others.discard(watcher)
                if not others:
                    del self._watchers[id]

    def tell(self, ids: Iterable[str]) -> None:
        """There is news of these jobs."""
        with self._lock:
            told = [watcher for id in ids for watcher in self._watchers.get(id, ())]
        for watcher in told:
            watcher.wake()
