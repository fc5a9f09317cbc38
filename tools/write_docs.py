"""Write docs/cli.md from the commands' own help. `make docs` runs it; a test fails when the file is old."""

from pathlib import Path
from typing import Any

import typer

from glassworks.cli.main import app

FILE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100
HEAD = """# The command line

Written by `make docs` from `--help`. An error is one message on standard error and exit code 2.
"""


def cli() -> str:
    """The page: the commands, in the order of `glassworks --help`."""
    group: Any = typer.main.get_command(app)
    top = _context(group, "glassworks", None)
    parts = [HEAD, f"```text\n{group.get_help(top)}\n```\n"]
    for name, command in group.commands.items():
        help_ = command.get_help(_context(command, name, top))
        parts.append(f"## glassworks {name}\n\n```text\n{help_}\n```\n")
    return "\n".join(parts)


def _context(command: Any, name: str, parent: Any) -> Any:
    return command.context_class(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)


if __name__ == "__main__":
    FILE.write_text(cli())
    print(f"wrote {FILE.relative_to(Path.cwd())}" if FILE.is_relative_to(Path.cwd()) else f"wrote {FILE}")
