"""Optional dependencies: what a command needs beyond a plain install, asked for before any work is done."""

from importlib.util import find_spec

from glassworks.errors import InputError


def need(*modules: str, extra: str) -> None:
    """Raises InputError: modules are missing, with the line that installs them."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(f"this needs {', '.join(missing)}: pip install 'glassworks[{extra}]'")
