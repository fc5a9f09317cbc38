"""Graphs that cost too much: each refused with the user's line, the limit and both figures, before the model runs."""

import re
import time
from typing import Any

import pytest
import torch

import glassworks as gw
from glassworks.graph.backend import Experiment, Generation, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.nodes import ALL_ROWS, Node, Ref, SentLine, refs_in
from glassworks.graph.wire import Blob
from glassworks.serve.quote import quote_request

F = torch.nn.functional
LIMIT = re.compile(r"(\w+): (\d+) asked for, (\d+) allowed; .*\n  at (\S+):\d+")


class Counting(torch.nn.Module):
    """Two maps in a row; `ran` counts forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.ran = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran += 1
        return self.second(self.first(x))


@pytest.fixture(scope="module")
def net() -> Counting:
    return Counting()


@pytest.fixture(scope="module")
def remote(net: Counting) -> Any:
    return gw.connect(gw.wrap(net))


def tower(x: Any) -> Any:
    for _ in range(16):
        x = torch.cat([x, x])
    return x @ x.T


def doubling(x: Any) -> Any:
    for _ in range(40):
        x = torch.cat([x, x])
    return x


def many_held(x: Any) -> Any:
    parts = [x.repeat(2**20, 1) * k for k in range(100)]
    return sum(parts[1:], parts[0])


ATTACKS = {
    "expand and clone": (lambda x: x.expand(10**8, 3, 8).clone(), "node_bytes"),
    "repeat": (lambda x: torch.zeros_like(x).repeat(10**8, 1), "node_bytes"),
    "a tower of products": (tower, "node_bytes"),
    "doubling": (doubling, "node_bytes"),
    "classes": (lambda x: F.one_hot(x.long(), 10**9), "node_bytes"),
    "classes by number": (lambda x: F.one_hot((x * 0 + 10**9).long()), "node_bytes"),
    "decomposition": (lambda x: torch.linalg.svd(x.repeat(3000, 1000))[1], "node_flops"),
    "kron": (lambda x: torch.kron(x.repeat(1000, 1), x.repeat(1000, 1)), "node_bytes"),
    "cartesian product": (lambda x: torch.cartesian_prod(*[x.reshape(-1)] * 7), "node_bytes"),
    "combinations": (lambda x: torch.combinations(x.reshape(-1), 12), "node_flops"),
    "a grid": (lambda x: torch.meshgrid(*[x.reshape(-1)] * 8, indexing="ij")[0], "node_bytes"),
    "counts": (lambda x: torch.repeat_interleave(x, torch.tensor([1, 10**9, 1]), dim=0), "node_bytes"),
    "counts that were computed": (lambda x: torch.repeat_interleave(x, (x[:, 0] * 0 + 10**9).long(), 0), "node_bytes"),
    "bins": (lambda x: torch.histc(x, 10**10), "node_bytes"),
    "counting up to": (lambda x: torch.bincount((x.reshape(-1) * 0 + 10**10).long()), "node_bytes"),
    "samples": (lambda x: torch.multinomial(x.abs() + 1, 10**9, replacement=True), "node_bytes"),
    "padding": (lambda x: F.pad(x, (0, 10**10)), "node_bytes"),
    "an outer sum": (lambda x: x.repeat(10**5, 1)[:, None, :1] + x.repeat(10**5, 1)[None, :, :1], "node_bytes"),
    "a loss of all pairs": (lambda x: F.mse_loss(x.repeat(10**5, 1)[:, :1], x.repeat(10**5, 1)[:, 0]), "node_bytes"),
    "an equation": (lambda x: torch.einsum("a,b,c,d,e,f,g,h,i,j->abcdefghij", *[x.reshape(-1)] * 10), "node_flops"),
    "a module on much": (lambda x, m: m.second(x.expand(10**12, 3, 8)), "node_flops"),
    "much at once": (many_held, "held_bytes"),
    "filters": (lambda x: F.conv1d(x.repeat(1, 10**5)[None], x.repeat(1, 50_000)[None]), "node_bytes"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_line_limit_and_figures(name: str, net: Counting, remote: Any) -> None:
    attack, limit = ATTACKS[name]
    start, ran = time.monotonic(), None
    with pytest.raises(gw.LimitExceeded) as caught, remote.trace(torch.ones(3, 8)):
        x = remote.first.output
        value = attack(x, remote) if attack.__code__.co_argcount == 2 else attack(x)
        value.sum().save()
        ran = net.ran
    spoken = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    found = LIMIT.search(spoken)
    assert found, spoken
    assert found[1] == limit
    assert int(found[2]) > int(found[3])
    assert found[4] == __file__
    assert time.monotonic() - start < 5
    by_numbers = name in ("classes by number", "counts", "counts that were computed", "counting up to")
    assert net.ran == ran + by_numbers


def test_a_sum_of_small_things_is_refused(remote: Any) -> None:
    with pytest.raises(gw.LimitExceeded, match=r"request_bytes: \d+ asked for"), remote.trace(torch.ones(3, 8)):
        x = remote.first.output.repeat(2**20, 1)
        for k in range(3000):
            x = x * k
        x.sum().save()


def test_what_costs_little_runs_as_it_does_here(net: Counting, remote: Any) -> None:
    def experiment(model: Any) -> list[torch.Tensor]:
        with model.trace(torch.arange(24.0).reshape(3, 8)):
            x = model.first.output
            kept = [
                x[x > 0].save(),
                torch.repeat_interleave(x, torch.tensor([1, 0, 3]), dim=0).save(),
                F.one_hot((x[:, 0] * 0 + 3).long()).save(),
                x[torch.tensor([2, 0])].save(),
                x.masked_select(x > 0).repeat(4).sum().save(),
                model.second(x[x[:, 0] > -100]).save(),
                torch.cat([x.expand(50, 3, 8)[0], x]).save(),
            ]
        return [value.value for value in kept]

    for here, there in zip(experiment(gw.wrap(net)), experiment(remote), strict=True):
        assert torch.equal(here, there)


# Graphs by node, on a table without a model.


def graph(*nodes: Node) -> Graph:
    return Graph(nodes, tuple(SentLine("work.py", 10 + n) for n in range(len(nodes))))


def call(name: str, *args: Any, **kwargs: Any) -> Node:
    own = tuple(kwargs.items())
    return Node("call", name, args, own, tuple(refs_in((args, *[value for _, value in own]))), ALL_ROWS, None)


def save(n: int, *keywords: tuple[str, Any]) -> Node:
    return Node("save", "s", (Ref(n),), keywords, (n,), ALL_ROWS, None)


def read(steps: Any = None) -> Node:
    return Node("read", "a.output", (), (), (), 0, steps)


def quoted(
    fake: Any, *nodes: Node, tokens: int = 3, generation: Generation | None = None, **limits: int
) -> list[list[int]]:
    inputs = Inputs((Rows(ids=((1,) * tokens,)),))
    own = [Experiment(graph(*nodes), inputs, generation)]
    return quote_request(own, Limits(**limits), lambda experiment: fake.table()).late


@pytest.mark.parametrize("name", ["unique", "nonzero", "masked_select", "bincount", "unique_consecutive"])
def test_what_depends_on_numbers_is_left_for_the_run_with_all_that_follows(fake: Any, name: str) -> None:
    own = (Ref(0), Ref(0)) if name == "masked_select" else (Ref(0),)
    assert quoted(fake, read(), call(name, *own), call("add", Ref(1), 1), call("add", Ref(0), 1), save(2)) == [[1, 2]]


def test_what_nobody_needs_costs_nothing(fake: Any) -> None:
    assert quoted(fake, read(), call("repeat", Ref(0), 10**12, 1, 1), save(0)) == [[]]


def test_the_saves_are_priced_with_the_line(fake: Any) -> None:
    """One row, 3 tokens, 8 wide, 4 bytes."""
    quoted(fake, read(), save(0), result_bytes=96)
    with pytest.raises(gw.LimitExceeded, match=r"result_bytes: 96 asked for, 95 allowed; save less.*\n  at work.py:11"):
        quoted(fake, read(), save(0), result_bytes=95)


def test_a_generation_counts_its_steps(fake: Any) -> None:
    """Three tokens at step 0 and one at each of the 9 that may follow: 12 x 8 x 4 bytes."""
    generation = Generation(10)
    quoted(fake, read((0, None)), save(0), generation=generation, result_bytes=384)
    for scope, limit in (((0, None), 384), ((0, 4), 192), ((1, 4), 96), ((2, None), 256)):
        with pytest.raises(gw.LimitExceeded, match=f"result_bytes: {limit} asked"):
            quoted(fake, read(scope), save(0), generation=generation, result_bytes=limit - 1)
    single = save(0, ("single", True))
    quoted(fake, read((0, 1)), single, generation=generation, result_bytes=96)


def test_each_step_of_a_node_is_paid(fake: Any) -> None:
    nodes = (read((0, None)), call("add", Ref(0), 1), save(1))
    once = 8 * 3 * 8
    quoted(fake, *nodes, generation=Generation(1), request_flops=once)
    with pytest.raises(gw.LimitExceeded, match=f"request_flops: {once + 4 * 8 * 8} asked"):
        quoted(fake, *nodes, generation=Generation(5), request_flops=once)


def test_an_error_at_a_step_that_may_never_come_waits_for_the_run(fake: Any) -> None:
    """Step 0 has three tokens, later ones one: the third is missing there, if the generation gets that far."""
    nodes = (read((0, None)), call("getitem", Ref(0), (0, 2)), save(1))
    assert quoted(fake, *nodes, generation=Generation(1)) == [[]]
    assert quoted(fake, *nodes, generation=Generation(5)) == [[1]]


def test_an_error_of_shapes_is_torchs_own_with_the_line(fake: Any) -> None:
    with pytest.raises(IndexError) as caught:
        quoted(fake, read(), call("getitem", Ref(0), (0, 10**6)), save(1))
    assert caught.value.__notes__ == ["  at work.py:11"]


def test_values_are_let_go_when_nothing_needs_them(fake: Any) -> None:
    """Forty values of 96 KB one after the other are two at a time; forty kept for the end are forty."""
    chain = [read(), call("repeat", Ref(0), 1000, 1, 1), *[call("add", Ref(n), 1) for n in range(1, 41)], save(41)]
    quoted(fake, *chain, held_bytes=300_000)
    kept = [read(), *[call("repeat", Ref(0), 1000, 1, 1) for _ in range(40)]]
    kept += [call("cat", tuple(Ref(n) for n in range(1, 41))), save(41)]
    with pytest.raises(gw.LimitExceeded, match=r"held_bytes: \d+ asked for, 3000000 allowed"):
        quoted(fake, *kept, held_bytes=3_000_000)
    quoted(fake, *kept, held_bytes=8_000_000)


def test_a_view_holds_its_base(fake: Any) -> None:
    nodes = [read()]
    for k in range(10):
        nodes += [call("repeat", Ref(0), 1000, 1, 1), call("select", Ref(2 * k + 1), 0, 0)]
    nodes += [call("cat", tuple(Ref(2 * k + 2) for k in range(10))), save(21)]
    with pytest.raises(gw.LimitExceeded, match="held_bytes"):
        quoted(fake, *nodes, held_bytes=500_000)


def test_the_given_tensor_counts_and_not_what_the_author_says_of_it(fake: Any) -> None:
    nodes = (
        Node("input", "x", ((1,), "float32"), (), (), ALL_ROWS, None),
        call("outer", Ref(0), Ref(0)),
        save(1),
    )
    big = Blob("float32", (10**5,), bytes(4 * 10**5))
    inputs = Inputs((Rows(ids=((1,),)),), named={"x": big})
    with pytest.raises(gw.LimitExceeded, match="node_bytes"):
        quote_request([Experiment(graph(*nodes), inputs)], Limits(), lambda experiment: fake.table())


def test_a_link_is_as_large_as_what_is_saved_there(fake: Any) -> None:
    first = Experiment(graph(read(), call("repeat", Ref(0), 1000, 1, 1), save(1)), Inputs((Rows(ids=((1, 2, 3),)),)))
    nodes = (Node("input", "x", (), (), (), ALL_ROWS, None), call("repeat", Ref(0), 10**6, 1, 1), save(1))
    second = Experiment(graph(*nodes), Inputs((Rows(ids=((1,),)),)), links={"x": (0, "s")})
    with pytest.raises(gw.LimitExceeded, match="experiment 1 of 2: node_bytes"):
        quote_request([first, second], Limits(), lambda experiment: fake.table())


def test_a_long_chain_is_priced_in_a_moment(fake: Any) -> None:
    start = time.monotonic()
    quoted(fake, read(), *[call("add", Ref(n), 1) for n in range(10_000)], save(10_000))
    assert time.monotonic() - start < 5


def test_derivatives_are_counted(fake: Any) -> None:
    nodes = [read(), call("sum", Ref(0)), *[Node("backward", "", (Ref(1),), (), (1,), ALL_ROWS, None)] * 65, save(1)]
    experiment = Experiment(graph(*nodes), Inputs((Rows(ids=((1,),)),)))
    from glassworks.graph.check import check_request
    from glassworks.graph.messages import Request

    with pytest.raises(gw.LimitExceeded, match="backwards: 65 asked for, 64 allowed"):
        check_request(Request("small", (experiment,)), fake.table(), Limits())
