"""The migration page as blocks of code, and what they leave behind; as a script it runs the blocks of NNsight's.

    python tests/migration.py FOLDER

writes a safetensors file a block. They run in a process of their own because NNsight, once imported, gives every Python
object a `.save` and changes `Tensor.backward`.
"""

import re
import sys
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import glassworks as gw

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-nnsight.md"
_FENCE = re.compile(r"^```(\w+(?: \w+)?)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def sections() -> dict[str, list[tuple[str, str]]]:
    """Title -> its blocks, as (mark, code). What comes before the first title is "start"."""
    first, *parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    named = {"start": first, **dict(zip(parts[::2], parts[1::2], strict=True))}
    return {name: _FENCE.findall(text) for name, text in named.items()}


def pairs() -> list[tuple[str, str]]:
    """(NNsight's code, ours) of every experiment that is written in both."""
    found = []
    for blocks in sections().values():
        for (mark, theirs), (after, ours) in pairwise(blocks):
            if mark == "python nnsight":
                assert after == "python", theirs
                found.append((theirs, ours))
    return found


def run(code: str, path: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run a block as a file of its own, so that errors and NNsight find its lines; gives the names it leaves behind."""
    path.write_text(code)
    names = dict(names)
    exec(compile(code, str(path), "exec"), names)
    return names


def tensors(names: dict[str, Any], before: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that a block has left behind; those of a list by number. What was not saved is not among them."""
    found: dict[str, torch.Tensor] = {}
    for name, value in names.items():
        try:
            plain = None if name in before else gw.values(value)
        except gw.NotSaved:
            continue
        items = {f"{name}.{k}": item for k, item in enumerate(plain)} if isinstance(plain, list) else {name: plain}
        found.update({key: item for key, item in items.items() if isinstance(item, torch.Tensor)})
    return found


def main(folder: Path) -> None:
    """Run NNsight's blocks on the weights of the toy."""
    import nnsight
    from transformers import AutoModelForCausalLM

    [(_, code)] = sections()["start"]
    names = run(code, folder / "start.py", {})
    module = AutoModelForCausalLM.from_pretrained(str(files("glassworks.model") / "toy"), dtype=torch.float32).eval()
    names["model"] = nnsight.LanguageModel(module, tokenizer=names["model"].tokenizer)
    names["nnsight"] = nnsight
    for number, (theirs, _) in enumerate(pairs()):
        left = tensors(run(theirs, folder / f"block_{number}.py", names), names)
        save_file({key: item.detach().clone() for key, item in left.items()}, folder / f"{number}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
