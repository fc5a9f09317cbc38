"""Experiments on their way to a service: their message and its key, what is heard meanwhile, and what comes of them."""

import secrets
from collections.abc import Sequence

from glassworks.client import following
from glassworks.client.base import Answer, Transport
from glassworks.client.calls import error_of
from glassworks.client.flow import Flow
from glassworks.client.following import Submission
from glassworks.client.heard import Heard
from glassworks.client.job import RemoteJob
from glassworks.client.lines import with_own_lines
from glassworks.client.patience import Patience
from glassworks.client.status import status_of
from glassworks.graph import messages, tree
from glassworks.graph.backend import Experiment, Results
from glassworks.graph.wire import Blob


class Sent:
    """Experiments on their way, and what comes of them."""

    def __init__(
        self,
        transport: Transport,
        model: str,
        experiments: Sequence[Experiment],
        *,
        as_leaf: tree.AsLeaf,
        from_blob: messages.FromBlob,
        patience_s: float,
    ) -> None:
        self._transport, self._patience_s = transport, patience_s
        self._as_leaf, self._from_blob = as_leaf, from_blob
        self._graphs = [experiment.graph for experiment in experiments]
        self.heard = Heard(self._graphs)
        tensors: dict[str, Blob] = {}
        body = messages.encode_request(model, experiments, as_leaf=as_leaf, aside=tensors)
        says = any(node.kind == "log" for graph in self._graphs for node in graph.nodes)
        self._submission = Submission(model=model, body=body, tensors=tensors, key=secrets.token_urlsafe(18), says=says)

    def run(self) -> Flow[Answer]:
        """Submit them, and come to what they come to; what is refused is raised."""
        return self._explained(following.run(self._submission, self._patience()))

    def submit(self) -> Flow[Answer]:
        """Submit them; what is refused is raised."""
        return self._explained(following.submitted(self._submission, self._patience()))

    def _patience(self) -> Patience:
        return Patience(self._patience_s)

    def _explained(self, flow: Flow[Answer]) -> Flow[Answer]:
        """What is refused, and not what a job came to, is raised."""
        answer = yield from flow
        if not answer.is_good and answer.job is None:
            raise self._understood(self._error_of(answer))
        return answer

    def _error_of(self, answer: Answer) -> Exception:
        return error_of(answer.status, answer.body, f"the run on {self._submission.model}")

    def _understood(self, error: Exception) -> Exception:
        return with_own_lines(error, self._graphs)

    def results(self, answer: Answer) -> list[Results]:
        """What a run came to."""
        if not answer.is_good:
            raise self._understood(self._error_of(answer))
        return self._read(answer.body)

    def _read(self, answer: bytes) -> list[Results]:
        return self.heard.results(messages.decode_results(answer, from_blob=self._from_blob))

    def job(self, answer: Answer, *, in_tasks: bool = False) -> RemoteJob:
        """The job of what was answered: its status, or what it came to already."""
        told = status_of(answer.body) if answer.status == following.UNDER_WAY else None
        return RemoteJob(
            self._transport, answer.job or told["id"],  # type: ignore[index]
            told=told, answer=answer if told is None else None, in_tasks=in_tasks,
            patience_s=self._patience_s, says=self._submission.says, hear=self.heard.event,
            as_leaf=self._as_leaf, read=self._read, understood=self._understood,
        )  # fmt: skip
