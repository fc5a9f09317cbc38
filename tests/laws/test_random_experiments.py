"""Random experiments against plain PyTorch hooks, on every runtime: laws 1, 2, 3, 4 and 7 at once."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import glassworks as gw
from laws.equal import close, same_bits
from laws.experiments import by_hooks, by_language, experiments, patches, record
from laws.runtimes import Runtime

FEW = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)  # fmt: skip
MANY = settings(
    max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)  # fmt: skip


def compare(found: dict[int, Any], expected: dict[int, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert set(found) == set(expected)
    for number, tensor in expected.items():
        close(found[number], tensor, tolerance)


def check_one(runtime: Runtime, data: Any) -> None:
    experiment = data.draw(experiments(runtime.family))
    compare(by_language(runtime, experiment), by_hooks(experiment))


@FEW
@given(data=st.data())
def test_an_experiment_is_what_hooks_make_of_it(runtime: Runtime, data: Any) -> None:
    check_one(runtime, data)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_experiments_are_what_hooks_make_of_them(runtime: Runtime, data: Any) -> None:
    check_one(runtime, data)


def check_patch(runtime: Runtime, data: Any) -> None:
    first, second = data.draw(patches(runtime.family))
    with runtime.model.trace() as t:
        known: dict[int, Any] = {}
        with t.invoke(list(first.prompt), **runtime.arguments):
            one = record(runtime.model, first, known, "first ")
        for n in second.imports:
            known[n] = known[n][:, -1:]
        with t.invoke(list(second.prompt), **runtime.arguments):
            two = record(runtime.model, second, known, "second ")
    values: dict[int, torch.Tensor] = {}
    compare({n: v.value for n, v in one.items()}, by_hooks(first, values))
    compare({n: v.value for n, v in two.items()}, by_hooks(second, values))


@FEW
@given(data=st.data())
def test_a_patch_is_what_hooks_make_of_it(runtime: Runtime, data: Any) -> None:
    check_patch(runtime, data)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_patches_are_what_hooks_make_of_them(runtime: Runtime, data: Any) -> None:
    check_patch(runtime, data)


def check_company(runtime: Runtime, data: Any) -> None:
    several = [data.draw(experiments(runtime.family, lines=4)) for _ in range(data.draw(st.integers(2, 4)))]
    rows = data.draw(st.sampled_from([None, 1, 2, 3]))
    with runtime.model.trace(rows=rows) as t:
        saved = []
        for k, experiment in enumerate(several):
            with t.invoke(list(experiment.prompt), **runtime.arguments):
                saved.append(record(runtime.model, experiment, {}, f"{k} "))
    for experiment, own in zip(several, saved, strict=True):
        compare({n: v.value for n, v in own.items()}, by_hooks(experiment))


@FEW
@given(data=st.data())
def test_company_changes_nothing(runtime: Runtime, data: Any) -> None:
    check_company(runtime, data)


@FEW
@given(data=st.data())
def test_a_decoded_graph_is_the_graph(runtime: Runtime, data: Any) -> None:
    experiment = data.draw(experiments(runtime.family))
    with runtime.model.trace(list(experiment.prompt), **runtime.arguments) as t:
        saved = record(runtime.model, experiment, {})
    decoded = gw.Graph.decode(t.graph.encode())
    assert decoded == t.graph
    assert hash(decoded) == hash(t.graph)
    assert decoded.encode() == gw.Graph.decode(decoded.encode()).encode()
    again = runtime.model.backend.run(decoded, t.inputs)
    for number, value in saved.items():
        same_bits(again[f"line {number}"], value)
