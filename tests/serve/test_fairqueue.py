"""Whose turn it is: fair shares between keys by weight, age and priority within one; nobody is forgotten."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassworks.serve.fairqueue import AGE_S, FairQueue


@dataclass(frozen=True)
class Item:
    id: str
    owner: str
    created_s: float = 0.0
    priority: int = 0
    tokens: int = 10


def items(owner: str, count: int, **changes) -> list[Item]:
    return [Item(f"{owner}{k}", owner, created_s=float(k), **changes) for k in range(count)]


def taken(queue: FairQueue[Item], count: int) -> list[Item]:
    return [item for _ in range(count) if (item := queue.take()) is not None]


def test_one_key_is_served_in_order() -> None:
    queue: FairQueue[Item] = FairQueue()
    own = items("a", 5)
    for item in reversed(own):
        queue.add(item)
    assert taken(queue, 6) == own


def test_a_thousand_of_one_hold_up_one_of_another_by_one() -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items("a", 1000):
        queue.add(item)
    taken(queue, 100)
    queue.add(Item("b0", "b", created_s=2000.0))
    assert "b0" in [item.id for item in taken(queue, 2)]


def test_who_was_away_has_saved_nothing_up() -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items("a", 500):
        queue.add(item)
    taken(queue, 400)
    for item in items("b", 100):
        queue.add(item)
    assert Counter(item.owner for item in taken(queue, 100))["a"] >= 45


@pytest.mark.parametrize("weight", [1, 3])
def test_shares_are_in_proportion_to_weights(weight: int) -> None:
    queue: FairQueue[Item] = FairQueue(lambda owner: {"a": float(weight)}.get(owner, 1.0))
    for item in items("a", 200) + items("b", 200):
        queue.add(item)
    counts = Counter(item.owner for item in taken(queue, 100))
    assert abs(counts["a"] - 100 * weight / (weight + 1)) <= 2


def test_shares_count_tokens_not_jobs() -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items("a", 200, tokens=90) + items("b", 200, tokens=10):
        queue.add(item)
    counts = Counter(item.owner for item in taken(queue, 100))
    assert 8 * counts["a"] <= counts["b"] <= 10 * counts["a"]


def test_priorities_age() -> None:
    queue: FairQueue[Item] = FairQueue()
    low = Item("low", "a", created_s=0.0, priority=-2)
    soon = Item("soon", "a", created_s=AGE_S, priority=0)
    late = Item("late", "a", created_s=3 * AGE_S, priority=0)
    for item in (late, low, soon):
        queue.add(item)
    assert [item.id for item in taken(queue, 3)] == ["soon", "low", "late"]


def test_a_job_that_comes_back_has_its_old_place_and_pays_once() -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items("a", 3) + items("b", 3):
        queue.add(item)
    first = queue.take()
    assert first is not None
    queue.add(first)
    order = [item.owner for item in taken(queue, 6)]
    assert Counter(order[:2]) == {"a": 1, "b": 1}


def test_only_keys_that_may_are_served() -> None:
    queue: FairQueue[Item] = FairQueue()
    for item in items("a", 2) + items("b", 2):
        queue.add(item)
    assert [queue.take(lambda owner: owner == "b").owner for _ in range(2)] == ["b", "b"]  # type: ignore[union-attr]
    assert queue.take(lambda owner: owner == "b") is None


Steps = st.lists(
    st.tuples(st.sampled_from(["add", "take", "remove", "end"]), st.sampled_from("abc"), st.integers(-3, 3))
)


@given(Steps)
def test_nothing_is_lost_or_twice_and_positions_are_possible(steps: list[tuple[str, str, int]]) -> None:
    queue: FairQueue[Item] = FairQueue()
    waiting: dict[str, Item] = {}
    under_way: dict[str, Item] = {}
    for n, (what, owner, priority) in enumerate(steps):
        if what == "add":
            item = Item(f"{owner}{n}", owner, created_s=float(n), priority=priority)
            waiting[item.id] = item
            queue.add(item)
        elif what == "take":
            taken_now = queue.take()
            assert (taken_now is None) == (not waiting)
            if taken_now is not None:
                own = [item for item in waiting.values() if item.owner == taken_now.owner]
                assert taken_now == min(own, key=lambda item: (item.created_s - AGE_S * item.priority, item.created_s))
                under_way[taken_now.id] = waiting.pop(taken_now.id)
        elif what == "remove" and waiting:
            item = next(iter(waiting.values()))
            assert queue.remove(item)
            assert not queue.remove(item)
            del waiting[item.id]
        elif what == "end" and under_way:
            queue.end(under_way.popitem()[0])
        assert len(queue) == len(waiting)
        assert set(queue.owners) == {item.owner for item in waiting.values()}
        for item in waiting.values():
            position = queue.position(item)
            assert position is not None
            assert 0 <= position < len(waiting)
        assert all(queue.position(item) is None for item in under_way.values())
