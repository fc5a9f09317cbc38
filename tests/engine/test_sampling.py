"""How tokens are chosen: as plain `generate` of transformers would, or with a refusal that says what to do."""

from typing import Any

import pytest
import torch

import glassworks as gw
from families import FAMILIES
from glassworks.engine.sampling import Sampler, settings_of

PROMPT = [5, 6, 7]
OPTIONS: list[dict[str, Any]] = [
    {}, {"temperature": 3.0}, {"temperature": 0.7, "top_k": 7}, {"top_k": None}, {"top_k": 0}, {"top_p": 0.6},
    {"min_p": 0.1, "top_k": 0}, {"typical_p": 0.5}, {"repetition_penalty": 1.5}, {"epsilon_cutoff": 0.02},
]  # fmt: skip
SETTINGS: list[dict[str, Any]] = [{}, {"top_k": 5}, {"temperature": 0.6, "top_p": 0.9}, {"min_length": 4}]


def bare_with(**settings: Any) -> Any:
    bare: Any = FAMILIES["llama"]()
    for name, value in settings.items():
        setattr(bare.generation_config, name, value)
    return bare


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_are_drawn_from_what_plain_generate_draws_from(options: dict[str, Any], settings: Any) -> None:
    bare = bare_with(**settings)
    ids = torch.tensor([PROMPT])
    sampled = {"do_sample": True, **options}
    found = bare.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, pad_token_id=0, output_scores=True,
        output_logits=True, return_dict_in_generate=True, **sampled,
    )  # fmt: skip
    sampler = Sampler(settings_of(bare), sampled, prompt_length=len(PROMPT), device=ids.device)
    torch.testing.assert_close(sampler.scores(ids, found.logits[0]), found.scores[0])


def test_without_top_k_the_engine_draws_from_the_fifty_likeliest() -> None:
    bare = bare_with()
    model = gw.wrap(bare)
    likeliest = set(bare(torch.tensor([PROMPT])).logits[0, -1].topk(50).indices.tolist())
    engine = gw.Engine(model, rows=64)
    hot = {"do_sample": True, "temperature": 50.0}
    replies = engine.run([gw.Request(PROMPT, 1, options=hot, seed=k) for k in range(300)])
    drawn = {reply.tokens[0] for reply in replies}
    assert drawn <= likeliest
    assert len(drawn) > 40


@pytest.mark.parametrize(
    ("name", "value"),
    [("forced_bos_token_id", 3), ("guidance_scale", 1.5), ("num_beams", 4), ("begin_suppress_tokens", [5]),
     ("sequence_bias", [[[5], -3.0]]), ("exponential_decay_length_penalty", (2, 1.5)), ("penalty_alpha", 0.6),
     ("stop_strings", ["x"])],
)  # fmt: skip
def test_a_setting_of_the_model_that_is_not_known_here_is_refused(name: str, value: Any) -> None:
    model = gw.wrap(bare_with(**{name: value}))
    without = {name: 1 if name == "num_beams" else None}
    for asked in (lambda o: gw.Engine(model).submit(gw.Request(PROMPT, 3, options=o)),
                  lambda o: model.complete(PROMPT, max_new_tokens=3, **o)):  # fmt: skip
        with pytest.raises(gw.InputError, match=f"generation_config has {name}=.*{name}={without[name]} to go on"):
            asked({})
        asked(without)


def test_settings_that_do_not_bear_on_tokens_are_no_matter() -> None:
    bare = bare_with(max_length=9, use_cache=True, length_penalty=2.0, chat_format="of a model's own")
    expected = gw.wrap(FAMILIES["llama"]()).complete(PROMPT, max_new_tokens=4).tokens
    assert gw.wrap(bare).complete(PROMPT, max_new_tokens=4).tokens == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "do_sample": True}, {"temperature": "hot", "do_sample": True}, {"do_sample": "yes"},
        {"top_p": 7, "do_sample": True}, {"top_k": 1.5, "do_sample": True}, {"repetition_penalty": -1},
        {"eos_token_id": "x"}, {"eos_token_id": [None]}, {"pad_token_id": "x"}, {"bad_words_ids": [[1.5]]},
        {"bad_words_ids": [[500]]}, {"no_repeat_ngram_size": -1}, {"num_beams": True}, {"nonsense": 1},
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_an_input_error(options: dict[str, Any]) -> None:
    model = gw.wrap(bare_with())
    with pytest.raises(gw.InputError):
        model.complete(PROMPT, max_new_tokens=3, **options)
    with pytest.raises(gw.InputError):
        gw.Engine(model).run([gw.Request(PROMPT, 3, options=options)])[0].wait()


@pytest.mark.parametrize(
    "prompt",
    [
        {"input_ids": 5}, {"input_ids": ["a"]}, {"input_ids": [1.5]}, {"input_ids": []}, {"input_ids": None},
        {"input_ids": [[1], [2, 3]], "attention_mask": [1]}, {"ids": [1]}, "\ud800", ["a", "\ud83d"], [None], 5,
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_is_an_input_error(prompt: Any) -> None:
    model = gw.load("toy")
    with pytest.raises(gw.InputError):
        gw.Engine(model).submit(gw.Request(prompt, 2))
    with pytest.raises(gw.InputError):
        model.complete(prompt, max_new_tokens=2)


def test_a_mask_of_bools_takes_tokens_away() -> None:
    model = gw.load("toy")
    masked = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[False, True, True]])}
    assert model.complete(masked, max_new_tokens=3)[0].tokens == model.complete([5, 6], max_new_tokens=3).tokens
