"""A service as a person sees it: which models it has, and the parts that a remote model is made of."""

from dataclasses import dataclass

from glassworks.client.backend import RemoteBackend, keep_blob
from glassworks.client.base import Transport
from glassworks.client.calls import call, model_path
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
    """A service behind a transport."""

    transport: Transport

    def models(self) -> list[str]:
        """The names of its models."""
        try:
            answer = json_of(call(self.transport, "GET", "/v1/models"), "the answer")
            return [str(model["name"]) for model in answer["models"]]
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"the list of models cannot be read ({type(error).__name__}: {error})") from None


def remote_parts(
    lab: Lab, name: str, *, as_leaf: tree.AsLeaf = tree.own_leaf, from_blob: messages.FromBlob = keep_blob
) -> RemoteParts:
    """The parts of a model of a lab.

    Raises:
        ModelError: the service has no model of that name; names those it has.
        RemoteError: no answer, or not the answer of a service.
    """
    backend = RemoteBackend(lab.transport, name, as_leaf=as_leaf, from_blob=from_blob)
    table = backend.sites()
    files = messages.decode_files(call(lab.transport, "GET", model_path(name, "tokenizer")))
    return RemoteParts(backend=backend, table=table, tokenizer=files)
