"""Processes of a service are killed at the worst moments: no job is lost, none ends twice, none ends wrong.

In real services, through real clients, who see nothing of it but that they wait longer. What a job came to is compared
with the same work in this process; how it came to it is read from the service's database (`books`).
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import glassworks as gw
from glassworks.client import HTTPTransport, RemoteBackend
from glassworks.errors import RemoteError
from glassworks.graph.jobs import ENDED
from glassworks.serve import supervise
from glassworks.serve.supervise import Running, running_service
from serve.books import books_of, check_books
from serve.crowd import KEYS, Client, ended, figure, is_alive, is_up, kill_web, kill_worker, person, wait_for
from serve.works import begin, check_equal, kind_of, outcome, says

# The worker.


def test_the_worker_is_killed(toy_service: Running, toy: Any) -> None:
    workers_die(toy_service, toy, times=3, seed=1)


@pytest.mark.slow
def test_the_worker_is_killed_fifty_times(toy_service: Running, toy: Any) -> None:
    workers_die(toy_service, toy, times=50, seed=2)


def workers_die(running: Running, toy: Any, *, times: int, seed: int) -> None:
    wait_for(lambda: is_up(running))
    before, deaths = set(books_of(running.state).status), lines(running.state / "deaths.jsonl")
    numbers, enough, draw = itertools.count(seed * 10**6), threading.Event(), random.Random(seed)
    clients = [Client(running, KEYS[k % len(KEYS)], numbers, enough) for k in range(6)]
    for client in clients:
        client.start()
    for k in range(times):
        if k % 2 == 0 or (times > 10 and draw.random() < 0.7):  # else while it loads
            wait_for(lambda: is_up(running) and figure(running, "glassworks_jobs_running") > 0)
        time.sleep(draw.uniform(0.0, 1.5))
        kill_worker(running)
    enough.set()
    found = ended(clients)
    books = books_of(running.state)
    new = set(books.status) - before
    print(f"{times} kills, {len(found)} jobs, of which {books.retried()} went back")
    assert lines(running.state / "deaths.jsonl") - deaths == times
    assert len(new) == len(found)
    assert books.retried() > 0
    check_books(books)
    for number, own in found.items():
        check_equal(own, outcome(toy, number))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


# The web process.


def test_the_web_process_is_killed_with_jobs_queued(toy_service: Running, toy: Any) -> None:
    webs_die(toy_service, toy, count=30, seed=3)


@pytest.mark.slow
def test_the_web_process_is_killed_with_five_hundred_jobs_queued(toy_service: Running, toy: Any) -> None:
    webs_die(toy_service, toy, count=500, seed=4)


def webs_die(running: Running, toy: Any, *, count: int, seed: int) -> None:
    """Once while all wait, and once while they run."""
    wait_for(lambda: is_up(running))
    before = set(books_of(running.state).status)
    people = [person(running, key) for key in KEYS]
    stopped = kill_worker(running)
    os.kill(stopped, signal.SIGSTOP)
    numbers = [seed * 10**6 + k for k in range(count)]
    begun = [(number, *begin(people[number % 3], number, wait=False)) for number in numbers]
    made = {block.job.id for _, block, _ in begun}
    status = books_of(running.state).status
    assert {status[id] for id in made} == {"queued"}
    assert len(made) == count
    with ThreadPoolExecutor(24) as pool:
        loud = [block.job for number, block, _ in begun if kind_of(number) is says][:8]
        assert loud
        heard = {job.id: pool.submit(lambda job=job: list(job.events())) for job in loud}
        taken = [(number, pool.submit(take)) for number, _, take in begun]
        kill_web(running)
        os.kill(stopped, signal.SIGCONT)
        wait_for(lambda: ended_of(running, made) > count // 5)
        kill_web(running)
        found = {number: future.result(600) for number, future in taken}
        events = {id: future.result(600) for id, future in heard.items()}
    books = books_of(running.state)
    check_books(books)
    assert set(books.status) - before == made
    print(f"{count} jobs, of which {books.retried()} went back")
    for id, own in events.items():
        assert [(event.number, event.kind) for event in own] == [(e.number, e.kind) for e in books.events[id]]
        assert [event.kind for event in own].count("log") == 6
    for number, own in found.items():
        check_equal(own, outcome(toy, number))


def ended_of(running: Running, made: set[str]) -> int:
    return sum(status in ENDED for id, status in books_of(running.state).status.items() if id in made)


# The supervisor.

SUPERVISOR = """
import json, sys
from glassworks.serve.supervise import serve

