"""The seam of a client: a transport carries a request to a service and brings the answer back.

Nothing above it knows whether a network lies between. A transport raises RemoteError when it gets no answer;
an answer that says no is an answer.
"""

from typing import Protocol

from glassworks.client.content import Body


class Transport(Protocol):
    """One way to reach a service."""

    def request(self, method: str, path: str, body: Body | None = None) -> tuple[int, Body]:
        """HTTP's words: a method, an absolute path, a body; gives the status and the body of the answer.

        Raises:
            RemoteError: no answer came, with what to do.
        """
