"""`glassworks`: the commands under one name, and how their errors look.

An error of ours is one message on standard error and exit code 2; any other is a fault of ours and keeps its
traceback.
"""

import sys
from typing import Annotated

import typer

from glassworks import __version__
from glassworks.cli.demo import demo
from glassworks.cli.generate import generate
from glassworks.cli.keys import keys
from glassworks.cli.measure import measure
from glassworks.cli.run import run
from glassworks.cli.serve import serve
from glassworks.cli.show import show
from glassworks.errors import GlassworksError

app = typer.Typer(
    name="glassworks", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glassworks {__version__}")
        raise typer.Exit


@app.callback(epilog="glassworks COMMAND --help says more of each.")
def glassworks(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print it.")] = False,
) -> None:
    """Example: glassworks demo

    Look inside large models, change what they compute, and share them.
    """


for command in (demo, show, run, generate, measure, serve):
    app.command()(command)
app.add_typer(keys, name="keys")


def main() -> None:
    """What the `glassworks` script calls."""
    try:
        app()
    except GlassworksError as error:
        lines = [str(error), *getattr(error, "__notes__", ())]
        print("glassworks: " + "\n".join(lines), file=sys.stderr)
        sys.exit(2)
