"""Values: symbolic in a block; what records itself; modules as functions; tensors from outside; random numbers."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import glassworks as gw
from contract.places import PROMPT, SOURCE, START, Place, close, connected, names, placed, wrapped
from lines import here

SEQ = len(PROMPT)


@pytest.mark.sentence("values.1")
def test_shapes_without_running(inside: Place) -> None:
    """A Value is symbolic: `.shape`, `.dtype`, `len` and iteration come from shapes without running"""
    with inside.counted("") as ran, inside.model.trace([PROMPT, PROMPT]):
        hidden = inside.model.layers[1].output
        assert hidden.shape == (2, SEQ, 32)
        assert hidden.dtype == torch.float32
        assert len(hidden) == 2
        assert [row.shape for row in hidden] == [(SEQ, 32)] * 2
        assert inside.model.logits.argmax(-1).dtype == torch.int64
        assert (hidden @ torch.zeros(32, 7)).transpose(1, 2).shape == (2, 7, SEQ)
        assert inside.model.unembed(hidden[:, -1]).shape == (2, 97)
        first, *_ = hidden.split(16, dim=-1)
        assert first.shape == (2, SEQ, 16)
        hidden.save()
        assert ran == []
    assert len(ran) == 1


@pytest.mark.sentence("values.2")
def test_an_axis_that_differs_between_steps(place: Place) -> None:
    """(an axis that differs between steps is unknown);"""
    with place.model.generate(PROMPT, max_new_tokens=3) as t:
        with t.steps[0]:
            assert place.model.logits.shape == (1, SEQ, 97)
        with t.steps[1:3]:
            assert place.model.logits.shape == (1, 1, 97)
        with t.steps[0:3]:
            hidden = place.model.layers[0].output
            assert (hidden.shape[0], hidden.shape[2]) == (1, 32)
            assert not isinstance(hidden.shape[1], int)
            with pytest.raises(gw.GraphError, match=r"steps?"):
                len(hidden[0])


@pytest.mark.sentence("values.3")
@pytest.mark.parametrize("use", [float, int, bool, lambda value: value.item()], ids=["float", "int", "bool", "item"])
def test_numbers_are_not_there_yet(place: Place, use: Any) -> None:
    """`float`, `int`, `.item()` and `bool` are errors that name `gw.cond` and `model.live`."""
    with pytest.raises(gw.GraphError) as caught, place.model.trace(PROMPT):
        use(place.model.logits[0, -1, 0])
    assert "gw.cond" in str(caught.value)
    assert "model.live" in str(caught.value)
    assert __file__ in str(caught.value)


@pytest.mark.sentence("values.4")
def test_several_results(case: Place) -> None:
    """Operations that return several tensors give a named tuple of Values."""
    expected = case.oracle.forward(PROMPT).logits
    with case.block(PROMPT):
        top = case.model.logits.topk(3, dim=-1)
        values, indices = top
        saved = [top.values.save(), top.indices.save(), values.save(), indices.save()]
        best = torch.max(case.model.logits, dim=-1)
        saved += [best.values.save(), best.indices.save()]
        ordered = case.model.logits.sort(dim=-1).indices.save()
    close(saved[0].value, expected.topk(3).values)
    close(saved[2].value, expected.topk(3).values)
    assert torch.equal(saved[1].value, expected.topk(3).indices)
    assert torch.equal(saved[3].value, expected.topk(3).indices)
    close(saved[4].value, expected.max(-1).values)
    assert torch.equal(saved[5].value, expected.max(-1).indices)
    assert torch.equal(ordered.value[..., -1], expected.max(-1).indices)


FUNCTIONS: list[Any] = [
    lambda h: torch.softmax(h, -1),
    lambda h: nn.functional.layer_norm(h, (32,)),
    lambda h: torch.einsum("bsd,btd->bst", h, h),
    lambda h: torch.cat([h, h * 2], dim=1),
    lambda h: torch.where(h > 0, h, -h),
    lambda h: nn.functional.cosine_similarity(h[:, :1], h, dim=-1),
    lambda h: torch.linalg.norm(h, dim=-1),
    lambda h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True),
    lambda h: 1 - h**2 / 3 + abs(h) % 2,
    lambda h: h[..., None, ::2].permute(0, 2, 1, 3).flatten(1),
    lambda h: h[:, torch.tensor([0, 2])].cumsum(-1).gather(1, torch.zeros(1, 1, 32, dtype=torch.int64)),
]


@pytest.mark.sentence("values.5")
@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_torch_functions(case: Place, function: Any) -> None:
    """Torch functions, ... record themselves."""
    expected = case.oracle.forward(PROMPT)["layers.1.output"]
    with case.block(PROMPT):
        value = function(case.model.layers[1].output)
        assert tuple(value.shape) == tuple(function(expected).shape)
        got = value.save()
    close(got.value, function(expected))


@pytest.mark.sentence("values.5")
def test_modules_of_the_user(case: Place) -> None:
    """`nn.Module`s of the user's, ... record themselves."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        probe = nn.Sequential(nn.Linear(32, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)).eval()
    with case.block(PROMPT):
        got = probe(case.model.layers[1].output).save()
    close(got.value, probe(case.oracle.forward(PROMPT)["layers.1.output"]))


