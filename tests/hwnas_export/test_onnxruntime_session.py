"""Settings of a session: which there are, that they reach ONNX Runtime, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnxruntime as ort
import pytest
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.onnxruntime_session import (
    SESSION_SETTINGS,
    check_session,
    session_candidates,
    session_options,
)


@pytest.fixture(scope="module")
def model() -> bytes:
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5))
    return bytes(onnx_from_module(module, (2, 3, 8, 8)).SerializeToString())


def test_without_settings_a_session_is_what_tables_were_measured_with() -> None:
    options, usual = session_options(3, {}), ort.SessionOptions()
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.enable_cpu_mem_arena == usual.enable_cpu_mem_arena
    assert options.enable_mem_pattern == usual.enable_mem_pattern


def test_each_setting_reaches_onnxruntime() -> None:
    off = {name: values[-1] for name, values in SESSION_SETTINGS.items()}
    options = session_options(1, off)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_candidates_are_no_more_than_a_handful_and_never_the_usual() -> None:
    for threads in (1, 2):
        found = session_candidates(threads)
        assert 0 < len(found) < 6
        for each in found:
            check_session(each)
            ((name, value),) = each.items()
            assert value != SESSION_SETTINGS[name][0]
    assert {"spinning": "off"} not in session_candidates(1)
    assert {"spinning": "off"} in session_candidates(2)


def test_no_setting_changes_what_is_computed(model: bytes) -> None:
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    outputs = []
    for values in product(*SESSION_SETTINGS.values()):
        session = dict(zip(SESSION_SETTINGS, values, strict=True))
        with OnnxRuntimeRunner(model, session=session) as runner:
            outputs.append(runner.infer(images))
    for each in outputs:
        np.testing.assert_allclose(each, outputs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        ({"memory_aren": "on"}, r"no setting `memory_aren`.*\n.*did you mean `memory_arena`\?"),
        ({"": "on"}, r"no setting ``.*\n.*known: graph_optimization"),
        ({"memory_arena": "yes"}, r"`memory_arena` is on or off, not 'yes'"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_is_compiled(
    session: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        OnnxRuntimeRunner(b"", session=session)
