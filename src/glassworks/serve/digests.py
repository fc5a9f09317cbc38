"""Keys that are given to a service once, when it starts, as digests in a file."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from glassworks.errors import InputError
from glassworks.serve.keys import digest_of


@dataclass(frozen=True, slots=True)
class Digests:
    """The digests of the keys that are let in."""

    digests: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.digests:
            raise InputError("a service needs at least one key; nobody could use it")
        for digest in self.digests:
            if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise InputError("a key's digest must be 64 hexadecimal digits (see glassworks keys)")

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Digests":
        return cls(tuple(digest_of(key) for key in keys))

    @classmethod
    def load(cls, path: str | Path) -> "Digests":
        """Read a file of digests, one a line. Raises InputError, OSError."""
        return cls(tuple(Path(path).read_text().split()))

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads."""
        Path(path).write_text("\n".join(self.digests) + "\n")

    def owner(self, key: str) -> str | None:
        """The digest of a key that is let in, by which what is its own is known; every one is compared, whichever
        matches."""
        given = digest_of(key)
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        return given if any(matches) else None
