from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.distill.gumbel import gumbel_softmax, temperature_at

pytestmark = pytest.mark.usefixtures("one_thread")

temperatures = st.floats(0.055, 5)
seeds = st.integers(0, 2**32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=seeds, temperature=temperatures, hard=st.booleans())
def test_samples_are_distributions(seed: int, temperature: float, hard: bool) -> None:
    logits = torch.randn(4, 5, 6, generator=generator(seed)) * 5
    samples = gumbel_softmax(logits, temperature, generator(seed), hard=hard)
    assert samples.shape == logits.shape
    assert (samples >= 0).all()
    torch.testing.assert_close(samples.sum(-1), torch.ones(4, 5))


@given(seed=seeds, temperature=temperatures)
def test_a_hard_sample_is_one_hot_with_the_relaxed_gradient(seed: int, temperature: float) -> None:
    weights = torch.arange(5.0)
    samples, gradients = [], []
    for hard in (False, True):
        logits = torch.linspace(-1, 1, 5).repeat(3, 1).requires_grad_()
        drawn = gumbel_softmax(logits, temperature, generator(seed), hard=hard)
        gradients.append(torch.autograd.grad((drawn * weights).sum(), logits)[0])
        samples.append(drawn)
    soft, decided = samples
    assert set(decided.flatten().tolist()) == {0.0, 1.0}  # exactly
    assert decided.sum(-1).tolist() == [1, 1, 1]
    assert torch.equal(decided.argmax(-1), soft.argmax(-1))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [0.055, 1.0, 5.0])
def test_winners_are_drawn_with_the_softmax_of_the_logits(temperature: float) -> None:
    logits = torch.tensor([1.5, 0.5, -0.5, -3.0])
    draws = 20_000
    samples = gumbel_softmax(logits.expand(draws, -1), temperature, generator(0))
    shares = samples.argmax(-1).bincount(minlength=4) / draws
    torch.testing.assert_close(shares, torch.softmax(logits, 0), atol=0.015, rtol=0)


def test_a_low_temperature_decides_and_a_high_one_does_not() -> None:
    logits = torch.zeros(2_000, 4)
    cold, warm = (gumbel_softmax(logits, each, generator(0)).amax(-1) for each in (0.055, 5.0))
    assert cold.mean() > 0.95
    assert warm.mean() < 0.4


def test_a_generator_draws_the_same_again_and_the_global_one_is_left_alone() -> None:
    logits = torch.zeros(3, 4)
    before = torch.get_rng_state()
    first = gumbel_softmax(logits, 1.0, generator(7))
    assert torch.equal(first, gumbel_softmax(logits, 1.0, generator(7)))
    assert not torch.equal(first, gumbel_softmax(logits, 1.0, generator(8)))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_drawn_where_the_generator_is() -> None:
    # The meta device stands for a GPU: a CPU's generator cannot draw there.
    logits = torch.zeros(3, 4, device="meta")
    source = generator(7)
    samples = gumbel_softmax(logits, 1.0, source, hard=True)
    assert samples.device == logits.device
    gumbel_softmax(torch.zeros(3, 4), 1.0, expected := generator(7))
    assert torch.equal(source.get_state(), expected.get_state())


def test_noise_is_what_it_always_was() -> None:
    samples = gumbel_softmax(torch.zeros(4), 1.0, generator(0))
    uniform = torch.rand(4, generator=generator(0))
    assert torch.equal(samples, torch.softmax(-torch.log(-torch.log(uniform)), 0))


def test_noise_is_always_finite() -> None:
    samples = gumbel_softmax(torch.zeros(1_000_000, 2), 0.055, generator(0))
    assert samples.isfinite().all()


@given(epochs=st.integers(2, 300), start=st.floats(0.5, 10), ratio=st.floats(0.001, 0.9))
def test_the_temperature_falls_from_start_to_end(epochs: int, start: float, ratio: float) -> None:
    end = start * ratio
    schedule = [temperature_at(each, epochs, start=start, end=end) for each in range(epochs)]
    assert schedule[0] == pytest.approx(start)
    assert schedule[-1] == pytest.approx(end)
    assert schedule == sorted(schedule, reverse=True)


def published_temperature(epoch: int) -> float:
    return 5 * math.exp(-0.045 * epoch)


def test_the_published_schedule_is_one_of_ours() -> None:
    # As released: 5 in the first of 100 epochs, and exp(-0.045) times that after each.
    for epoch in range(100):
        ours = temperature_at(epoch, 100, start=5.0, end=published_temperature(99))
        assert ours == pytest.approx(published_temperature(epoch), rel=1e-12)


def test_the_default_schedule_ends_where_the_published_one_does() -> None:
    # It is there an epoch earlier: it differs by a few percent on the way.
    assert temperature_at(99, 100) == pytest.approx(published_temperature(100), rel=0.01)
    for epoch in range(100):
        assert temperature_at(epoch, 100) == pytest.approx(published_temperature(epoch), rel=0.06)


def test_a_search_of_one_epoch_starts_warm() -> None:
    assert temperature_at(0, 1) == 5.0
