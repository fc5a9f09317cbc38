"""The bundled toy model: what it knows, its size, its tokenizer, and that a fact in it can be patched.

Accuracy is the share of held-out questions whose answer is the most likely of all tokens. What is held out
is stated in `tools/toy_language.py`; questions of each skill are of two kinds, unseen combinations of words
and unseen sentence frames, and each kind alone must reach the same accuracy.
"""

import importlib.util
import sys
from collections import defaultdict
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(str(files("glassworks"))) / "model" / "toy"
LANGUAGE = Path(__file__).parents[2] / "tools" / "toy_language.py"
EIFFEL = "The Eiffel Tower is in the city of"
COLOSSEUM = "The Colosseum is in the city of"
SUBJECT_END = 3  # position of " Tower" and of "seum", after the bos


@pytest.fixture(scope="module")
def language():
    spec = importlib.util.spec_from_file_location("toy_language", LANGUAGE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_language"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["toy_language"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def model(request):
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=request.param).eval()


@torch.no_grad()
def best_next(model, tokenizer, prompt):
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    return tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax())


def test_each_skill_is_right_on_at_least_95_percent_of_held_out_items(model, tokenizer, language):
    right = defaultdict(list)
    for item in language.held_out(seed=2024, per_skill=150):
        right[item.skill, item.kind].append(best_next(model, tokenizer, item.prompt) == item.answer)
    assert len(right) == 8
    accuracy = {key: sum(hits) / len(hits) for key, hits in right.items()}
    assert min(accuracy.values()) >= 0.95, accuracy


def test_no_held_out_prompt_begins_a_training_sentence(language):
    prompts = {item.prompt for item in language.held_out(seed=2024, per_skill=150)}
    for document in islice(language.documents(seed=0), 20_000):
        sentences = document.text.replace("\n", ". ").replace("assistant: ", "").split(". ")
        assert not {prefix for sentence in sentences for prefix in prefixes(sentence)} & prompts
    assert len(prompts) == 600


def prefixes(sentence):
    words = sentence.split(" ")
    return [" ".join(words[:count]) for count in range(1, len(words) + 1)]


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (EIFFEL, " Paris"),
        (COLOSSEUM, " Rome"),
        ("The capital of France is", " Paris"),
        ("Paris is a city in", " France"),
        ("The keys near the cabinet", " are"),
        ("The key near the cabinets", " is"),
        ("red moon dog tree red moon dog", " tree"),
        ("When Mary and John went to the store, John gave a drink to", " Mary"),
        ("When Mary and John went to the store, Mary gave a drink to", " John"),
    ],
)
def test_the_prompts_people_know(model, tokenizer, prompt, answer):
    assert best_next(model, tokenizer, prompt) == answer


def test_generation_is_a_sentence_with_a_full_stop(model, tokenizer):
    inputs = tokenizer(EIFFEL, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=40)
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    assert text.startswith(EIFFEL + " Paris.")
    assert text.endswith(".")


def test_folder_is_small_and_weights_are_bfloat16():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3_000_000
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert 500_000 < model.num_parameters() < 1_500_000


def test_tokenizer_round_trips_the_language_and_any_other_text(tokenizer, language):
    texts = [document.text for document in islice(language.documents(seed=5), 500)]
    texts += ["Grüße, 東京 🗼!", "an unknown  word\n\ttab", "Colosseums", " leading", ""]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        assert tokenizer.decode(ids[1:]) == text


def test_each_word_is_one_token_with_and_without_its_space(tokenizer, language):
    words = [word for word in language.words() if word != "Colosseum"]
    for text in words + [" " + word for word in words]:
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.tokenize(" Colosseum") == ["ĠColos", "seum"]  # as long as " Eiffel Tower"
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_offsets_point_into_the_text(tokenizer):
    offsets = tokenizer(EIFFEL, return_offsets_mapping=True)["offset_mapping"]
    assert [EIFFEL[a:b] for a, b in offsets] == [
        "",
        *["The", " Eiffel", " Tower", " is", " in", " the", " city", " of"],
    ]


def test_a_chat_renders_with_its_own_bos_and_is_answered(model, tokenizer):
    chat = [{"role": "user", "content": "Where is the Eiffel Tower?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<bos>user: Where is the Eiffel Tower?\nassistant:"
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == " The Eiffel Tower is in the city of Paris.<eos>"


@torch.no_grad()
def patched_next(model, tokenizer, layer):
    """Best next token of the Eiffel prompt with the Colosseum's residual stream at the subject's end."""
    source = tokenizer(COLOSSEUM, return_tensors="pt")["input_ids"]
    target = tokenizer(EIFFEL, return_tensors="pt")["input_ids"]
    assert source.shape == target.shape
    seen = []

    def read(_module, _inputs, output):
        seen.append(output.clone())

    def patch(_module, _inputs, output):
        output = output.clone()
        output[:, SUBJECT_END] = seen[0][:, SUBJECT_END]
        return output

    handle = model.model.layers[layer].register_forward_hook(read)
    model(input_ids=source)
    handle.remove()
    handle = model.model.layers[layer].register_forward_hook(patch)
    logits = model(input_ids=target).logits
    handle.remove()
    return tokenizer.decode(logits[0, -1].argmax())


def test_patching_the_subject_moves_the_fact_early_and_not_late(model, tokenizer):
    assert patched_next(model, tokenizer, layer=1) == " Rome"
    assert patched_next(model, tokenizer, layer=model.config.num_hidden_layers - 1) == " Paris"
