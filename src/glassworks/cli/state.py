"""Which folder a service keeps its state in: the one option that the commands of a service share."""

from pathlib import Path
from typing import Annotated

import typer

STATE = Path("glassworks-state")
"""Where none is given: in the current folder."""

StateFolder = Annotated[Path, typer.Option("--state", help="The folder that the service keeps its state in.")]
