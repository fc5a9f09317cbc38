"""The examples of the design's second section, as they stand there."""

import inspect
import os
from functools import cache
from typing import Any

import pytest
import torch

import glassworks as gw
from contract.oracle import build
from contract.places import PROMPT, Place, close, placed

EIFFEL = "The Eiffel Tower is in the city of"


@cache
def load_toy() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module", params=["local", "remote"])
def toy(request: pytest.FixtureRequest) -> Any:
    return gw.connect(load_toy()) if request.param == "remote" else load_toy()


@pytest.mark.sentence("examples.1", "examples.4", "examples.5")
def test_the_first_block(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`model = gw.load("toy")` ... `lens = [model.unembed(l.output[:, -1]).argmax(-1).save() for l in model.layers]`
    ... `print(t.graph)` what ran: data, not code."""
    model = toy
    with model.trace(EIFFEL) as t:
        resid = model.layers[1].output
        assert tuple(resid.shape)[2] == 128
        model.layers[1].mlp.output[:, -1] = 0
        lens = [model.unembed(l.output[:, -1]).argmax(-1).save() for l in model.layers]
        top = model.logits[:, -1].argmax(-1).save()
    print(top, model.decode(top))
    print(t.graph)
    printed = capsys.readouterr().out
    assert model.decode(top) == " Paris"
    assert " Paris" in printed
    assert "layers.1.mlp.output" in printed
    assert len(lens) == 6
    assert torch.equal(lens[-1].value, top.value)


@pytest.mark.sentence("examples.2")
def test_any_module(kind: str) -> None:
    """`net = gw.wrap(torch_module)` any nn.Module; sites are its module paths."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 8)
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)])

        def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
            x = self.first(x).relu()
            return {"out": self.blocks[1](self.blocks[0](x).relu()) * scale}

    bare, x = Net(), torch.linspace(-1, 1, 12).reshape(3, 4)
    case = placed(bare, kind)
    with case.block(x, scale=3.0):
        first = case.model.first.output.save()
        case.model.blocks[0].output[:, :2] = 0
        second = case.model["blocks.1"].input.save()
        out = case.model.output["out"].save()
    hidden = bare.blocks[0](bare.first(x).relu()).detach()
    hidden[:, :2] = 0
    close(first.value, bare.first(x))
    close(second.value, hidden.relu())
    close(out.value, bare.blocks[1](hidden.relu()) * 3)


@pytest.mark.sentence("examples.3")
def test_a_model_in_memory() -> None:
    """A Hugging Face model in memory (`gw.wrap(hf_model, tokenizer=None)`) gets its standard sites too."""
    bare = build("llama")
    assert list(inspect.signature(gw.wrap).parameters)[:2][1] == "tokenizer"
    model = gw.wrap(bare, tokenizer=None)
    with model.trace(PROMPT):
        hidden = model.layers[1].mlp.output.save()
        logits = model.logits.save()
    assert hidden.shape == (1, len(PROMPT), 32)
    close(logits.value, bare(torch.tensor([PROMPT])).logits)
    with pytest.raises(gw.InputError, match="tokenizer"), model.trace("text"):
        model.logits.save()


@pytest.mark.sentence("examples.6")
def test_complete(place: Place) -> None:
    """`reply = model.complete(prompt, max_new_tokens=64)` at once, no block: `.tokens` (the new ones) `.text`; a list
    for a list."""
    expected = place.oracle.generate(PROMPT, 6, eos_token_id=2).returned[0].tolist()
    reply = place.model.complete(PROMPT, max_new_tokens=6)
    assert list(reply.tokens) == expected
    assert isinstance(reply.text, str)
    text = place.model.complete(" Paris is in", max_new_tokens=3)
    assert len(text.tokens) == 3
    replies = place.model.complete([PROMPT, [11, 12, 13]], max_new_tokens=6)
    assert list(replies[0].tokens) == expected
    assert len(replies) == 2


@pytest.mark.slow
@pytest.mark.sentence("examples.7")
def test_a_lab(services: Any) -> None:
    """`lab = gw.connect("http://localhost:8000", api_key="...")`, `model = lab.model("toy")`: the same blocks as above;
    only data travels."""
    running, _ = services.lab("gpt2")
    lab = gw.connect(running.url, api_key=running.key)
    [name] = lab.models()
    model = lab.model(name)
    with model.trace(PROMPT):
        logits = model.logits.save()
    close(logits.value, build("gpt2")(torch.tensor([PROMPT])).logits)
    with pytest.raises(gw.Unauthorized):
        gw.connect(running.url, api_key="wrong").models()
    with pytest.raises(gw.GlassworksError, match=os.path.basename(name)):
        lab.model("nothing")


@pytest.mark.sentence("examples.8")
def test_the_root_of_errors() -> None:
    """`gw.GlassworksError` is the root of every error of ours."""
    from glassworks import errors

    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)]
    assert len(found) > 10
    assert all(issubclass(kind, gw.GlassworksError) for kind in found)
    for name in ("NotSaved", "NotTaken", "UnknownSite", "OrderError", "WriteError", "ScopeError", "InputError"):
        assert issubclass(getattr(gw, name), gw.GlassworksError)


@pytest.mark.sentence("examples.9")
def test_the_module_stays_the_user_s(local: Place) -> None:
    """A model that was wrapped behaves as before when it is called by itself."""
    bare = local.bare
    with local.model.trace(PROMPT):
        local.model.layers[1].output *= 2
        local.model.logits.save()
    expected = local.oracle.stock(torch.tensor([PROMPT]), output_hidden_states=True)
    found = bare(torch.tensor([PROMPT]), output_hidden_states=True)
    close(found.logits, expected.logits)
    assert len(found.hidden_states) == len(expected.hidden_states)
    new = bare.generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, 5, dtype=torch.int64), max_new_tokens=4,
        do_sample=False, eos_token_id=None,
    )  # fmt: skip
    assert new[:, 5:].tolist() == local.oracle.generate(PROMPT, 4).returned.tolist()
    found.logits.sum().backward()
    assert bare.get_output_embeddings().weight.grad is not None
    bare.zero_grad()
