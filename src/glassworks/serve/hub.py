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
    """Watchers by job: of all that happens to it, or of its end only."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watchers: dict[_About, set[Watcher]] = {}

    @contextmanager
    def watch(self, id: str, *, end_only: bool = False) -> Iterator[Watcher]:
        """Be told of a job from here on: look after this has begun, not before."""
        watcher, about = Watcher(), (id, end_only)
        with self._lock:
            self._watchers.setdefault(about, set()).add(watcher)
        try:
            yield watcher
        finally:
            with self._lock:
                others = self._watchers[about]
                others.discard(watcher)
                if not others:
                    del self._watchers[about]

    def tell(self, ids: Iterable[str]) -> None:
        """There is news of these jobs."""
        self._tell((id, False) for id in ids)

    def tell_end(self, ids: Iterable[str]) -> None:
        """These jobs have ended."""
        self._tell((id, True) for id in ids)

    def _tell(self, abouts: "Iterable[_About]") -> None:
        with self._lock:
            told = [watcher for about in abouts for watcher in self._watchers.get(about, ())]
        for watcher in told:
            watcher.wake()


_About = tuple[str, bool]
"""(id of a job, whether its end is all that matters)"""
