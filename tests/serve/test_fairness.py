"""Shares of a service between keys: whoever asks for little is not kept waiting by who asks for much.

What the fast tests hold is an order; figures in seconds are measured by those marked slow, which print them.
"""

import secrets
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from glassworks.serve.dispatch import EACH
from glassworks.serve.keys import Keys
from glassworks.serve.state import State
from glassworks.serve.supervise import Running
from serve.books import books_of
from serve.crowd import figure, is_up, person, wait_for

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


@dataclass(frozen=True)
class Person:
    """Someone with a key of his own, and the toy as he has it."""

    url: str
    key: str
    model: Any

    def worked(self) -> float:
        """How much of his jobs was done so far, in jobs."""
        own = {"Authorization": f"Bearer {self.key}"}
        found = httpx.get(f"{self.url}/v1/jobs?limit=1000", headers=own, trust_env=False, timeout=60).json()
        return sum(job["progress"] for job in found["jobs"])


@pytest.fixture
def someone(toy_service: Running) -> Callable[..., Person]:
    """Makes people."""

    def make(weight: float = 1.0) -> Person:
        with State.visit(toy_service.state) as state:
            key = Keys(state).add(secrets.token_hex(8), weight=weight)
        time.sleep(0.3)  # a service looks for new keys now and then
        return Person(toy_service.url, key, person(toy_service, key))

    wait_for(lambda: is_up(toy_service))
    return make


def submit(who: Person, *, count: int, tokens: int) -> list[Any]:
    """Jobs of so many new tokens each."""

    def one(k: int) -> Any:
        with who.model.generate([3 + k % 900, *PROMPT], max_new_tokens=tokens, wait=False) as t:
            pass
        return t.job

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(count)))


def look(who: Person) -> float:
    """The seconds of one small job."""
    began_s = time.monotonic()
    with who.model.trace(PROMPT):
        who.model.logits[:, -1].save()
    return time.monotonic() - began_s


def call_off(jobs: list[Any]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: job.cancel(), jobs))


def test_one_job_passes_by_a_long_queue(toy_service: Running, someone: Callable[..., Person]) -> None:
    """Measured in what the others get meanwhile: no more than a few dozen passes."""
    much, little = someone(), someone()
    jobs = submit(much, count=EACH + 40, tokens=1000)
    before = much.worked()
    with little.model.trace(PROMPT, wait=False) as t:
        little.model.logits[:, -1].save()
    t.job.wait(timeout_s=120)
    meanwhile = much.worked() - before
    call_off(jobs)
    books = books_of(toy_service.state)
    asked_s = books.at_s(t.job.id, "queued")
    ends_s = [books.at_s(job.id, "done") for job in jobs if "done" in books.kinds(job.id)]
    print(f"the others got {1000 * meanwhile:.0f} tokens meanwhile")
    assert len(jobs) - sum(end_s < asked_s for end_s in ends_s) > EACH + 20  # else there was no queue to pass by
    assert meanwhile < 3


def test_weights_are_honoured(someone: Callable[..., Person]) -> None:
    light, heavy = someone(1.0), someone(3.0)
    with ThreadPoolExecutor(2) as pool:
        lights, heavies = pool.map(lambda own: submit(own, count=EACH + 2, tokens=1000), (light, heavy))

    time.sleep(4.0)  # what was done before they were so many is told late
    before = light.worked(), heavy.worked()
    wait_for(lambda: heavy.worked() > before[1] + 3)
    found = light.worked() - before[0], heavy.worked() - before[1]
    call_off([*lights, *heavies])
    print(f"of weight 1 and 3, jobs' worth of work: {found[0]:.1f}, {found[1]:.1f}")
    assert 2 * found[0] <= found[1] <= 5 * found[0]


@pytest.mark.slow
def test_equal_clients_have_equal_shares_for_a_minute(someone: Callable[..., Person]) -> None:
    """Each asks again as soon as it is answered."""
    people, counts, over = [someone() for _ in range(16)], Counter[int](), threading.Event()
    ready = threading.Barrier(17)

    def work(k: int) -> None:
        look(people[k])
        ready.wait()
        while not over.is_set():
            look(people[k])
            counts[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    ready.wait()
    time.sleep(60.0)
    over.set()
    for thread in threads:
        thread.join()
    share = counts.total() / 16
    print(f"{counts.total()} jobs in a minute; of a share of {share:.1f}: {sorted(counts.values())}")
    assert share >= 2
    assert min(counts[k] for k in range(16)) >= share / 2


@pytest.mark.slow
def test_a_thousand_jobs_of_another_cost_one_pass(toy_service: Running, someone: Callable[..., Person]) -> None:
    """At most twice the lone time and one full pass."""
    much, little = someone(), someone()
    look(little)
    lone_s = statistics.median(look(little) for _ in range(9))
    jobs = submit(much, count=1000, tokens=600)
    books = books_of(toy_service.state)
    left = sum(books.status[job.id] != "done" for job in jobs)
    assert left > 500
    passes, began_s, waits_s = figure(toy_service, "glassworks_worker_passes_total"), time.monotonic(), []
    for _ in range(9):
        waits_s.append(look(little))
        time.sleep(0.7)
    pass_s = (time.monotonic() - began_s) / (figure(toy_service, "glassworks_worker_passes_total") - passes)
    call_off(jobs)
    wait_s = statistics.median(waits_s)
    print(f"alone {lone_s:.3f} s; behind {left} jobs {wait_s:.3f} s, {max(waits_s):.3f} at most; a pass {pass_s:.3f} s")
    assert wait_s <= 2 * lone_s + pass_s
