"""A service in this process: the same handlers, the same codec and the same limits, without a network.

The handler is given, because services lie above clients.
"""

from collections.abc import Callable
from dataclasses import dataclass

from glassworks.client.content import Body

Handle = Callable[[str, str, Body | None], tuple[int, Body]]
"""(method, path, body) -> (status, body)."""


@dataclass(frozen=True, slots=True)
class InProcessTransport:
    """Calls `handle` for each request."""

    handle: Handle

    def request(self, method: str, path: str, body: Body | None = None) -> tuple[int, Body]:
        return self.handle(method, path, body)
