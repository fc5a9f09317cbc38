"""Bodies on their way through a process that must stay small: in memory while they are short, in a file without a name
once they are not. All of a process's together are bounded; a file is gone when nobody holds its body any more.
"""

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator

from glassworks.errors import RemoteError

IN_MEMORY_BYTES = 2**18
_CHUNK_BYTES = 2**18


class Spool:
    """Where bodies are kept.

    Args:
        folder: for the files; None: the system's.
        limit_bytes: of all files together.
    """

    def __init__(self, folder: str | None = None, *, limit_bytes: int = 2**34) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    def new(self) -> "Spooled":
        """An empty body to be written."""
        return Spooled(self)

    def take(self, size_bytes: int) -> None:
        """Count bytes that are about to be written; a negative number gives back.

        Raises:
            RemoteError: the files would hold too much.
        """
        with self._lock:
            if size_bytes > 0 and self._used_bytes + size_bytes > self.limit_bytes:
                raise RemoteError(
                    f"the service holds {self._used_bytes} bytes of requests and results, {self.limit_bytes} are "
                    "allowed; try again later"
                )
            self._used_bytes += size_bytes


class Spooled:
    """A body that is written once, front to back, and read as often as one likes, by several readers at once."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._short = bytearray()
        self._file: int | None = None
        self.size_bytes = 0

    def write(self, chunk: bytes | memoryview) -> None:
        """Append. RemoteError: no room is left."""
        if self._file is None and self.size_bytes + len(chunk) <= IN_MEMORY_BYTES:
            self._short += chunk
        else:
            self._spool.take(len(chunk) + (len(self._short) if self._file is None else 0))
            if self._file is None:
                self._open()
            _write_all(self._file, chunk)
        self.size_bytes += len(chunk)

    def _open(self) -> None:
        number, name = tempfile.mkstemp(dir=self._spool.folder)
        os.unlink(name)
        self._file = number
        self._closing = weakref.finalize(self, _close, number, self._spool)
        _write_all(number, self._short)
        self._short = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        if self._file is None:
            yield bytes(self._short)
            return
        for start in range(0, self.size_bytes, _CHUNK_BYTES):
            yield os.pread(self._file, min(_CHUNK_BYTES, self.size_bytes - start), start)


def _write_all(number: int | None, data: bytes | bytearray | memoryview) -> None:
    assert number is not None
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]


def _close(number: int, spool: Spool) -> None:
    size_bytes = os.fstat(number).st_size
    os.close(number)
    spool.take(-size_bytes)
