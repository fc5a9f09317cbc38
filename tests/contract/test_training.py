"""Probes, rotations, LoRAs and steering vectors trained through a block, beside the same loops in plain PyTorch.

The two loops share nothing but the first values of their parameters and their data. Losses of every step agree to
1e-5.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import glassworks as gw
from contract.oracle import Oracle, oracle_of
from contract.places import Place, placed
from contract.text import tokenizer

STEPS = 20
BASES = [[29, 68, 49, 86, 93], [11, 12, 13, 40, 41], [5, 77, 31, 8, 60]]
SOURCES = [[50, 51, 52, 53, 54], [90, 17, 33, 62, 71], [44, 43, 42, 41, 40]]
ANSWERS = torch.tensor([7, 19, 55])

Losses = list[float]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


class Rotation(nn.Module):
    """Swaps a subspace of `k` directions, in a basis that is learnt."""

    def __init__(self, width: int = 32, k: int = 6) -> None:
        super().__init__()
        self.k = k
        self.turn = nn.utils.parametrizations.orthogonal(nn.Linear(width, width, bias=False))

    def forward(self, base: Any, source: Any) -> Any:
        turn = self.turn.weight
        own, other = base @ turn.T, source @ turn.T
        return torch.cat([other[..., : self.k], own[..., self.k :]], -1) @ turn


class LoRA(nn.Module):
    """A low-rank update of a projection; its second factor starts small, not at zero, so that both learn at once."""

    def __init__(self, enters: int, leaves: int, rank: int = 3) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, enters) / enters**0.5)
        self.up = nn.Parameter(torch.randn(leaves, rank) * 0.05)

    def forward(self, x: Any) -> Any:
        return x @ self.down.T @ self.up.T * 2.0


def down_path(family: str) -> str:
    return "transformer.h.1.mlp.c_proj" if family == "gpt2" else "model.layers.1.self_attn.o_proj"


def layer_path(family: str, n: int) -> str:
    return f"transformer.h.{n}" if family == "gpt2" else f"model.layers.{n}"


def loop(module: nn.Module, loss: Callable[[nn.Module, torch.optim.Optimizer], float]) -> Losses:
    """A plain loop: `loss` takes the derivatives and gives its number."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(loss(module, optimizer))
        optimizer.step()
    return losses


def agree(got: Losses, expected: Losses) -> None:
    assert len(got) == len(expected) == STEPS
    worst = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    assert worst < 1e-5, f"losses differ by {worst}"
    assert expected[-1] < expected[0] * 0.98, "nothing was learnt"


