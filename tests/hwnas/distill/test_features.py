from __future__ import annotations

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.distill.features import FeatureTaps

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))


def hooks_of(module: nn.Module) -> int:
    return sum(len(each._forward_hooks) for each in module.modules())


def test_taps_give_what_the_layers_gave_in_the_order_of_the_names() -> None:
    model = network()
    inputs = torch.randn(5, 2)
    with FeatureTaps(model, ("1.1", "0", "1.0")) as taps:
        output = model(inputs)
        last, first, middle = taps.take()
    assert torch.equal(last, output)
    assert torch.equal(first, model[0](inputs))
    assert torch.equal(middle, model[0](inputs).relu())


def test_taps_keep_the_last_pass_and_forget_what_was_taken() -> None:
    model = network()
    with FeatureTaps(model, ("0",)) as taps:
        model(torch.zeros(1, 2))
        model(torch.ones(3, 2))
        assert taps.take()[0].shape == (3, 3)
        with pytest.raises(KeyError):
            taps.take()


def test_hooks_are_gone_afterward_even_after_an_error() -> None:
    model = network()
    with FeatureTaps(model, ("0", "1.0")):
        assert hooks_of(model) == 2
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError), FeatureTaps(model, ("0",)):
        model(torch.zeros(1, 7))
    assert hooks_of(model) == 0


def test_taps_let_gradients_pass() -> None:
    model = network()
    with FeatureTaps(model, ("0",)) as taps:
        model(torch.ones(1, 2))
        torch.autograd.backward(taps.take()[0].sum())
    assert model[0].weight.grad is not None


@pytest.mark.parametrize(("name", "hint"), [("1.11", "did you mean `1.1`?"), ("zzz", "")])
def test_an_unknown_layer_names_the_nearest(name: str, hint: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=f"Sequential has no layer `{name}`") as caught:
        FeatureTaps(model, ("0", name))
    assert caught.value.hint == hint
    assert hooks_of(model) == 0
