"""Write docs/cli.md from the commands' own help, and docs/operations.md from the table of permitted operations.

`make docs` runs it; a test fails when a file is old.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

import glassworks as gw
from glassworks.cli.main import app
from glassworks.graph.operations import Operation
from glassworks.trace.binding import spellings

DOCS = Path(__file__).parents[1] / "docs"
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


OPERATIONS_HEAD = """# Permitted operations

Written by `make docs` from `gw.operations()`. There are {count}, spellings of one operation taken together. A graph
holds these and nothing else. None reaches storage, reads memory that nobody wrote, names a device or an `out=`, or
draws from the global random generator; arguments that would (`out=`, `device=`, `inplace=True`, `max_norm=`, ...) are
refused.

`F` is `torch.nn.functional`, `value` a Value. An operation *in place* works on a copy; on a site, or on a view of
one, it writes to the site. A result is a *view* of the first argument always, sometimes, or never (no entry): writing
to a view of a site writes to the site, and where it is not known whether it is a view, is refused. A *random*
operation draws by seed, node, row and step. Where a size *depends on values*, `.shape` may not be known in a block.
"""
CLASSES = {
    "elementwise": "Element by element",
    "reduction": "Reductions, norms and losses",
    "matmul": "Products and convolutions",
    "decomposition": "Decompositions",
    "sort": "Order, and Fourier transforms",
    "view": "Views, and what may be one",
    "gather": "Gathering, scattering, pooling",
    "create": "New tensors",
}
OPERATORS = {
    "add": "a + b", "radd": "2 + a", "iadd": "a += b", "sub": "a - b", "rsub": "2 - a", "isub": "a -= b",
    "mul": "a * b", "rmul": "2 * a", "imul": "a *= b", "truediv": "a / b", "rtruediv": "2 / a", "itruediv": "a /= b",
    "floordiv": "a // b", "rfloordiv": "2 // a", "ifloordiv": "a //= b", "mod": "a % b", "rmod": "2 % a",
    "imod": "a %= b", "pow": "a ** b", "rpow": "2 ** a", "ipow": "a **= b", "matmul": "a @ b", "and": "a & b",
    "rand": "2 & a", "iand": "a &= b", "or": "a \\| b", "ror": "2 \\| a", "ior": "a \\|= b", "xor": "a ^ b",
    "rxor": "2 ^ a", "ixor": "a ^= b", "lshift": "a << b", "ilshift": "a <<= b", "rshift": "a >> b",
    "irshift": "a >>= b", "eq": "a == b", "ne": "a != b", "lt": "a < b", "le": "a <= b", "gt": "a > b", "ge": "a >= b",
    "neg": "-a", "pos": "+a", "invert": "~a", "abs": "abs(a)", "getitem": "a[i]", "setitem": "a[i] = b",
}  # fmt: skip
"""Operators by the name of their method; those of Python 2 (`__div__`) have none."""
PROPERTIES = ("mT", "mH", "real", "imag")


def operations() -> str:
    """The page: a table for each class."""
    table = gw.operations()
    parts = [OPERATIONS_HEAD.format(count=len(table))]
    for cost, title in CLASSES.items():
        own = [operation for operation in table if operation.cost == cost]
        parts.append(f"## {title} ({len(own)})\n")
        parts.append("| operation | spellings | in place | view | |\n|---|---|---|---|---|")
        parts += [_row(operation) for operation in own]
        parts.append("")
    return "\n".join(parts)


def _row(operation: Operation) -> str:
    spelled = spellings(operation.name)
    plain = _spelled(spelled) + [f"`value.{operation.name}`" for _ in range(operation.name in PROPERTIES)]
    inplace = _spelled(spellings(f"{operation.name}_")) if operation.inplace else []
    view = {"always": "always", "maybe": "sometimes", "never": ""}[operation.aliasing]
    notes = ["random"] * operation.random + ["size depends on values"] * operation.data_dependent
    return f"| {operation.name} | {', '.join(plain)} | {', '.join(inplace)} | {view} | {', '.join(notes)} |"


def _spelled(names: Iterable[str]) -> list[str]:
    """Spellings as a person writes them, without a method's function of the same name."""
    found = []
    for name in names:
        own = name.removeprefix("Tensor.")
        if own.startswith("__"):
            found += [OPERATORS[own.strip("_")]] if own.strip("_") in OPERATORS else []
        else:
            found.append(f"value.{own}" if own != name else name.replace("torch.nn.functional", "F"))
    return [f"`{name}`" for name in found]


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "operations.md": operations}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write())
        print(f"wrote docs/{page}")
