"""Tiny random models of the families that the tests know: a few layers, 97 tokens, float32, seeded.

Nothing is built when this file is imported; each entry is called to make a model.
"""

from collections.abc import Callable

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCAB = 97
TOKENS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LLAMA = {**WIDE, "num_key_value_heads": 2}


def make(
    kind: Callable[[PretrainedConfig], PreTrainedModel], config: PretrainedConfig, *, seed: int = 0
) -> PreTrainedModel:
    """A model with random weights, in evaluation mode. The global random state is left alone.

    Weights are larger than a family's own, so that every part of the model matters to the result.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                offset = 1.0 if "norm" in name or "ln_" in name else 0.0
                if parameter.ndim == 1:
                    parameter.copy_(offset + 0.2 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model.eval()


def gpt2() -> PreTrainedModel:
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=256, **TOKENS)
    return make(GPT2LMHeadModel, config)


def opt() -> PreTrainedModel:
    config = OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        **TOKENS,
    )
    return make(OPTForCausalLM, config)


def llama() -> PreTrainedModel:
    return make(LlamaForCausalLM, LlamaConfig(**LLAMA, **TOKENS))


def qwen3() -> PreTrainedModel:
    return make(Qwen3ForCausalLM, Qwen3Config(**LLAMA, head_dim=8, **TOKENS))


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2, **TOKENS)
    return make(MixtralForCausalLM, config)


def t5() -> PreTrainedModel:
    config = T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return make(T5ForConditionalGeneration, config)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "opt": opt,
    "llama": llama,
    "qwen3": qwen3,
    "mixtral": mixtral,
    "t5": t5,
}


def of_type(model_type: str, **settings: object) -> Callable[[], PreTrainedModel]:
    """A causal language model of a family known by name."""

    def build() -> PreTrainedModel:
        config = AutoConfig.for_model(model_type, **{**TOKENS, **settings})
        return make(AutoModelForCausalLM.from_config, config)

    return build


def bert() -> PreTrainedModel:
    return make(BertForMaskedLM, BertConfig(**WIDE, **TOKENS))


MORE_FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "bloom": of_type("bloom", hidden_size=32, n_layer=3, n_head=4),
    "cohere": of_type("cohere", **LLAMA),
    "falcon": of_type("falcon", **WIDE),
    "gemma2": of_type("gemma2", head_dim=8, **LLAMA),
    "gemma3": of_type("gemma3_text", head_dim=8, **LLAMA),
    "glm4": of_type("glm4", head_dim=8, **LLAMA),
    "gpt_neox": of_type("gpt_neox", **WIDE),
    "gptj": of_type("gptj", n_embd=32, n_layer=3, n_head=4, rotary_dim=4),
    "granite": of_type("granite", residual_multiplier=0.22, **LLAMA),
    "mamba": of_type("mamba", hidden_size=32, num_hidden_layers=3, state_size=4, time_step_rank=4),
    "mistral": of_type("mistral", **LLAMA),
    "mpt": of_type("mpt", d_model=32, n_layers=3, n_heads=4),
    "olmo2": of_type("olmo2", **LLAMA),
    "phi3": of_type("phi3", **LLAMA),
    "qwen3_moe": of_type(
        "qwen3_moe", moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=8, **LLAMA
    ),
}
