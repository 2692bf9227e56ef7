"""The example of a bundle, `run.py`: how to run an engine with numpy and its runtime alone.

It reads what it needs to know from the engine's sidecar, which stays right when figures are added.
The part for TensorRT has been run by nobody yet: there was no GPU with TensorRT at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from hwnas.core.errors import ExportError
from hwnas.deploy.records import ENGINES_FOLDER, SIDECAR_FILE
from hwnas_profilers.targets import parse_target

if TYPE_CHECKING:
    from hwnas.deploy.records import EngineCard

EXAMPLE_FILE = "run.py"

_NEEDS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt and pycuda",
}
"""What the example of a runtime needs, by what a target's name begins with."""

_RTX = "tensorrt-rtx"


def example_py(card: EngineCard) -> str:
    """Write an example that checks an engine's hash, then runs it on one image or several.

    Args:
        card: The engine. The example of one that is still to be built says so when it is run.

    Raises:
        ExportError: There is no example for its runtime.
    """
    target = parse_target(card.target)
    runtime = target.name.partition("-")[0]
    if runtime not in _NEEDS:
        raise ExportError(
            f"there is no example for target `{card.target}`",
            hint=f"there is one for: {', '.join(_NEEDS)}",
        )
    is_rtx = any(name.replace("_", "-").startswith(_RTX) for name in card.packages)
    # `StrictUndefined` would refuse settings that are not given: they are filled up here.
    names = ("graph_optimization", "memory_arena", "memory_pattern", "spinning")
    return _environment().get_template(f"example_{runtime}.py.j2").render(
        target=card.target,
        device=target.runtime.device,
        needs=_NEEDS[runtime].replace("tensorrt", _RTX) if is_rtx else _NEEDS[runtime],
        module="tensorrt_rtx" if is_rtx else "tensorrt",
        file="plan" if runtime == "tensorrt" else "model",
        sidecar=f"{ENGINES_FOLDER}/{card.target}/{SIDECAR_FILE}",
        session={name: card.session.get(name, "") for name in names},
    )  # fmt: skip


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("hwnas.deploy", "."),
        undefined=StrictUndefined,
        autoescape=False,  # what is written is Python, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
