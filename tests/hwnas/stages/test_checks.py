from __future__ import annotations

import pytest

from hwnas.core.errors import TargetError
from hwnas.stages.checks import DEPLOYED, check_deployable


@pytest.mark.parametrize("target", DEPLOYED)
def test_targets_that_take_onnx_are_deployed(target: str) -> None:
    check_deployable(target)


def test_a_target_that_can_only_be_profiled_is_said_to_be_so() -> None:
    with pytest.raises(TargetError, match="can be profiled, not deployed"):
        check_deployable("torch-cpu")


def test_an_unknown_target_is_not_said_to_be_profiled() -> None:
    with pytest.raises(TargetError, match="there is no target") as caught:
        check_deployable("onnxruntime-cpu-int9")
    assert "did you mean `onnxruntime-cpu-int8`?" in caught.value.hint