@pytest.mark.sentence("values.5")
def test_einops(case: Place) -> None:
    """`einops` (a backend registered once it is loaded) record themselves."""
    einops = pytest.importorskip("einops")
    hidden = case.oracle.forward(PROMPT)["layers.1.output"].detach()
    with case.block(PROMPT):
        value = case.model.layers[1].output
        split = einops.rearrange(value, "b s (h d) -> b h s d", h=4).save()
        mean = einops.reduce(value, "b s d -> b d", "mean").save()
        summed = einops.einsum(value, torch.ones(32, 3), "b s d, d k -> b s k").save()
        again = einops.repeat(value[:, -1], "b d -> b 2 d").save()
    close(split.value, hidden.reshape(1, SEQ, 4, 8).transpose(1, 2))
    close(mean.value, hidden.mean(1))
    close(summed.value, hidden @ torch.ones(32, 3))
    close(again.value, hidden[:, -1:].expand(1, 2, 32))


@pytest.mark.slow
@pytest.mark.sentence("values.5")
def test_einops_that_is_loaded_late() -> None:
    """`einops` (a backend registered once it is loaded)"""
    code = """
import sys, torch, glassworks as gw
model = gw.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4)))
assert "einops" not in sys.modules
with model.trace(torch.ones(2, 4)):
    import einops
    out = einops.rearrange(model["0"].output, "a b -> b a").save()
assert out.value.shape == (4, 2)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class Doubled(torch.autograd.Function):
    """Twice its argument, with a gradient of its own: three times."""

    calls: list[Any] = []

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        Doubled.calls.append(type(x))
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 3


@pytest.mark.sentence("values.6")
def test_a_custom_function_is_refused(place: Place) -> None:
    """A custom `autograd.Function` is refused unless the call is wrapped in `gw.apply(function, *values)`,"""
    with pytest.raises(gw.GraphError, match=r"gw\.apply") as caught, place.model.trace(PROMPT):
        line = here(+1)
        Doubled.apply(place.model.layers[1].output).save()
    assert names(caught, line)


@pytest.mark.sentence("values.7")
def test_a_function_that_stays_whole(case: Place) -> None:
    """`gw.apply(function, *values)`, ... which stays whole and runs where the user's code runs; a remote run refuses it
    by file and line.

    In the block the function is not called; in the run it sees tensors, once.
    """
    Doubled.calls.clear()
    expected = case.oracle.forward(PROMPT, {"layers.1.output": lambda tensor, _: tensor * 2}).logits
    if not case.here:
        with pytest.raises(gw.GlassworksError) as caught, case.block(PROMPT):
            line = here(+1)
            case.model.layers[1].output = gw.apply(Doubled.apply, case.model.layers[1].output)
            case.model.logits.save()
        assert names(caught, line)
        assert Doubled.calls == []
        return
    with case.block(PROMPT):
        case.model.layers[1].output = gw.apply(Doubled.apply, case.model.layers[1].output)
        assert case.live or Doubled.calls == []
        logits = case.model.logits.save()
    close(logits.value, expected)
    assert Doubled.calls in ([torch.Tensor], [torch.nn.Parameter])


@pytest.mark.sentence("values.6", "values.7")
def test_a_custom_function_has_its_own_gradient(local: Place) -> None:
    """`gw.apply(function, *values)`, which stays whole"""
    with local.model.trace(PROMPT) as t:
        hidden = local.model.layers[1].output
        t.backward(gw.apply(Doubled.apply, hidden).sum())
        gradient = hidden.grad.save()
    close(gradient.value, torch.full((1, SEQ, 32), 3.0))


@pytest.mark.sentence("values.8")
def test_modules_as_functions(case: Place) -> None:
    """`model.lm_head(value)` and `model[path](*values)` call a module of the model as a pure function:"""
    path = "transformer.h.2.mlp" if case.family == "gpt2" else "model.layers.2.mlp"
    hidden = case.oracle.forward(PROMPT)["layers.0.output"]
    with case.block(PROMPT):
        value = case.model.layers[0].output
        head = case.model.lm_head(value).save()
        other = case.model[path](value).save()
    close(head.value, case.oracle.stock.lm_head(hidden))
    close(other.value, case.oracle.stock.get_submodule(path)(hidden))


@pytest.mark.sentence("values.9")
def test_a_call_is_a_node_of_its_own(place: Place, tmp_path: Any) -> None:
    """a node of its own; it fires no sites, counts as no step, ships no weights, and is allowed remotely."""
    expected = place.oracle.forward(PROMPT)
    model = place.model
    with model.trace(PROMPT) as t:
        model.lm_head(model.layers[0].output).save()
        model.layers[2].mlp(model.layers[0].output).save()
        normal = model.lm_head.output.save()
        own = model.layers[2].mlp.output.save()
    close(normal.value, expected.logits)
    close(own.value, expected["layers.2.mlp.output"])
    t.graph.save(tmp_path / "graph.safetensors")
    assert (tmp_path / "graph.safetensors").stat().st_size < 6000
    assert sum("lm_head(" in line for line in str(t.graph).splitlines()) == 1
    with model.generate(PROMPT, max_new_tokens=2) as t, t.steps[0:2]:
        model.lm_head(model.layers[0].output).save()
        logits = model.logits.save()
    assert len(logits) == 2
    assert t.result.shape == (1, 2)


@pytest.mark.sentence("values.9")
def test_a_call_ignores_what_is_written_inside(place: Place) -> None:
    """a node of its own; it fires no sites,"""
    hidden = place.oracle.forward(PROMPT)["layers.0.output"]
    with place.model.trace(PROMPT):
        place.model.lm_head.output = 0.0
        got = place.model.lm_head(place.model.layers[0].output).save()
    close(got.value, place.oracle.stock.lm_head(hidden))


@pytest.mark.sentence("values.10")
def test_weights(case: Place, tmp_path: Any) -> None:
    """`model[path].weight` in a block is a Value."""
    expected = case.oracle.forward(PROMPT)
    weight = case.oracle.stock.lm_head.weight
    with case.block(PROMPT):
        own = case.model["lm_head"].weight
        assert tuple(own.shape) == (97, 32)
        row = own[5].save()
        logits = (case.model.norm.output @ own.T).save()
    close(row.value, weight[5])
    close(logits.value, expected.logits)


@pytest.mark.sentence("values.11")
def test_unembed(case: Place) -> None:
    """`model.unembed(resid)` is everything between the last residual and the logits;"""
    found = case.oracle.forward(PROMPT)
    own = case.oracle.stock
    norm = own.transformer.ln_f if case.family == "gpt2" else own.model.norm
    with case.block(PROMPT):
        early = case.model.unembed(case.model.layers[0].output[:, -1]).save()
    close(early.value, own.lm_head(norm(found["layers.0.output"][:, -1])))


@pytest.mark.sentence("values.12")
def test_unembed_of_the_last_layer(case: Place) -> None:
    """`unembed(layers[-1].output) == logits`,"""
    with case.block(PROMPT):
        lens = case.model.unembed(case.model.layers[-1].output).save()
        logits = case.model.logits.save()
    close(lens.value, logits.value)
    close(logits.value, case.oracle.forward(PROMPT).logits)


@pytest.mark.sentence("values.12")
def test_unembed_with_operations_between(encdec_case: Place) -> None:
    """`unembed(layers[-1].output) == logits`, also where operations stand between modules (T5's scaling, soft caps)."""
    with encdec_case.block(SOURCE, decoder_input_ids=START):
        lens = encdec_case.model.unembed(encdec_case.model.decoder.layers[-1].output).save()
        logits = encdec_case.model.logits.save()
    close(lens.value, logits.value)
    close(logits.value, encdec_case.oracle.forward(SOURCE, decoder_input_ids=START).logits)


@pytest.mark.sentence("values.12")
@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_unembed_with_soft_caps(family: str, kind: str) -> None:
    """also where operations stand between modules (T5's scaling, soft caps)."""
    bare, model = wrapped(family)
    case = Place(family, kind, connected(family) if kind == "remote" else model, bare)
    with case.block(PROMPT):
        lens = case.model.unembed(case.model.layers[-1].output).save()
        logits = case.model.logits.save()
    close(logits.value, bare(torch.tensor([PROMPT])).logits)
    close(lens.value, logits.value)


@pytest.mark.sentence("values.6")
def test_a_plain_module_takes_functions_too(kind: str) -> None:
    """unless the call is wrapped in `gw.apply(function, *values)`,"""
    case = placed(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), kind)
    if kind == "remote":
        with pytest.raises(gw.GlassworksError, match="apply"), case.block(torch.ones(2, 4)):
            gw.apply(lambda x: x + 1, case.model["0"].output).save()
        return
    with case.block(torch.ones(2, 4)):
        got = gw.apply(lambda x: x + 1, case.model["0"].output).save()
    close(got.value, case.bare[0](torch.ones(2, 4)) + 1)
