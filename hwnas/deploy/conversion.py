"""Models of engines, converted from a network's portable one."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from hwnas.deploy.engine_targets import model_precision
from hwnas.deploy.making import EngineModel
from hwnas_profilers.targets import RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.deploy.records import CalibrationData

    Calibration = tuple[NDArray[np.float32], CalibrationData]


@final
class Conversion:
    """Converts a model for whatever target is asked for: the `model_of` of `make_engines`.

    Quantized models keep their head in float32: with quantized logits they seem robust, as attacks
    that follow scores are blinded.

    Args:
        source: The serialized model in FP32.
        calibration: Gives the images that ranges come from, and the record of them; asked for where
            something is quantized.
    """

    def __init__(self, source: bytes, calibration: Callable[[], Calibration]) -> None:
        self._source = source
        self._calibration = calibration

    def __call__(self, target: str) -> EngineModel:
        """Return a target's model.

        Raises:
            ExportError: It cannot be converted.
            DataError: The calibration images tell no ranges.
        """
        import onnx

        from hwnas_export.precision import onnx_in_precision

        precision = model_precision(target)
        if precision == "fp32":
            return EngineModel(content=self._source)
        images, record = self._calibration() if precision == "int8" else (None, None)
        model = onnx_in_precision(
            onnx.load_model_from_string(self._source),
            precision,
            calibration=images,
            symmetric=RUNTIMES[target].symmetric,
            float_head=True,
        )
        return EngineModel(content=bytes(model.SerializeToString()), calibration=record)
