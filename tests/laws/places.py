"""Sites of a model by name, as a person would write them."""

from typing import Any


def parent(model: Any, name: str) -> tuple[Any, str]:
    *path, port = name.split(".")
    found = model
    for part in path:
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found, port


def read(model: Any, name: str) -> Any:
    owner, port = parent(model, name)
    return getattr(owner, port)


def write(model: Any, name: str, value: Any) -> None:
    owner, port = parent(model, name)
    setattr(owner, port, value)
