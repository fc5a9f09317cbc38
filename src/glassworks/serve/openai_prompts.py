"""Prompts and messages of OpenAI's requests, in the forms that `trace.prompts` takes."""

from collections.abc import Mapping
from typing import Any

from glassworks.graph.wire import spell
from glassworks.serve.openai_fields import Fields, Unfit, sound_text

Prompt = str | tuple[int, ...] | tuple[Mapping[str, str], ...]
"""A text, token ids, or the messages of a chat."""

_ROLES = ("system", "developer", "user", "assistant")
_EMPTY_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls")


def text_prompts(fields: Fields) -> tuple[Prompt, ...]:
    """What stands in `prompt`. Unfit: it is none of the four forms."""
    value = fields.get("prompt")
    if isinstance(value, str):
        return (sound_text(value, "prompt"),)
    if isinstance(value, list) and value:
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(item, str) for item in value):
            return tuple(sound_text(item, "prompt") for item in value)
        if all(isinstance(item, list) and item and _are_ids(item) for item in value):
            return tuple(tuple(item) for item in value)
    raise Unfit(
        f"prompt must be a text, a list of texts, token ids, or a list of lists of token ids, got {spell(value)}",
        param="prompt",
    )


def _are_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


def chat_prompt(fields: Fields) -> tuple[Prompt, ...]:
    """What stands in `messages`, as one prompt. Unfit: names the message."""
    value = fields.get("messages")
    if not isinstance(value, list) or not value:
        raise Unfit(f"messages must be a list of at least one message, got {spell(value)}", param="messages")
    return (tuple(_message(item, f"messages[{k}]") for k, item in enumerate(value)),)


def _message(value: Any, where: str) -> Mapping[str, str]:
    """A message as chat templates know them; `developer` is what newer clients call `system`."""
    if not isinstance(value, dict):
        raise Unfit(f"{where} must be an object with role and content, got {spell(value)}", param=where)
    for name in value:
        if name not in ("role", "content", "name", *_EMPTY_IN_MESSAGES):
            raise Unfit(f"{where} has no field {spell(name)}", param=where, code="unknown_parameter")
        if name in _EMPTY_IN_MESSAGES and value[name] not in (None, []):
            message = f"{where}: {name} is not supported by this service; leave it out"
            raise Unfit(message, param=f"{where}.{name}", code="unsupported_parameter")
    role = value.get("role")
    if role not in _ROLES:
        raise Unfit(f"{where}: role must be one of {', '.join(_ROLES)}; got {spell(role)}", param=f"{where}.role")
    found = {"role": "system" if role == "developer" else role, "content": _content(value.get("content"), where)}
    return found if value.get("name") is None else {**found, "name": sound_text(value["name"], f"{where}.name")}


def _content(value: Any, where: str) -> str:
    """A text, or the texts of its parts one after the other."""
    name = f"{where}.content"
    if isinstance(value, str):
        return sound_text(value, name)
    if not isinstance(value, list) or not value:
        raise Unfit(f"{name} must be a text, or a list of parts, got {spell(value)}", param=name)
    return "".join(_part(item, f"{name}[{k}]") for k, item in enumerate(value))


def _part(value: Any, where: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "text" or set(value) != {"type", "text"}:
        raise Unfit(f"{where} must be a part of type text: models here read nothing else", param=where)
    return sound_text(value["text"], where)
