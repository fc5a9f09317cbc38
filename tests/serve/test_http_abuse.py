"""What can be done to a server below the level of messages, on a real process: no 5xx, no growth, and it goes on."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asking import ask
from glassworks.client import HTTPTransport, RemoteBackend
from glassworks.errors import LimitExceeded, WireError
from glassworks.graph import messages
from glassworks.serve import careful
from glassworks.serve.bodies import BodyTimes
from glassworks.serve.supervise import Running, running_service
from services import ANN, service_here, worker_here

WEB_BYTES = 200 * 10**6
RUN = "/v1/models/small/run"


@pytest.fixture(scope="module")
def running(fake: Any) -> Iterator[Running]:
    with running_service("small", keys=["gw-a"], limits=fake.LIMITS, worker_command=fake.FAKE) as found:
        with HTTPTransport(found.url, api_key="gw-a") as transport:
            ask(transport, "GET", "/v1/models/small/sites")
        yield found


def spoken(running: Running | str, *sent: bytes, wait_s: float = 5.0) -> bytes:
    """What comes back for raw bytes, until the server closes or says nothing for so long."""
    url = running if isinstance(running, str) else running.url
    host, port = url.removeprefix("http://").split(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        with contextlib.suppress(ConnectionError):
            for part in sent:
                connection.sendall(part)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while chunk := connection.recv(2**16):
                found += chunk
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def request(path: str = RUN, method: str = "POST", key: str = "gw-a", body: bytes = b"", **headers: str) -> bytes:
    headers = {"Connection": "close", **headers}
    head = [f"{method} {path} HTTP/1.1", "Host: lab", f"Authorization: Bearer {key}"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def peak_bytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@pytest.fixture(autouse=True, scope="module")
def goes_on(running: Running, experiment: Any) -> Iterator[None]:
    """After everything here the same small process still answers."""
    web = running.web
    yield
    assert running.web == web
    assert peak_bytes(web) < WEB_BYTES
    with HTTPTransport(running.url, api_key="gw-a") as transport:
        assert len(RemoteBackend(transport, "small").run_session([experiment()])) == 1


# Heads.

HEADS = {
    "no HTTP": b"hello\r\n\r\n",
    "nothing": b"",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "folded": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
    "zeros": b"GET /healthz HTTP/1.1\r\nHost: \0\0\r\n\r\n",
    "zeros in the path": b"GET /he\0althz HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header without a name": b"GET /healthz HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "a name with a space": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX y: x\r\n\r\n",
    "bare line ends": b"GET /healthz HTTP/1.1\nHost: a\nX\n\n",
    "a long line": b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a long header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 10**6 + b"\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10**5 + b"\r\n",
    "a head without end": b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: yyyyyyyyyyyyyyyyy\r\n" * 10**5,
    "not ascii": "GET /ä HTTP/1.1\r\nHost: ü\r\n\r\n".encode(),
    "lower case": b"get /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT lab:443 HTTP/1.1\r\nHost: lab\r\n\r\n",
    "an absolute path": b"GET http://elsewhere/v1/models HTTP/1.1\r\nHost: lab\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: lab\r\n\r\n",
    "an upgrade": b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(running: Running, name: str) -> None:
    found = statuses(spoken(running, HEADS[name], wait_s=1.0))
    assert all(200 <= status < 500 for status in found), found
    if name not in ("nothing", "an upgrade", "a head without end", "many headers", "folded"):
        assert found[:1]
        assert found[0] >= 400


PATHS = [
    "/", "//", "/v1", "/v1/models/", "/v1/models//run", "/v1/models/../run", "/v1/models/small/../small/run",
    "/v1/models/..%2f..%2fetc%2fpasswd/sites", "/v1/models/small%00/run", "/v1/models/small%2frun",
    "/v1/models/%2e%2e/run", "/v1/models/small/run/", "/.git/config", "/proc/self/environ",
    "/v1/models/small/run;x=1", "/v1/models/%ff%fe/sites", "/V1/MODELS", "/v1/models/" + "a/" * 2000 + "sites",
    "/v1/models/" + "%41" * 2000 + "/sites", "/healthz/", "/healthz/x", "/docs", "/redoc", "/static/../keys", "/keys",
    "/v1/models/sites/sites/sites", "/v1/models/%25/run", "/v1/models/small/tokenizer/..",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_paths(running: Running, method: str) -> None:
    for path in PATHS:
        found = spoken(running, request(path, method, Content_Length="0"))
        [status] = statuses(found)
        assert status in (307, 400, 404, 405), (path, status)
        assert b"passwd:" not in found


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "HEAD", "BREW", "GET"])
def test_methods(running: Running, method: str) -> None:
    [status] = statuses(spoken(running, request(RUN, method, Content_Length="0")))
    assert status == 405


def test_refusals_of_paths_are_errors_of_ours(running: Running) -> None:
    for path, method in (("/nowhere", "GET"), (RUN, "PUT")):
        answer = httpx.request(method, running.url + path, trust_env=False)
        assert "not" in str(messages.decode_error(answer.content))


# Bodies.

LENGTHS = ["-1", "+5", "1e3", "0x10", " ", "5, 6", "9" * 40, "5 6", "five", "1.0"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_is_no_number(running: Running, length: str) -> None:
    found = statuses(spoken(running, request(body=b"12345", Content_Length=length)))
    assert found
    assert 400 <= found[0] < 500


def test_a_length_that_is_not_true(running: Running) -> None:
    assert statuses(spoken(running, request(body=b"short", Content_Length="500"), wait_s=1.0)) == []
    longer = statuses(spoken(running, request(body=b"x" * 500, Content_Length="5")))
    assert longer[0] == 400
    assert all(400 <= status < 500 for status in longer)


def test_two_lengths(running: Running) -> None:
    head = request(Content_Length="5").replace(b"\r\n\r\n", b"\r\nContent-Length: 6\r\n\r\n")
    assert statuses(spoken(running, head + b"123456"))[0] == 400
    both = request(body=b"5\r\n12345\r\n0\r\n\r\n", Content_Length="5", Transfer_Encoding="chunked")
    assert statuses(spoken(running, both))[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nxx\r\n0\r\n\r\n", b"-5\r\n12345\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\nx",
        b"5;" + b"x" * 10**6 + b"\r\n12345\r\n",
        b"5\r\n1234567890\r\n0\r\n\r\n", b"5\r\n123", b"0\r\nX: " + b"y" * 10**6 + b"\r\n\r\n", b"5\r12345\r\n",
    ],
    ids=["no size", "negative", "endless", "an extension", "too much", "too little", "a long trailer", "no line"],
)  # fmt: skip
def test_chunks_that_are_none(running: Running, body: bytes) -> None:
    found = statuses(spoken(running, request(body=body, Transfer_Encoding="chunked"), wait_s=1.0))
    assert all(400 <= status < 500 for status in found)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip", "x", ""])
def test_encodings_are_refused(running: Running, encoding: str) -> None:
    """A small body could be a large one."""
    answer = spoken(running, request(body=b"12345", Content_Length="5", Content_Encoding=encoding))
    assert statuses(answer) == [415]
    with pytest.raises(WireError, match="header field Content-Encoding"):
        raise messages.decode_error(answer.rpartition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("encoding", ["gzip", "chunked, gzip", "gzip, chunked", "identity", "chunked, chunked"])
def test_transfer_encodings_other_than_chunks_are_refused(running: Running, encoding: str) -> None:
    found = statuses(spoken(running, request(body=b"0\r\n\r\n", Transfer_Encoding=encoding)))
    assert found
    assert 400 <= found[0] < 500


def test_the_media_type_does_not_matter(running: Running, experiment: Any) -> None:
    body = messages.encode_request("small", [experiment()])
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/json", "text/x"):
        sent = request(body=body, Content_Length=str(len(body)), Content_Type=kind)
        assert statuses(spoken(running, sent)) == [200]


def test_many_in_a_row_on_one_connection(running: Running) -> None:
    found = statuses(spoken(running, request("/v1/models", "GET", Connection="keep-alive") * 300, wait_s=2.0))
    assert found == [200] * 300


def test_large_bodies_pass_through_files(running: Running, fake: Any) -> None:
    """Many at the limit at once: refused one by one, and the process stays small."""
    body = bytes(fake.LIMITS.body_bytes)
    found: list[int] = []

    def send() -> None:
        with HTTPTransport(running.url, api_key="gw-a") as transport:
            found.append(ask(transport, "POST", RUN, body)[0])

    threads = [threading.Thread(target=send) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [400] * 64
    assert peak_bytes(running.web) < WEB_BYTES


def test_an_absurd_length_is_refused_and_cut_off(running: Running) -> None:
    answer = spoken(running, request(Content_Length=str(10**15)))
    assert statuses(answer) == [413]
    assert b"connection: close" in answer.lower()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60) | st.sampled_from(
    [b"\r\n", b"\r\n\r\n", b"GET ", b"POST ", b" HTTP/1.1", b"/v1/models/small/run", b"Content-Length: 5", b"Host: a",
     b"Transfer-Encoding: chunked", b"Authorization: Bearer gw-a", b"0\r\n\r\n", b"5\r\n12345\r\n",
     b"Expect: 100-continue"],
), max_size=20))  # fmt: skip
def test_anything_at_all(running: Running, parts: list[bytes]) -> None:
    assert all(status < 500 for status in statuses(spoken(running, b"".join(parts), wait_s=0.2)))


# Time. On a server of this process, whose patience is short.


@pytest.fixture
def impatient(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(careful, "HEAD_S", 0.4)
    with (
        worker_here(tmp_path / "w", fake.FakeBackend(), fake.LIMITS) as path,
        service_here(tmp_path, {"small": path}, limits=fake.LIMITS, times=BodyTimes(pause_s=0.4, whole_s=1.5)) as here,
    ):
        yield here.url


def slowly(url: str, data: bytes, *, pause_s: float) -> tuple[bytes, float]:
    """Send byte by byte until the server has had enough; what it said, and how long it waited."""
    host, port = url.removeprefix("http://").split(":")
    start, found = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=0.001) as connection:
        for k in range(len(data)):
            with contextlib.suppress(TimeoutError, ConnectionError):
                connection.sendall(data[k : k + 1])
            with contextlib.suppress(TimeoutError, ConnectionError):
                found += connection.recv(2**16)
            if found or time.monotonic() - start > 6:
                break
            time.sleep(pause_s)
        connection.settimeout(5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while chunk := connection.recv(2**16):
                found += chunk
    return found, time.monotonic() - start


def test_a_slow_head_is_given_up(impatient: str) -> None:
    found, took_s = slowly(impatient, request("/v1/models", "GET", ANN), pause_s=0.05)
    assert statuses(found) == [408]
    assert 0.3 < took_s < 2


def test_a_second_head_on_a_connection_has_a_clock_too(impatient: str) -> None:
    first = request("/v1/models", "GET", ANN, Connection="keep-alive")
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        connection.sendall(first)
        assert statuses(connection.recv(2**16)) == [200]
        connection.sendall(b"GET /v1")
        start, found = time.monotonic(), b""
        while chunk := connection.recv(2**16):
            found += chunk
    assert statuses(found) == [408]
    assert time.monotonic() - start < 2


def test_a_connection_that_says_nothing_is_given_up(impatient: str) -> None:
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        assert statuses(connection.recv(2**16)) == [408]


def test_a_body_that_stands_still_is_given_up(impatient: str) -> None:
    head = request(body=b"abc", key=ANN, Content_Length="500")
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        connection.sendall(head)
        start = time.monotonic()
        found = connection.recv(2**16)
        took_s = time.monotonic() - start
        found += connection.recv(2**16)
    assert statuses(found) == [408]
    assert 0.3 < took_s < 2
    with pytest.raises(LimitExceeded, match=r"3 bytes came; it may stand still for 0.4 s and take 1.5 s in all"):
        raise messages.decode_error(found.rpartition(b"\r\n\r\n")[2])


def test_a_body_that_never_ends_is_given_up(impatient: str) -> None:
    """A byte now and then is no progress."""
    head = request(key=ANN, Transfer_Encoding="chunked")
    host, port = impatient.removeprefix("http://").split(":")
    start, found = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=0.1) as connection:
        connection.sendall(head)
        while not found and time.monotonic() - start < 6:
            connection.sendall(b"1\r\nx\r\n")
            with contextlib.suppress(TimeoutError):
                found = connection.recv(2**16)
    assert statuses(found) == [408]
    assert 1.0 < time.monotonic() - start < 3


def test_patience_with_those_who_are_only_slow(impatient: str, experiment: Any) -> None:
    body = messages.encode_request("small", [experiment()])
    host, port = impatient.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request(key=ANN, Content_Length=str(len(body)), Connection="close"))
        for start in range(0, len(body), -(-len(body) // 4)):
            time.sleep(0.15)
            connection.sendall(body[start : start + -(-len(body) // 4)])
        found = b""
        while chunk := connection.recv(2**16):
            found += chunk
    assert statuses(found) == [200]
