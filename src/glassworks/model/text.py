"""A transformers tokenizer as blocks use it: special tokens once, each token as text, positions of a text.

Positions are found on the text that the tokens spell one after another, so they hold for ids that came from anywhere.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from glassworks.errors import InputError


class TokenizerText:
    """See `trace.prompts.Text`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, prompt: str | Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a text or a chat. A chat template writes its own special tokens; none are added to them."""
        if isinstance(prompt, str):
            return tuple(self.tokenizer(prompt)["input_ids"])
        if not getattr(self.tokenizer, "chat_template", None):
            raise InputError("this model's tokenizer has no chat template: give the prompt as a text")
        ids = self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=True)
        return tuple(ids["input_ids"] if isinstance(ids, Mapping) else ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as the text that it adds to those before it."""
        pieces: list[str] = []
        before = ""
        for end in range(1, len(ids) + 1):
            text = str(self.tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False))
            pieces.append(text[len(before) :] if text.startswith(before) else "")
            before = text
        return pieces

    def token(self, text: str) -> int:
        """The one id of a text; refused unless it is one token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"{text!r} is {len(ids)} tokens, not one: {self.strings(ids)}")
        return int(ids[0])

    def find(self, ids: Sequence[int], text: str, which: str) -> int:
        """The position of the last token of the last (or first) occurrence of a text."""
        pieces = self.strings(ids)
        whole = "".join(pieces)
        start = whole.rfind(text) if which == "last" else whole.find(text)
        if not text or start < 0:
            raise InputError(f"{text!r} does not occur in {whole!r}")
        end, at = start + len(text), 0
        for position, piece in enumerate(pieces):
            begin, at = at, at + len(piece)
            if at == end and piece:
                self._check_start(pieces, start, text)
                return position
            if begin < end < at:
                raise InputError(f"{text!r} ends inside the token {piece!r}; tokens: {pieces}")
        raise InputError(f"{text!r} ends at no token of {pieces}")

    def _check_start(self, pieces: Sequence[str], start: int, text: str) -> None:
        """A text begins where a token does, or after the space that the token carries."""
        at = 0
        for piece in pieces:
            if at <= start < at + len(piece):
                if piece[: start - at].strip():
                    raise InputError(f"{text!r} begins inside the token {piece!r}; tokens: {list(pieces)}")
                return
            at += len(piece)
