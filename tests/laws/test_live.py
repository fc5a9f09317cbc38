"""Law 4 for blocks that run line by line: live equals local equals remote, where lines are in forward order."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import glassworks as gw
from laws import checks
from laws.equal import same_bits
from laws.experiments import Experiment, by_hooks, experiments, record
from laws.reference import names_of
from laws.runtimes import Runtime, in_process, local
from laws.test_random_experiments import FEW, MANY, compare

FORWARD = [
    checks.saving_is_the_plain_forward,
    checks.every_site_reads_what_passes_there,
    checks.writing_what_was_read_changes_nothing,
    checks.what_was_saved_keeps_what_it_was,
    checks.a_save_has_memory_of_its_own,
    checks.a_write_is_cast_and_broadcast,
    checks.constants_survive,
    checks.several_prompts_in_one_invoke,
    checks.padding_ignores_writes,
    checks.padding_reads_as_zero,
    checks.skipping_is_replacing,
    checks.gradients_are_the_traces,
]


@pytest.mark.parametrize("law", FORWARD, ids=lambda law: law.__name__)
def test_law(live: Runtime, law: Any) -> None:
    law(live)


def test_a_write_at_every_site_matters(live: Runtime) -> None:
    for name in names_of(live):
        checks.a_write_matters(live, name)


def in_forward_order(experiment: Experiment) -> Experiment:
    return replace(experiment, steps=tuple(sorted(experiment.steps, key=lambda step: step.time)))


def check(runtime: Runtime, data: Any) -> None:
    """A live block gives what hooks give, writes the graph of the trace of the same lines, and that gives the same."""
    experiment = in_forward_order(data.draw(experiments(runtime.family)))
    graphs, saves = [], []
    for own in (runtime, local(runtime.family)):
        with own.model.trace(list(experiment.prompt), **own.arguments) as t:
            saved = record(own.model, experiment, {}, sorted_by_time=True)
        graphs.append(t.graph)
        saves.append(saved)
    compare({number: value.value for number, value in saves[0].items()}, by_hooks(experiment))
    assert graphs[0] == graphs[1]
    again = runtime.model.backend.run(graphs[0], t.inputs)
    for number, value in saves[0].items():
        same_bits(value, saves[1][number])
        same_bits(again[f"line {number}"], value)


@FEW
@given(data=st.data())
def test_a_live_block_is_its_trace(live: Runtime, data: Any) -> None:
    check(live, data)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_live_blocks_are_their_traces(live: Runtime, data: Any) -> None:
    check(live, data)


def touch(runtime: Runtime, t: Any) -> list[Any]:
    """Lines of every kind, in forward order."""
    model, steer = runtime.model, torch.linspace(-1, 1, 32)
    first, second, third = runtime.layers[0], runtime.layers[1], runtime.layers[2]
    h = first.output
    kept = h[:, -1].save()
    h[:, -1] += torch.randn_like(h[:, -1]) * 0.1 + steer
    first.output = h * 1.5
    second.skip(first.output)
    third.mlp.output[..., :8] = h.topk(8, dim=-1).values
    out = third.output
    lens = model.unembed(out[:, -1]).softmax(-1).max(-1)
    logits = model.logits
    return [kept, h.save(), out.save(), lens.values.save(), lens.indices.save(), logits.save()]


def test_live_equals_local_equals_remote(live: Runtime) -> None:
    here = local(live.family)
    with live.model.trace(checks.PROMPT, seed=7, **live.arguments) as t:
        saved = touch(live, t)
    with here.model.trace(checks.PROMPT, seed=7, **live.arguments) as plain:
        expected = touch(here, plain)
    assert t.graph == plain.graph
    for backend in (here.model.backend, in_process(live.family).backend):
        again = backend.run(gw.Graph.decode(t.graph.encode()), t.inputs)
        for number, value in enumerate(saved):
            same_bits(value, expected[number])
            same_bits(again[str(number)], value)


def test_a_path_that_depends_on_numbers_is_recorded(live: Runtime) -> None:
    """The graph holds the path taken; the block is what hooks with the same condition would do."""
    with live.model.trace(checks.PROMPT, **live.arguments) as t:
        taken = []
        for number, layer in enumerate(live.layers):
            h = layer.output
            if float(h[:, -1].norm()) > float(h[:, 0].norm()):
                h[:, -1] *= 0.5
                taken.append(number)
        logits = live.model.logits.save()
    here = local(live.family)
    with here.model.trace(checks.PROMPT, **live.arguments):
        for number in taken:
            here.layers[number].output[:, -1] *= 0.5
        expected = here.model.logits.save()
    same_bits(logits, expected)
    same_bits(here.model.backend.run(t.graph, t.inputs)["0"], logits)
