"""What "equal" means in a law."""

from typing import Any

import torch


def same_bits(found: Any, expected: Any) -> None:
    found, expected = plain(found), plain(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype
    where = (
        (found != expected) & ~(found.isnan() & expected.isnan()) if found.is_floating_point() else found != expected
    )
    assert not bool(where.any()), f"largest difference {float((found - expected).abs().max())}"


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Within 1e-5 of the expected in float32, of its largest element; NaN where NaN is expected.

    Elements that stand for infinity, as masked scores do, are a matter of where, not of how much.
    """
    found, expected = plain(found), plain(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype
    if not found.is_floating_point():
        assert torch.equal(found, expected)
        return
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(), expected.nan_to_num()
    assert torch.equal(found.abs() > 1e30, expected.abs() > 1e30)
    assert torch.equal(found[found.abs() > 1e30].sign(), expected[expected.abs() > 1e30].sign())
    found, expected = found[found.abs() <= 1e30], expected[expected.abs() <= 1e30]
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    difference = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert difference <= tolerance * scale, f"differs by {difference} at a scale of {scale}"


def differs(found: Any, expected: Any, by: float = 1e-3) -> None:
    assert float((plain(found) - plain(expected)).abs().max()) > by


def plain(tensor: Any) -> torch.Tensor:
    value = tensor if isinstance(tensor, torch.Tensor) else tensor.value
    assert isinstance(value, torch.Tensor)
    return value
