"""Conditions, states, stops and logs, on every family and runtime."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from laws import conditions, control
from laws.runtimes import Runtime

FEW = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
)  # fmt: skip
MANY = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)  # fmt: skip


@pytest.mark.parametrize("law", [*conditions.WRITTEN, *control.WRITTEN], ids=lambda law: law.__name__)
def test_law(runtime: Runtime, law: Any) -> None:
    law(runtime)


def test_gradients_flow_through_the_branch_taken(differentiable: Runtime) -> None:
    control.gradients_flow_through_the_branch_taken(differentiable)


@FEW
@given(data=st.data())
def test_a_condition_is_an_if(runtime: Runtime, data: Any) -> None:
    conditions.a_condition_is_an_if(runtime, data.draw(conditions.lines(2)))


@FEW
@given(data=st.data())
def test_a_state_is_a_variable(runtime: Runtime, data: Any) -> None:
    control.a_state_is_a_variable(runtime, data.draw(control.assignments()))


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_conditions_are_ifs(runtime: Runtime, data: Any) -> None:
    conditions.a_condition_is_an_if(runtime, data.draw(conditions.lines(3)))


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_states_are_variables(runtime: Runtime, data: Any) -> None:
    control.a_state_is_a_variable(runtime, data.draw(control.assignments()))
