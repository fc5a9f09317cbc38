"""The HTTP transport: what it says when nobody answers, and what it sends."""

import gc
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from asking import ask
from glassworks.client import HTTPTransport, Lab, RemoteBackend
from glassworks.client.calls import call, model_path
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
        if self.path == "/hang-up":
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

    found = HTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}", Own
    Own.stall.set()
    found.shutdown()
    thread.join()
    found.server_close()


def test_what_is_sent(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    url, handler = server
    handler.answers["/a"] = (200, b"yes")
    with HTTPTransport(url, api_key="k") as keyed, HTTPTransport(url) as plain:
        assert ask(keyed, "POST", "/a", b"body") == (200, b"yes")
        assert ask(plain, "GET", "/a") == (200, b"yes")
    assert handler.asked == [("POST", "/a", "Bearer k", b"body"), ("GET", "/a", None, b"")]


def test_the_key_is_not_shown(server: Any) -> None:
    with HTTPTransport(server[0], api_key="secret") as transport:
        assert "secret" not in repr(transport)


def test_nobody_answers() -> None:
    with (
        HTTPTransport("http://127.0.0.1:1") as transport,
        pytest.raises(RemoteError, match=r"no service answers at http://127.0.0.1:1 .*glassworks serve"),
    ):
        ask(transport, "GET", "/a")


def test_an_answer_that_does_not_come(server: Any) -> None:
    with (
        HTTPTransport(server[0], timeout_s=0.2) as transport,
        pytest.raises(RemoteError, match=r"no answer to GET /stall within 0\.2 s"),
    ):
        ask(transport, "GET", "/stall")


def test_a_connection_that_breaks(server: Any) -> None:
    with HTTPTransport(server[0]) as transport, pytest.raises(RemoteError, match="broke during GET /hang-up"):
        ask(transport, "GET", "/hang-up")


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
    assert model_path("org/small-1.5", "run") == "/v1/models/org/small-1.5/run"
    assert model_path("a b?", "run") == "/v1/models/a%20b%3F/run"
