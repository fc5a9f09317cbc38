"""Small inputs on which a model shows what it does: token ids, or images, of two sizes, so that no two axes look alike.

Position ids are always given where the forward takes them, so that what depends on positions has a row for
each request; masks and caches are not.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from glassworks.errors import ModelError

_SIZES = ({"batch": 2, "seq": 5, "source": 4}, {"batch": 3, "seq": 7, "source": 6})
"""batch*seq is 10 and 21, batch*source 8 and 18: each pair of sizes differs from every other."""
_POSITIONS = re.compile(r"(.*\.)?(wpe|embed_positions|position_embeddings?|pos_emb(ed)?)")
"""What a table of learned positions is called."""


@dataclass(frozen=True)
class Run:
    """The arguments of one forward pass and the sizes of its axes (none for a plain module)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sizes: Mapping[str, int]

    def call(self, module: nn.Module) -> Any:
        """What the model returns.

        Raises:
            ModelError: it raised on inputs of ours (the cause is chained); on the user's, its own error comes
            out.
        """
        try:
            return module(*self.args, **self.kwargs)
        except Exception as error:
            if not self.sizes:
                raise
            shown = {name: list(v.shape) if isinstance(v, Tensor) else v for name, v in self.kwargs.items()}
            raise ModelError(
                f"expected {type(module).__name__} to run on {shown}, got {type(error).__name__}: {error}"
            ) from error


def is_encoder_decoder(module: nn.Module) -> bool:
    """Whether a forward pass of a Hugging Face model reads two sequences."""
    return "decoder_input_ids" in _arguments(module) and bool(getattr(module.config, "is_encoder_decoder", False))


def vocabulary(module: nn.Module) -> int:
    """Number of tokens of a Hugging Face model; 0 if it reads none."""
    config: Any = module.config
    return int(getattr(config.get_text_config(), "vocab_size", None) or getattr(config, "vocab_size", None) or 0)


def learned_positions(module: nn.Module) -> int:
    """How many positions a Hugging Face model has learned a vector for; 0 where positions have no end."""
    tables = [m for name, m in module.named_modules() if isinstance(m, nn.Embedding) and _POSITIONS.fullmatch(name)]
    config: Any = module.config
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    tables = [table for table in tables if own is None or table.num_embeddings >= own]  # others are of images
    return min([table.num_embeddings for table in tables] + ([int(own)] if own else [])) if tables else 0


def accepted(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that the forward of a Hugging Face model takes.

    A forward that passes on what it does not know takes the names that its annotation lists; one that says nothing of
    them, those of transformers in general and those of the modules that it consists of.
    """
    names = _named(module)
    parameters = inspect.signature(type(module).forward).parameters.values()
    for passed_on in (p for p in parameters if p.kind is p.VAR_KEYWORD):
        listed = getattr(next(iter(getattr(passed_on.annotation, "__args__", ())), None), "__annotations__", None)
        if listed is None:
            from transformers.utils.generic import TransformersKwargs

            inner = [_named(child) for child in module.children()]
            listed = [*TransformersKwargs.__annotations__, *[n for own in inner if "input_ids" in own for n in own]]
        names += listed
    return tuple(dict.fromkeys(names))


def _named(module: nn.Module) -> list[str]:
    _, *parameters = inspect.signature(type(module).forward).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def small_runs(module: nn.Module) -> tuple[Run, Run]:
    """Two forward passes of a Hugging Face model that reads token ids or images.

    Raises:
        ModelError: it reads something else.
    """
    if getattr(module, "config", None) is None:
        raise ModelError(
            f"expected a Hugging Face model, got {type(module).__name__}; wrap it with the inputs of one call"
        )
    if reads_images(module):
        first, second = (_image_run(module, batch) for batch in (2, 3))
        return first, second
    if "input_ids" not in _arguments(module):
        raise ModelError(
            f"expected a model that reads input_ids or pixel_values, got {type(module).__name__}, which reads "
            f"{', '.join(_arguments(module))}; wrap it as a plain module, with the inputs of one call"
        )
    first, second = (_run(module, sizes) for sizes in _SIZES)
    return first, second


def reads_images(module: nn.Module) -> bool:
    """Whether a Hugging Face model reads images, and no tokens."""
    accepted = _arguments(module)
    return "pixel_values" in accepted and "input_ids" not in accepted


def image_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model was made for."""
    config: Any = module.config
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _image_run(module: nn.Module, batch: int) -> Run:
    first = next(module.parameters())
    ramp = torch.linspace(-1, 1, batch * math.prod(image_shape(module)), dtype=first.dtype, device=first.device)
    return Run((), {"pixel_values": ramp.view(batch, *image_shape(module))}, {"batch": batch})


def _run(module: nn.Module, sizes: Mapping[str, int]) -> Run:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    accepted, pool = _arguments(module), _ordinary(module)
    batch, seq, source = sizes["batch"], sizes["seq"], sizes["source"]
    kwargs: dict[str, Any]
    if is_encoder_decoder(module):
        kwargs = {
            "input_ids": _ids(batch, source, pool, device),
            "decoder_input_ids": _ids(batch, seq, pool, device),
        }
        used = sizes
    else:
        kwargs = {"input_ids": _ids(batch, seq, pool, device)}
        used = {"batch": batch, "seq": seq}
    if "position_ids" in accepted:
        kwargs["position_ids"] = torch.arange(seq, device=device).expand(batch, seq).contiguous()
    if "use_cache" in accepted:
        kwargs["use_cache"] = False
    return Run((), kwargs, used)


def _ids(batch: int, tokens: int, pool: Sequence[int], device: torch.device) -> Tensor:
    """Fixed ids [batch, tokens], all different where the pool allows."""
    ids = [pool[i % len(pool)] for i in range(batch * tokens)]
    return torch.tensor(ids, device=device).view(batch, tokens)


def _ordinary(module: nn.Module, count: int = 64) -> list[int]:
    """Some ids that mean nothing special: a padding id among them would call for a mask."""
    config: Any = module.config
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")]
    taken = {i for ids in special for i in (ids if isinstance(ids, (list, tuple)) else [ids])}
    return list(islice((i for i in range(vocabulary(module)) if i not in taken), count)) or [0]


def _arguments(module: nn.Module) -> tuple[str, ...]:
    """Of the class: the instance's own `forward` may be somebody's wrapper."""
    _, *names = inspect.signature(type(module).forward).parameters
    return tuple(names)
