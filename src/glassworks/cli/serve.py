"""`glassworks serve`: share a model over HTTP."""

from typing import TYPE_CHECKING, Annotated

import typer

from glassworks.cli.extras import need

if TYPE_CHECKING:
    from glassworks.serve.supervise import Running


def serve(
    model: Annotated[str, typer.Argument(help="toy, a Hugging Face id, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="GLASSWORKS_API_KEY", help="A key that is let in; repeat it for several. Without one, one is made."
        ),
    ] = None,
) -> None:
    """Example: glassworks serve toy --port 8000

    Serve a model until Ctrl-C. Many people share it; each sends graphs and gets back what they save.
    """
    need("fastapi", "uvicorn", extra="serve")
    from glassworks.serve import supervise

    keys = tuple(api_key or ())

    def ready(running: "Running") -> None:
        shown = "..." if keys else running.key
        print(f"{model} is served at {running.url}")
        if not keys:
            print(f"key: {running.key}")
        print(f'\n  import glassworks as gw\n  lab = gw.connect("{running.url}", api_key="{shown}")')
        print(f'  model = lab.model("{model}")\n\nCtrl-C stops it.', flush=True)

    supervise.serve(model, host=host, port=port, keys=keys, on_ready=ready)
