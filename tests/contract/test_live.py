"""Blocks that run line by line, on Values that hold their tensors."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import glassworks as gw
from contract.places import OTHER, PROMPT, SOURCE, START, Place, close, names, place_of, placed, refused
from contract.text import tokenizer
from lines import here

SEQ = len(PROMPT)
BOTH = pytest.mark.parametrize("taken", [True, False])


@pytest.mark.sentence("control.4")
def test_values_hold_their_tensors(live: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """`with model.live(x) as t:` the same language with Values that hold their tensors (`if`, `float`, `print`
    work),"""
    found = live.oracle.forward(PROMPT)
    with live.model.live(PROMPT):
        hidden = live.model.layers[1].output
        number = float(hidden[0, 0, 0])
        whole, one = int(hidden[0, 0, 0] * 0 + 3), hidden.sum().item()
        if hidden.abs().max() > 0:
            live.model.layers[1].output[:, -1] = 0
        if (hidden < -1e9).all():
            live.model.layers[1].output[:] = 5
        print(live.model.layers[1].output[0, -1, :3])
        top = live.model.logits[:, -1].argmax(-1)
        word = int(top)
    assert abs(number - float(found["layers.1.output"][0, 0, 0])) < 1e-5
    assert (whole, type(one)) == (3, float)
    assert "0." in capsys.readouterr().out

    def change(tensor: torch.Tensor, _: int) -> torch.Tensor:
        tensor[:, -1] = 0
        return tensor

    assert word == int(live.oracle.forward(PROMPT, {"layers.1.output": change}).logits[0, -1].argmax())


@pytest.mark.sentence("control.4")
def test_saves_of_a_live_block(live: Place) -> None:
    """the same language with Values that hold their tensors"""
    found = live.oracle.forward(PROMPT)
    with live.model.live(PROMPT):
        saved = live.model.layers[0].output.save()
        named = live.model.layers[1].output.save("named")
        lens = [live.model.unembed(layer.output[:, -1]).argmax(-1).save() for layer in live.model.layers[1:]]
    close(saved.value, found["layers.0.output"])
    close(named.value, found["layers.1.output"])
    close(saved + 1, found["layers.0.output"] + 1)
    assert lens[-1].value.tolist() == found.logits[:, -1].argmax(-1).tolist()


@pytest.mark.sentence("control.4")
def test_in_the_order_written(live: Place) -> None:
    """in the order written, in the user's own frame;"""
    found = live.oracle.forward(PROMPT)["layers.1.output"]
    own = 1
    with live.model.live(PROMPT):
        first = live.model.layers[1].output.save()
        own += 1
        live.model.layers[1].output = live.model.layers[1].output * own
        second = live.model.layers[1].output.save()
        own += 1
        live.model.layers[1].output += own
        third = live.model.layers[1].output.save()
        names_here = sorted(name for name in locals() if name in ("own", "first", "live"))
    assert own == 3
    assert names_here == ["first", "live", "own"]
    close(first.value, found)
    close(second.value, found * 2)
    close(third.value, found * 2 + 3)


@pytest.mark.sentence("control.5")
def test_the_model_is_paused(live: Place) -> None:
    """the model is paused between sites as a coroutine."""
    path = live.stack
    with live.counted(*(f"{path}.{n}" for n in range(3)), "lm_head") as ran, live.model.live(PROMPT):
        assert ran == []
        _ = live.model.layers[0].output
        assert ran == [f"{path}.0"]
        _ = live.model.layers[2].input
        assert f"{path}.1" in ran
        assert "lm_head" not in ran
        live.bare(torch.tensor([OTHER]))
        ran.clear()
        _ = live.model.logits
        assert "lm_head" in ran


@pytest.mark.sentence("control.5")
def test_the_state_of_torch(live: Place) -> None:
    """the model is paused between sites as a coroutine.

    Grad mode and random state in the body are the user's, in the model the model's.
    """
    with live.model.live(PROMPT):
        _ = live.model.layers[0].output
        assert torch.is_grad_enabled()
        with torch.no_grad():
            _ = live.model.layers[1].output
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.sentence("control.4")
def test_a_live_encoder_decoder(services: Any) -> None:
    """the same language with Values that hold their tensors"""
    case = place_of("t5", "live", services)
    found = case.oracle.forward(SOURCE, decoder_input_ids=START)
    with case.model.live(SOURCE, decoder_input_ids=START):
        source = case.model.encoder.layers[2].output.save()
        hidden = case.model.decoder.layers[1].output
        number = float(hidden.sum())
        logits = case.model.logits.save()
    close(source.value, found["encoder.layers.2.output"])
    close(torch.tensor(number), found["decoder.layers.1.output"].sum(), tolerance=1e-3)
    close(logits.value, found.logits)


@pytest.mark.sentence("control.4")
def test_a_live_batch(live: Place) -> None:
    """the same language with Values that hold their tensors"""
    with live.model.live([PROMPT, OTHER]) as t:
        assert torch.as_tensor(t.mask).sum().item() == len(PROMPT) + len(OTHER)
        hidden = live.model.layers[1].output
        assert hidden.shape == (2, SEQ, 32)
        last = hidden[:, -1].save()
    with live.model.live(" Paris is in the city") as t:
        found = t.find(" Paris")
        text = live.model.layers[1].output[:, found].save()
    ids = tokenizer()(" Paris is in the city")["input_ids"]
    close(last.value[1], live.oracle.forward(OTHER)["layers.1.output"][0, -1])
    close(text.value, live.oracle.forward(ids)["layers.1.output"][:, 1])


