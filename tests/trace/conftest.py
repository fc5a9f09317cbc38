"""A tiny model for the cases that one family is enough for."""

import pytest
import torch

import glassworks as gw
from families import gpt2


@pytest.fixture(scope="module")
def bare() -> torch.nn.Module:
    return gpt2()


@pytest.fixture(scope="module")
def model(bare: torch.nn.Module) -> gw.Model:
    return gw.wrap(bare)
