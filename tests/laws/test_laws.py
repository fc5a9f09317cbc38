"""Laws 1, 2, 3, 4 and 7 as written cases, on every family and runtime."""

from typing import Any

import pytest
import torch

import glassworks as gw
from laws import checks
from laws.equal import close, same_bits
from laws.reference import map_of, names_of
from laws.runtimes import Runtime, local

WRITTEN = [
    checks.saving_is_the_plain_forward,
    checks.every_site_reads_what_passes_there,
    checks.writing_what_was_read_changes_nothing,
    checks.what_was_saved_keeps_what_it_was,
    checks.a_save_has_memory_of_its_own,
    checks.a_write_is_cast_and_broadcast,
    checks.constants_survive,
    checks.a_sweep_is_its_runs,
    checks.nan_stays_where_it_was_written,
    checks.several_prompts_in_one_invoke,
    checks.padding_ignores_writes,
    checks.padding_reads_as_zero,
    checks.a_patch_across_invokes,
    checks.one_invoke_in_two_passes,
    checks.equal_lengths_take_one_forward,
    checks.skipping_is_replacing,
    checks.steps_read_and_write,
    checks.what_is_inside_a_generation,
]


@pytest.mark.parametrize("law", WRITTEN, ids=lambda law: law.__name__)
def test_law(runtime: Runtime, law: Any) -> None:
    law(runtime)


def test_a_write_at_every_site_matters(runtime: Runtime) -> None:
    for name in names_of(runtime):
        checks.a_write_matters(runtime, name)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 64])
def test_any_bound_on_rows_gives_the_same(runtime: Runtime, rows: int) -> None:
    forwards = checks.a_sweep_is_its_runs(runtime, rows)
    assert forwards == -(-len(checks.RAGGED) // rows)


def test_generation_is_transformers_own(runtime: Runtime) -> None:
    checks.generation_is_greedy(runtime, [checks.PROMPT])
    checks.generation_is_greedy(runtime, checks.RAGGED)


def test_every_runtime_gives_the_same_bits(elsewhere: Runtime) -> None:
    """Law 4, and the pipeline's: the same experiment, the same shapes, the same bits."""

    def saves(runtime: Runtime) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        with runtime.model.trace(checks.PROMPT, **runtime.arguments):
            runtime.layers[0].output[:, -1] += torch.linspace(0, 1, 32)
            own = [layer.output.save() for layer in runtime.layers]
            lens = [runtime.model.unembed(value[:, -1]).save() for value in own]
        return [value.value for value in own], [value.value for value in lens]

    (there, far_lens), (here, lens) = saves(elsewhere), saves(local(elsewhere.family))
    for found, expected in zip(there, here, strict=True):
        same_bits(found, expected)
    # Weights from a file lie at another alignment, with which BLAS rounds a product of one row differently.
    for found, expected in zip(far_lens, lens, strict=True):
        (close if elsewhere.kind == "http" else same_bits)(found, expected)


def test_the_same_table_everywhere(elsewhere: Runtime) -> None:
    assert elsewhere.model.table == local(elsewhere.family).model.table


def test_a_graph_in_a_file(runtime: Runtime, tmp_path: Any) -> None:
    with runtime.model.record() as t:
        runtime.layers[0].output[:, -1] *= 0.5
        runtime.model.logits[:, -1].save("last")
    path = tmp_path / "graph.safetensors"
    t.graph.save(path)
    loaded = gw.Graph.load(path)
    assert loaded == t.graph
    assert hash(loaded) == hash(t.graph)
    same_bits(
        runtime.model.run(loaded, checks.RAGGED)["last"], runtime.model.run(t.graph, checks.RAGGED)["last"]
    )  # fmt: skip


def test_a_different_constant_is_a_different_graph(here: Runtime) -> None:
    def graph(constant: torch.Tensor) -> gw.Graph:
        with here.model.record() as t:
            (here.layers[0].output * constant).save("x")
        return t.graph

    one = graph(torch.ones(32))
    assert one == graph(torch.ones(32))
    assert one != graph(torch.ones(32).double())
    assert one != graph(torch.cat([torch.ones(31), torch.tensor([-1.0])]))
    assert graph(torch.zeros(32)) != graph(-torch.zeros(32))


def test_the_map_of_places_is_of_the_whole_model(here: Runtime) -> None:
    assert set(map_of(here.family).order) == set(names_of(here))
