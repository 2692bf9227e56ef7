from __future__ import annotations

import pytest
import torch
from torch import nn

from hwnas.space.batch_norm import SynchronizedBatchNorm2d, batch_norm, synchronized


def both(dtype: torch.dtype = torch.float32) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    plain = nn.BatchNorm2d(5, dtype=dtype)
    nn.init.uniform_(plain.weight)
    nn.init.uniform_(plain.bias)
    other = nn.BatchNorm2d(5, dtype=dtype)
    other.load_state_dict(plain.state_dict())
    return plain, synchronized(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alone_it_is_batch_normalization(dtype: torch.dtype) -> None:
    plain, other = both(dtype)
    assert isinstance(other, SynchronizedBatchNorm2d)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for _ in range(3):
        # A mean of 30 deviations: sums of squares would cancel out.
        values = 0.01 * torch.randn(16, 5, 6, 7, dtype=dtype) + 0.3
        one, two = (values.clone().requires_grad_() for _ in range(2))
        gradient = torch.randn(16, 5, 6, 7, dtype=dtype)
        first, second = plain(one), other(two)
        torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)
        first.backward(gradient)
        second.backward(gradient)
        assert one.grad is not None
        assert two.grad is not None
        scale = float(one.grad.abs().max())
        torch.testing.assert_close(one.grad / scale, two.grad / scale, atol=tolerance, rtol=0)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(
                other.state_dict()[name],
                value,
                atol=tolerance,
                rtol=tolerance,
                msg=name,
            )
    plain.eval()
    other.eval()
    torch.testing.assert_close(plain(values), other(values))


def test_a_folded_scale_and_shift_take_the_place_of_the_layers() -> None:
    plain, other = both()
    values = torch.randn(8, 5, 3, 3)
    mask = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0])
    expected = plain(values) * mask[:, None, None]
    for norm in (nn.BatchNorm2d(5), synchronized(nn.BatchNorm2d(5))):
        norm.load_state_dict(other.state_dict())
        found = batch_norm(norm, values, norm.weight * mask, norm.bias * mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert int(norm.state_dict()["num_batches_tracked"]) == 1


def test_only_batch_normalization_is_made_another() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    names = list(module.state_dict())
    synchronized(module)
    assert [type(part).__name__ for part in module] == [
        "Conv2d",
        "SynchronizedBatchNorm2d",
        "GroupNorm",
    ]
    assert list(module.state_dict()) == names


def test_an_empty_part_of_a_batch_is_no_error() -> None:
    _, other = both()
    empty = torch.zeros(0, 5, 4, 4)
    assert other.eval()(empty).shape == (0, 5, 4, 4)