def unharmed(live: Place, before: dict[str, Any]) -> None:
    """The module has what it had, gives what it gave, and can be traced and run live again."""
    assert {name: set(module.__dict__) for name, module in live.bare.named_modules()} == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in live.bare.modules())
    assert torch.is_grad_enabled()
    assert torch._C._len_torch_function_stack() == 0
    expected = live.oracle.forward(PROMPT)
    close(live.bare(torch.tensor([PROMPT])).logits, expected.logits)
    with live.model.trace(PROMPT):
        traced = live.model.logits.save()
    with live.model.live(PROMPT):
        again = live.model.logits.save()
    close(traced.value, expected.logits)
    close(again.value, expected.logits)


@pytest.fixture
def before(live: Place) -> dict[str, Any]:
    """What each module holds while nothing runs."""
    with live.model.trace(PROMPT):
        live.model.logits.save()
    with live.model.live(PROMPT):
        live.model.logits.save()
    return {name: set(module.__dict__) for name, module in live.bare.named_modules()}


@pytest.mark.sentence("control.6")
def test_a_site_that_has_passed(live: Place, before: Any) -> None:
    """Touching a site that has passed, ... each is a clear error and leaves the model as it was."""
    with pytest.raises(gw.OrderError) as caught, live.model.live(PROMPT):
        _ = live.model.layers[2].output
        line = here(+1)
        _ = live.model.layers[0].output
    assert names(caught, line)
    assert "layers.0.output" in str(caught.value)
    unharmed(live, before)
    with pytest.raises(gw.OrderError) as caught, live.model.live(PROMPT):
        _ = live.model.layers[2].output
        line = here(+1)
        live.model.layers[0].output = 0.0
    assert names(caught, line)
    unharmed(live, before)


@pytest.mark.sentence("control.6")
def test_an_old_value_that_is_written(live: Place, before: Any) -> None:
    """Touching a site that has passed,"""
    with pytest.raises(gw.GraphError) as caught, live.model.live(PROMPT):
        early = live.model.layers[0].output
        _ = live.model.layers[2].output
        line = here(+1)
        early[:, 0] = 0
    assert names(caught, line)
    unharmed(live, before)


@pytest.mark.sentence("control.6")
def test_an_exception_in_the_body(live: Place, before: Any) -> None:
    """an exception in the body or in the model: each is a clear error and leaves the model as it was."""
    with pytest.raises(ZeroDivisionError), live.model.live(PROMPT):
        live.model.layers[1].output[:] = 0
        _ = 1 // 0
    unharmed(live, before)


@pytest.mark.sentence("control.6")
def test_an_exception_in_the_model(live: Place, before: Any) -> None:
    """an exception in the body or in the model: each is a clear error and leaves the model as it was."""
    path = "transformer.h.2" if live.family == "gpt2" else "model.layers.2"

    def broken(*_: Any) -> None:
        raise ArithmeticError("the model broke")

    handle = live.bare.get_submodule(path).register_forward_pre_hook(broken)
    try:
        with pytest.raises(ArithmeticError, match="the model broke") as caught, live.model.live(PROMPT):
            _ = live.model.layers[1].output
            line = here(+1)
            _ = live.model.layers[2].output
        assert names(caught, line)
    finally:
        handle.remove()
    unharmed(live, before)


@pytest.mark.sentence("control.6")
def test_a_block_that_is_left_early(live: Place, before: Any) -> None:
    """leaving early, ... each is a clear error and leaves the model as it was."""

    def early() -> int:
        with live.model.live(PROMPT):
            if float(live.model.layers[0].output.abs().sum()) > 0:
                return 1
            _ = live.model.logits
        return 2

    try:
        assert early() == 1
    except gw.GlassworksError as error:
        refused(error, Path(__file__).name)
    unharmed(live, before)
    for _ in range(2):
        with live.model.live(PROMPT):
            _ = live.model.layers[0].output
            break
    unharmed(live, before)


@pytest.mark.sentence("control.6")
def test_a_block_that_is_abandoned(live: Place, before: Any) -> None:
    """leaving early, ... leaves the model as it was."""
    block = live.model.live(PROMPT)
    block.__enter__()
    _ = live.model.layers[0].output
    block.__exit__(None, None, None)
    unharmed(live, before)


@pytest.mark.sentence("control.6")
def test_the_weights_stay(live: Place) -> None:
    """leaves the model as it was."""
    state = copy.deepcopy(live.bare.state_dict())
    with live.model.live(PROMPT):
        live.model.embed.output[:] = 0
        live.model.layers[1].output *= 3
        _ = live.model.logits
    for name, tensor in live.bare.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.sentence("control.4")
def test_a_plain_module_live() -> None:
    """`with model.live(x) as t:` the same language with Values that hold their tensors"""
    case = placed(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)), "live")
    x = torch.ones(3, 4)
    with case.model.live(x):
        hidden = case.model["0"].output
        if float(hidden.sum()) != 0:
            case.model["0"].output = hidden * 2
        out = case.model["2"].output.save()
    close(out.value, case.bare[2](torch.relu(case.bare[0](x) * 2)))
