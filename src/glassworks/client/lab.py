"""A service as a person sees it: which models it has, and the parts that a remote model is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from glassworks.client.backend import RemoteBackend, keep_blob, table_from_bytes
from glassworks.client.base import Transport
from glassworks.client.calls import call, model_path
from glassworks.client.events import job_path
from glassworks.client.job import RemoteJob
from glassworks.client.status import JobList, LabStatus, checked, lab_status, status_of
from glassworks.errors import WireError
from glassworks.graph import messages, tree
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import json_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteParts:
    """What a model facade needs of a model that is elsewhere.

    Attributes:
        backend: runs graphs there.
        table: its sites.
        tokenizer: files by name, as `save_pretrained` writes them; none for a model without a tokenizer.
    """

    backend: RemoteBackend
    table: SiteTable
    tokenizer: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Lab:
    """A service behind a transport.

    Attributes:
        patience_s: how long a service that is not there is asked again by those who run something.
    """

    transport: Transport
    patience_s: float = 0.0

    def models(self) -> list[str]:
        """The names of its models."""
        try:
            answer = json_of(call(self.transport, "GET", "/v1/models"), "the answer")
            return [str(model["name"]) for model in answer["models"]]
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"the list of models cannot be read ({type(error).__name__}: {error})") from None

    def status(self) -> LabStatus:
        """How it stands, and what this key has and may have."""
        return lab_status(call(self.transport, "GET", "/v1/status"))

    def told_of(self, id: str) -> dict[str, Any]:
        """How a job of this key stands. RemoteError: there is none of that id."""
        return status_of(call(self.transport, "GET", job_path(id)))

    def jobs(
        self, make: Callable[[dict[str, Any]], RemoteJob], *, status: str | None = None, limit: int = 100
    ) -> JobList:
        """The jobs of this key, the newest first; `make` makes each of what is told of it."""
        query = {"limit": limit} | ({} if status is None else {"status": status})
        body = json_of(call(self.transport, "GET", f"/v1/jobs?{urlencode(query)}"), "the answer")
        found = body.get("jobs") if isinstance(body, dict) else None
        if not isinstance(found, list):
            raise WireError("the list of jobs cannot be read")
        told = [checked(own) for own in found]
        return JobList([make(own) for own in told], told)


def remote_parts(
    lab: Lab, name: str, *, as_leaf: tree.AsLeaf = tree.own_leaf, from_blob: messages.FromBlob = keep_blob
) -> RemoteParts:
    """The parts of a model of a lab, which is asked once, whatever its patience: it may not be there at all.

    Raises:
        ModelError: the service has no model of that name; names those it has.
        RemoteError: no answer, or not the answer of a service.
    """
    table = table_from_bytes(call(lab.transport, "GET", model_path(name, "sites")))
    backend = RemoteBackend(
        lab.transport, name, as_leaf=as_leaf, from_blob=from_blob, patience_s=lab.patience_s, table=table
    )
    files = messages.decode_files(call(lab.transport, "GET", model_path(name, "tokenizer")))
    return RemoteParts(backend=backend, table=table, tokenizer=files)
