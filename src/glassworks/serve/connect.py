"""`gw.connect`: a service, or a model of this process through the codec and the limits of one."""

from typing import Any

from glassworks.client.http import HTTPTransport
from glassworks.client.job import RemoteJob
from glassworks.client.lab import Lab, remote_parts
from glassworks.client.status import JobList, LabStatus
from glassworks.errors import InputError
from glassworks.graph.messages import decode_results
from glassworks.serve.host import tokenizer_files
from glassworks.serve.local import in_process
from glassworks.serve.tokenizers import text_of
from glassworks.trace.facade import Model
from glassworks.trace.parts import Core
from glassworks.trace.tensors import as_leaf, from_blob


def connect(where: str | Model, *, api_key: str | None = None, patience_s: float = 60.0) -> Any:
    """A service by URL (its `.model(name)` is then as a local model is), or a local model as a remote one.

    Args:
        where: `"http://host:port"`, or a model: it is then run through the codec and the limits, in this process.
        api_key: the bearer key of the service.
        patience_s: how long a run or a job asks again when the service is not there (no connection, or 502, 503, 504),
            so that it survives a restart of the service; nothing runs twice. 0: not at all.

    Raises:
        RemoteError: no answer, or not from a service.
    """
    if type(patience_s) not in (int, float) or not 0 <= patience_s < float("inf"):
        raise InputError(f"patience_s is a number of seconds of at least 0, got {patience_s!r}")
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
    return ConnectedLab(Lab(HTTPTransport(where, api_key=api_key), patience_s))


class ConnectedLab:
    """A service: what it has, how it stands, and what was submitted to it."""

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

    def status(self) -> LabStatus:
        """How the service stands: its models, and what this key has under way, has used and may have. `print` it."""
        return self._lab.status()

    def jobs(self, status: str | None = None, *, limit: int = 100) -> JobList:
        """The jobs that were submitted with this key, the newest first. `print` them, or take one: `lab.jobs()[0]`.

        Args:
            status: only those that are `"queued"`, `"running"`, `"done"`, `"failed"` or `"cancelled"`.
            limit: at most so many.
        """
        return self._lab.jobs(lambda told: self._job(told["id"], told), status=status, limit=limit)

    def job(self, id: str) -> RemoteJob:
        """A job that was submitted with this key, from here or from any other process.

        Raises:
            RemoteError: the service knows none of that id, from this key.
        """
        return self._job(id, self._lab.told_of(id))

    def _job(self, id: str, told: dict[str, Any]) -> RemoteJob:
        return RemoteJob(
            self._lab.transport, id, told=told, patience_s=self._lab.patience_s,
            as_leaf=as_leaf, read=lambda answer: decode_results(answer, from_blob=from_blob),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<service at {self._lab.transport!r}>"
