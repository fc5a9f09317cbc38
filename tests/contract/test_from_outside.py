"""What comes from outside a block: tensors, the device, seeds and random numbers."""

from typing import Any

import pytest
import torch

import glassworks as gw
from contract.oracle import build
from contract.places import OTHER, PROMPT, Place, close, names
from lines import here, told

SEQ = len(PROMPT)


@pytest.mark.sentence("values.13")
def test_tensors_from_outside(place: Place) -> None:
    """Tensors from outside are captured by reference,

    What is in the tensor when the block runs, is what is used.
    """
    vector = torch.zeros(32)
    with place.model.trace(PROMPT):
        got = (place.model.layers[1].output * 0 + vector).save()
        vector.copy_(torch.arange(32.0))
    close(got.value, torch.arange(32.0).expand(1, SEQ, 32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.sentence("values.13")
def test_tensors_move_to_the_device_of_use() -> None:
    """move to the device of use,"""
    bare = build("llama").cuda()
    model = gw.wrap(bare)
    vector = torch.arange(32.0)
    with model.trace(PROMPT):
        got = (model.layers[1].output * 0 + vector).save()
    assert got.value.is_cuda
    close(got.value.cpu(), vector.expand(1, SEQ, 32))


@pytest.mark.sentence("values.14")
def test_large_tensors_travel_once(connection: Any) -> None:
    """and above 1 MiB travel by hash, once a server."""
    model, sent = connection
    large, small = torch.randn(32, 10_000), torch.randn(32, 1000)
    for tensor, expected in ((large, (True, False, False)), (small, (True, True, True))):
        travelled = []
        for _ in range(3):
            sent.clear()
            with model.trace(PROMPT):
                got = (model.layers[1].output[:, -1] @ tensor).save()
            travelled.append(sum(map(len, sent)) >= tensor.nbytes)
        assert tuple(travelled) == expected
        close(got.value, Place("llama", "", None, None).oracle.forward(PROMPT)["layers.1.output"][:, -1] @ tensor,
              tolerance=1e-4)  # fmt: skip


@pytest.mark.sentence("values.15")
@pytest.mark.parametrize("use", ["item", "add", "method", "out"])
def test_outside_tensors_are_not_written(place: Place, use: str) -> None:
    """Assigning into, or adding in place to, an outside tensor inside a block is refused."""
    buffer = torch.zeros(1, SEQ, 32)
    with pytest.raises(gw.GraphError) as caught, place.model.trace(PROMPT):
        hidden = place.model.layers[1].output
        line = here(+1)
        _into(buffer, hidden, use)
    assert names(caught, line) or "_into" not in told(caught.value)
    assert __file__ in told(caught.value)
    assert (buffer == 0).all()


def _into(buffer: torch.Tensor, hidden: Any, use: str) -> None:
    if use == "item":
        buffer[0] = hidden[0]
    elif use == "add":
        buffer += hidden
    elif use == "method":
        buffer.copy_(hidden)
    else:
        torch.add(hidden, 1, out=buffer)


@pytest.mark.sentence("values.16")
def test_the_device(place: Place) -> None:
    """`model.device` is never `meta`."""
    assert place.model.device.type != "meta"
    assert place.model.device == torch.device("cpu")


def noise(model: Any, prompts: list[list[int]], *, seed: int = 0, rows: int | None = None) -> list[torch.Tensor]:
    with model.trace(seed=seed, rows=rows) as t:
        found = []
        for prompt in prompts:
            with t.invoke(prompt):
                found.append(torch.rand_like(model.layers[1].output[:, -1]).save())
    return [value.value for value in found]


@pytest.mark.sentence("values.17")
def test_random_numbers(place: Place) -> None:
    """Random nodes draw by (seed, node, row, step), never by company."""
    model = place.model
    [alone] = noise(model, [PROMPT])
    company = noise(model, [PROMPT, OTHER])
    assert torch.equal(alone, company[0])
    assert torch.equal(noise(model, [PROMPT])[0], alone)
    assert not torch.equal(noise(model, [PROMPT], seed=1)[0], alone)
    assert not torch.equal(company[0], company[1])
    with model.trace([PROMPT, OTHER]):
        both = torch.rand_like(model.layers[1].output[:, -1]).save()
    with model.trace([PROMPT, OTHER, OTHER, PROMPT]):
        more = torch.rand_like(model.layers[1].output[:, -1]).save()
    assert torch.equal(both.value, more.value[:2])
    assert len({tuple(row.tolist()) for row in more.value}) == 4
    for each, other in zip(noise(model, [PROMPT, OTHER], rows=1), company, strict=True):
        assert torch.equal(each, other)


@pytest.mark.sentence("values.17")
def test_random_numbers_of_nodes_and_steps(place: Place) -> None:
    """Random nodes draw by (seed, node, row, step),"""
    model = place.model
    with model.trace(PROMPT):
        hidden = model.layers[1].output
        first, second = torch.rand_like(hidden).save(), torch.rand_like(hidden).save()
    assert not torch.equal(first.value, second.value)

    def steps(new: int) -> Any:
        with model.generate(PROMPT, max_new_tokens=new) as t, t.steps[0:new]:
            return torch.rand_like(model.logits[:, -1]).save()

    two, three = steps(2), steps(3)
    assert torch.equal(two[1], three[1])
    assert not torch.equal(three[1], three[2])


@pytest.mark.sentence("values.17")
def test_random_numbers_live(live: Place) -> None:
    """Random nodes draw by (seed, node, row, step), never by company."""
    with live.model.trace(PROMPT):
        there = torch.rand_like(live.model.layers[1].output).save()
    with live.model.live(PROMPT):
        own = torch.rand_like(live.model.layers[1].output).save()
    assert torch.equal(there.value, own.value)


@pytest.mark.sentence("values.18")
def test_the_seed(place: Place) -> None:
    """`t.seed` sets the seed."""
    model = place.model

    def draw(seed: int | None) -> torch.Tensor:
        with model.trace(PROMPT) as t:
            if seed is not None:
                t.seed = seed
            found = torch.rand_like(model.layers[1].output).save()
        return found.value

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))
    assert torch.equal(draw(None), draw(0))
    assert torch.equal(draw(5)[:, -1:], draw(5)[:, -1:])
