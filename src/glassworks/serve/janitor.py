"""What a service does now and then: lets go of what is old, stops what a revoked key has open, takes back what got
lost."""

import logging
import threading
import time

from glassworks.serve.jobs import Jobs
from glassworks.serve.keys import Keys

_LOG = logging.getLogger("glassworks.serve")
_LOOK_S = 0.5
_SWEEP_S = 30.0


class Janitor:
    """A thread beside the service."""

    def __init__(self, jobs: Jobs, keys: Keys) -> None:
        self._jobs, self._keys = jobs, keys
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="glassworks-janitor", daemon=True)
        self._swept_s = float("-inf")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, once what is under way is done."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                self._look()
            except Exception:  # noqa: BLE001 - it must go on; the log says why
                _LOG.exception("keeping the service in order failed")

    def _look(self) -> None:
        live = {row.id for row in self._keys.list() if row.revoked_s is None}
        for owner in self._jobs.ledger.owners() - live:
            self._jobs.stop_all_of(owner)
        if time.monotonic() - self._swept_s > _SWEEP_S:
            self._swept_s = time.monotonic()
            self._jobs.ledger.expire()
            self._jobs.take_back()
