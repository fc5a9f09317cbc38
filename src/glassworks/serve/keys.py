"""Keys: who may ask. Only the digests of keys are kept, and they are compared in constant time.

An owner is a key's id, never the key: what is somebody's own is known by it, in logs too. Keys are in the database of
the service's state, where the `glassworks keys` command changes them while the service runs: it looks again when what
it knows is old.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from glassworks.errors import InputError
from glassworks.serve.schema import keys
from glassworks.serve.state import State

LOOK_S = 0.25
"""A change that another process made is seen at most so late."""
_LONGEST_NAME = 100


def new_key() -> str:
    """A key that nobody can guess: 192 random bits."""
    return f"gw-{secrets.token_urlsafe(24)}"


def digest_of(key: str) -> str:
    """SHA-256 of a key, as a service keeps it."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key, without the key. `weight`: its share of the service, against other keys'."""

    id: str
    name: str
    weight: float
    created_s: float
    revoked_s: float | None


class Keys:
    """The keys of a service."""

    def __init__(self, state: State, *, now_s: Callable[[], float] = time.time) -> None:
        self._database, self._now_s = state.database, now_s
        self._known: tuple[tuple[str, KeyRow], ...] = ()
        self._looked_at_s = float("-inf")

    def add(self, name: str, *, weight: float = 1.0, key: str | None = None) -> str:
        """Make a key, which is given here and never again.

        Args:
            name: whose it is.
            weight: its share of the service, against other keys'.
            key: one that was made elsewhere.

        Raises:
            InputError: the name is another key's, or cannot be one; the weight is not above 0.
        """
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise InputError(f"a key's name has 1 to {_LONGEST_NAME} printable characters, got {name[:120]!r}")
        if not 0 < weight < float("inf"):
            raise InputError(f"a key's weight is above 0, got {weight!r}")
        made = key or new_key()
        row = KeyRow(f"key-{secrets.token_hex(6)}", name, float(weight), self._now_s(), None)
        self._database.write(lambda connection: _add(connection, row, digest_of(made)))
        self._forget()
        return made

    def list(self) -> list[KeyRow]:
        """All keys, revoked ones too, in the order in which they were made."""
        return [row for _, row in self._database.read(_all)]

    def revoke(self, key: str) -> KeyRow:
        """Let a key in no more, by its name or id; what it made stays until it expires.

        Raises:
            InputError: no key that is let in has this name or id.
        """
        found = self._database.write(lambda connection: _revoke(connection, key, self._now_s()))
        self._forget()
        return found

    def owner(self, key: str) -> KeyRow | None:
        """The key that this is, if it is let in. Every one is compared, whichever matches."""
        given = digest_of(key)
        matches = [row for digest, row in self._live() if hmac.compare_digest(given, digest)]
        return matches[0] if matches else None

    def find(self, id: str) -> KeyRow | None:
        """A key that is let in, by its id."""
        return next((row for _, row in self._live() if row.id == id), None)

    def is_live(self, id: str) -> bool:
        """Whether a key is let in still: for what stays open long."""
        return any(row.id == id for _, row in self._live())

    def _live(self) -> tuple[tuple[str, KeyRow], ...]:
        now_s = time.monotonic()
        if now_s - self._looked_at_s > LOOK_S:
            found = self._database.read(_all)
            self._known = tuple((digest, row) for digest, row in found if row.revoked_s is None)
            self._looked_at_s = now_s
        return self._known

    def _forget(self) -> None:
        self._looked_at_s = float("-inf")


_ALL = select(
    keys.c.digest, keys.c.id, keys.c.name, keys.c.weight, keys.c.created_s, keys.c.revoked_s
).order_by(keys.c.created_s, keys.c.id)  # fmt: skip


def _all(connection: Connection) -> list[tuple[str, KeyRow]]:
    return [(digest, KeyRow(*row)) for digest, *row in connection.execute(_ALL)]


def _add(connection: Connection, row: KeyRow, digest: str) -> None:
    for known, other in _all(connection):
        if other.name == row.name and other.revoked_s is None:
            raise InputError(f"{row.name!r} has a key already ({other.id}): revoke it first, or give another name")
        if known == digest:
            raise InputError(f"this key was added before, as {other.name!r} ({other.id}): make a new one")
    values = {"id": row.id, "name": row.name, "digest": digest, "weight": row.weight, "created_s": row.created_s}
    connection.execute(insert(keys), values)


def _revoke(connection: Connection, key: str, now_s: float) -> KeyRow:
    live = [row for _, row in _all(connection) if row.revoked_s is None]
    for row in live:
        if key in (row.id, row.name):
            connection.execute(update(keys).where(keys.c.id == row.id).values(revoked_s=now_s))
            return KeyRow(row.id, row.name, row.weight, row.created_s, now_s)
    raise InputError(
        f"no key that is let in is named {key[:120]!r}; there are {', '.join(r.name for r in live) or 'none'}"
    )