def hooked(bare: nn.Module, path: str, change: Callable[[torch.Tensor, torch.Tensor], Any]) -> Any:
    """A hook that shows a module's input and output and may replace the output."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        new = change(args[0] if args else first, first)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return bare.get_submodule(path).register_forward_hook(hook)


# The loops in plain PyTorch.


def plain_probe(oracle: Oracle) -> Losses:
    def loss(probe: nn.Module, _: Any) -> float:
        kept: list[torch.Tensor] = []
        handle = hooked(oracle.stock, layer_path(oracle.family, 1), lambda _, out: kept.append(out))
        with torch.no_grad():
            oracle.stock(torch.tensor(BASES))
        handle.remove()
        value = cross_entropy(probe(kept[0][:, -1]), torch.tensor([0, 1, 1]))
        value.backward()
        return value.item()

    return loop(seeded(lambda: nn.Linear(32, 2)), loss)


def plain_rotation(oracle: Oracle) -> Losses:
    def loss(rotation: nn.Module, _: Any) -> float:
        kept: list[torch.Tensor] = []
        path = layer_path(oracle.family, 1)
        handle = hooked(oracle.stock, path, lambda _, out: kept.append(out))
        with torch.no_grad():
            oracle.stock(torch.tensor(SOURCES))
        handle.remove()

        def swap(_: Any, out: torch.Tensor) -> torch.Tensor:
            return torch.cat([out[:, :-1], rotation(out[:, -1], kept[0][:, -1])[:, None]], 1)

        handle = hooked(oracle.stock, path, swap)
        value = cross_entropy(oracle.stock(torch.tensor(BASES)).logits[:, -1], ANSWERS)
        handle.remove()
        value.backward()
        return value.item()

    return loop(seeded(Rotation), loss)


def plain_lora(oracle: Oracle, widths: tuple[int, int]) -> Losses:
    def loss(lora: nn.Module, _: Any) -> float:
        handle = hooked(oracle.stock, down_path(oracle.family), lambda x, out: out + lora(x))
        value = cross_entropy(oracle.stock(torch.tensor(BASES)).logits[:, -1], ANSWERS)
        handle.remove()
        value.backward()
        return value.item()

    return loop(seeded(lambda: LoRA(*widths)), loss)


def plain_steering(oracle: Oracle) -> Losses:
    def loss(steering: nn.Module, _: Any) -> float:
        handle = hooked(oracle.stock, layer_path(oracle.family, 0), lambda _, out: out + steering.vector)
        value = cross_entropy(oracle.stock(torch.tensor(BASES)).logits[:, -1], ANSWERS)
        handle.remove()
        value.backward()
        return value.item()

    return loop(Steering(), loss)


class Steering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(32))


# The same through a block.


def probe(model: Any, family: str) -> Losses:
    def loss(own: nn.Module, _: Any) -> float:
        with model.trace(BASES) as t:
            value = cross_entropy(own(model.layers[1].output[:, -1]), torch.tensor([0, 1, 1]))
            t.backward(value)
            value = value.save()
        return float(value)

    return loop(seeded(lambda: nn.Linear(32, 2)), loss)


def rotation(model: Any, family: str) -> Losses:
    def loss(own: nn.Module, _: Any) -> float:
        with model.trace() as t:
            with t.invoke(SOURCES):
                source = model.layers[1].output[:, -1]
            with t.invoke(BASES):
                hidden = model.layers[1].output
                hidden[:, -1] = own(hidden[:, -1], source)
                value = cross_entropy(model.logits[:, -1], ANSWERS)
                t.backward(value)
                value = value.save()
        return float(value)

    return loop(seeded(Rotation), loss)


def lora(model: Any, family: str) -> Losses:
    def loss(own: nn.Module, _: Any) -> float:
        with model.trace(BASES) as t:
            node = model[down_path(family)]
            node.output = node.output + own(node.input)
            value = cross_entropy(model.logits[:, -1], ANSWERS)
            t.backward(value)
            value = value.save()
        return float(value)

    return loop(seeded(lambda: LoRA(*widths(family))), loss)


def steering(model: Any, family: str) -> Losses:
    def loss(own: nn.Module, _: Any) -> float:
        with model.trace(BASES) as t:
            model.layers[0].output += own.vector
            value = cross_entropy(model.logits[:, -1], ANSWERS)
            t.backward(value)
            value = value.save()
        return float(value)

    return loop(Steering(), loss)


def widths(family: str) -> tuple[int, int]:
    return (128, 32) if family == "gpt2" else (32, 32)


LOOPS: dict[str, tuple[Callable[[Any, str], Losses], Callable[[Oracle], Losses]]] = {
    "probe": (probe, plain_probe),
    "rotation": (rotation, plain_rotation),
    "lora": (lora, lambda oracle: plain_lora(oracle, widths(oracle.family))),
    "steering": (steering, plain_steering),
}


@pytest.fixture(scope="module")
def plain() -> Callable[[str, str], Losses]:
    """The losses of a plain loop, run once a family."""
    found: dict[tuple[str, str], Losses] = {}

    def losses(name: str, family: str) -> Losses:
        if (name, family) not in found:
            found[name, family] = LOOPS[name][1](oracle_of(family))
        return found[name, family]

    return losses


@pytest.mark.sentence("gradients.6", "gradients.7")
@pytest.mark.parametrize("name", list(LOOPS))
def test_training(trained: Place, name: str, plain: Any) -> None:
    """probes, DAS rotations, LoRAs and steering vectors train in a plain loop."""
    agree(LOOPS[name][0](trained.model, trained.family), plain(name, trained.family))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One real service, so that training over HTTP is not left to the slow tests."""
    from glassworks.serve.supervise import running_service

    path = str(tmp_path_factory.mktemp("llama"))
    oracle_of("llama").stock.save_pretrained(path)
    tokenizer().save_pretrained(path)
    with running_service(path) as running:
        lab = gw.connect(running.url, api_key=running.key)
        yield lab.model(lab.models()[0])


@pytest.mark.sentence("gradients.6", "gradients.7")
@pytest.mark.parametrize("name", ["rotation"])
def test_training_over_http(service: Any, name: str, plain: Any) -> None:
    """locally and remotely: probes, DAS rotations, LoRAs and steering vectors train in a plain loop."""
    agree(LOOPS[name][0](service, "llama"), plain(name, "llama"))


@pytest.mark.sentence("gradients.7")
def test_training_of_a_plain_module(blocks: str) -> None:
    """probes, ... train in a plain loop."""
    bare = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    case, x = placed(bare, blocks), torch.linspace(-1, 1, 24).reshape(6, 4)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])

    def block(own: nn.Module, _: Any) -> float:
        with case.model.trace(x) as t:
            case.model["0"].output = case.model["0"].output + own(case.model["0"].input)
            value = cross_entropy(case.model["2"].output, classes)
            t.backward(value)
            value = value.save()
        return float(value)

    def hooks(own: nn.Module, _: Any) -> float:
        value = cross_entropy(bare[2](bare[1](bare[0](x) + own(x))), classes)
        value.backward()
        return value.item()

    own = loop(seeded(lambda: LoRA(4, 8)), block)
    assert all(parameter.grad is None for parameter in bare.parameters())
    agree(own, loop(seeded(lambda: LoRA(4, 8)), hooks))
