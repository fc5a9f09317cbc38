"""What the sites of a model hold, by transformers alone: plain hooks, and an attention function written out here.

Nothing of the package under test is used. Places have the names of the contract; each is one tensor with its axes.
A change at a place is a function of its tensor and of how often the place was visited before (the generation step).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from families import FAMILIES, MORE_FAMILIES

Change = Callable[[torch.Tensor, int], torch.Tensor | None]
PLAIN = "contract_oracle"


@dataclass(frozen=True)
class Spelling:
    """How a family names its modules."""

    stack: str
    attn: str
    mlp: str
    project: str
    down: str | None
    embed: str
    norm: str
    gate: str | None = None
    cross: str | None = None


_LLAMA = ("model.layers", "self_attn", "mlp", "o_proj", "down_proj", "model.embed_tokens", "model.norm")
_ENCODER = ("layer.0.SelfAttention", "layer.1.DenseReluDense", "o", "wo")
_DECODER = ("layer.0.SelfAttention", "layer.2.DenseReluDense", "o", "wo")
SPELLINGS: dict[str, dict[str, Spelling]] = {
    "gpt2": {"": Spelling("transformer.h", "attn", "mlp", "c_proj", "c_proj", "transformer.wte", "transformer.ln_f")},
    "llama": {"": Spelling(*_LLAMA)},
    "qwen3": {"": Spelling(*_LLAMA)},
    "mixtral": {"": Spelling(*_LLAMA[:4], None, *_LLAMA[5:], gate="gate")},
    "t5": {
        "encoder.": Spelling("encoder.block", *_ENCODER, "encoder.embed_tokens", "encoder.final_layer_norm"),
        "decoder.": Spelling(
            "decoder.block", *_DECODER, "decoder.embed_tokens", "decoder.final_layer_norm",
            cross="layer.1.EncDecAttention",
        ),
    },
}  # fmt: skip
"""By family, by the prefix of a stack."""


@dataclass
class Visits:
    """What was seen at each place: a list, one entry a visit."""

    changes: Mapping[str, Change]
    seen: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __call__(self, place: str, tensor: torch.Tensor) -> torch.Tensor:
        """Remember the tensor, or what a change makes of it."""
        entries = self.seen.setdefault(place, [])
        if place in self.changes:
            changed = self.changes[place](tensor.clone(), len(entries))
            if changed is not None:
                tensor = changed.expand(tensor.shape).to(tensor.dtype)
        entries.append(tensor.detach().clone() if not tensor.requires_grad else tensor)
        return tensor


_OPEN: list[tuple["Oracle", Visits]] = []


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as the papers have it; `query` is `[batch, heads, query, head_dim]`."""
    oracle, visits = _OPEN[-1]
    name = oracle.attentions[module]
    query = visits(f"{name}.heads.query", query.transpose(1, 2)).transpose(1, 2)
    key = visits(f"{name}.heads.key", key.transpose(1, 2)).transpose(1, 2)
    value = visits(f"{name}.heads.value", value.transpose(1, 2)).transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    for term in (position_bias, attention_mask):
        scores = scores if term is None else scores + term
    scores = visits(f"{name}.scores", scores)
    probs = visits(f"{name}.probs", scores.softmax(-1))
    return visits(f"{name}.heads.output", (probs @ value).transpose(1, 2)).contiguous(), probs


AttentionInterface.register(PLAIN, _attention)
AttentionMaskInterface.register(PLAIN, eager_mask)


def build(family: str) -> Any:
    """A family's tiny model. The suite's GPT-2 says one token for ever: here its norms and head are other ones."""
    made: Any = {**FAMILIES, **MORE_FAMILIES}[family]()
    if family == "gpt2":
        made.config.tie_word_embeddings = False
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            made.lm_head.weight = torch.nn.Parameter(torch.randn(made.lm_head.weight.shape, generator=draws) / 32**0.5)
            for name, parameter in made.named_parameters():
                if "ln_" in name and name.endswith("bias"):
                    parameter -= 1.0
    return made


