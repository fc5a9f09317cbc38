"""The events of a job over HTTP: numbered, gone on with where a stream broke, nothing twice, and an end."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from glassworks.serve import http_base
from glassworks.serve.quotas import Quotas
from services import ANN, BOB, Here, eventually

JOBS = "/v1/models/small/jobs"
Event = tuple[int, str, Any]


def parsed(lines: Iterator[str]) -> Iterator[Event]:
    """The events in a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "id" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
        else:
            assert set(fields) <= {""}, "a comment, or nothing"
        fields = {}


def all_of(here: Here, id: str, query: str = "", **headers: str) -> list[Event]:
    answer = here.ask("GET", f"/v1/jobs/{id}/events{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-cache"
    return list(parsed(iter(answer.text.split("\n"))))


@contextmanager
def following(here: Here, id: str, *, key: str = ANN, **headers: str) -> Iterator[httpx.Response]:
    with here.client(key) as client, client.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as found:
        yield found


def submit(here: Here, body: bytes, key: str = ANN) -> str:
    return str(here.ask("POST", JOBS, content=body, key=key).json()["id"])


def test_events_are_numbered_without_gaps_and_end_with_the_end(here: Here, body: bytes) -> None:
    id = submit(here, body)
    found = all_of(here, id)
    assert [number for number, _, _ in found] == [1, 2, 3]
    assert [kind for _, kind, _ in found] == ["queued", "started", "done"]
    assert all(abs(data["at_s"] - time.time()) < 60 for _, _, data in found)
    assert all_of(here, id) == found


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4, 2**53 - 1])
def test_a_stream_goes_on_where_it_broke_and_says_nothing_twice(here: Here, body: bytes, last: int) -> None:
    id = submit(here, body)
    every = all_of(here, id)
    assert all_of(here, id, f"?after={last}") == every[last:]
    assert all_of(here, id, **{"Last-Event-ID": str(last)}) == every[last:]
    assert all_of(here, id, "?after=0", **{"Last-Event-ID": str(last)}) == every[last:], "what a browser says counts"
    assert all_of(here, id, f"?after={last}", **{"Last-Event-ID": ""}) == every[last:]


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "²", "9" * 19, "1e3"])
def test_what_is_no_number_is_refused(here: Here, body: bytes, last: str) -> None:
    id = submit(here, body)
    headers = {"Last-Event-ID": last.encode()}
    assert "Last-Event-ID" in here.error(here.ask("GET", f"/v1/jobs/{id}/events", headers=headers), 422)
    if last != "9" * 19:
        assert here.error(here.ask("GET", f"/v1/jobs/{id}/events", params={"after": last}), 422)


def test_a_number_that_no_event_has_is_no_fault(here: Here, body: bytes) -> None:
    id = submit(here, body)
    assert here.error(here.ask("GET", f"/v1/jobs/{id}/events?after={10**30}"), 422)


def test_what_a_job_says_comes_while_it_runs_and_once(stage: Any, body: bytes) -> None:
    here, worker = stage()
    id = submit(here, body)
    eventually(lambda: id in worker.got)
    with following(here, id) as stream:
        events = parsed(stream.iter_lines())
        assert [next(events)[1] for _ in range(2)] == ["queued", "started"]
        worker.events((id, 0, "log", {"text": "one"}))
        number, kind, data = next(events)
        assert (number, kind, data["text"]) == (3, "log", "one")
    with following(here, id, **{"Last-Event-ID": "3"}) as stream:  # it broke
        events = parsed(stream.iter_lines())
        worker.events((id, 1, "log", {"text": "two"}), (id, None, "progress", {"progress": 0.5}))
        assert next(events)[:2] == (4, "log")
        worker.die()
        worker.appear()
        eventually(lambda: id in worker.got)
        worker.events(*((id, k, "log", {"text": text}) for k, text in enumerate(["one", "two", "three"])))
        worker.done(id)
        rest = list(events)
    assert [(number, kind) for number, kind, _ in rest] == [
        (5, "retried"), (6, "started"), (7, "log"), (8, "done"),
    ]  # fmt: skip
    assert rest[2][2]["text"] == "three"
    assert [number for number, _, _ in all_of(here, id)] == list(range(1, 9))


def test_several_listen_to_one_job(stage: Any, body: bytes) -> None:
    here, worker = stage()
    id = submit(here, body)
    with following(here, id) as first, following(here, id) as second:
        eventually(lambda: id in worker.got)
        worker.done(id)
        assert [[kind for _, kind, _ in parsed(own.iter_lines())] for own in (first, second)] == [
            ["queued", "started", "done"]
        ] * 2


def test_a_quiet_stream_says_that_it_is_there(stage: Any, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_base, "_BEAT_S", 0.2)
    here, worker = stage()
    id = submit(here, body)
    eventually(lambda: id in worker.got)
    with following(here, id) as stream:
        lines = stream.iter_lines()
        assert any(line.startswith(":") for line in lines)
        worker.done(id)
        assert list(parsed(lines))[-1][1] == "done"


def test_a_key_has_so_many_streams(stage: Any, body: bytes) -> None:
    here, worker = stage(quotas=Quotas(streams=2))
    id, others = submit(here, body), submit(here, body, BOB)
    eventually(lambda: len(worker.got) == 2)
    with following(here, id) as first, following(here, id) as second:
        assert first.status_code == second.status_code == 200
        eventually(lambda: here.ask("GET", f"/v1/jobs/{id}/events", timeout=0.5).status_code == 429)
        refused = here.ask("GET", f"/v1/jobs/{id}/events")
        assert "streams: 3 asked for, 2 allowed" in here.error(refused, 429)
        assert refused.headers["Retry-After"] == "5"
        with following(here, others, key=BOB) as third:
            assert third.status_code == 200
    with following(here, id) as again:
        assert again.status_code in (200, 429)

    def has_room() -> bool:
        with following(here, id) as stream:
            return stream.status_code == 200

    eventually(has_room)
