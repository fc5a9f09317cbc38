"""The way to a worker, where it is left at a bad moment."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glassworks.serve import link
from glassworks.serve.link import WorkerLink


class Nobody:
    """Hears nothing."""

    def up(self, about: dict[str, Any]) -> None:
        pytest.fail("a worker is there")

    said = down = up


class Late(socket.socket):
    """One that is made once the link is being closed, and `close` has found nothing to hang up."""

    closing: threading.Thread

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.closing.start()
        time.sleep(0.3)


def test_a_link_that_is_closed_while_it_connects_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "w")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()  # and nobody says that a worker is there
        found: Any = WorkerLink("toy", path, Nobody())
        Late.closing = threading.Thread(target=found.close, daemon=True)
        monkeypatch.setattr(link.socket, "socket", Late)
        found.start()
        found._thread.join(10)
        assert not found._thread.is_alive()
        Late.closing.join(10)
        assert not Late.closing.is_alive()
