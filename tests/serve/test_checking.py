"""The processes that look into requests: what they may take, what becomes of one that takes more, and of the next."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glassworks.errors import LimitExceeded, UnknownOperation, WireError
from glassworks.graph import messages, sites, wire
from glassworks.graph.backend import Experiment, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.nodes import ALL_ROWS, Node, Ref
from glassworks.serve.checking import CheckerPool

LIMITS = Limits(check_s=2, check_bytes=64 * 2**20)


def table_bytes(fake: Any, **changes: Any) -> bytes:
    return json.dumps(sites.to_json(replace(fake.table(), **changes))).encode()


@pytest.fixture(scope="module")
def pool(fake: Any) -> Iterator[CheckerPool]:
    found = CheckerPool(LIMITS, processes=1)
    found.learn("small", table_bytes(fake))
    yield found
    found.close()


def nobody(what: str, about: bytes) -> bytes:
    raise AssertionError(f"nobody was to be asked for {what}")


def asked(pool: CheckerPool, body: bytes, ask: Any = nobody) -> tuple[int, Any]:
    status, answer = pool.check("run", "small", body, ask)
    return status, json.loads(answer) if status == 200 else messages.decode_error(answer)


def encoded(*experiments: Experiment) -> bytes:
    return messages.encode_request("small", experiments)


def slow() -> bytes:
    """Writes and reads of one site, each concerning each: placement takes long."""
    nodes = [Node("input", "x", (), (), (), ALL_ROWS, None)]
    for _ in range(9000):
        nodes.append(Node("write", "a.output", (Ref(0),), (), (0,), 0, None))
        nodes.append(Node("read", "a.output", (), (), (), 0, None))
        nodes.append(Node("save", f"s{len(nodes)}", (Ref(len(nodes) - 1),), (), (len(nodes) - 1,), ALL_ROWS, None))
    inputs = Inputs((Rows(ids=((1,),)),), named={"x": wire.Blob("float32", (), bytes(4))})
    return encoded(Experiment(Graph(tuple(nodes[:20_000])), inputs))


def large() -> bytes:
    """Brackets: ten times as large when they are read."""
    return wire.pack({"request": [[]] * (8 * 2**20)}, {})


def process_of(pool: CheckerPool) -> int:
    place = pool._free.get()
    pool._free.put(place)
    assert place is not None
    return int(place._process.pid)


def test_a_good_request_passes_and_a_bad_one_is_refused(pool: CheckerPool, experiment: Any) -> None:
    cheap = {"late": [[]], "forwards": 1, "tensors": [], "tokens": 3, "flops": 0, "bytes": 0, "result_bytes": 96}
    assert asked(pool, encoded(experiment())) == (200, cheap)
    late = asked(pool, encoded(experiment(("unique",), ("add", 1))))[1]
    assert late == {**cheap, "late": [[1, 2]], "result_bytes": 0}
    status, error = asked(pool, encoded(experiment(("system",))))
    assert (status, type(error)) == (422, UnknownOperation)
    assert "at work.py:11" in str(error)
    status, error = asked(pool, b"junk")
    assert (status, type(error)) == (400, WireError)
    status, error = asked(pool, encoded(experiment(("repeat", 10**9, 10**9, 1))))
    assert (status, type(error)) == (422, LimitExceeded)


def test_a_check_that_takes_too_long_is_ended_and_the_next_goes_on(pool: CheckerPool, experiment: Any) -> None:
    assert asked(pool, encoded(experiment()))[0] == 200
    before, body = process_of(pool), slow()  # half a minute, if nobody ended it
    start = time.monotonic()
    status, error = asked(pool, body)
    assert (status, type(error)) == (422, LimitExceeded)
    assert "check_s: the check of this request was not done after 2 s, 2 s allowed" in str(error)
    assert time.monotonic() - start < 5 * LIMITS.check_s
    assert not Path(f"/proc/{before}").exists()
    assert asked(pool, encoded(experiment()))[0] == 200
    assert process_of(pool) != before


def test_a_check_that_needs_too_much_memory_is_refused(pool: CheckerPool, experiment: Any) -> None:
    body = large()
    status, error = asked(pool, body)
    assert (status, type(error)) == (422, LimitExceeded)
    assert f"of {len(body)} bytes" in str(error)
    assert f"{LIMITS.check_bytes} bytes" in str(error)
    assert asked(pool, encoded(experiment()))[0] == 200


def test_a_body_that_alone_is_too_much_is_refused(pool: CheckerPool, experiment: Any) -> None:
    status, error = asked(pool, bytes(LIMITS.check_bytes + 2**20))
    assert status == 422
    assert "check_bytes" in str(error)
    assert asked(pool, encoded(experiment()))[0] == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_ends_by_itself_is_replaced(pool: CheckerPool, experiment: Any, number: int) -> None:
    asked(pool, encoded(experiment()))
    before = process_of(pool)
    os.kill(before, number)
    assert asked(pool, encoded(experiment()))[0] in (200, 422)
    assert asked(pool, encoded(experiment()))[0] == 200
    assert process_of(pool) != before


def test_what_only_the_host_knows_is_asked_of_it(fake: Any, experiment: Any) -> None:
    """Of a plain module: its sites for these inputs. The time that the host takes is not the check's."""
    pool = CheckerPool(replace(LIMITS, check_s=1), processes=1)
    pool.learn("small", table_bytes(fake, plain=True))
    questions = []

    def host(what: str, about: bytes) -> bytes:
        questions.append((what, messages.decode_inputs(about)[0]))
        time.sleep(1.5)
        return json.dumps(sites.to_json(fake.table(tokens=5))).encode()

    given = Inputs((Rows(args=(fake.zeros(1, 5, 8),)),))
    try:
        assert asked(pool, encoded(replace(experiment(), inputs=given)), host) == (
            200,
            {"late": [[]], "forwards": 1, "tensors": [], "tokens": 1, "flops": 0, "bytes": 0, "result_bytes": 160},
        )
    finally:
        pool.close()
    assert [what for what, _ in questions] == ["sites"]
    assert questions[0][1].invokes[0].args[0].shape == (1, 5, 8)


@pytest.mark.slow
def test_one_slow_request_does_not_hold_up_the_others(fake: Any, experiment: Any) -> None:
    pool = CheckerPool(replace(LIMITS, check_s=8), processes=2)
    pool.learn("small", table_bytes(fake))
    order: list[int] = []
    long = slow()
    threads = [
        threading.Thread(target=lambda body=body: order.append(asked(pool, body)[0]))
        for body in (long, encoded(experiment()))
    ]
    try:
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join()
    finally:
        pool.close()
    assert order == [200, 422]


def test_a_checker_ends_with_its_parent(fake: Any, experiment: Any) -> None:
    pool = CheckerPool(LIMITS, processes=1)
    pool.learn("small", table_bytes(fake))
    assert asked(pool, encoded(experiment()))[0] == 200
    place = pool._free.get()
    assert place is not None
    assert place._process.poll() is None
    place._sock.close()
    assert place._process.wait(20) == 0


def test_the_process_has_no_weights_and_no_open_files_of_its_parent(pool: CheckerPool, experiment: Any) -> None:
    asked(pool, encoded(experiment()))
    pid = process_of(pool)
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert ".safetensors" not in maps
    opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if int(path.name) > 2]
    assert sum(name.startswith("socket:") for name in opened) == 1