class Oracle:
    """A family's model as transformers has it, with the weights of the model under test.

    `stock` is the same with transformers' own eager attention, for what transformers can return by itself.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.bare = build(family)
        self.bare.set_attn_implementation(PLAIN)
        self.stock = build(family)
        self.stock.set_attn_implementation("eager")
        self.attentions: dict[torch.nn.Module, str] = {}
        self.plain: dict[tuple[int, ...], Found] = {}
        for prefix, spelling in SPELLINGS[family].items():
            for n in range(len(self.bare.get_submodule(spelling.stack))):
                own = f"{spelling.stack}.{n}"
                self.attentions[self.bare.get_submodule(f"{own}.{spelling.attn}")] = f"{prefix}layers.{n}.attn"
                if spelling.cross:
                    cross = self.bare.get_submodule(f"{own}.{spelling.cross}")
                    self.attentions[cross] = f"{prefix}layers.{n}.cross_attn"

    def forward(self, prompt: Sequence[int], changes: Mapping[str, Change] | None = None, **kwargs: Any) -> "Found":
        """One forward over one row of ids."""
        if changes or kwargs:
            with torch.no_grad():
                return self.differentiable(prompt, changes, **kwargs)
        key = tuple(prompt)
        if key not in self.plain:
            with torch.no_grad():
                self.plain[key] = self.differentiable(prompt)
        return self.plain[key]

    def differentiable(
        self, prompt: Sequence[int], changes: Mapping[str, Change] | None = None, **kwargs: Any
    ) -> "Found":
        """The same with what autograd needs: gradients flow through all places."""
        ids = torch.tensor([list(prompt)])
        if self.family == "t5":
            kwargs.setdefault("decoder_input_ids", torch.tensor([[0]]))
        return self.visit(lambda: self.bare(input_ids=ids, use_cache=False, **kwargs), changes)

    def generate(
        self, prompt: Sequence[int], new: int, changes: Mapping[str, Change] | None = None, **options: Any
    ) -> "Found":
        """transformers' own greedy generation; a visit of each place is a step. `result`: the new tokens `[1, new]`."""
        options.setdefault("eos_token_id", None)
        ids = torch.tensor([list(prompt)])
        mask = torch.ones_like(ids)
        # With `logits_to_keep` a model computes only the last position's logits of the prompt: undone here.
        kept = self.bare._supports_logits_to_keep
        self.bare._supports_logits_to_keep = lambda: False
        try:
            found = self.visit(
                lambda: self.bare.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **options),
                changes,
            )
        finally:
            self.bare._supports_logits_to_keep = kept
        start = 1 if self.family == "t5" else len(prompt)
        return Found(found.visits, found.returned[:, start:])

    def visit(self, run: Callable[[], Any], changes: Mapping[str, Change] | None = None) -> "Found":
        visits = Visits(changes or {})
        _OPEN.append((self, visits))
        try:
            with ExitStack() as stack:
                for handle in self._hooks(visits):
                    stack.callback(handle.remove)
                return Found(visits.seen, run())
        finally:
            _OPEN.pop()

    def _hooks(self, visits: Visits) -> list[Any]:
        handles = [self._after("lm_head", "logits", visits)]
        for prefix, spelling in SPELLINGS[self.family].items():
            handles += [
                self._after(spelling.embed, f"{prefix}embed.output", visits),
                self._after(spelling.norm, f"{prefix}norm.output", visits),
            ]
            for n in range(len(self.bare.get_submodule(spelling.stack))):
                handles += self._layer_hooks(prefix, spelling, n, visits)
        return handles

    def _layer_hooks(self, prefix: str, spelling: Spelling, n: int, visits: Visits) -> list[Any]:
        own, name = f"{spelling.stack}.{n}", f"{prefix}layers.{n}"
        attn, mlp = f"{own}.{spelling.attn}", f"{own}.{spelling.mlp}"
        handles = [
            self._before(own, f"{name}.input", visits),
            self._before(attn, f"{name}.attn.input", visits),
            self._after(attn, f"{name}.attn.output", visits),
            self._middle(attn, name, visits),
            self._before(mlp, f"{name}.mlp.input", visits),
            self._after(mlp, f"{name}.mlp.output", visits),
            self._after(own, f"{name}.output", visits),
        ]
        if spelling.cross:
            cross = f"{own}.{spelling.cross}"
            handles += [
                self._before(cross, f"{name}.cross_attn.input", visits),
                self._after(cross, f"{name}.cross_attn.output", visits),
            ]
        if spelling.down:
            handles.append(self._before(f"{mlp}.{spelling.down}", f"{name}.mlp.neurons", visits))
        if spelling.gate:
            handles.append(self._router(f"{mlp}.{spelling.gate}", f"{name}.mlp.router.output", visits))
        return handles

    def _after(self, path: str, place: str, visits: Visits) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (visits(place, output[0]), *output[1:])
            return visits(place, output)

        return self.bare.get_submodule(path).register_forward_hook(hook)

    def _before(self, path: str, place: str, visits: Visits) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (visits(place, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": visits(place, kwargs["hidden_states"])}

        return self.bare.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)

    def _middle(self, attn: str, name: str, visits: Visits) -> Any:
        """The residual after attention; a change of it is a change of what attention adds."""

        def hook(module: Any, args: Any, output: Any) -> Any:
            before = visits.seen[f"{name}.input"][-1]
            return (visits(f"{name}.mid", before + output[0]) - before, *output[1:])

        return self.bare.get_submodule(attn).register_forward_hook(hook)

    def _router(self, path: str, place: str, visits: Visits) -> Any:
        """The gate's logits, unfolded; a changed one goes through the rest of the gate as its code has it."""

        def hook(module: Any, args: Any, output: Any) -> Any:
            logits = visits(place, output[0][None])[0]
            top, which = logits.float().softmax(-1).topk(module.top_k, dim=-1)
            return logits, top / top.sum(-1, keepdim=True), which

        return self.bare.get_submodule(path).register_forward_hook(hook)


@dataclass
class Found:
    """What a run went through, and what it returned."""

    visits: dict[str, list[torch.Tensor]]
    returned: Any

    def __getitem__(self, place: str) -> torch.Tensor:
        return self.visits[place][0]

    @property
    def logits(self) -> torch.Tensor:
        return self["logits"]


@cache
def oracle_of(family: str) -> Oracle:
    return Oracle(family)
