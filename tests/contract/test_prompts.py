"""Prompts as text: tokens, positions, special tokens, and what travels to a service."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.oracle import oracle_of
from contract.places import OTHER, PROMPT, Place, close
from contract.text import tokenizer

SHORT = PROMPT[:2]
RAGGED = [PROMPT, SHORT, OTHER]
CITY = " Paris is in the city of Rome"
TOWN = " the city is in Paris"


@pytest.mark.sentence("rows.9")
def test_tokens(case: Place) -> None:
    """`t.tokens` (strings a row),"""
    with case.block(CITY) as t:
        tokens = t.tokens
        case.model.logits.save()
    assert len(tokens) == 1
    assert [text.replace("Ġ", " ") for text in tokens[0]] == [
        "<s>", " Paris", " is", " in", " the", " city", " of", " Rome",
    ]  # fmt: skip


@pytest.mark.sentence("rows.9", "rows.10")
def test_tokens_and_mask_of_rows(place: Place) -> None:
    """`t.tokens` (strings a row), `t.mask` `[batch, seq]`,"""
    with place.model.trace([CITY, TOWN]) as t:
        tokens, mask = t.tokens, t.mask
        place.model.logits.save()
    assert [len(row) for row in tokens] == [8, 6]
    mask = torch.as_tensor(mask)
    assert mask.shape == (2, 8)
    assert mask.bool().tolist() == [[True] * 8, [False] * 2 + [True] * 6]


@pytest.mark.sentence("rows.11")
def test_find(case: Place) -> None:
    """`t.find(text, which="last")` (the position of its last token in each row, so that `v[:, t.find(s)]` is
    `[batch, d]`;"""
    with case.block(CITY) as t:
        position = t.find(" city")
        many = t.find("the city")
        vector = case.model.layers[1].output[:, position]
        assert tuple(vector.shape) == (1, 32)
        saved = vector.save()
    ids = tokenizer()(CITY)["input_ids"]
    close(saved.value, case.oracle.forward(ids)["layers.1.output"][:, 5])
    assert list(position) == [5]
    assert list(many) == [5]


@pytest.mark.sentence("rows.11")
def test_find_in_rows(place: Place) -> None:
    """the position of its last token in each row, so that `v[:, t.find(s)]` is `[batch, d]`;"""
    with place.model.trace([CITY, TOWN]) as t:
        vector = place.model.layers[1].output[:, t.find(" city")]
        assert tuple(vector.shape) == (2, 32)
        place.model.layers[1].output[:, t.find(" Paris")] = 0.0
        saved, logits = vector.save(), place.model.logits[:, -1].save()
    places = {CITY: (5, 1), TOWN: (2, 5)}
    for n, text in enumerate([CITY, TOWN]):
        city, paris = places[text]

        def change(tensor: torch.Tensor, _: int, paris: int = paris) -> torch.Tensor:
            tensor[:, paris] = 0.0
            return tensor

        ids = tokenizer()(text)["input_ids"]
        close(saved.value[n], place.oracle.forward(ids)["layers.1.output"][0, city])
        close(logits.value[n], place.oracle.forward(ids, {"layers.1.output": change}).logits[0, -1])


@pytest.mark.sentence("rows.11")
def test_which_find(place: Place) -> None:
    """`t.find(text, which="last")`"""
    with place.model.trace(" Paris is in Paris in Rome") as t:
        assert list(t.find(" Paris")) == [4]
        assert list(t.find(" Paris", which="last")) == [4]
        assert list(t.find(" Paris", which="first")) == [1]
        with pytest.raises(gw.InputError):
            t.find(" city")
    with place.model.trace() as t:
        with t.invoke(CITY) as first:
            assert list(t.find(" city")) == [5]
        with t.invoke(TOWN) as second:
            assert list(t.find(" city")) == [2]
        assert list(first.find(" city")) == [5]
        assert list(second.find(" city")) == [2]


@pytest.mark.sentence("rows.12")
@pytest.mark.parametrize("text", [" Par", "aris", " cit"])
def test_find_inside_a_token(place: Place, text: str) -> None:
    """off a token boundary it is refused),"""
    with place.model.trace(CITY) as t, pytest.raises(gw.InputError, match="token") as caught:
        t.find(text)
    assert __file__ in str(caught.value)


@pytest.mark.sentence("rows.13")
def test_token(place: Place) -> None:
    """`model.token(" Paris")` (an int; refused unless one token)."""
    found = place.model.token(" Paris")
    assert type(found) is int
    assert found == tokenizer().convert_tokens_to_ids("ĠParis")
    for text in (" London", " Paris is", ""):
        with pytest.raises(gw.InputError):
            place.model.token(text)


@pytest.mark.sentence("rows.14")
def test_special_tokens(case: Place) -> None:
    """Special tokens are added once, after a chat template too."""
    chat = [{"role": "user", "content": " Paris"}]
    with case.block(CITY):
        text = case.model.ids.save()
    with case.block(chat):
        talk = case.model.ids.save()
    assert text.value.tolist() == [tokenizer()(CITY)["input_ids"]]
    assert text.value[0].tolist().count(1) == 1
    assert talk.value[0].tolist() == tokenizer()("user: Paris".replace(":", ": "), add_special_tokens=True)["input_ids"]
    assert talk.value[0].tolist().count(1) == 1


@pytest.mark.sentence("rows.15")
def test_what_lists_mean(case: Place) -> None:
    """`[1, 2]` is one prompt of ids, `[{...}]` one chat;"""
    found = []
    for prompt in ([1, 2], [[1, 2]], torch.tensor([1, 2]), torch.tensor([[1, 2], [3, 4]]), [CITY, CITY]):
        with case.block(prompt):
            found.append(case.model.ids.save())
    assert [value.value.tolist() for value in found[:4]] == [[[1, 2]], [[1, 2]], [[1, 2]], [[1, 2], [3, 4]]]
    assert found[4].value.shape == (2, 8)
    chat = [{"role": "user", "content": " Paris"}, {"role": "user", "content": " Rome"}]
    with case.block(chat):
        one = case.model.ids.save()
    with case.block([chat[:1], chat[1:]]):
        two = case.model.ids.save()
    assert len(one.value) == 1
    assert len(two.value) == 2


@pytest.mark.sentence("rows.19")
def test_what_travels(connection: Any) -> None:
    """A remote model tokenises at the client, with tokenizer and site table from the service; ids travel."""
    model, sent = connection
    sent.clear()
    with model.trace(CITY) as t:
        assert t.tokens[0][1].strip("Ġ ") == "Paris"
        assert sent == []
        logits = model.logits.save()
    assert len(sent) == 1
    assert b"Paris" not in sent[0]
    ids = tokenizer()(CITY)["input_ids"]
    assert str(ids).replace(" ", "").strip("[]").encode() in sent[0].replace(b" ", b"")
    close(logits.value, oracle_of("llama").forward(ids).logits)
    assert model.tokenizer.get_vocab() == tokenizer().get_vocab()
    assert "layers.0.mlp.output" in str(model.table.standard_names)


@pytest.mark.sentence("rows.20")
def test_connect(local: Place) -> None:
    """`gw.connect(model)` gives a local model through the codec and the limits, in this process."""
    there = gw.connect(local.model)
    with local.counted("") as ran, there.trace(PROMPT):
        logits = there.logits.save()
    assert ran == [""]
    close(logits.value, local.oracle.forward(PROMPT).logits)
    with pytest.raises(gw.LimitExceeded), there.generate(PROMPT, max_new_tokens=10**7) as t, t.steps[0]:
        there.logits.save()
    with local.model.generate(PROMPT, max_new_tokens=10**7) as t, t.steps[0]:
        local.model.logits.save()


@pytest.mark.sentence("rows.20")
def test_the_codec(connection: Any) -> None:
    """through the codec and the limits, in this process."""
    model, sent = connection
    sent.clear()
    vector = torch.linspace(0, 1, 32)
    with model.trace(PROMPT) as t:
        model.layers[1].output += vector
        model.logits.save()
    assert len(sent) == 1
    assert vector.numpy().tobytes() in sent[0]
    assert b"layers.1.output" in sent[0]
    assert t.graph is not None
