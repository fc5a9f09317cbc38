"""A service around a backend of this process: what `gw.connect(model)` is made of."""

from collections.abc import Mapping
from functools import partial

from glassworks.client.backend import keep_blob
from glassworks.client.inprocess import InProcessTransport
from glassworks.graph import messages, tree
from glassworks.graph.backend import Backend
from glassworks.graph.limits import Limits
from glassworks.serve.checks import Checks
from glassworks.serve.host import ModelHost
from glassworks.serve.routes import handle
from glassworks.serve.service import Service
from glassworks.serve.spending import Spending


def in_process(
    name: str,
    backend: Backend,
    *,
    tokenizer: Mapping[str, bytes],
    limits: Limits | None = None,
    as_leaf: tree.AsLeaf = tree.own_leaf,
    from_blob: messages.FromBlob = keep_blob,
) -> InProcessTransport:
    """A transport to a service that has one model: through the codec, the checks and the limits, without a
    network.

    Args:
        name: of the model in the service.
        backend: runs the experiments.
        tokenizer: files by name (see `tokenizer_files`).
        limits: what one request may ask for.
        as_leaf: a tensor of the backend's as a constant.
        from_blob: bytes as a tensor of the backend's.
    """
    limits = limits or Limits()
    host = ModelHost(
        backend, tokenizer=tokenizer, result_bytes=limits.result_bytes, price=lambda: Spending(limits, backend.sites()),
        as_leaf=as_leaf, from_blob=from_blob,
    )  # fmt: skip
    service = Service({name: InProcessTransport(host.handle)}, limits=limits, checker=Checks(limits))
    return InProcessTransport(partial(handle, service))
