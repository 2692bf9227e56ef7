from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from hwnas.space.energy import channel_energy, observed

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
seeds = st.integers(0, 2**32)


def features_of(
    seed: int, layout: torch.memory_format, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3, 7, 4, 5, generator=generator, dtype=torch.float64)
    return features.to(dtype).contiguous(memory_format=layout)


def mask_of(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@LAYOUTS
@given(seed=seeds, masked=st.booleans())
def test_an_energy_is_the_sum_of_squares(
    layout: torch.memory_format, seed: int, masked: bool
) -> None:
    features, mask = features_of(seed, layout), mask_of(seed) if masked else None
    weighted = features if mask is None else features * mask[:, None, None]
    torch.testing.assert_close(channel_energy(features, mask), weighted.square().sum(1))


@LAYOUTS
@pytest.mark.parametrize("wanted", ["features", "mask", "both"])
def test_gradients_are_right(layout: torch.memory_format, wanted: str) -> None:
    features = features_of(0, layout, torch.float64).requires_grad_(wanted != "mask")
    mask = mask_of(0, torch.float64).requires_grad_(wanted != "features")
    assert torch.autograd.gradcheck(channel_energy, (features, mask))
    assert torch.autograd.gradcheck(observed, (features, mask))
    if wanted == "features":
        assert torch.autograd.gradcheck(channel_energy, (features,))
        assert torch.autograd.gradcheck(observed, (features,))


@LAYOUTS
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradients_of_features_and_energy_come_together(
    layout: torch.memory_format, masked: bool
) -> None:
    mask = mask_of(1) if masked else None
    kernel = torch.randn(5, 7, 3, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(3, 4, 5)
    gradients: list[torch.Tensor] = []
    for goes_on in (True, False):
        features = features_of(1, layout).requires_grad_()
        passed, energy = observed(features, mask)
        used = functional.conv2d(passed if goes_on else features, kernel, padding=1)
        loss = used.square().sum() + (weights * energy).sum()
        gradients += torch.autograd.grad(loss, features)
    torch.testing.assert_close(*gradients)


def test_features_go_on_as_they_are() -> None:
    features = features_of(2, torch.channels_last)
    passed, _ = observed(features, mask_of(2))
    assert passed.data_ptr() == features.data_ptr()
    assert passed.stride() == features.stride()


def test_features_that_are_not_observed_have_their_gradient() -> None:
    features = features_of(3, torch.channels_last).requires_grad_()
    passed, _ = observed(features, mask_of(3))
    (gradient,) = torch.autograd.grad((2 * passed).sum(), features)
    assert torch.equal(gradient, torch.full_like(features, 2.0))


@LAYOUTS
@pytest.mark.parametrize("masked", [False, True])
def test_a_sum_over_narrow_types_is_wide(layout: torch.memory_format, masked: bool) -> None:
    # Summed up in bfloat16, each square beyond the 256th would be lost.
    generator = torch.Generator().manual_seed(4)
    exact = 1.0 + torch.rand(2, 4096, 2, 3, generator=generator)
    features = exact.bfloat16().contiguous(memory_format=layout).requires_grad_()
    mask = torch.rand(4096, generator=generator) if masked else None
    energy = channel_energy(features, mask)
    assert energy.dtype == torch.float32
    weighted = exact if mask is None else exact * mask[:, None, None]
    torch.testing.assert_close(energy, weighted.square().sum(1), rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(energy.sum(), features)
    assert gradient.dtype == torch.bfloat16
    expected = 2 * exact * (1.0 if mask is None else mask.square()[:, None, None])
    torch.testing.assert_close(gradient.float(), expected, rtol=0.03, atol=1e-6)


def test_the_gradient_of_a_mask_is_summed_up_wide() -> None:
    features = torch.ones(64, 2, 8, 8, dtype=torch.bfloat16)
    mask = torch.tensor([1.0, 0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(channel_energy(features, mask).sum(), mask)
    assert gradient.tolist() == [2 * 64 * 64, 64 * 64]
