"""Law 3 in a service: a job alone and the same job among strangers give the same, whatever the strangers do.

First each is alone in the worker; then several people submit all of them at once, in another order.
"""

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from glassworks.errors import RemoteError
from glassworks.serve.supervise import Running
from serve.books import books_of, check_books
from serve.crowd import KEYS, figure, is_up, person, wait_for
from serve.works import BY_ITSELF, Outcome, begin, check_equal, kind_of, outcome


def test_jobs_alone_and_among_strangers(toy_service: Running, toy: Any) -> None:
    strangers(toy_service, toy, count=40, seed=5)


@pytest.mark.slow
def test_five_hundred_jobs_alone_and_among_strangers(toy_service: Running, toy: Any) -> None:
    strangers(toy_service, toy, count=500, seed=6)


def strangers(running: Running, toy: Any, *, count: int, seed: int) -> None:
    wait_for(lambda: is_up(running))
    people = [person(running, key) for key in KEYS]
    numbers = [seed * 10**6 + k for k in range(count)]
    alone = {number: outcome(people[number % 3], number) for number in numbers}
    assert len({own.kind for own in alone.values()}) > 8
    passes, rows = (figure(running, f"glassworks_worker_{name}_total") for name in ("passes", "rows"))
    among = all_at_once(running, people, random.Random(seed).sample(numbers, count))
    passes = figure(running, "glassworks_worker_passes_total") - passes
    rows = figure(running, "glassworks_worker_rows_total") - rows
    print(f"{count} jobs, {rows / passes:.1f} rows a pass")
    assert rows / passes > 2.0
    for number in numbers:
        check_equal(among[number], alone[number], bits=kind_of(number).__name__ in BY_ITSELF)
        check_equal(alone[number], outcome(toy, number))
    check_books(books_of(running.state))


def all_at_once(running: Running, people: list[Any], numbers: list[int]) -> dict[int, Outcome]:
    """Each work by another person than the one that had it alone. The first forty find the worker standing still, so
    that they have company however slowly they come."""

    def begun_by_another(number: int) -> Any:
        return begin(people[(number + 1) % 3], number, wait=False)

    with ThreadPoolExecutor(16) as pool:
        os.kill(running.worker, signal.SIGSTOP)
        try:
            begun = list(pool.map(begun_by_another, numbers[:40]))
        finally:
            os.kill(running.worker, signal.SIGCONT)
        begun += pool.map(begun_by_another, numbers[40:])
        return dict(zip(numbers, pool.map(lambda each: each[1](), begun), strict=True))


def test_a_job_is_unknown_to_others(toy_service: Running) -> None:
    import glassworks as gw

    wait_for(lambda: is_up(toy_service))
    block, take = begin(person(toy_service, KEYS[0]), 2, wait=False)
    take()
    other = gw.connect(toy_service.url, api_key=KEYS[1])
    with pytest.raises(RemoteError, match="no job") as caught:
        other.job(block.job.id)
    with pytest.raises(RemoteError) as unknown:
        other.job("job-of-nobody")
    assert str(caught.value).replace(block.job.id, "ID") == str(unknown.value).replace("job-of-nobody", "ID")
    assert block.job.id not in {job.id for job in other.jobs(limit=1000)}
