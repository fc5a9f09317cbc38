# ruff: noqa: SIM117
"""`gw.log` and `gw.apply`: what is said and done while the model runs."""

from typing import Any

import numpy as np
import pytest
import torch

import glassworks as gw
from glassworks.graph import logs
from lines import here, told

PROMPT = [5, 6, 7, 8]


class Scaled(torch.autograd.Function):
    """Doubles; its gradient is not that of doubling."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 10


class Same(torch.autograd.Function):
    """Gives what it is given, and turns the gradient round: nothing of it would be recorded."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


# Logs.


def test_a_log_prints_a_line_when_it_runs(model: Any, capsys: Any) -> None:
    with model.trace(PROMPT) as t:
        line = here(+1)
        gw.log("norm", model.layers[0].output[:, -1].norm(dim=-1), "of", model.ids, torch.tensor(1.5), 2)
        gw.log("late", model.logits.isnan().sum())
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith("test_effects.py:")
    assert out[0].split(": ", 1)[1].startswith("norm float32[1] [")
    assert out[0].endswith("of int64[1, 4] [5, 6, 7, 8] 1.5 2")
    assert out[1].endswith(": late 0")
    assert t.logs[0].line == line
    assert t.logs[0].step is None
    assert t.forwards == 1


def test_a_remote_log_is_printed_here_once(model: Any, capsys: Any) -> None:
    remote = gw.connect(model)
    with remote.generate([PROMPT, PROMPT], max_new_tokens=2, eos_token_id=[]) as t, t.steps[1]:
        gw.log("ids", remote.ids)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    assert "step 1, rows 0 to 1: ids int64[2, 1]" in out[0]
    assert t.logs[0].line.startswith(__file__)


def test_rows_are_named_where_there_are_several(model: Any) -> None:
    with model.trace() as t:
        for prompt in (PROMPT, PROMPT[:2], PROMPT[:3]):
            with t.invoke(prompt):
                gw.log(model.ids.sum())
    assert sorted(entry.rows for entry in t.logs) == [(0,), (1,), (2,)]
    assert "row 1" in str(next(entry for entry in t.logs if entry.rows == (1,)))


def test_reading_the_result_says_and_does_nothing_twice(model: Any, capsys: Any) -> None:
    calls: list[int] = []
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t, t.prompt:
        gw.log("once", model.ids)
        gw.apply(lambda ids: calls.append(1), model.ids, effect=True)
    assert t.result.shape == (1, 3)
    assert len(t.logs) == 1
    assert capsys.readouterr().out.count("once") == 1
    assert calls == [1]


def test_an_entry_is_one_short_line(model: Any, capsys: Any) -> None:
    with model.trace(PROMPT) as t:
        gw.log("a\nb\x1b[31m", *[model.logits] * 80)
    assert len(t.logs[0].text) <= logs.CHARACTERS
    assert t.logs[0].text.startswith("a\\nb\\x1b[31m")
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(gw.GraphError, match="at most 2000 characters"), model.trace(PROMPT):
        gw.log("x" * 2001)


