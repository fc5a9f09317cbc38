"""A tokenizer out of its files; nothing of them is run but the library's own code."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from glassworks.errors import ModelError
from glassworks.model.text import TokenizerText


def text_of(files: Mapping[str, bytes]) -> TokenizerText | None:
    """The tokenizer that these files are; None if there are none.

    Raises:
        ModelError: they are no tokenizer.
    """
    if not files:
        return None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="glassworks-") as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        try:
            return TokenizerText(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        except Exception as error:  # noqa: BLE001 - the library raises whatever it meets in a file that is none
            raise ModelError(f"the files {', '.join(files)} are no tokenizer: {error}") from None
