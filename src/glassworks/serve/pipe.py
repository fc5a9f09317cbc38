"""Messages between two processes of a service: a small JSON head and a body of bytes, over a socket. Nothing else."""

import json
import socket
import struct
from typing import Any

from glassworks.client.content import Body, Parts, size_of

_LENGTHS = struct.Struct("<IQ")
_HEAD_BYTES = 2**16


def send(sock: socket.socket, head: dict[str, Any], body: Body = b"") -> None:
    """Send one message."""
    text = json.dumps(head).encode()
    sock.sendall(_LENGTHS.pack(len(text), size_of(body)) + text)
    for chunk in Parts([body]):
        sock.sendall(chunk)


def receive(sock: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """The next message. EOFError: the other side has gone."""
    head_bytes, body_bytes = _LENGTHS.unpack(_exactly(sock, _LENGTHS.size))
    if head_bytes > _HEAD_BYTES:
        raise EOFError(f"a head of {head_bytes} bytes is none of ours")
    head = json.loads(_exactly(sock, head_bytes))
    return head, _exactly(sock, body_bytes)


def _exactly(sock: socket.socket, size: int) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError("the other side has gone")
        view = view[count:]
    return found