def test_a_full_log_says_so(model: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(logs, "ENTRIES", 3)
    with model.trace(PROMPT) as t:
        for k in range(6):
            gw.log(k)
    assert [entry.text for entry in t.logs] == ["0", "1", "2", "the log is full: 3 entries"]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_logs_of_many_prompts_name_their_rows(model: Any) -> None:
    with model.record() as t:
        gw.log("sum", model.ids.sum(-1))
    results = model.run(t.graph, [PROMPT] * 5, rows=2)
    assert [entry.rows for entry in results.logs] == [(0, 1), (2, 3), ()]
    assert not results


def test_a_log_outside_a_block_is_refused() -> None:
    with pytest.raises(gw.ScopeError, match=r"gw\.log belongs inside a block"):
        gw.log("nothing")


# Functions of the author's.


def double(value: torch.Tensor) -> torch.Tensor:
    assert type(value) is torch.Tensor
    return value * 2


def test_a_function_is_called_whole(model: Any) -> None:
    with model.trace(PROMPT) as t:
        h = model.layers[1].output
        found = gw.apply(double, h).save()
        arrays = gw.apply(lambda value: np.sort(value.numpy(), axis=-1), h).save()
        number = gw.apply(lambda value, times: float(value.sum()) * times, h, 3).save()
        low, high = gw.apply(lambda value: (value.amin(-1), value.amax(-1)), h, results=2)
        ends = [low.save(), high.save()]
        model.layers[2].output = gw.apply(double, h)
        written, kept = model.layers[2].output.save(), h.save()
    assert "apply double(%0)" in str(t.graph)
    assert torch.equal(found.value, kept.value * 2)
    assert torch.equal(written.value, kept.value * 2)
    assert torch.equal(arrays.value, kept.value.sort(-1).values)
    assert number.item() == pytest.approx(3 * float(kept.sum()))
    assert torch.equal(ends[0].value, kept.value.amin(-1))
    assert torch.equal(ends[1].value, kept.value.amax(-1))


def test_what_it_changes_in_place_is_its_own(model: Any) -> None:
    with model.trace(PROMPT):
        expected = model.logits.save()
    with model.trace(PROMPT):
        h = model.layers[1].output
        gw.apply(lambda value: value.zero_(), h, effect=True)
        found, kept = model.logits.save(), h.save()
    assert torch.equal(found.value, expected.value)
    assert bool(kept.value.any())


def test_it_is_called_only_if_needed_or_an_effect(model: Any) -> None:
    calls: list[str] = []
    with model.trace(PROMPT):
        gw.apply(lambda value: calls.append("pure"), model.layers[1].output)
        gw.apply(lambda value: calls.append("effect"), model.layers[1].output, effect=True)
    assert calls == ["effect"]
    with model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]) as t, t.steps[1:]:
        gw.apply(lambda: calls.append("step"), effect=True)
    assert calls == ["effect", "step", "step"]


def test_its_own_gradient_is_used(model: Any) -> None:
    w = torch.ones(32, requires_grad=True)
    with model.trace(PROMPT) as t:
        h = model.layers[1].output
        t.backward(gw.apply(lambda value, weight: Scaled.apply(value) * weight, h, w).sum())
        found, kept = h.grad.save(), h.save()
    assert torch.equal(found.value, torch.full((1, 4, 32), 10.0))
    torch.testing.assert_close(w.grad, 2 * kept.value.sum((0, 1)))


@pytest.mark.parametrize("kind", [Scaled, Same])
@pytest.mark.parametrize("grad", [True, False])
def test_an_autograd_function_without_apply_is_refused(model: Any, kind: Any, grad: bool) -> None:
    advice = rf"gw\.apply\({kind.__name__}\.apply"
    with torch.set_grad_enabled(grad), pytest.raises(gw.UnknownOperation, match=advice) as caught:
        with model.trace(PROMPT):
            h = model.layers[1].output
            line = here(+1)
            kind.apply(h).save()
    assert line in told(caught.value)
    with model.trace(PROMPT):
        h = model.layers[1].output
        found, kept = gw.apply(kind.apply, h).save(), h.save()
    assert torch.equal(found.value, kind.apply(kept.value))


def test_a_remote_run_and_a_file_refuse_it_by_its_line(model: Any, tmp_path: Any) -> None:
    remote = gw.connect(model)
    with pytest.raises(gw.GraphError, match=r"gw\.apply\(double\)") as caught, remote.trace(PROMPT):
        line = here(+1)
        gw.apply(double, remote.layers[1].output).save()
    assert line in told(caught.value)
    with model.record() as t:
        line = here(+1)
        gw.apply(double, model.layers[1].output).save("x")
    with pytest.raises(gw.GraphError, match="stored or sent") as caught:
        t.graph.save(tmp_path / "graph.safetensors")
    assert line in told(caught.value)
    assert not list(tmp_path.iterdir())
    assert model.run(t.graph, PROMPT)["x"].shape == (1, 4, 32)
    again = gw.Graph(t.graph.nodes, t.graph.lines, t.graph.constants, 1, 0, (torch.neg,))
    assert again != t.graph


