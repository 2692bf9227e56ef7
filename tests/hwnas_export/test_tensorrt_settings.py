"""How engines may be built, which needs no TensorRT to be said."""

from __future__ import annotations

from typing import Any

import pytest

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError
from hwnas_export.tensorrt_engine import DEFAULT_SETTINGS, EngineSettings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimization_level": -1}, "0 to 5, not -1"),
        ({"optimization_level": 6}, "0 to 5, not 6"),
        ({"batches": (0, 1, 2)}, "positive and in order"),
        ({"batches": (2, 1, 4)}, "positive and in order"),
        ({"batches": (1, 8, 4)}, "positive and in order"),
        ({"compute_capabilities": ("sm_86",)}, "`sm_86` is no compute capability"),
        ({"compute_capabilities": ("8.6", "89")}, "`89` is no compute capability"),
        ({"compute_capabilities": ("8.6", "8.6")}, "named twice"),
        ({"workspace_mib": 0}, "0 MiB holds nothing"),
        ({"workspace_mib": -5}, "-5 MiB holds nothing"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineSettings(**settings)
    text = encode_json(settings)
    with pytest.raises(ConfigError, match=words):
        decode_json(text, EngineSettings, source="a sidecar")


@pytest.mark.parametrize(
    "settings",
    [DEFAULT_SETTINGS, EngineSettings(compute_capabilities=("8.6", "12.0"), workspace_mib=256)],
)
def test_settings_survive_a_file(settings: EngineSettings) -> None:
    assert decode_json(encode_json(settings), EngineSettings, source="a sidecar") == settings