def ready(running):
    print(json.dumps([running.url, running.worker, running.web]), flush=True)

serve("small", port=0, state={state!r}, keys=["gw-a"], worker_command={command!r}, on_ready=ready)
"""


def test_the_supervisor_is_killed_and_another_service_goes_on(fake: Any, experiment: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    code = SUPERVISOR.format(state=str(state), command=list(fake.FAKE))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url, *children = json.loads(process.stdout.readline())
        with HTTPTransport(url, api_key="gw-a") as transport:
            backend = RemoteBackend(transport, "small")
            jobs = [backend.submit([experiment(("mul", 0.1), tokens=k)]) for k in range(1, 21)]
            jobs[1].wait(timeout_s=60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    wait_for(lambda: not any(map(is_alive, children)), timeout_s=20)
    left = [id for id, status in books_of(state).status.items() if status not in ENDED]
    assert len(left) > 10
    with running_service("small", state=state, worker_command=fake.FAKE) as again:
        assert again.key == ""  # the state knows keys: none is made
        lab = gw.connect(again.url, api_key="gw-a")
        for job in jobs:
            lab.job(job.id).wait(timeout_s=120)
        shapes = [lab.job(job.id).results()["s"].shape for job in jobs]
    assert shapes == [(1, k, 8) for k in range(1, 21)]
    check_books(books_of(state), made=[job.id for job in jobs])


# Jobs that kill.


def test_only_the_poison_fails_with_the_reason_and_the_bytes(
    fake: Any, experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job ends the process, one is ended with it for want of memory; others are before, between and behind them."""
    monkeypatch.setattr(supervise, "memory_kills", itertools.count().__next__)  # the kernel's count, as it would rise
    with running_service("small", keys=["gw-a", "gw-b"], limits=fake.LIMITS, worker_command=fake.FAKE) as running:
        transports = [HTTPTransport(running.url, api_key=key) for key in ("gw-a", "gw-b")]
        people = [RemoteBackend(own, "small", patience_s=60.0) for own in transports]
        innocent = [people[k % 2].submit([experiment(("mul", 0.05), tokens=k)]) for k in range(1, 9)]
        exits = people[0].submit([experiment(("log",))])
        innocent += [people[k % 2].submit([experiment(tokens=k)]) for k in range(9, 12)]
        starves = people[1].submit([experiment(("sqrt",))])
        innocent += [people[k % 2].submit([experiment(tokens=k)]) for k in range(12, 15)]
        for job in (exits, starves, *innocent):
            job.wait(timeout_s=120)
        with pytest.raises(RemoteError, match=r"alone in it, it exited with code 9, and held [0-9.]+ [MG]iB"):
            exits.each()
        with pytest.raises(RemoteError, match=r"was ended by SIGKILL \(out of memory, perhaps\)") as caught:
            starves.each()
        size, unit = str(caught.value).partition("held ")[2].split()[:2]
        assert float(size) * {"MiB": 1, "GiB": 1024}[unit] >= 192
        for k, job in enumerate(innocent, start=1):
            assert job.each()[0]["s"] == fake.zeros(1, k, 8)
        books = books_of(running.state)
        for transport in transports:
            transport.close()
    check_books(books, made=[job.id for job in [*innocent, exits, starves]])
    assert {id for id, status in books.status.items() if status == "failed"} == {exits.id, starves.id}
    assert books.retried() > 2
