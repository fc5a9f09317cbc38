"""A process that does what a service does to a ledger, from several threads, and says so on standard output once each
write was acknowledged; whoever started it kills it. Its argument is the state folder.

A line is `admitted ID DIGEST`, `claimed ID FENCE` or `ended ID FENCE DIGEST`.
"""

import hashlib
import os
import random
import sys
import threading

from glassworks.serve.ledger import Ledger
from glassworks.serve.records import NewJob
from glassworks.serve.state import State

INLINE_BYTES = 1024


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def some_bytes() -> bytes:
    return os.urandom(random.choice([10, 5000]))


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def work(ledger: Ledger) -> None:
    """Admit, claim and end jobs; leave some waiting and some running."""
    while True:
        body = some_bytes()
        job, _ = ledger.admit(
            NewJob(owner="ann", model="m", kind="experiments", verdict=b"v", body=body, seed=1, tokens=1, forwards=1)
        )
        say("admitted", job.id, digest(body))
        if random.random() < 0.8:
            end(ledger, job.id)


def end(ledger: Ledger, id: str) -> None:
    fence = ledger.claim(id, lease_s=9)
    assert fence is not None
    say("claimed", id, fence)
    ledger.note([(id, fence, 0, "log", {"text": "x"})])
    if random.random() < 0.8:
        result = some_bytes()
        assert ledger.finish(id, fence, status="done", answer=200, result=result, media="a/b", compute_s=1.0, data={})
        say("ended", id, fence, digest(result))


def main() -> None:
    ledger = Ledger(State.hold(sys.argv[1]), inline_bytes=INLINE_BYTES)
    ledger.release()
    say("ready")
    threads = [threading.Thread(target=work, args=(ledger,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
