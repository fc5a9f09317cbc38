"""A backend that is elsewhere: transports, the remote backend, and what a service offers. Needs no torch."""

from glassworks.client.backend import RemoteBackend
from glassworks.client.base import Answer, AsyncTransport, Request, Transport
from glassworks.client.http import AsyncHTTPTransport, HTTPTransport
from glassworks.client.inprocess import InProcessTransport
from glassworks.client.lab import Lab, RemoteParts, remote_parts
from glassworks.client.status import JobList, LabStatus, ModelStatus, Usage

__all__ = [
    "Answer",
    "AsyncHTTPTransport",
    "AsyncTransport",
    "HTTPTransport",
    "InProcessTransport",
    "JobList",
    "Lab",
    "LabStatus",
    "ModelStatus",
    "RemoteBackend",
    "RemoteParts",
    "Request",
    "Transport",
    "Usage",
    "remote_parts",
]
