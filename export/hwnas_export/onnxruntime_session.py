"""Settings of an ONNX Runtime session, by name, as a bundle's sidecars hold them.

None of them changes what is computed. Whether one makes a model faster depends on the model and on
the processor, so `hwnas export` measures it; without settings a session is what latency tables were
measured with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime as ort

from hwnas.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

SESSION_SETTINGS: dict[str, tuple[str, ...]] = {
    "graph_optimization": ("all", "extended"),
    "memory_arena": ("on", "off"),
    "memory_pattern": ("on", "off"),
    "spinning": ("on", "off"),
}
"""Values of each setting; the first is what holds where it is not given.

`graph_optimization`: `extended` leaves out the rewriting into blocked layouts. `memory_arena`: keep
freed memory for the next call. `memory_pattern`: plan a call's memory by the one before.
`spinning`: threads that wait for work keep their core busy; of matter with several threads alone.
"""

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def session_candidates(threads: int) -> tuple[dict[str, str], ...]:
    """Return settings that are worth trying beside the usual ones, each a departure by itself.

    Args:
        threads: Threads within an operator.
    """
    return tuple(
        {name: other}
        for name, (_, other) in SESSION_SETTINGS.items()
        if name != "spinning" or threads > 1
    )


def session_options(threads: int, session: Mapping[str, str]) -> ort.SessionOptions:
    """Return ONNX Runtime's options for settings by name.

    Args:
        threads: Threads within an operator.
        session: Values of `SESSION_SETTINGS`; empty for the usual ones.

    Raises:
        ConfigError: A setting or its value is unknown.
    """
    check_session(session)
    usual = {name: values[0] for name, values in SESSION_SETTINGS.items()}
    chosen = usual | dict(session)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS[chosen["graph_optimization"]]
    options.enable_cpu_mem_arena = chosen["memory_arena"] == "on"
    options.enable_mem_pattern = chosen["memory_pattern"] == "on"
    if chosen["spinning"] == "off":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def check_session(session: Mapping[str, str]) -> None:
    """Check settings by name.

    Raises:
        ConfigError: A setting or its value is unknown.
    """
    for name, value in session.items():
        if name not in SESSION_SETTINGS:
            similar = nearest(name, SESSION_SETTINGS)
            known = f"known: {', '.join(SESSION_SETTINGS)}"
            raise ConfigError(
                f"ONNX Runtime's sessions have no setting `{name}` here",
                hint=f"did you mean `{similar[0]}`? {known}" if similar else known,
            )
        if value not in SESSION_SETTINGS[name]:
            raise ConfigError(
                f"a session's `{name}` is {' or '.join(SESSION_SETTINGS[name])}, not {value!r}"
            )
