"""`glassworks serve`: share a model over HTTP."""

from typing import TYPE_CHECKING, Annotated

import typer

from glassworks.cli.extras import need
from glassworks.cli.figures import figures
from glassworks.cli.state import STATE, StateFolder
from glassworks.errors import InputError

if TYPE_CHECKING:
    from glassworks.serve.supervise import Running


def serve(
    model: Annotated[str, typer.Argument(help="toy, a Hugging Face id, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.", min=0, max=65535)] = 8000,
    state: StateFolder = STATE,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="GLASSWORKS_API_KEY", help="A key to let in besides those of `glassworks keys`; repeat it for more."
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Who goes first among one key's jobs: fcfs, srpt-predicted or mlfq.")
    ] = "mlfq",
    rows: Annotated[int, typer.Option(help="Rows of a forward pass at most.", min=1)] = 32,
    kv_device: Annotated[str, typer.Option(help="Memory for keys and values on the device.")] = "1GiB",
    kv_host: Annotated[str, typer.Option(help="And off it, for those whose turn it is not.")] = "2GiB",
    limit: Annotated[
        list[str] | None,
        typer.Option(help="What one request may ask for, such as max_new_tokens=256; repeat it for more."),
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="What one key may have, such as unfinished_jobs=64; repeat it for more."),
    ] = None,
) -> None:
    """Example: glassworks serve toy --port 8000

    Serve a model until Ctrl-C. Many people share it; each sends graphs and gets back what they save. Jobs, results and
    keys are in the state folder: what is queued is still queued after a restart.
    """
    need("fastapi", "uvicorn", "sqlalchemy", "prometheus_client", extra="serve")
    from glassworks.graph.limits import Limits
    from glassworks.serve import supervise
    from glassworks.serve.quotas import Quotas
    from glassworks.serve.worker import POLICIES
    from glassworks.units import size_bytes

    if policy not in POLICIES:
        raise InputError(f"--policy is one of {', '.join(POLICIES)}; got {policy!r}")
    for size in (kv_device, kv_host):
        size_bytes(size)
    limits, quotas = figures(Limits, "--limit", limit or ()), figures(Quotas, "--quota", quota or ())
    keys = tuple(api_key or ())

    def ready(running: "Running") -> None:
        print(f"{model} is served at {running.url}")
        if running.key and not keys:
            print(f"key: {running.key}")
        elif not keys:
            print(f"keys are those made before; glassworks keys add NAME --state {state} makes another")
        print(f"state: {state}")
        shown = running.key if running.key and not keys else "..."
        print(f'\n  import glassworks as gw\n  lab = gw.connect("{running.url}", api_key="{shown}")')
        print(f'  model = lab.model("{model}")\n\nCtrl-C stops it.', flush=True)

    supervise.serve(
        model, host=host, port=port, state=state, keys=keys, limits=limits, quotas=quotas, on_ready=ready,
        worker_options=("--policy", policy, "--rows", str(rows), "--kv-device", kv_device, "--kv-host", kv_host),
    )  # fmt: skip
