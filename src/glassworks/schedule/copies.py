"""How long copies take, read off the places of jobs: a scheduler is not told of links.

Copies of one way are one after the other, so that each began when the one before it had ended. What is seen is seen at
the ends of iterations: copies that take less seem to take as long, and a scheduler that allows for it is early.
"""

from collections.abc import Sequence

from glassworks.schedule.base import Job, Place

MOVING = (Place.LEAVING, Place.COMING)
_FORGETTING = 0.98


class Copies:
    """What was seen of them.

    Attributes:
        block_s: seconds a block, of the slow ones of late.
    """

    def __init__(self) -> None:
        self.block_s = 0.0
        self._since: dict[int, tuple[Place, float, int]] = {}
        self._ended_s = dict.fromkeys(MOVING, 0.0)

    def observe(self, jobs: Sequence[Job], now_s: float) -> None:
        """Where jobs are now."""
        before, self._since = self._since, {}
        ended = []
        for job in jobs:
            begun = before.get(job.id)
            if begun is not None and begun[0] is not job.place:
                ended.append(begun)
                begun = None
            if job.place in MOVING:
                self._since[job.id] = begun or (job.place, now_s, job.held_blocks)
        for way in MOVING:
            self._ended(way, [own for own in ended if own[0] is way], now_s)

    def _ended(self, way: Place, copies: Sequence[tuple[Place, float, int]], now_s: float) -> None:
        """Some copies of one way ended; each began when the one before it had ended."""
        if not copies:
            return
        since_s = max(self._ended_s[way], min(since_s for _, since_s, _ in copies))
        self._ended_s[way] = now_s
        one_s = (now_s - since_s) / max(1, sum(blocks for _, _, blocks in copies))
        self.block_s = max(_FORGETTING * self.block_s, one_s)
