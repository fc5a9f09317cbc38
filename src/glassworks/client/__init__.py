"""A backend that is elsewhere: transports, the remote backend, and what a service offers. Needs no torch."""

from glassworks.client.backend import RemoteBackend
from glassworks.client.base import Transport
from glassworks.client.http import HTTPTransport
from glassworks.client.inprocess import InProcessTransport
from glassworks.client.lab import Lab, RemoteParts, remote_parts

__all__ = [
    "HTTPTransport",
    "InProcessTransport",
    "Lab",
    "RemoteBackend",
    "RemoteParts",
    "Transport",
    "remote_parts",
]
