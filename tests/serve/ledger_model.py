"""What the ledger should do, in plain Python: no files, no transactions, nothing that can end in the middle."""

from dataclasses import dataclass, field

ENDED = ("done", "failed", "cancelled")


@dataclass
class ModelJob:
    number: int
    owner: str
    body: bytes
    status: str = "queued"
    fence: int = 0
    sources: int = 0
    suspect: bool = False
    cancelled: bool = False
    result: bytes | None = None
    ended_s: float = 0.0
    kinds: list[str] = field(default_factory=lambda: ["queued"])

    def end(self, status: str, result: bytes | None, now_s: float) -> None:
        """`result` of None: the ledger's own words."""
        self.status, self.result, self.ended_s = status, result, now_s
        self.kinds.append(status)


class Model:
    """Jobs by id."""

    def __init__(self, *, kept_s: float, kept_jobs: int) -> None:
        self.kept_s, self.kept_jobs = kept_s, kept_jobs
        self.jobs: dict[str, ModelJob] = {}
        self.charged: dict[tuple[str, int], float] = {}
        self.gone: list[str] = []

    def claim(self, id: str) -> int | None:
        job = self.jobs[id]
        if job.status != "queued":
            return None
        job.status, job.fence = "running", job.fence + 1
        job.kinds.append("started")
        return job.fence

    def note(self, id: str, fence: int, source: int | None, kind: str) -> None:
        job = self.jobs[id]
        if job.status != "running" or job.fence != fence or (source is not None and source < job.sources):
            return
        if source is not None:
            job.sources = source + 1
        job.kinds.append(kind)

    def finish(self, id: str, fence: int, status: str, result: bytes, compute_s: float, now_s: float) -> bool:
        job = self.jobs[id]
        if job.status != "running" or job.fence != fence:
            return False
        job.end(status, result, now_s)
        charge = (job.owner, int(now_s // 86400))
        self.charged[charge] = self.charged.get(charge, 0.0) + compute_s
        return True

    def requeue(self, id: str, fence: int, suspect: bool, now_s: float) -> str | None:
        job = self.jobs[id]
        if job.status != "running" or job.fence != fence:
            return None
        if job.cancelled:
            job.end("cancelled", None, now_s)
        else:
            job.status, job.suspect = "queued", suspect
            job.kinds.append("retried")
        return job.status

    def cancel(self, id: str, now_s: float) -> None:
        job = self.jobs[id]
        if job.status not in ENDED:
            job.cancelled = True
        if job.status == "queued":
            job.end("cancelled", None, now_s)

    def release(self, now_s: float) -> None:
        for id, job in self.jobs.items():
            self.requeue(id, job.fence, job.suspect, now_s)

    def expire(self, now_s: float) -> set[str]:
        ended = [(job.ended_s, job.number, id) for id, job in self.jobs.items() if job.status in ENDED]
        gone = {id for ended_s, _, id in ended if ended_s < now_s - self.kept_s}
        for owner in {job.owner for job in self.jobs.values()}:
            own = sorted((each for each in ended if self.jobs[each[2]].owner == owner), reverse=True)
            gone |= {id for _, _, id in own[self.kept_jobs :]}
        self.gone += gone
        for id in gone:
            del self.jobs[id]
        return gone
