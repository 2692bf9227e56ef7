from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from hwnas.training.averaging import BestWeights, averaged_model

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def set_to(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for each in (*module.parameters(), *module.buffers()):
            each.fill_(value)


def value_of(module: nn.Module) -> set[float]:
    """All values of its weights and running statistics."""
    state = module.state_dict()
    tensors = [each for name, each in state.items() if "num_batches" not in name]
    return {round(float(value), 6) for each in tensors for value in each.flatten()}


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9])
def test_the_average_is_what_one_computes_by_hand(decay: float) -> None:
    trained = network()
    averaged = averaged_model(trained, decay)
    values = [1.0, 3.0, -2.0, 5.0]
    expected = values[0]  # the first step is taken as it is
    for step, value in enumerate(values):
        set_to(trained, value)
        averaged.update_parameters(trained)
        if step:
            keep = min(decay, (1 + step) / (10 + step))
            expected = keep * expected + (1 - keep) * value
        # Statistics of batch normalization are averaged as the weights are.
        assert value_of(averaged.module) == {round(expected, 6)}


def test_the_averaged_network_is_in_eval_mode_and_its_own() -> None:
    trained = network().train()
    averaged = averaged_model(trained, 0.5)
    set_to(trained, 1.0)
    averaged.update_parameters(trained)
    set_to(trained, 9.0)
    assert trained.training
    assert not averaged.module.training
    assert value_of(averaged.module) == {1.0}


def test_the_average_goes_on_from_a_checkpoint() -> None:
    whole, resumed, trained = (network() for _ in range(3))
    first, second = averaged_model(whole, 0.9), averaged_model(resumed, 0.9)
    for value in (1.0, 4.0):
        set_to(trained, value)
        first.update_parameters(trained)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    second.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    set_to(trained, -3.0)
    for each in (first, second):
        each.update_parameters(trained)
    assert value_of(first.module) == value_of(second.module)


def test_the_best_weights_are_kept_whatever_comes_after() -> None:
    trained, best = network(), BestWeights()
    waited = []
    for epoch, (value, score) in enumerate([(1.0, 0.2), (2.0, 0.5), (3.0, 0.5), (4.0, 0.1)]):
        set_to(trained, value)
        best.offer(trained, score, epoch)
        waited.append(best.waited)
    assert (best.score, best.epoch, waited) == (0.5, 1, [0, 0, 1, 2])
    best.load_into(trained)
    assert value_of(trained) == {2.0}


def test_the_best_weights_come_back_from_a_checkpoint() -> None:
    trained, best, resumed = network(), BestWeights(), BestWeights()
    set_to(trained, 2.0)
    best.offer(trained, 0.5, 3)
    best.offer(trained, 0.4, 4)
    buffer = io.BytesIO()
    torch.save(best.state_dict(), buffer)
    set_to(trained, 7.0)
    resumed.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    resumed.load_into(trained)
    assert (resumed.score, resumed.epoch, resumed.waited) == (0.5, 3, 1)
    assert value_of(trained) == {2.0}


def test_without_an_offer_a_network_keeps_its_own() -> None:
    trained = network()
    set_to(trained, 2.0)
    BestWeights().load_into(trained)
    assert value_of(trained) == {2.0}
