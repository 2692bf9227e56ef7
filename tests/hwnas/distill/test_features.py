from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hwnas.core.errors import ConfigError
from hwnas.distill.features import FeatureTaps, Tap

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))


def hooks_of(module: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


class Twice(nn.Module):
    """Calls one activation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.relu(self.second(self.relu(self.first(inputs))))
        return hidden


def test_taps_give_what_the_layers_gave_in_the_order_of_the_names() -> None:
    model = network()
    inputs = torch.randn(5, 2)
    with FeatureTaps(model, ("1.1", "0", "1.0", "1.1:input")) as taps:
        output = model(inputs)
        last, first, middle, taken = taps.take()
    assert torch.equal(last, output)
    assert torch.equal(first, model[0](inputs))
    assert torch.equal(middle, model[0](inputs).relu())
    assert torch.equal(taken, middle)


def test_each_call_of_a_layer_has_its_own_tap() -> None:
    model = Twice()
    inputs = torch.randn(5, 2)
    with FeatureTaps(model, ("relu#2", "relu#1", "relu:input#2")) as taps:
        for _ in range(2):  # calls are counted anew in every pass
            output = model(inputs)
            second, first, before = taps.take()
            assert torch.equal(second, output)
            assert torch.equal(first, model.first(inputs).relu())
            assert torch.equal(before, model.second(first))


def test_a_layer_that_runs_twice_must_say_which_call() -> None:
    model = Twice()
    with (
        pytest.raises(ConfigError, match="`relu` is called more than once") as caught,
        FeatureTaps(model, ("relu",)),
    ):
        model(torch.randn(5, 2))
    assert "relu#1" in caught.value.hint
    assert hooks_of(model) == 0


def test_what_works_in_place_later_does_not_change_what_was_made_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    inputs = torch.randn(50, 2)
    with torch.no_grad(), FeatureTaps(model, ("0",), reduce=lambda each: each.sum(1)) as taps:
        model(inputs)
        (kept,) = taps.take()
    assert torch.equal(kept, model[0](inputs).sum(1))


def test_taps_keep_the_last_pass_and_forget_what_was_taken() -> None:
    model = network()
    with FeatureTaps(model, ("0",)) as taps:
        model(torch.zeros(1, 2))
        model(torch.ones(3, 2))
        assert taps.take()[0].shape == (3, 3)
        with pytest.raises(ConfigError, match="layer `0` of Sequential did not run"):
            taps.take()


def test_hooks_are_gone_afterward_even_after_an_error() -> None:
    model = network()
    with FeatureTaps(model, ("0", "1.0")):
        assert hooks_of(model) == 3  # and one that begins a pass
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


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: Tensor) -> Any:
            return inputs, inputs

    with (
        pytest.raises(ConfigError, match="`0` gives tuple, not a tensor"),
        FeatureTaps(model := nn.Sequential(Pair()), ("0",)),
    ):
        model(torch.ones(1, 2))


@pytest.mark.parametrize(("name", "hint"), [("1.11", "did you mean `1.1`?"), ("zzz", "")])
def test_an_unknown_layer_names_the_nearest(name: str, hint: str) -> None:
    model = network()
    with pytest.raises(ConfigError, match=f"Sequential has no layer `{name}`") as caught:
        FeatureTaps(model, ("0", name))
    assert caught.value.hint == hint
    assert hooks_of(model) == 0


@given(
    module=st.from_regex(r"[a-z_0-9]+(\.[a-z_0-9]+)*", fullmatch=True),
    entering=st.booleans(),
    call=st.none() | st.integers(1, 99),
)
def test_a_tap_is_read_as_it_was_written(module: str, entering: bool, call: int | None) -> None:
    tap = Tap(module=module, entering=entering, call=call)
    assert Tap.parse(str(tap)) == tap
