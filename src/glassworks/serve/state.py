"""The folder that a service keeps its state in, and who may have it.

    glassworks.db    keys, jobs, events, small bodies and results (see `schema`)
    bodies/          of jobs that have not ended, where they are large
    results/         the large ones
    tensors/         large tensors that people sent
    deaths.jsonl     how workers ended
    lock             held by the service that runs in this folder

One service a folder: two would run each job twice. Commands that look at keys beside a service need no lock. The
folder is its owner's alone, as what people sent is in it.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from glassworks.errors import InputError
from glassworks.serve.database import Database


@dataclass(frozen=True, slots=True)
class State:
    """An open folder. `lock`: the file that is held; None for who only visits."""

    folder: Path
    database: Database
    lock: int | None

    @classmethod
    def hold(cls, folder: str | Path) -> Self:
        """Open a folder for the service that runs in it; it is made if it is not there.

        Raises:
            InputError: another service has it, another version wrote it, or it cannot be written.
        """
        path = _made(folder)
        lock = _locked(path)
        try:
            return cls(path, Database(path / "glassworks.db"), lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def visit(cls, folder: str | Path, *, make: bool = False) -> Self:
        """Open a folder beside a service that may run in it.

        Args:
            make: if it is not there.

        Raises:
            InputError: it is not there, another version wrote it, or it cannot be written.
        """
        if not make and not (Path(folder) / "glassworks.db").exists():
            raise InputError(
                f"{str(folder)!r} holds no state of a service: give the folder that it runs in with --state"
            )
        path = _made(folder)
        return cls(path, Database(path / "glassworks.db"), None)

    @property
    def bodies(self) -> Path:
        return self.folder / "bodies"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def tensors(self) -> Path:
        return self.folder / "tensors"

    @property
    def deaths(self) -> Path:
        return self.folder / "deaths.jsonl"

    def close(self) -> None:
        """Write what was submitted, and let others have the folder."""
        self.database.close()
        if self.lock is not None:
            os.close(self.lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _made(folder: str | Path) -> Path:
    path = Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("bodies", "results", "tensors"):
            (path / part).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"the state folder {str(path)!r} cannot be made: {error}") from None
    return path


def _locked(folder: Path) -> int:
    """The kernel lets go of it when this process ends, however it ends."""
    path = folder / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"the state folder {str(folder)!r} cannot be used: {error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(file, 20).decode(errors="replace").strip()
        os.close(file)
        raise InputError(
            f"the state folder {str(folder)!r} belongs to a service that runs (process {holder or 'unknown'}): stop "
            "it, or give this one another folder with --state"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
