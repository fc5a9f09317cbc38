"""What each token adds to a text, found out when somebody asks.

A few tokens are decoded at a time: what a token adds depends on those before it only as far as the last one that ended
a character.
"""

from collections.abc import Sequence

from glassworks.trace.prompts import Text

_PART = "\N{REPLACEMENT CHARACTER}"
"""What a part of a character decodes to."""


class Spelling:
    """The text of one reply, token by token. `text`: the tokenizer, if there is one."""

    def __init__(self, text: Text | None) -> None:
        self._text = text
        self._first = self._read = 0

    def all(self, tokens: Sequence[int]) -> str:
        """What they spell together."""
        return "" if self._text is None else self._text.decode(tokens)

    def added(self, tokens: Sequence[int]) -> str:
        """What the last of these adds, asked for once for each token; a part of a character waits for the rest."""
        if self._text is None:
            return ""
        before, now = self._text.decode(tokens[self._first : self._read]), self._text.decode(tokens[self._first :])
        if now.endswith(_PART) or len(now) <= len(before):
            return ""
        self._first, self._read = self._read, len(tokens)
        return now[len(before) :]
