"""Cost tables: points in, predictions out, never negative, and files that are refused when they are something else."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glassworks as gw
from glassworks.errors import InputError, WireError
from glassworks.measure import CostTable, Point, fingerprint

COSTS = st.floats(0, 1e-2).map(lambda x: round(x, 6))


@settings(max_examples=50, deadline=None)
@given(start=st.floats(1e-4, 1), row=COSTS, context=COSTS, prefill=COSTS)
def test_known_costs_come_back_exactly(start, row, context, prefill):
    table = CostTable.of_iterations(iteration_s=start, row_s=row, context_token_s=context, prefill_token_s=prefill)
    for rows, attended, prompt in ((1, 0, 0), (7, 1234, 56), (300, 10**6, 4096)):
        found = table.predict_s("iteration", rows=rows, context_tokens=attended, prefill_tokens=prompt)
        assert found == pytest.approx(start + row * rows + context * attended + prefill * prompt, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(points=st.lists(st.tuples(st.integers(0, 100), st.floats(0, 10), st.integers(0, 10**9)), min_size=1, max_size=8))
def test_no_cost_is_negative(points):
    table = CostTable(tuple(Point("copy", {"blocks": n}, seconds, size) for n, seconds, size in points))
    assert all(cost >= 0 for cost in table.costs_s("copy").values())
    assert table.predict_s("copy", blocks=3) >= 0
    assert table.predict_bytes("copy", blocks=3) >= 0


def test_small_points_count_as_much_as_large_ones():
    points = [
        Point("read", {"bytes": n}, 1e-4 + n * 1e-9 * (1.1 if n > 10**8 else 1)) for n in (0, 10**3, 10**6, 10**9)
    ]
    assert CostTable(tuple(points)).predict_s("read", bytes=0) == pytest.approx(1e-4, rel=0.1)


def test_bytes_are_fitted_too():
    table = CostTable().add(Point("layer", {"rows": 1}, 1.0, 300), Point("layer", {"rows": 3}, 2.0, 700))
    assert table.predict_bytes("layer", rows=10) == pytest.approx(2100)
    assert table.predict_s("layer", rows=10) == pytest.approx(5.5)
    assert "layer: 0.5 s + 0.5 s a rows" in repr(table)


def test_what_was_not_measured_is_refused_by_name():
    table = gw.CostTable((Point("copy", {"blocks": 1}, 1.0),))
    with pytest.raises(InputError, match="nothing called 'sweep' was measured; this table has 'copy'"):
        table.predict_s("sweep", blocks=1)
    with pytest.raises(InputError, match="measured by 'blocks'; got 'rows'"):
        table.predict_s("copy", rows=1)
    with pytest.raises(InputError, match="finite number"):
        table.predict_s("copy", blocks=-1)
    with pytest.raises(InputError, match="share their features"):
        table.add(Point("copy", {"bytes": 1}, 1.0))


@pytest.mark.parametrize("bad", [{"seconds": -1}, {"seconds": float("nan")}, {"what": ""}, {"features": {"": 1}}])
def test_a_point_is_checked(bad):
    with pytest.raises(InputError):
        Point(**{"what": "copy", "features": {"blocks": 1}, "seconds": 1.0, **bad})


def test_a_file_gives_the_table_back(tmp_path):
    table = CostTable((Point("copy", {"blocks": 2, "again": 1}, 0.5, 7),), fingerprint())
    table.save(tmp_path / "table.json")
    assert CostTable.load(tmp_path / "table.json") == table


DAMAGE = [
    lambda body: body.update(format="other"), lambda body: body.update(points={}), lambda body: body.pop("hardware"),
    lambda body: body.update(hardware=[1]), lambda body: body["points"].append(3),
    lambda body: body["points"][0].update(seconds="1"), lambda body: body["points"][0].update(features=None),
    lambda body: body["points"][0].update(more=1), lambda body: body["points"][0].update(seconds=-1),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "table.json"
    CostTable((Point("copy", {"blocks": 2}, 0.5),)).save(path)
    body = json.loads(path.read_text())
    damage(body)
    path.write_text(json.dumps(body))
    with pytest.raises(WireError, match=r"table\.json"):
        CostTable.load(path)


def test_what_is_no_file_or_no_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        CostTable.load(tmp_path / "absent.json")
    (tmp_path / "x").write_text("{")
    with pytest.raises(WireError, match="not a cost table"):
        CostTable.load(tmp_path / "x")


def test_the_fingerprint_names_the_hardware_without_torch():
    found = fingerprint()
    assert found["cores"] >= 1
    assert found["torch"]
    assert found["accelerator"] is None
    code = "import sys, glassworks.schedule.simulate, glassworks.measure as m; m.fingerprint(); "
    code += "assert not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
