"""Law 4 on the bundled toy: what runs in a service equals what runs here, in this process and in real ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import glassworks as gw
from glassworks.graph.limits import Limits
from glassworks.graph.options import GENERATION_OPTIONS
from glassworks.serve.supervise import Running, running_service
from laws.equal import close, same_bits

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def local() -> Any:
    return gw.load("toy")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with running_service("toy", limits=Limits(nodes=500)) as found:
        yield found


@pytest.fixture(scope="module", params=["in process", "served"])
def remote(request: pytest.FixtureRequest, local: Any) -> Any:
    if request.param == "in process":
        return gw.connect(local)
    running = request.getfixturevalue("running")
    return gw.connect(running.url, api_key=running.key).model("toy")


def lens_and_write(model: Any) -> list[torch.Tensor]:
    with model.trace(PROMPT):
        kept = model.layers[0].output.save()
        model.layers[1].mlp.output[:, -1] = 0
        found = [model.unembed(layer.output[:, -1]).save() for layer in model.layers]
    return [kept.value, *[value.value for value in found]]


def captured(model: Any) -> list[torch.Tensor]:
    steer = torch.tensor([0.25], dtype=torch.bfloat16)
    with model.trace(PROMPT):
        model.layers[0].output = model.layers[0].output + steer
        saved = model.logits.save()
    return [saved.value]


def several_invokes(model: Any) -> list[torch.Tensor]:
    with model.trace() as t:
        with t.invoke(PROMPT):
            clean = model.layers[1].output[:, -1]
        with t.invoke("A man walked into the"):
            model.layers[1].output[:, -1] = clean
            saved = model.logits[:, -1].save()
    return [saved.value]


def generation(model: Any) -> list[torch.Tensor]:
    with model.generate(PROMPT, max_new_tokens=4) as t, t.steps[0:3]:
        saved = model.logits[:, -1].save()
    return [t.result, *saved.value]


def sampled(model: Any) -> list[torch.Tensor]:
    with model.generate(PROMPT, max_new_tokens=4, do_sample=True, top_k=9, seed=3) as t:
        pass
    return [t.result]


def gradients(model: Any) -> list[torch.Tensor]:
    with model.trace(PROMPT) as t:
        resid = model.layers[0].output
        t.backward(model.logits[:, -1].sum())
        grad = resid.grad.save()
    return [grad.value]


def session(model: Any) -> list[torch.Tensor]:
    with model.session():
        with model.trace(PROMPT):
            first = model.layers[0].output[:, -1].save()
        with model.trace("A man walked into the"):
            model.layers[0].output[:, -1] = first
            second = model.logits[:, -1].save()
    return [first.value, second.value]


@pytest.mark.parametrize(
    "experiment", [lens_and_write, captured, several_invokes, generation, sampled, gradients, session]
)
def test_remote_equals_local(local: Any, remote: Any, experiment: Any, request: pytest.FixtureRequest) -> None:
    """The same bits, but for a generation, which an engine computes in other shapes."""
    equal = close if experiment is generation and "[served" in request.node.name else same_bits
    for here, there in zip(experiment(local), experiment(remote), strict=True):
        equal(torch.as_tensor(there), torch.as_tensor(here))


def test_an_error_of_the_users_graph_keeps_its_type_and_names_the_line(remote: Any) -> None:
    with pytest.raises(IndexError) as caught, remote.trace(PROMPT):
        remote.logits[:, 10_000].save()
    spoken = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert Path(__file__).name in spoken


def test_the_tokenizer_travels(local: Any, remote: Any) -> None:
    assert remote.token(" city") == local.token(" city")


def test_limits_hold(running: Running) -> None:
    model = gw.connect(running.url, api_key=running.key).model("toy")
    with pytest.raises(gw.LimitExceeded, match="500 allowed"):
        long_chain(model)


def long_chain(model: Any) -> None:
    with model.trace(PROMPT):
        value = model.logits
        for _ in range(600):
            value = value + 1
        value.save()


def test_a_plain_module_in_process() -> None:
    net = gw.wrap(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    inputs, found = torch.randn(5, 4), []
    for model in (net, gw.connect(net)):
        with model.trace(inputs):
            found.append(model["0"].output.save())
    assert torch.equal(found[0].value, found[1].value)


def test_the_permitted_generation_options_are_those_of_the_engine() -> None:
    from glassworks.engine import sampling

    own = {"do_sample", "num_beams", "eos_token_id", "pad_token_id", "decoder_start_token_id"}
    assert own | set(sampling._WARPERS) | set(sampling._PROCESSORS) == GENERATION_OPTIONS
