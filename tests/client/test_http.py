"""The transports over HTTP, for threads and for tasks: what they say when nobody answers, and what they send."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from glassworks.client import Answer, AsyncHTTPTransport, HTTPTransport, Lab, RemoteBackend, Request
from glassworks.client.calls import call, model_path
from glassworks.client.content import Parts
from glassworks.errors import InputError, RemoteError, WireError


class Handler(BaseHTTPRequestHandler):
    """Answers by path, and remembers what was asked."""

    asked: list[tuple[str, str, str | None, bytes]]
    answers: dict[str, tuple[int, bytes]]
    stall: threading.Event

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).asked.append((self.command, self.path, self.headers.get("Authorization"), body))
        if self.path == "/stall":
            self.stall.wait(10)
        if self.path.startswith("/hang-up"):
            self.connection.close()
            return
        status, content = type(self).answers.get(self.path, (404, b"<html>not here</html>"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    class Own(Handler):
        asked: list[Any] = []
        answers: dict[str, Any] = {}
        stall = threading.Event()

    found = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}", Own
    Own.stall.set()
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(params=["thread", "task"])
def send(request: pytest.FixtureRequest) -> Callable[..., Answer]:
    """Sends one request, in one of the two ways."""

    def in_a_thread(url: str, asked: Request, **options: Any) -> Answer:
        with HTTPTransport(url, **options) as transport:
            return transport.send(asked)

    def in_a_task(url: str, asked: Request, **options: Any) -> Answer:
        return asyncio.run(AsyncHTTPTransport(url, **options).send(asked))

    return in_a_thread if request.param == "thread" else in_a_task


def test_what_is_sent(server: Any, send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    url, handler = server
    handler.answers["/a"] = (200, b"yes")
    body = Request("POST", "/a", b"body")
    pieces = Request("POST", "/a", Parts([b"bo", b"dy"]), {"Idempotency-Key": "x"})
    for asked, key in ((body, "k"), (pieces, "k"), (Request("GET", "/a"), None)):
        answer = send(url, asked, api_key=key)
        assert (answer.status, answer.body) == (200, b"yes")
        assert answer.headers["content-length"] == "3"
    assert handler.asked == [
        ("POST", "/a", "Bearer k", b"body"),
        ("POST", "/a", "Bearer k", b"body"),
        ("GET", "/a", None, b""),
    ]


def test_the_key_is_not_shown(server: Any) -> None:
    with HTTPTransport(server[0], api_key="secret") as transport:
        assert "secret" not in repr(transport)
        assert "secret" not in repr(transport.asynchronous())
        assert "secret" not in repr(transport._address)


def test_nobody_answers(send: Any) -> None:
    with pytest.raises(RemoteError, match=r"no service answers at http://127.0.0.1:1 .*glassworks serve"):
        send("http://127.0.0.1:1", Request("GET", "/a"))


def test_an_answer_that_does_not_come(server: Any, send: Any) -> None:
    with pytest.raises(RemoteError, match=r"no answer to GET /stall within 0\.2 s"):
        send(server[0], Request("GET", "/stall"), timeout_s=0.2)
    with pytest.raises(RemoteError, match=r"no answer to GET /stall within 0\.1 s"):
        send(server[0], Request("GET", "/stall", timeout_s=0.1))


def test_a_connection_that_breaks(server: Any, send: Any) -> None:
    with pytest.raises(RemoteError, match="broke during GET /hang-up"):
        send(server[0], Request("GET", "/hang-up?x=1"))


def test_both_kinds_take_what_stands_in_for_a_network() -> None:
    """httpx's own seam: what is sent can be looked at without a socket."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, content=request.url.path.encode(), headers={"Glassworks-Job": "job-x"})

    mock = httpx.MockTransport(answer)
    with HTTPTransport(over=mock) as transport:
        here = transport.send(Request("GET", "/a"))
    there = asyncio.run(AsyncHTTPTransport(over=mock).send(Request("GET", "/a")))
    assert here == there
    assert (here.body, here.job, here.is_good) == (b"/a", "job-x", True)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "/path"])
def test_a_url_is_a_url(url: str) -> None:
    with pytest.raises(InputError, match="expected the URL of a service"):
        HTTPTransport(url)


def test_an_answer_that_is_not_ours(server: Any) -> None:
    url, handler = server
    handler.answers["/v1/models"] = (200, b'{"data": []}')
    handler.answers["/v1/models/m/sites"] = (200, b'{"family": "x"}')
    handler.answers["/v1/models/m/tokenizer"] = (200, b"nothing")
    with HTTPTransport(url) as transport:
        with pytest.raises(RemoteError, match="status 404 and no message of ours: '<html>"):
            call(transport, "GET", "/else")
        with pytest.raises(WireError, match="list of models"):
            Lab(transport).models()
        with pytest.raises(WireError, match="site table of the service"):
            RemoteBackend(transport, "m").sites()


def test_connections_close_when_nothing_holds_them(server: Any) -> None:
    transport = HTTPTransport(server[0])
    client = transport._client
    del transport
    gc.collect()
    assert client.is_closed


def test_names_with_folders_and_odd_letters() -> None:
    assert model_path("org/small-1.5", "jobs") == "/v1/models/org/small-1.5/jobs"
    assert model_path("a b?", "jobs") == "/v1/models/a%20b%3F/jobs"


def test_no_torch_in_a_client() -> None:
    code = "import sys, glassworks.client; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
