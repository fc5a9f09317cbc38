"""How jobs and services look in print: a line or a table, from what a service said.

Nothing here asks anything, and nothing here fails: what is not known, or is of another form than expected, is left out.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from glassworks.units import spelled

if TYPE_CHECKING:
    from glassworks.client.status import LabStatus, ModelStatus, Usage


def job_line(id: str, told: Mapping[str, Any]) -> str:
    """`<job job-x running, 40 %>`."""
    state = told.get("status")
    parts = [] if state is None else [str(state)]
    position, progress, start_s = told.get("position"), told.get("progress"), told.get("expected_start_s")
    if state == "queued" and _is_number(position):
        parts.append(f"{position} before it")
    if state == "queued" and _is_number(start_s):
        parts.append(f"in about {duration(start_s)}")
    if state not in (None, "queued", "done", "failed", "cancelled") and _is_number(progress):
        parts.append(f"{100 * progress:.0f} %")
    return f"<job {' '.join([id, *parts[:1]])}{''.join(f', {part}' for part in parts[1:])}>"


def job_table(told: Sequence[Mapping[str, Any]]) -> str:
    """A line for each job."""
    if not told:
        return "no jobs"
    now_s = time.time()
    return table(["job", "model", "status", "progress", "begun"], [_job_row(own, now_s) for own in told])


def _job_row(own: Mapping[str, Any], now_s: float) -> list[str]:
    created_s, progress = own.get("created_s"), own.get("progress")
    state = str(own.get("status", ""))
    if state == "queued" and _is_number(own.get("position")):
        state += f" ({own['position']} before it)"
    age = f"{duration(max(0.0, now_s - created_s))} ago" if _is_number(created_s) else ""
    done = f"{100 * progress:.0f} %" if _is_number(progress) else ""
    return [str(own.get("id", "")), str(own.get("model", "")), state, done, age]


def status_table(status: "LabStatus") -> str:
    """The models, and below them what this key has and may have."""
    rows = [_model_row(model) for model in status.models]
    models = table(["model", "state", "queued", "running", "rows a pass"], rows)
    return "\n".join([f"glassworks {status.version}", "", models, "", *_usage_lines(status.you)])


def _model_row(model: "ModelStatus") -> list[str]:
    rows = "" if model.rows_per_pass is None else f"{model.rows_per_pass:.1f}"
    return [model.name, model.state, str(model.queued), str(model.running), rows]


def _usage_lines(you: "Usage") -> list[str]:
    own = [
        f"you: {you.name}, {you.queued} queued, {you.running} running",
        f"     {you.compute_s_today:.1f} s of compute today, {spelled(you.stored_bytes)} stored",
    ]
    limits = [f"{name} {spelled(int(v)) if name.endswith('bytes') else f'{v:g}'}" for name, v in you.limits.items()]
    return [*own, f"     limits: {', '.join(limits)}"] if limits else own


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what stands in them."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def duration(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and value == value
