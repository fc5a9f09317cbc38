"""Files that rows of the database name: on the disk before the row is, and gone after it.

A file's name is used once. Whatever ends between the two leaves a file that no row names; `sweep` removes those, at
start, when nobody writes.
"""

import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from glassworks.client.content import Body, Whole
from glassworks.errors import RemoteError

_CHUNK_BYTES = 2**18


def keep(path: Path, body: Body) -> None:
    """Write a new file; it outlives a power cut once this returns.

    Raises:
        RemoteError: no room is left, or the disk is broken.
    """
    try:
        with open(path, "xb") as file:
            for part in (body,) if isinstance(body, Whole) else body:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise RemoteError(f"the service cannot write its state now ({error.strerror}); try again later") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """A file's name is in its folder, which is synced by itself."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class FileBody:
    """A file that is open: its bytes stay, for who holds this, when it is removed.

    Raises:
        FileNotFoundError: it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self.size_bytes = os.fstat(self._file).st_size

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, self.size_bytes, _CHUNK_BYTES):
            yield os.pread(self._file, min(_CHUNK_BYTES, self.size_bytes - start), start)


def drop(folder: Path, names: Iterable[str]) -> None:
    """Remove files whose rows are gone."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def sweep(folder: Path, named: set[str]) -> None:
    """Remove every file that no row names."""
    drop(folder, [name for name in os.listdir(folder) if name not in named])
