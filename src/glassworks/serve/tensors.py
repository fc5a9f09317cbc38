"""Large tensors of requests, kept for each key by their digest, so that each travels once.

A key sees its own only: nobody can find out what others have sent. Each has so many bytes; what was used longest ago is
let go first.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from glassworks.client.content import Body, size_of

KEPT_BYTES = 2**30
"""Of one key."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor, as the message that it came in; its form was read, and its digest compared, by a checker."""

    body: Body
    dtype: str
    shape: tuple[int, ...]


class TensorStore:
    """Tensors by key and digest. `limit_bytes` is each key's."""

    def __init__(self, *, limit_bytes: int = KEPT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: dict[str, OrderedDict[str, Stored]] = {}

    def put(self, owner: str, digest: str, tensor: Stored) -> None:
        """Keep a tensor, and let older ones of this key go where it is too much."""
        with self._lock:
            own = self._kept.setdefault(owner, OrderedDict())
            own[digest] = tensor
            own.move_to_end(digest)
            held = sum(size_of(each.body) for each in own.values())
            while held > self.limit_bytes and len(own) > 1:
                _, oldest = own.popitem(last=False)
                held -= size_of(oldest.body)

    def get(self, owner: str, digest: str) -> Stored | None:
        """A tensor of this key, which is thereby the last to be let go."""
        with self._lock:
            own = self._kept.get(owner, OrderedDict())
            if digest in own:
                own.move_to_end(digest)
            return own.get(digest)
