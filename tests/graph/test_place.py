"""Placement: passes, events, what is dropped, what is refused."""

import pytest

import glassworks as gw
from families import FAMILIES
from glassworks.graph.place import place


@pytest.fixture(scope="module")
def model():
    return gw.wrap(FAMILIES["gpt2"]())


def plan_of(model, write, *, invokes=1, **options):
    with model.record() as t:
        write()
    return t.graph, place(t.graph, model.table, row_counts=[1] * invokes, **options)


def test_a_pass_ends_after_the_last_event_that_is_needed(model):
    graph, plan = plan_of(model, lambda: model.layers[0].output.save())
    [forward] = plan.forwards
    assert forward.actions[-1][0] == model.table["layers.0.output"].order
    assert len(graph) == 2


def test_what_nothing_needs_is_dropped(model):
    def write():
        (model.layers[2].output * 2).sum()
        model.layers[2].mlp.output[:] = 0
        model.layers[0].output.save()

    graph, plan = plan_of(model, write)
    assert {graph.nodes[n].target for n in plan.needed if graph.nodes[n].kind != "save"} == {"layers.0.output"}


def test_nothing_saved_nothing_runs(model):
    _, plan = plan_of(model, lambda: model.layers[1].output * 2)
    assert plan.forwards == ()


def test_a_chain_of_doublings_is_no_tree_of_doublings(model):
    def write():
        value = model.layers[0].output
        for _ in range(300):
            value = value + value
        value.save()

    _, plan = plan_of(model, write)
    assert len(plan.forwards) == 1


def test_passes_follow_the_flow_between_invokes(model):
    with model.trace() as t:
        with t.invoke([1, 2, 3]):
            late = model.layers[2].output
        with t.invoke([4, 5, 6]):
            model.layers[0].output = late
            later = model.layers[2].output
        with t.invoke([7, 8, 9]):
            model.layers[0].output = later
            model.logits.save()
    assert t.forwards == 3


def test_flow_with_the_forward_pass_takes_one(model):
    with model.trace() as t:
        with t.invoke([1, 2, 3]):
            early = model.layers[0].output
        with t.invoke([4, 5, 6]):
            model.layers[2].output = early
            model.layers[0].output.save()
        with t.invoke([7, 8, 9]):
            model.layers[0].output = early
            model.logits.save()
    assert t.forwards == 1


def test_a_cycle_names_both_lines(model):
    with pytest.raises(gw.OrderError) as caught, model.trace([1, 2, 3]):
        late = model.layers[2].output
        model.layers[0].output = late
        model.logits.save()
    assert str(caught.value).count("test_place.py:") == 2
    assert "layers.0.output" in str(caught.value)
    assert "layers.2.output" in str(caught.value)


def test_an_equal_structure_takes_the_plan_that_is_there(model):
    plans = []
    for index in (0, 1):

        def write(index=index):
            model.layers[1].output[:, index].save()

        plans.append(plan_of(model, write)[1])
    assert plans[0] is plans[1]


def test_bounded_rows_split_a_pass(model):
    with model.trace(rows=2) as t:
        for k in range(5):
            with t.invoke([1, 2, 3 + k]):
                model.layers[0].output.save()
    assert t.forwards == 3
