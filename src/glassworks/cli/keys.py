"""`glassworks keys`: who may use a service. It works beside one that runs, which sees a change at once."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from glassworks.cli.extras import need
from glassworks.cli.state import STATE, StateFolder

if TYPE_CHECKING:
    from glassworks.serve.state import State

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@keys.callback()
def keys_of_a_service() -> None:
    """Example: glassworks keys add ann

    Say who may use a service.
    """


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    state: StateFolder = STATE,
    weight: Annotated[float, typer.Option(help="Its share of the service, against other keys'.")] = 1.0,
) -> None:
    """Example: glassworks keys add ann --state glassworks-state

    Make a key and print it. It is shown this once: the service keeps what tells it from others, not the key.
    """
    from glassworks.serve.keys import Keys

    with _visited(state, make=True) as visited:
        print(Keys(visited).add(name, weight=weight))


@keys.command("list")
def list_(state: StateFolder = STATE) -> None:
    """Example: glassworks keys list --state glassworks-state

    Print the keys of a service, revoked ones too: names and ids, never the keys.
    """
    from glassworks.serve.keys import Keys

    with _visited(state) as visited:
        rows = Keys(visited).list()
    table = Table("id", "name", "weight", "made", "revoked", box=None)
    for row in rows:
        table.add_row(row.id, row.name, f"{row.weight:g}", _day(row.created_s), _day(row.revoked_s))
    Console(width=None if Console().is_terminal else 200).print(table)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME|ID", help="The name of a key, or its id.")],
    state: StateFolder = STATE,
) -> None:
    """Example: glassworks keys revoke ann --state glassworks-state

    Let a key in no more. A service that runs stops within a second what is open with it.
    """
    from glassworks.serve.keys import Keys

    with _visited(state) as visited:
        row = Keys(visited).revoke(key)
    print(f"{row.id} ({row.name}) is let in no more")


def _visited(folder: Path, *, make: bool = False) -> "State":
    need("sqlalchemy", extra="serve")
    from glassworks.serve.state import State

    return State.visit(folder, make=make)


def _day(at_s: float | None) -> str:
    return "" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