def test_its_shape_is_not_known_before_it_runs(model: Any) -> None:
    for use in (lambda v: v.shape, len, list, lambda v: v.topk(2)):
        with pytest.raises(gw.GraphError, match=r"results=") as caught, model.trace(PROMPT):
            line = here(+1)
            found = gw.apply(double, model.layers[1].output)
            use(found)
        assert line in told(caught.value)


def test_what_it_gives_must_be_tensors(model: Any) -> None:
    def run(function: Any, **options: Any) -> str:
        with pytest.raises(gw.GraphError) as caught, model.trace(PROMPT):
            found = gw.apply(function, model.layers[1].output, **options)
            (found[0] if "results" in options else found).save()
        assert __file__ in told(caught.value)
        return str(caught.value)

    assert "expects a tensor, got str" in run(lambda value: "text")
    assert "write results=3" in run(lambda value: (1, 2, 3))
    assert "expects a tuple of 2 tensors, got 1 results" in run(lambda value: (value,), results=2)
    assert "expects a tuple of 2 tensors, got Tensor" in run(double, results=2)


def test_what_is_no_function_is_refused(model: Any) -> None:
    with pytest.raises(gw.GraphError, match="takes a function"), model.trace(PROMPT):
        gw.apply(model.layers[1].output, double)
    with pytest.raises(gw.GraphError, match="at least 1"), model.trace(PROMPT):
        gw.apply(double, model.layers[1].output, results=0)


def test_an_edit_may_call_one(model: Any) -> None:
    with model.edit() as edited:
        edited.layers[1].output = gw.apply(double, edited.layers[1].output)
    with model.trace(PROMPT):
        expected = model.layers[1].output.save()
    with edited.trace(PROMPT):
        found = gw.apply(double, edited.layers[1].output).save()
    assert torch.equal(found.value, expected.value * 4)


def test_an_error_in_it_carries_the_line(model: Any) -> None:
    def broken(value: torch.Tensor) -> torch.Tensor:
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside") as caught, model.trace(PROMPT):
        line = here(+1)
        gw.apply(broken, model.layers[1].output).save()
    assert line in told(caught.value)


def test_in_a_live_block_they_happen_at_once_and_once(model: Any, capsys: Any) -> None:
    calls: list[float] = []
    with model.live(PROMPT) as t:
        h = model.layers[1].output
        gw.log("norm", h.norm())
        assert "norm" in capsys.readouterr().out
        gw.apply(lambda value: calls.append(float(value.sum())), h, effect=True)
        assert len(calls) == 1
        twice = gw.apply(Scaled.apply, h)
        assert twice.shape == (1, 4, 32)
        t.backward(twice.sum())
        found = h.grad.save()
        with pytest.raises(gw.UnknownOperation, match=r"gw\.apply\(Same\.apply"):
            Same.apply(h)
    assert torch.equal(found.value, torch.full((1, 4, 32), 10.0))
    assert len(calls) == len(t.logs) == 1
    assert "norm" not in capsys.readouterr().out


def test_a_live_block_of_an_edited_model(model: Any) -> None:
    with model.edit() as edited:
        edited.layers[1].output = gw.apply(double, edited.layers[1].output)
        gw.cond(edited.ids.sum() > 0, lambda: gw.log("edit"), lambda: None)
    with edited.live(PROMPT) as t:
        found = edited.layers[1].output.save()
        edited.logits.sum()
    with model.trace(PROMPT):
        expected = model.layers[1].output.save()
    assert torch.equal(found.value, expected.value * 2)
    assert [entry.text for entry in t.logs] == ["edit"]
