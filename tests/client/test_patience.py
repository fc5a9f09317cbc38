"""Patience by a clock that is told the time: how long, in which steps, and when it begins anew."""

import pytest

from glassworks.client.patience import Patience


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_it_runs_from_the_first_failure_of_a_row() -> None:
    clock = Clock()
    patience = Patience(10.0, now_s=clock)
    clock.now_s = 1000.0
    assert patience.pause_s() is not None
    clock.now_s = 1009.9
    assert patience.pause_s() is not None
    clock.now_s = 1010.0
    assert patience.pause_s() is None


def test_it_begins_anew_when_something_has_come() -> None:
    clock = Clock()
    patience = Patience(10.0, now_s=clock)
    assert patience.pause_s() is not None
    clock.now_s += 9.0
    patience.restored()
    clock.now_s += 9.0
    found = patience.pause_s()
    assert found is not None
    assert found <= 0.15


def test_pauses_grow_to_a_bound_and_differ_between_clients() -> None:
    clients = [Patience(1e6, now_s=Clock()) for _ in range(20)]
    pauses = [[own.pause_s() for _ in range(12)] for own in clients]
    firsts = {each[0] for each in pauses}
    assert len(firsts) > 1
    for each in pauses:
        assert 0.05 <= each[0] <= 0.15
        assert 2.5 <= each[-1] <= 7.5


def test_a_pause_goes_no_further_than_the_patience() -> None:
    clock = Clock()
    patience = Patience(1.0, now_s=clock)
    pauses = [patience.pause_s() for _ in range(10)]
    assert max(pauses) == 1.0


@pytest.mark.parametrize(("at_least_s", "found"), [(3.0, 3.0), (10.0, 10.0), (10.1, None)])
def test_what_the_service_asks_for_is_waited_for_if_it_is_not_too_long(at_least_s: float, found: float | None) -> None:
    assert Patience(10.0, now_s=Clock()).pause_s(at_least_s=at_least_s) == found


def test_there_may_be_none() -> None:
    assert Patience(0.0, now_s=Clock()).pause_s() is None
