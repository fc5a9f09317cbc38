"""Small mistakes: each error says what was expected, what was given, what to do, and on which line."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import glassworks as gw
from families import TOKENS, make
from lines import here, told

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def toy() -> Any:
    return gw.load("toy")


def refused(kind: type[Exception], match: str, write: Any) -> None:
    """`write` raises such an error, which names this file."""
    with pytest.raises(kind, match=match) as caught:
        write()
    assert __file__ in told(caught.value)


def test_texts_that_are_none(toy: Any) -> None:
    def find() -> None:
        with toy.trace("The Louvre is in the city of") as t:
            t.find(5)

    refused(gw.InputError, r"t\.find looks for a text.*got 5", find)
    refused(gw.InputError, r"model\.token takes a text.*got 3", lambda: toy.token(3))
    refused(gw.InputError, "tokens, not one", lambda: toy.token("several words of it"))


@pytest.mark.parametrize("sites", [5, None, ["layers.*.output", 5]])
def test_patterns_that_are_none(model: Any, sites: Any) -> None:
    def write() -> None:
        with model.trace(PROMPT) as t:
            t.cache(sites)

    refused(gw.GraphError, r"t\.cache takes a pattern", write)


@pytest.mark.parametrize("index", ["a", 1.5, None, (0, 1)])
def test_layers_by_what_is_no_number(model: Any, index: Any) -> None:
    refused(gw.UnknownSite, "layers are numbered, 0 to 2", lambda: model.layers[index])


@pytest.mark.parametrize("remote", [False, True])
def test_arguments_that_the_forward_does_not_take(model: Any, remote: bool) -> None:
    own = gw.connect(model) if remote else model
    with pytest.raises(gw.InputError, match=r"no argument 'token_typ_ids'.*token_type_ids") as caught:
        line = here(+1)
        own.trace(PROMPT, token_typ_ids=torch.zeros(1, 4, dtype=torch.long))
    assert line in told(caught.value)

    def invoke() -> None:
        with own.trace() as t, t.invoke(PROMPT, bogus=3):
            pass

    refused(gw.InputError, "takes no argument 'bogus'", invoke)
    with own.record() as t:
        own.logits.save("x")
    refused(gw.InputError, "no argument 'bogus'.*no input of that name", lambda: own.run(t.graph, PROMPT, bogus=3))
    more = {} if remote else {"output_attentions": False}  # a service permits what has a number for each token
    with own.trace(PROMPT, token_type_ids=torch.tensor([[1, 2, 3, 4]]), **more):
        found = own.logits.save()
    with own.trace(PROMPT):
        plain = own.logits.save()
    assert not torch.equal(found.value, plain.value)


def short(kind: str) -> Any:
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=8, **TOKENS)
        return make(GPT2LMHeadModel, config)
    config = OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8, **TOKENS,
    )  # fmt: skip
    return make(OPTForCausalLM, config)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_prompt_longer_than_the_positions(kind: str, remote: bool) -> None:
    own = gw.wrap(short(kind))
    assert own.table.positions == 8
    own = gw.connect(own) if remote else own
    ids = list(range(3, 12))
    refused(gw.InputError, "9 tokens.*8 positions", lambda: own.trace(ids))
    refused(gw.InputError, "9 tokens.*8 positions", lambda: own.generate([ids, ids[:2]]))
    with own.trace(ids[:8]):
        assert own.logits.save().shape == (1, 8, 97)


def test_a_generation_beyond_the_positions() -> None:
    own = gw.wrap(short("gpt2"))
    with own.generate([5, 6, 7], max_new_tokens=6, eos_token_id=[]) as t:
        pass
    assert t.result.shape == (1, 6)
    with own.generate([5, 6, 7], max_new_tokens=7, eos_token_id=[]) as t, t.steps[0]:
        own.logits.save()
    with pytest.raises(gw.InputError, match=r"9 tokens in a row.*8 positions"):
        t.result  # noqa: B018
    with own.generate([[5, 6, 7, 8, 9, 10, 11, 12], [3, 4]], max_new_tokens=5, eos_token_id=[]) as t, t.steps[:]:
        t.stop(when=torch.tensor([True, False]))
        kept = own.logits[:, -1].save()
    with own.generate([3, 4], max_new_tokens=5, eos_token_id=[]) as t, t.steps[:]:
        alone = own.logits[:, -1].save()
    for found, expected in zip(kept.value, alone.value, strict=True):
        torch.testing.assert_close(found[1:], expected)


def test_text_among_tensors(model: Any) -> None:
    def write(use: Any) -> Any:
        def block() -> None:
            with model.trace(PROMPT):
                use(model.layers[0].output)

        return block

    refused(gw.GraphError, "no text; got .'a', 'b'.", write(lambda h: h[["a", "b"]]))
    refused(gw.GraphError, "as a tensor is, not by a name; got 'a'", write(lambda h: h["a"]))
    with pytest.raises(TypeError, match="element 1 in argument 0, but got str"):  # torch's own, before it asks us
        write(lambda h: torch.cat([h, "a"]))()


def test_formats_of_an_open_value(model: Any) -> None:
    def write() -> None:
        with model.trace(PROMPT):
            f"{model.logits[0, 0, 0]:.2f}"

    refused(gw.GraphError, r"the format '\.2f' would need them.*gw\.log", write)
    with model.trace(PROMPT):
        h = model.layers[0].output
        assert f"{h}" == repr(h) == "<Value %0: layers.0.output>"
        kept = h.sum().save()
    assert f"{kept:.2f}" == f"{kept.value.item():.2f}"


def test_addresses_and_keys_that_are_none(model: Any) -> None:
    with pytest.raises(gw.InputError, match="http:// or https:// address, or a model; got 5"):
        gw.connect(5)  # type: ignore[arg-type]
    for key in ("schlüssel", "line\nbreak", 7):
        with pytest.raises(gw.InputError, match="plain ASCII") as caught:
            gw.connect("http://localhost:1", api_key=key)  # type: ignore[arg-type]
        assert str(key) not in str(caught.value)
