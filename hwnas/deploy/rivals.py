"""Who runs in a race: the engines of a bundle, and what its user would run without them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, final

import numpy as np

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import ExportError
from hwnas.deploy.engines import open_runner
from hwnas.deploy.records import EngineCard
from hwnas_export.runner import Runner, Sampler, host_sampler
from hwnas_profilers.targets import parse_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import onnxruntime as ort
    from numpy.typing import NDArray
    from torch import nn

EAGER = "torch eager"
COMPILED = "torch.compile"
OWN_THREADS = 0
"""Threads of a runtime that is left to choose their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Something that computes a network's logits, not opened yet.

    Attributes:
        name: What it is called in tables.
        kind: An engine of the bundle, or a rival.
        precision: Of its arithmetic.
        threads: Threads that it was given; `OWN_THREADS` where it chooses.
        batches: Smallest and largest batch that it takes.
        open: Makes its runner, not yet active.
    """

    name: str
    kind: Literal["engine", "rival"]
    precision: str
    threads: int
    batches: tuple[int, int] = (1, 65_536)
    open: Callable[[], Runner]


def engines_of(bundle: Path, cards: Sequence[EngineCard]) -> tuple[Contestant, ...]:
    """Return a bundle's engines as contestants, each opened as the bundle's sidecar says."""
    return tuple(
        Contestant(
            name=card.target,
            kind="engine",
            precision=card.precision,
            threads=card.threads,
            batches=(card.batches[0], card.batches[2]),
            open=partial(open_runner, bundle, card),
        )
        for card in cards
    )


def rivals_of(
    twin: nn.Module,
    model: bytes,
    image_shape: tuple[int, int, int],
    *,
    threads: int,
    engines: Sequence[Contestant] = (),
) -> tuple[Contestant, ...]:
    """Return what else could compute a network: torch, and runtimes with the settings they come in.

    Args:
        twin: The network.
        model: The same as an ONNX model in FP32.
        image_shape: (channels, height, width).
        threads: Threads that rivals are given, where they are given any.
        engines: The engines that they run against: none is named twice, and torch runs on a GPU
            too where one of them does.
    """
    from hwnas.deploy.engines import runner_for
    from hwnas_export.torch_runner import TorchRunner

    shape = (None, *image_shape)
    rival = partial(Contestant, kind="rival", precision="fp32")
    given = f"{threads} thread{'' if threads == 1 else 's'}"
    rivals = [
        rival(name=EAGER, threads=threads, open=partial(TorchRunner, twin, shape)),
        rival(name=COMPILED, threads=threads, open=partial(_compiled, twin, shape)),
        rival(
            name=f"ONNX Runtime default, {given}",
            threads=threads,
            open=partial(DefaultOnnxRuntimeRunner, model, threads=threads),
        ),
        rival(
            name="ONNX Runtime default",
            threads=OWN_THREADS,
            open=partial(DefaultOnnxRuntimeRunner, model, threads=OWN_THREADS),
        ),
        rival(
            name="openvino-cpu",
            threads=threads,
            open=partial(runner_for, "openvino-cpu", model, threads=threads),
        ),
    ]
    if any(parse_target(engine.name).runtime.device == "cuda" for engine in engines):
        on_gpu = partial(TorchRunner, twin, shape, device="cuda")
        rivals.append(rival(name="torch-cuda, captured graph", threads=OWN_THREADS, open=on_gpu))
    taken = {engine.name for engine in engines}
    return tuple(each for each in rivals if each.name not in taken)


def only_engine(
    target: str,
    model: bytes,
    *,
    file: str,
    threads: int,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
) -> EngineCard:
    """Describe the one engine of a bundle that was made before bundles had sidecars."""
    digest = sha256_of(model)
    return EngineCard(
        target=target,
        precision="fp32",
        model=file,
        model_sha256=digest,
        source_sha256=digest,
        threads=threads,
        class_names=class_names,
        image_shape=image_shape,
        pixel_range=(0.0, 1.0),
    )


def _compiled(twin: nn.Module, shape: tuple[int | None, int, int, int]) -> Runner:
    """Return a runner that compiles at its first call.

    For one shape of input, and in one piece: past its limit of shapes, and at what it cannot trace,
    torch.compile would go on eagerly and say nothing.
    """
    import torch

    from hwnas_export.torch_runner import TorchRunner

    torch.compiler.reset()
    # What is returned is a module, though torch's types call it a function.
    module: nn.Module = torch.compile(twin, dynamic=False, fullgraph=True)  # type: ignore[assignment]
    return TorchRunner(module, shape)


@final
class DefaultOnnxRuntimeRunner(Runner):
    """ONNX Runtime as it comes: every setting left alone, but for the number of threads.

    Args:
        model: The serialized ONNX model.
        threads: Threads within an operator; `OWN_THREADS` leaves them alone too.
    """

    def __init__(self, model: bytes, *, threads: int) -> None:
        super().__init__()
        self.name = "onnxruntime default"
        self._model = model
        self._threads = threads
        self._session: ort.InferenceSession | None = None

    def _activate_impl(self) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        if self._threads != OWN_THREADS:
            options.intra_op_num_threads = self._threads
        try:
            self._session = ort.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime raises a class of its own for each of its status codes.
        except Exception as error:
            raise ExportError(f"ONNX Runtime rejects the model: {error}") from error
        self._input = self._session.get_inputs()[0]

    def _close_impl(self) -> None:
        self._session = None

    def _input_shape_impl(self) -> tuple[int | None, int, int, int]:
        batch, channels, height, width = self._input.shape
        return (batch if isinstance(batch, int) else None, channels, height, width)

    def _infer_impl(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self._session is not None
        return np.asarray(self._session.run(None, {self._input.name: images})[0], dtype=np.float32)

    def _call_on_impl(self, images: NDArray[np.float32]) -> Callable[[], object]:
        assert self._session is not None
        run, feed = self._session.run, {self._input.name: images}
        return lambda: run(None, feed)

    def _sampler_on_impl(self, images: NDArray[np.float32]) -> Sampler:
        return host_sampler(self._call_on_impl(images))
