"""Law 5 can fail: each of these engines is wrong in one way, and random schedules say so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.test_schedules import check_schedule, requests_of
from glassworks.engine import facts
from glassworks.engine.work import PackedWork
from glassworks.memory import blocks as memory_blocks
from glassworks.memory import kv, links
from glassworks.run import packed, packing
from glassworks.run.rows import Leaf

Patch = pytest.MonkeyPatch
SEEDS = range(8)


def ignore_fences(patch: Patch) -> None:
    """Copies count before they have happened."""
    patch.setattr(links._Timed, "passed", lambda self: True)


def free_before_the_copy(patch: Patch) -> None:
    """Blocks are handed to others while they are still being copied."""
    send = kv.KVStore._send

    def early(self: kv.KVStore, table: Any, link: Any, source: Any, destination: Any, pairs: Any, where: Any) -> None:
        send(self, table, link, source, destination, pairs, where)
        if table.where is kv.Where.LEAVING:
            self._let_go(table.blocks)
            table.blocks = []

    patch.setattr(kv.KVStore, "_send", early)


def swap_one_block_too_few(patch: Patch) -> None:
    copy = memory_blocks.copy_blocks
    patch.setattr(kv, "copy_blocks", lambda a, b, pairs: copy(a, b, pairs[:-1] if len(pairs) > 1 else pairs))


def blocks_are_not_cleared(patch: Patch) -> None:
    """What stands behind a row's last token is whatever was left there."""
    take = memory_blocks.Pool.take
    patch.setattr(
        memory_blocks.Pool, "take", lambda self, count, *, reserved=0, clear=True: take(
            self, count, reserved=reserved, clear=False
        )
    )  # fmt: skip


def views_off_by_one(patch: Patch) -> None:
    slots = packing._slots

    def shifted(first: int, count: int, context: int, *, whole: bool = False) -> Any:
        return slots(max(first - 1, 0), count, context, whole=whole)

    patch.setattr(packing, "_slots", shifted)


def drop_every_write(patch: Patch) -> None:
    patch.setattr(Leaf, "write", lambda self, invoke, value, **options: None)


def see_one_token_too_few(patch: Patch) -> None:
    mask = packed.Group.mask

    def short(self: packed.Group, width: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        own = replace(self, contexts=(self.contexts - 1).clamp(min=1), masks={})
        return mask(own, width, window, dtype)

    patch.setattr(packed.Group, "mask", short)


def positions_start_anew(patch: Patch) -> None:
    """A chunk is computed as if it were the beginning."""
    forward = packing.PackedRuntime._forward
    patch.setattr(
        packing.PackedRuntime, "_forward", lambda self, ids, positions, kept: forward(
            self, ids, [max(at - 1, 0) for at in positions], kept
        )
    )  # fmt: skip


def cut_what_graphs_look_at(patch: Patch) -> None:
    """Prompts that a graph looks at are computed in chunks, and again."""
    patch.setattr(facts, "_at_prompt", lambda plan, n: False)


def nodes_run_again(patch: Patch) -> None:
    """Tokens that are computed again are shown to the graph again."""
    patch.setattr(PackedWork, "_looks_on", lambda self: False)


def forget_a_graph_for_a_step(patch: Patch) -> None:
    part = PackedWork.part

    def without(self: PackedWork, count: int) -> Any:
        made = part(self, count)
        if made is not None and self.rows.step == 2:
            made[0].interpreter = None
        return made

    patch.setattr(PackedWork, "part", without)


BROKEN = [
    ignore_fences, free_before_the_copy, swap_one_block_too_few, blocks_are_not_cleared, views_off_by_one,
    drop_every_write, see_one_token_too_few, positions_start_anew, cut_what_graphs_look_at, nodes_run_again,
    forget_a_graph_for_a_step,
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=lambda own: own.__name__)
def test_a_broken_engine_is_noticed(broken: Callable[[Patch], None], monkeypatch: Patch) -> None:
    for seed in SEEDS:
        requests_of("llama", seed)  # what they give alone is known before anything breaks
    broken(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017 - wrong tokens, or an error on the way
        for seed in SEEDS:
            check_schedule("llama", seed, slow_link=True)


def test_the_same_schedules_hold_otherwise() -> None:
    for seed in SEEDS:
        check_schedule("llama", seed, slow_link=True)
