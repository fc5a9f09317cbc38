"""The database of a service: SQLite in its state folder, written by one thread.

All writes that wait go into one transaction, each behind a savepoint of its own: those who write at once share one
sync of the disk, and one that raises undoes itself alone. What is the business of SQLite only stands in this file; a
write is given a connection and must be portable SQL.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError

from glassworks.errors import InputError, RemoteError
from glassworks.serve.schema import METADATA, VERSION, about

_LOG = logging.getLogger("glassworks.serve")
_AT_ONCE = 256
_BUSY_MS = 10_000
T = TypeVar("T")
Write = Callable[[Connection], Any]


class Database:
    """The tables of `schema` in a file, which is made if it is not there.

    A file may have several: a command beside the service has one of its own.

    Raises:
        InputError: another version of Glassworks wrote the file, or it is no database.
    """

    def __init__(self, path: Path) -> None:
        self.after_commit: Callable[[], None] = _nothing
        """Called in the writer's thread after each commit, before those who wait are told."""
        self._engine = _sqlite(path)
        self._waiting: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        try:
            with self._writing() as connection, connection.begin():
                _make_tables(connection, path)
        except DatabaseError as error:
            self._engine.dispose()
            raise InputError(f"{str(path)!r} cannot be used as the service's state: {error.orig}") from None
        except BaseException:
            self._engine.dispose()
            raise
        self._writer = threading.Thread(target=self._work, name="glassworks-database", daemon=True)
        self._writer.start()

    def read(self, what: Callable[[Connection], T]) -> T:
        """What `what` gives: one view of all that was committed."""
        with self._engine.connect() as connection:
            return what(connection)

    def write(self, what: Callable[[Connection], T]) -> T:
        """Call `what` in the writer's thread; what it gives, once it is on the disk.

        Raises:
            RemoteError: the disk is full or broken, so that nothing was written.
        """
        return self.submit(what).result()

    def submit(self, what: Callable[[Connection], T], *, then: Callable[[bool], None] | None = None) -> "Future[T]":
        """As `write`, without waiting. Writes are done in the order in which they are submitted.

        Args:
            then: called in the writer's thread, before anyone is told, with whether the write is on the disk.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise RemoteError("the service's state is closed: the service is stopping")
            self._waiting.put(_Waiting(what, then or _ignore, future))
        return future

    def close(self) -> None:
        """Do what was submitted, then let go of the file."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._writer.join()
        self._engine.dispose()

    # The writer.

    def _writing(self) -> Connection:
        return self._engine.connect().execution_options(writes=True)

    def _work(self) -> None:
        with self._writing() as connection:
            more = True
            while more:
                taken = self._take()
                more = taken[-1] is not None
                self._commit(connection, [each for each in taken if each is not None and each.begins()])

    def _take(self) -> "list[_Waiting | None]":
        """What waits, at least one; None stands last, and for the end."""
        taken = [self._waiting.get()]
        while len(taken) < _AT_ONCE and taken[-1] is not None:
            try:
                taken.append(self._waiting.get_nowait())
            except Empty:
                break
        return taken

    def _commit(self, connection: Connection, writes: "list[_Waiting]") -> None:
        """One transaction of all of them. An error of the transaction's own is everyone's."""
        try:
            with connection.begin():
                for write in writes:
                    _attempt(connection, write)
        except Exception as error:  # noqa: BLE001 - raised where each of them waits
            for write in writes:
                write.error = error
        for write in writes:
            _follow(partial(write.then, write.error is None))
        _follow(self.after_commit)
        for write in writes:
            write.tell()


def _follow(what: Callable[[], None]) -> None:
    try:
        what()
    except Exception:  # noqa: BLE001 - what was written is written
        _LOG.exception("what follows a write failed")


@dataclass(slots=True)
class _Waiting:
    """A write, and what became of it."""

    what: Write
    then: Callable[[bool], None]
    future: "Future[Any]"
    found: Any = None
    error: Exception | None = None

    def begins(self) -> bool:
        """Whether it is wanted still; from here on it cannot be called off."""
        wanted = self.future.set_running_or_notify_cancel()
        if not wanted:
            _follow(partial(self.then, False))
        return wanted

    def tell(self) -> None:
        if self.error is None:
            self.future.set_result(self.found)
        else:
            self.future.set_exception(_spoken(self.error))


def _attempt(connection: Connection, write: _Waiting) -> None:
    connection.exec_driver_sql("SAVEPOINT one")
    try:
        write.found = write.what(connection)
    except Exception as error:  # noqa: BLE001 - raised where it waits
        write.error = error
        try:
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT one")
        except DatabaseError:  # a disk that is full ended the whole transaction
            raise error from None
    connection.exec_driver_sql("RELEASE SAVEPOINT one")


def _spoken(error: Exception) -> Exception:
    """A disk that is full or broken is a state of the service, and no fault of whoever asks."""
    if isinstance(error, OperationalError):
        _LOG.error("the state of the service cannot be written: %s", error.orig)
        return RemoteError(f"the service cannot write its state now ({error.orig}); try again later")
    return error


def _nothing() -> None:
    pass


def _ignore(written: bool) -> None:
    pass


def _make_tables(connection: Connection, path: Path) -> None:
    METADATA.create_all(connection)
    found = connection.execute(about.select()).scalar_one_or_none()
    if found is None:
        connection.execute(about.insert(), {"version": VERSION})
    elif found != VERSION:
        raise InputError(
            f"{str(path)!r} has state of version {found}, and this Glassworks reads version {VERSION}; use the one "
            "that wrote it, or another folder"
        )


# SQLite.


def _sqlite(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", pool_size=16, max_overflow=64)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # else Python's own driver opens and ends transactions as it likes
        for setting in (f"busy_timeout={_BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """A reader that turns writer in the middle could be refused; so who writes says so at once."""
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
