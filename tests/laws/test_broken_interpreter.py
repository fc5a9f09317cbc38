"""The laws can fail: each of these interpreters is wrong in one way, and a law says so."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from glassworks.engine import live, loop
from glassworks.engine.batch import Batch
from glassworks.run import control as run_control
from glassworks.run import effects, interpret, rows
from glassworks.run.eager import EagerRuntime
from glassworks.run.live import LiveInterpreter
from glassworks.run.rows import Leaf
from glassworks.trace import binding
from laws import checks, conditions, control
from laws.runtimes import Runtime, lived, local

Patch = pytest.MonkeyPatch


def drop_every_write(patch: Patch) -> None:
    patch.setattr(Leaf, "write", lambda self, invoke, value, **options: None)


def drop_early_writes(patch: Patch) -> None:
    write = Leaf.write

    def late_only(self: Leaf, invoke: int, value: Any, **options: Any) -> None:
        if "layers.0." not in self.site.name and ".h.0." not in self.site.name:
            write(self, invoke, value, **options)

    patch.setattr(Leaf, "write", late_only)


def read_without_writes(patch: Patch) -> None:
    """A read that does not see the write before it."""
    read = Leaf.read

    def stale(self: Leaf, invoke: int) -> torch.Tensor:
        pieces, self._pieces = self._pieces, {}
        found = read(self, invoke)
        self._pieces = pieces
        return found

    patch.setattr(Leaf, "read", stale)


def shift_rows(patch: Patch) -> None:
    slots = Batch.slots

    def shifted(self: Batch, *args: Any, **options: Any) -> Any:
        found, count = slots(self, *args, **options), len(self.numbers)
        return {k: slot if slot.whole else replace(slot, start=(slot.start + 1) % count) for k, slot in found.items()}

    patch.setattr(Batch, "slots", shifted)


def shift_positions(patch: Patch) -> None:
    positions = Batch.positions.fget
    patch.setattr(Batch, "positions", property(lambda self: positions(self) + 1))


def write_into_what_was_read(patch: Patch) -> None:
    """Neither a save nor a write makes a copy, so a later write reaches what was saved."""

    def updated(base: torch.Tensor, views: Any, value: torch.Tensor) -> torch.Tensor:
        part = base
        for name, args, kwargs, *which in views:
            part = binding.bound(name)(part, *args, **dict(kwargs))
            part = part[which[0]] if which else part
        part.copy_(value)
        return base

    patch.setattr(interpret, "_kept", lambda value, node: value.detach())
    patch.setattr(interpret, "_updated", updated)
    own = binding.bound

    def in_place(name: str) -> Any:
        return _set if name == "setitem_" else own(name)

    patch.setattr(binding, "bound", in_place)


def _set(base: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    base[index] = value
    return base


def keep_views(patch: Patch) -> None:
    patch.setattr(interpret, "_kept", lambda value, node: value.detach())


def forget_to_cast(patch: Patch) -> None:
    patch.setattr(rows, "_fitted", lambda value, like: value.expand(like.shape))


def forget_to_broadcast(patch: Patch) -> None:
    patch.setattr(rows, "_fitted", lambda value, like: value.to(like.dtype))


def show_padding(patch: Patch) -> None:
    patch.setattr(Leaf, "_mask", lambda self, slot, value: None)


def attend_to_padding(patch: Patch) -> None:
    step = EagerRuntime.step

    def unmasked(self: EagerRuntime, args: Any, inputs: Any, *rest: Any) -> Any:
        masks = {name: torch.ones_like(value) for name, value in inputs.items() if name == "attention_mask"}
        return step(self, args, {**inputs, **masks}, *rest)

    patch.setattr(EagerRuntime, "step", unmasked)


def ignore_saves_order(patch: Patch) -> None:
    """Saves of a generation come back in reverse."""
    save = interpret.Interpreter._save

    def reversed_save(self: Any, n: int) -> None:
        save(self, n)
        kept = self.frame.saves[self.frame.nodes[n].target]
        if isinstance(kept, list):
            kept.insert(0, kept.pop())

    patch.setattr(interpret.Interpreter, "_save", reversed_save)


def go_on_as_it_was(patch: Patch) -> None:
    """A live pass that goes on with what came, not with what was written."""
    patch.setattr(LiveInterpreter, "settled", lambda self, raw, leaves: raw)


def forget_gradients_that_were_written(patch: Patch) -> None:
    kept = live._kept_by_nobody

    def plain(node: Any) -> Any:
        if node.kind == "grad_write":
            return node._replace(kind="call", target="detach", args=node.args[:1], deps=node.deps[:1])
        return kept(node)

    patch.setattr(live, "_kept_by_nobody", plain)


def forget_what_was_written_before(patch: Patch) -> None:
    """A live pass whose site is looked at anew by each line."""
    perform = LiveInterpreter.perform

    def anew(self: LiveInterpreter, n: int) -> None:
        self.open(self.event, self._raw) if hasattr(self, "_raw") else None
        perform(self, n)

    patch.setattr(LiveInterpreter, "perform", anew)


def ignore_guards(patch: Patch) -> None:
    """Every branch is run; of what two of them save, the last is kept."""
    patch.setattr(run_control, "is_taken", lambda node, value_of: True)


def decide_otherwise(patch: Patch) -> None:
    holds = run_control.holds
    patch.setattr(run_control, "holds", lambda predicate: not holds(predicate))


def carry_a_step_late(patch: Patch) -> None:
    """What a step assigned comes into force one step later than it should."""
    commit, waiting = run_control.commit, {}

    def late(interpreter: Any) -> None:
        held = waiting.pop(id(interpreter), {})
        before = dict(interpreter.states)
        commit(interpreter)
        waiting[id(interpreter)] = dict(interpreter.states)
        interpreter.states.clear()
        interpreter.states.update({**before, **held})

    patch.setattr(loop, "commit", late)


def never_carry(patch: Patch) -> None:
    patch.setattr(loop, "commit", lambda interpreter: None)


def share_a_state(patch: Patch) -> None:
    """All invokes have the state of the last."""
    commit = run_control.commit

    def shared(interpreter: Any) -> None:
        commit(interpreter)
        for (state, _), value in list(interpreter.states.items()):
            interpreter.states.update({key: value for key in interpreter.states if key[0] == state})

    patch.setattr(loop, "commit", shared)


def never_stop(patch: Patch) -> None:
    patch.setattr(loop, "stopped", lambda interpreter, like: torch.zeros_like(like))


def stop_every_row(patch: Patch) -> None:
    stopped = run_control.stopped
    patch.setattr(loop, "stopped", lambda interpreter, like: stopped(interpreter, like).any().expand_as(like))


def say_nothing(patch: Patch) -> None:
    patch.setattr(effects, "say", lambda interpreter, n: None)


BROKEN: list[tuple[Callable[[Patch], None], Callable[[Runtime], Any]]] = [
    (drop_every_write, partial(checks.a_write_matters, name="layers.1.output")),
    (drop_every_write, checks.a_patch_across_invokes),
    (drop_early_writes, partial(checks.a_write_matters, name="layers.0.output")),
    (read_without_writes, checks.a_write_is_cast_and_broadcast),
    (shift_rows, checks.a_sweep_is_its_runs),
    (shift_rows, checks.nan_stays_where_it_was_written),
    (shift_positions, checks.saving_is_the_plain_forward),
    (write_into_what_was_read, checks.what_was_saved_keeps_what_it_was),
    (keep_views, checks.a_save_has_memory_of_its_own),
    (forget_to_cast, checks.a_write_is_cast_and_broadcast),
    (forget_to_broadcast, checks.a_write_is_cast_and_broadcast),
    (show_padding, checks.several_prompts_in_one_invoke),
    (attend_to_padding, checks.several_prompts_in_one_invoke),
    (ignore_saves_order, checks.steps_read_and_write),
    (ignore_guards, conditions.each_branch),
    (ignore_guards, conditions.a_branch_that_is_not_taken_costs_and_raises_nothing),
    (decide_otherwise, conditions.each_branch),
    (decide_otherwise, conditions.a_condition_is_asked_at_each_step),
    (carry_a_step_late, control.a_state_goes_from_step_to_step),
    (share_a_state, control.a_state_in_company),
    (never_carry, control.a_state_goes_from_step_to_step),
    (never_stop, control.a_stop_is_an_end_token),
    (never_stop, control.a_stop_of_one_invoke),
    (stop_every_row, control.a_stop_is_an_end_token),
    (say_nothing, control.a_log_is_the_same_everywhere),
]


BROKEN_LIVE: list[tuple[Callable[[Patch], None], Callable[[Runtime], Any]]] = [
    (go_on_as_it_was, partial(checks.a_write_matters, name="layers.1.output")),
    (go_on_as_it_was, checks.skipping_is_replacing),
    (forget_gradients_that_were_written, checks.gradients_are_the_traces),
    (forget_what_was_written_before, checks.a_write_is_cast_and_broadcast),
    (drop_every_write, partial(checks.a_write_matters, name="layers.1.output")),
    (read_without_writes, checks.a_write_is_cast_and_broadcast),
    (write_into_what_was_read, checks.what_was_saved_keeps_what_it_was),
    (keep_views, checks.a_save_has_memory_of_its_own),
    (forget_to_cast, checks.a_write_is_cast_and_broadcast),
    (show_padding, checks.padding_reads_as_zero),
    (shift_positions, checks.saving_is_the_plain_forward),
]


def name_of(pair: Any) -> str:
    function = pair.func if isinstance(pair, partial) else pair
    return str(function.__name__)


@pytest.mark.parametrize(("breaks", "law"), BROKEN, ids=name_of)
def test_a_law_notices(monkeypatch: Patch, breaks: Callable[[Patch], None], law: Callable[[Runtime], Any]) -> None:
    notices(monkeypatch, breaks, law, local("gpt2"))


@pytest.mark.parametrize(("breaks", "law"), BROKEN_LIVE, ids=name_of)
def test_a_law_notices_live(monkeypatch: Patch, breaks: Callable[[Patch], None], law: Callable[[Runtime], Any]) -> None:
    notices(monkeypatch, breaks, law, lived("gpt2"))


def notices(
    monkeypatch: Patch, breaks: Callable[[Patch], None], law: Callable[[Runtime], Any], runtime: Runtime
) -> None:
    law(runtime)
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, RuntimeError, IndexError)):
            law(runtime)
    law(runtime)
