"""Work that would never end is ended at its limit, if need be together with the worker; others' work ends well."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import glassworks as gw
from glassworks.client import HTTPTransport, RemoteBackend
from glassworks.errors import LimitExceeded
from glassworks.graph.limits import Limits
from glassworks.serve.supervise import Running, running_service
from serve.books import books_of, check_books
from serve.crowd import Client, ended, is_up, person, wait_for
from serve.works import check_equal, outcome

RUN_S = 2
LIMITS = Limits(
    run_s=RUN_S, max_new_tokens=100_000, node_flops=2**60, request_flops=2**62, request_bytes=2**60, tokens=2**30
)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with running_service("toy", keys=["gw-a", "gw-b"], limits=LIMITS) as found:
        yield found


def a_generation(model: Any) -> Any:
    with model.generate([5, 6, 7], max_new_tokens=50_000, wait=False) as t:
        pass
    return t.job


def a_chain(model: Any) -> Any:
    """Each `cond` of its step waits for the one before; there are as many steps as there are."""
    with model.generate([5, 6, 7], max_new_tokens=20_000, wait=False) as t, t.steps[:]:
        h = model.layers[0].output[:, -1]
        for _ in range(300):
            h = gw.cond(h.sum() > 0, lambda h=h: h * 0.5 - 1, lambda h=h: h * 0.5 + 1)
        h.sum().save()
    return t.job


def a_node(model: Any) -> Any:
    """One product after the other within one node, which nothing can end but the end of the process."""
    matrix = torch.eye(2048)
    with model.trace([5, 6, 7], wait=False) as t:
        start = matrix + 0 * model.layers[0].output.sum()
        torch.linalg.matrix_power(start, 2**62 - 1)[0, 0].save()
    return t.job


def ends_at_its_limit(running: Running, toy: Any, work: Callable[[Any], Any], *, company: int) -> float:
    """Seconds from its beginning to its end, while others go on."""
    wait_for(lambda: is_up(running))
    numbers, enough = itertools.count(7 * 10**6), threading.Event()
    others = [Client(running, "gw-b", numbers, enough) for _ in range(company)]
    job = work(person(running, "gw-a"))
    for other in others:
        other.start()
    job.wait(timeout_s=120)
    with pytest.raises(LimitExceeded, match="run_s: "):
        job.results()
    enough.set()
    found = ended(others)
    books = books_of(running.state)
    check_books(books)
    took_s = books.at_s(job.id, "failed") - books.at_s(job.id, "started")
    print(
        f"{work.__name__}: ended after {took_s:.2f} s with {books.compute_s[job.id]:.2f} s of compute, {RUN_S} s "
        f"allowed; {len(found)} jobs of others"
    )
    assert books.kinds(job.id).count("started") == 1
    assert RUN_S <= books.compute_s[job.id] <= RUN_S + 2
    assert len(found) >= company
    for number, own in found.items():
        check_equal(own, outcome(toy, number))
    return took_s


@pytest.mark.parametrize("work", [a_generation, a_chain])
def test_endless_steps_end_at_the_limit(running: Running, toy: Any, work: Callable[[Any], Any]) -> None:
    first = running.worker
    ends_at_its_limit(running, toy, work, company=2)
    assert running.worker == first


def test_an_endless_node_ends_with_its_worker(fake: Any, experiment: Any) -> None:
    limits = Limits(run_s=1)
    with running_service("small", keys=["gw-a", "gw-b"], limits=limits, worker_command=fake.FAKE) as running:
        first = running.worker
        transports = [HTTPTransport(running.url, api_key=key) for key in ("gw-a", "gw-b")]
        one, other = (RemoteBackend(own, "small", patience_s=60.0) for own in transports)
        job = one.submit([experiment(("mul", 3600))])
        others = [other.submit([experiment(tokens=k)]) for k in range(1, 6)]
        job.wait(timeout_s=60)
        with pytest.raises(LimitExceeded, match=r"run_s: this job ran for .* together with its worker"):
            job.each()
        for k, own in enumerate(others, start=1):
            assert own.each()[0]["s"] == fake.zeros(1, k, 8)
        books = books_of(running.state)
        assert running.worker != first
        for transport in transports:
            transport.close()
    check_books(books, made=[own.id for own in (job, *others)])
    assert books.kinds(job.id).count("started") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("work", "company"), [(a_generation, 0), (a_chain, 0), (a_node, 0), (a_node, 2)])
def test_endless_work_ends_two_seconds_after_its_limit(
    running: Running, toy: Any, work: Callable[[Any], Any], company: int
) -> None:
    """A limit is of a job's own seconds: where steps are shared, two of them last longer than two."""
    assert ends_at_its_limit(running, toy, work, company=company) <= RUN_S + 2
