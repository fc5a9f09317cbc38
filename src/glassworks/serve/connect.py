"""`gw.connect`: a service, or a model of this process through the codec and the limits of one."""

from typing import Any

from glassworks.client.http import HTTPTransport
from glassworks.client.job import RemoteJob
from glassworks.client.lab import Lab, remote_parts
from glassworks.errors import InputError
from glassworks.graph.messages import decode_results
from glassworks.serve.host import tokenizer_files
from glassworks.serve.local import in_process
from glassworks.serve.tokenizers import text_of
from glassworks.trace.facade import Model
from glassworks.trace.parts import Core
from glassworks.trace.tensors import as_leaf, from_blob


def connect(where: str | Model, *, api_key: str | None = None) -> Any:
    """A service by URL (its `.model(name)` is then as a local model is), or a local model as a remote one.

    Args:
        where: `"http://host:port"`, or a model: it is then run through the codec and the limits, in this process.
        api_key: the bearer key of the service.

    Raises:
        RemoteError: no answer, or not from a service.
    """
    if isinstance(where, Model):
        name = where._core.name
        transport = in_process(
            name,
            where.backend,
            tokenizer=tokenizer_files(where.tokenizer),
            as_leaf=as_leaf,
            from_blob=from_blob,
        )
        model = ConnectedLab(Lab(transport)).model(name)
        model._core.prefix = where._core.prefix  # edits are part of what is sent
        return model
    if not isinstance(where, str) or not where.startswith(("http://", "https://")):
        raise InputError(f"gw.connect takes an http:// or https:// address, or a model; got {where!r}")
    return ConnectedLab(Lab(HTTPTransport(where, api_key=api_key)))


class ConnectedLab:
    """A service: `models()` lists what it has, `model(name)` gives one, `job(id)` finds what was submitted."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def models(self) -> list[str]:
        """Names of the service's models."""
        return self._lab.models()

    def model(self, name: str) -> Model:
        """A model of the service; blocks on it are written as on a local one, and only data travels."""
        parts = remote_parts(self._lab, name, as_leaf=as_leaf, from_blob=from_blob)
        text = text_of(parts.tokenizer)
        return Model(Core(parts.backend, text=text, table=parts.table, name=name))

    def job(self, id: str) -> RemoteJob:
        """A job that was submitted with this key, from here or from any other process.

        Raises:
            RemoteError: the service knows none of that id, from this key.
        """
        job = RemoteJob(
            self._lab.transport, id, as_leaf=as_leaf, read=lambda answer: decode_results(answer, from_blob=from_blob)
        )
        _ = job.status
        return job

    def __repr__(self) -> str:
        return f"<service at {self._lab.transport!r}>"
