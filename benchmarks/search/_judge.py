"""The one judge of final ONNX models, whoever made them: latency together, accuracy alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwnas.robustness.evaluate import logits_from_runner
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers.profiler import normal_input
from hwnas_profilers.timing import TimingSettings, time_interleaved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hwnas.data.images import ImageData


def measured_together_ms(models: Sequence[bytes], threads: int) -> list[tuple[float, float]]:
    """Time all final models in shuffled rounds, twice."""
    looks = []
    for seed in range(2):
        runners = [OnnxRuntimeRunner(model, threads=threads) for model in models]
        for runner in runners:
            runner.activate()
        generator = np.random.default_rng(seed)
        samplers = [runner.sampler_on(normal_input(runner, generator)) for runner in runners]
        found = time_interleaved(samplers, TimingSettings.for_networks(seed=seed))
        looks.append([float(np.median(each.samples_us)) / 1e3 for each in found])
        for runner in runners:
            runner.close()
    return list(zip(*looks, strict=True))


def accuracy_of(model: bytes, data: ImageData) -> float:
    """Return a final model's accuracy on the test images."""
    images, labels = data.test.pixels().numpy(), data.test.labels.numpy()
    with OnnxRuntimeRunner(model) as runner:
        logits = logits_from_runner(runner, images, batch=1)
    return float(np.mean(np.argmax(logits, axis=1) == labels))
