"""Write docs/cli.md from the commands' own help, docs/operations.md from the table of permitted operations, and
docs/errors.md from errors.py.

`make docs` runs it; a test fails when a file is old.
"""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

import glassworks as gw
from glassworks import errors as gw_errors
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
    return "\n".join([*parts, *_commands(group, top)])


def _commands(group: Any, parent: Any) -> list[str]:
    """A section for each command, and for each command below it."""
    parts = []
    for name, command in group.commands.items():
        own = _context(command, name, parent)
        parts.append(f"## {own.command_path}\n\n```text\n{command.get_help(own)}\n```\n")
        parts += _commands(command, own) if hasattr(command, "commands") else []
    return parts


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


ERRORS_HEAD = """# Errors

Written by `make docs` from `errors.py`; the messages are what the code beside them says.

"""
EXAMPLES = {
    "UnknownSite": "with model.trace(prompt):\n    model.layers[0].attention.output.save()",
    "UnknownOperation": "with model.trace(prompt):\n    model.layers[0].output.softmaxx(-1)",
    "OrderError": "with model.trace(prompt):\n    model.layers[0].output = model.layers[3].output\n"
    "    model.logits.save()",
    "WriteError": "with model.trace(prompt):\n    flat = model.layers[1].output.transpose(1, 2).reshape(-1)\n"
    "    flat[0] = 1.0\n    model.logits.save()",
    "ScopeError": "with model.generate(prompt, max_new_tokens=2):\n    model.logits.save()",
    "NotSaved": "with model.trace(prompt):\n    hidden = model.layers[0].output\nprint(hidden.mean())",
    "NotTaken": "with model.record() as t:\n    hidden = model.layers[0].output\n"
    "    gw.cond(hidden.max() > 1e6, lambda: hidden.save('large'), lambda: hidden.mean().save('mean'))\n"
    "results = model.run(t.graph, [prompt])\nprint(results['large'])",
    "GraphError": "with model.trace(prompt):\n    if model.logits.max() > 0:\n        print('large')",
    "ModelError": "gw.wrap('gpt2')",
    "InputError": "with model.trace([3, 4, 100_000]):\n    model.logits.save()",
    "RemoteError": "gw.connect('http://127.0.0.1:9', api_key='gw_x').models()",
    "WireError": "gw.Graph.decode(b'not a graph of ours')",
    "QuotaExceeded": "from glassworks.serve.quotas import Quotas\n"
    "from glassworks.serve.supervise import running_service\n\n"
    "with running_service('toy', quotas=Quotas(unfinished_jobs=1)) as service:\n"
    "    there = gw.connect(service.url, api_key=service.key).model('toy')\n"
    "    for _ in range(2):\n"
    "        with there.generate(prompt, max_new_tokens=1000, wait=False, eos_token_id=[]):\n"
    "            pass",
    "LimitExceeded": "there = gw.connect(model)\nwith there.trace(prompt):\n"
    "    there.layers[0].output.repeat(1, 10_000, 1_000).sum().save()",
}
"""Name of an error -> code that raises it, on `model` and `prompt`."""


def errors() -> str:
    """The page: the tree, then each error with what it means and an example."""
    module = inspect.getdoc(gw_errors) or ""
    title, tree, rest = module.split("\n\n", 2)
    parts = [ERRORS_HEAD, f"{title}\n\n```text\n{inspect.cleandoc(tree)}\n```\n\n{rest}\n"]
    model = gw.load("toy")
    for kind in _kinds(gw.GlassworksError):
        parts.append(f"\n## {kind.__name__}\n\n{inspect.getdoc(kind)}\n")
        if kind.__name__ in EXAMPLES:
            code = EXAMPLES[kind.__name__].replace("'", '"')  # as a formatter of the page leaves it
            parts.append(f"\n```python\n{code}\n```\n\n```text\n{_said(code, model, kind)}\n```\n")
    return "".join(parts)


def _kinds(top: type[Exception]) -> list[type[Exception]]:
    """An error and all below it, in the order of the tree."""
    return [
        top,
        *(kind for child in top.__subclasses__() if child.__module__ == top.__module__ for kind in _kinds(child)),
    ]


def _said(code: str, model: Any, kind: type[Exception]) -> str:
    """The message that the code ends with, which must be of this very kind."""
    names = {"gw": gw, "model": model, "prompt": "The Eiffel Tower is in the city of"}
    try:
        exec(compile(code, "example.py", "exec"), names)
    except gw.GlassworksError as error:
        if type(error) is not kind:
            raise
        return "\n".join([str(error).strip('"'), *getattr(error, "__notes__", [])])
    raise AssertionError(f"the example of {kind.__name__} raises nothing")


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "operations.md": operations, "errors.md": errors}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write())
        print(f"wrote docs/{page}")
