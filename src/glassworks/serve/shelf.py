"""Large tensors that people sent, in files, each known to its owner alone and by its digest.

An owner has so many bytes. What was used longest ago goes first; what a job that has not ended needs stays, and where
that leaves no room, a new tensor is refused.
"""

import json
import secrets

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from glassworks.client.content import size_of
from glassworks.errors import QuotaExceeded, RemoteError
from glassworks.serve.files import FileBody, drop, keep
from glassworks.serve.moves import UNFINISHED
from glassworks.serve.schema import jobs, tensors
from glassworks.serve.state import State
from glassworks.serve.tensors import Stored

_OF = tensors.c.owner == bindparam("of")
_NAMED = tensors.c.digest.in_(bindparam("digests", expanding=True))
_FIND = select(tensors.c.file, tensors.c.dtype, tensors.c.shape).where(_OF, tensors.c.digest == bindparam("known_as"))
_LAST = select(func.coalesce(func.max(tensors.c.used), 0)).where(_OF)
_TOUCH = update(tensors).where(_OF, _NAMED).values(used=bindparam("now"))
_HELD = select(tensors.c.digest, tensors.c.size_bytes, tensors.c.file).where(_OF).order_by(tensors.c.used)
_NEEDED = select(jobs.c.tensors).where(
    jobs.c.owner == bindparam("of"), jobs.c.status.in_(UNFINISHED), jobs.c.tensors != "[]"
)
_GO = delete(tensors).where(_OF, _NAMED)


class Shelf:
    """The tensors of a service. `limit_bytes` is each owner's."""

    def __init__(self, state: State, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._state = state

    def put(self, owner: str, digest: str, tensor: Stored) -> None:
        """Keep a tensor durably; one that is here already was thereby used.

        Raises:
            QuotaExceeded: what this owner's unfinished jobs need leaves no room for it.
            RemoteError: the disk is full or broken.
        """
        file = secrets.token_hex(16)
        keep(self._state.tensors / file, tensor.body)
        try:
            gone = self._state.database.write(lambda connection: self._put(connection, owner, digest, tensor, file))
        except Exception:
            drop(self._state.tensors, [file])
            raise
        drop(self._state.tensors, gone)

    def get(self, owner: str, digest: str) -> Stored | None:
        """A tensor of this owner, which is thereby the last to go."""
        row = self._state.database.read(
            lambda connection: connection.execute(_FIND, {"of": owner, "known_as": digest}).one_or_none()
        )
        if row is None:
            return None
        self._state.database.submit(lambda connection: touch(connection, owner, [digest]))
        try:
            return Stored(FileBody(self._state.tensors / row.file), row.dtype, tuple(json.loads(row.shape)))
        except FileNotFoundError:  # it went between the two
            return None

    def _put(self, connection: Connection, owner: str, digest: str, tensor: Stored, file: str) -> list[str]:
        """The files that are to be removed once this is committed."""
        if touch(connection, owner, [digest]):
            return [file]
        gone = self._make_room(connection, owner, size_of(tensor.body))
        row = {"owner": owner, "digest": digest, "dtype": tensor.dtype, "shape": json.dumps(tensor.shape)}
        used = connection.execute(_LAST, {"of": owner}).scalar_one() + 1
        connection.execute(insert(tensors), {**row, "size_bytes": size_of(tensor.body), "used": used, "file": file})
        return gone

    def _make_room(self, connection: Connection, owner: str, size_bytes: int) -> list[str]:
        own = list(connection.execute(_HELD, {"of": owner}))
        excess = sum(size for _, size, _ in own) + size_bytes - self.limit_bytes
        if excess <= 0:
            return []
        needed = _needed(connection, owner)
        gone = []
        for digest, size, file in own:
            if excess > 0 and digest not in needed:
                gone.append((digest, file))
                excess -= size
        if excess > 0:
            raise QuotaExceeded(
                f"tensors: {self.limit_bytes + excess} bytes with this one, {self.limit_bytes} allowed for each key, "
                "and jobs that have not ended need the others; wait for them, or cancel some"
            )
        connection.execute(_GO, {"of": owner, "digests": [digest for digest, _ in gone]})
        return [file for _, file in gone]


def touch(connection: Connection, owner: str, digests: list[str]) -> int:
    """Make tensors of an owner the last to go; how many of them are here."""
    now = connection.execute(_LAST, {"of": owner}).scalar_one() + 1
    return connection.execute(_TOUCH, {"of": owner, "digests": digests, "now": now}).rowcount


def require(connection: Connection, owner: str, digests: tuple[str, ...]) -> None:
    """Hold on to the tensors of a job that is let in. RemoteError: some went since they were looked at."""
    if digests and (found := touch(connection, owner, list(digests))) < len(set(digests)):
        raise RemoteError(f"{len(set(digests)) - found} large tensors were let go just now; send the request again")


def _needed(connection: Connection, owner: str) -> set[str]:
    """Digests that jobs of an owner need which have not ended."""
    found = connection.execute(_NEEDED, {"of": owner}).scalars()
    return {digest for digests in found for digest in json.loads(digests)}
