"""Clocks: one that moves by itself, one that moves when told."""

import pytest

from glassworks.errors import InputError
from glassworks.measure import RealClock, VirtualClock


def test_a_virtual_clock_moves_only_when_told():
    clock = VirtualClock(5.0)
    assert clock.now_s() == clock.now_s() == 5.0
    clock.advance(0.5)
    clock.sleep(1.0)
    assert clock.now_s() == 6.5


def test_a_real_clock_moves_by_itself():
    clock = RealClock()
    before_s = clock.now_s()
    clock.advance(1000.0)
    clock.sleep(0.01)
    assert 0.01 <= clock.now_s() - before_s < 100


@pytest.mark.parametrize("clock", [RealClock(), VirtualClock()])
@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_time_does_not_run_backwards(clock, seconds):
    with pytest.raises(InputError, match="moves forward"):
        clock.advance(seconds)
    with pytest.raises(InputError, match="moves forward"):
        clock.sleep(seconds)
