from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwnas.robustness.evaluate import Accuracy
from hwnas.training.robust import RobustSettings
from hwnas.training.robust_guard import Guard, attacks_of, is_collapsed

pytestmark = pytest.mark.usefixtures("one_thread")


def share(value: float, n: int = 128) -> Accuracy:
    return Accuracy.from_counts(round(value * n), n)


GOOD = (share(0.5), share(0.45))
COLLAPSED = (share(0.8), share(0.02))


@given(fgsm=st.floats(0, 1), kept=st.floats(0.8, 1.0), n=st.integers(1, 2000))
def test_a_network_that_keeps_most_under_pgd_is_not_collapsed(
    fgsm: float, kept: float, n: int
) -> None:
    assert not is_collapsed(share(fgsm, n), share(fgsm * kept, n))


@given(fgsm=st.floats(0.4, 1), kept=st.floats(0.0, 0.1), n=st.integers(100, 2000))
def test_a_network_that_loses_nearly_all_is(fgsm: float, kept: float, n: int) -> None:
    assert is_collapsed(share(fgsm, n), share(fgsm * kept, n))


@given(first=st.integers(0, 6), second=st.integers(0, 6))
def test_a_handful_of_images_is_no_evidence(first: int, second: int) -> None:
    assert not is_collapsed(Accuracy.from_counts(first, 6), Accuracy.from_counts(second, 6))


def test_attacks_grow_stronger_from_collapse_to_collapse() -> None:
    settings = RobustSettings(fast_variant="fgsm-rs", fast_noise=0.5, attack_steps=4)
    names = [str(attack) for attack in attacks_of("fast-at", settings)]
    assert names == [
        "fgsm-rs with noise 0.5 eps", "n-fgsm with noise 2 eps", "PGD-2", "PGD-3", "PGD-4",
    ]  # fmt: skip
    noisy = attacks_of("fast-at", RobustSettings(attack_steps=1))
    assert [str(attack) for attack in noisy] == [
        "n-fgsm with noise 2 eps", "n-fgsm with noise 3 eps", "PGD-2",
    ]  # fmt: skip
    assert noisy[-1].settings.trades_beta == RobustSettings().trades_beta
    assert len(attacks_of("trades", RobustSettings())) == 1


def network(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    fill(layer, value)
    return layer


def fill(layer: nn.Linear, value: float) -> None:
    nn.init.constant_(layer.weight, value)


def test_a_collapse_takes_weights_and_optimizer_back_to_the_last_good_epoch() -> None:
    layer = network(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    step()
    guard = Guard("fast-at", RobustSettings(), {"network": layer, "optimizer": optimizer})
    assert not guard.judge(*GOOD)
    good = layer.weight.item()
    momentum = optimizer.state[layer.weight]["momentum_buffer"].clone()
    for level in (1, 2):  # twice: what was kept must not have been changed by going on from it
        step()
        step()
        assert layer.weight.item() != good
        assert guard.judge(*COLLAPSED)
        assert guard.level == level
        assert layer.weight.item() == good
        assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"], momentum)
        assert guard.attack == attacks_of("fast-at", RobustSettings())[level]


def test_the_last_attack_stays_however_often_it_collapses() -> None:
    guard = Guard("fast-at", RobustSettings(), {})
    for _ in range(20):
        guard.judge(*COLLAPSED)
    assert str(guard.attack) == "PGD-3"


def test_before_any_good_epoch_only_the_attack_changes() -> None:
    layer = network(1.0)
    guard = Guard("fast-at", RobustSettings(), {"network": layer})
    fill(layer, 2.0)
    assert guard.judge(*COLLAPSED)
    assert layer.weight.item() == 2.0
    assert guard.level == 1


def test_a_guard_goes_on_from_a_checkpoint() -> None:
    layer = network(1.0)
    guard = Guard("fast-at", RobustSettings(), {"network": layer})
    guard.judge(*GOOD)
    guard.judge(*COLLAPSED)
    buffer = io.BytesIO()
    torch.save(guard.state_dict(), buffer)
    resumed = Guard("fast-at", RobustSettings(), {"network": layer})
    resumed.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert resumed.attack == guard.attack
    fill(layer, 5.0)
    resumed.judge(*COLLAPSED)
    assert layer.weight.item() == 1.0
