"""The bundle: engines with everything that is needed to run, rebuild and check them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.artifacts import check_checksums, read_manifest
from hwnas.core.decoding import read_json
from hwnas.core.errors import ConfigError, InputFileError
from hwnas.core.weights import read_weights
from hwnas.data.sources import DataConfig
from hwnas.deploy.making import SOURCE_FILE
from hwnas.deploy.records import LeftOut
from hwnas.robustness.threat import ThreatModel
from hwnas.search.records import Derivation, Resources, budgets_of, read_derivation
from hwnas.space.registry import space_from_spec
from hwnas.space.user.spec import UserSpec
from hwnas.verify.verification import VerifySettings

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from hwnas.data.images import Split
    from hwnas.search.budget import Budgets
    from hwnas.space.supernet import SlimNetwork

MODEL_FILE = SOURCE_FILE
WEIGHTS_FILE = "weights.safetensors"
GENOTYPE_FILE = "genotype.json"
CARD_FILE = "card.json"
PARITY_FILE = "parity.json"
VERIFICATION_FILE = "verification.json"
REPORT_FILE = "report.html"
SBOM_FILE = "sbom.cdx.json"
TRITON_FOLDER = "triton"
ENGINE_FILES = (MODEL_FILE, WEIGHTS_FILE, GENOTYPE_FILE, CARD_FILE, PARITY_FILE)
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What one must know to run an engine and to judge it.

    Attributes:
        target: The engine that the budget is for, and that is verified where no other is named:
            the one for the target that the network was searched for, or, where that was left out,
            the one in FP32 in its place. `genotype.json` names what it was searched for.
        threads: Threads within an operator.
        opset: ONNX opset of `model.onnx`.
        input_name: Name of its input, float32 (batch, channels, height, width).
        output_name: Name of its output, float32 logits (batch, classes).
        image_shape: (channels, height, width) of an image.
        pixel_range: Values that pixels take; normalization is inside the model.
        class_names: One per logit.
        data: What it was trained and is verified on.
        threat: What it is attacked with.
        verify: How it is verified.
        budget_ms: Bound on its latency.
        predicted_ms: Its latency as the table predicted it.
        measured_ms: Its latency as measured when it was derived.
        params: Its trained parameters.
        macs: Its multiply-accumulates per image.
        table_sha256: Hash of the latency table that it was searched with.
        seed: Seed of the run.
        resources: What it takes besides time as the table predicted it, and its bounds; None in
            bundles that did not know of it.
        left_out: Engines that were made and left out, as they are no faster than those in FP32.
    """

    target: str
    threads: int
    opset: int
    input_name: str
    output_name: str
    image_shape: tuple[int, int, int]
    pixel_range: tuple[float, float]
    class_names: tuple[str, ...]
    data: DataConfig
    threat: ThreatModel
    verify: VerifySettings
    budget_ms: float
    predicted_ms: float
    measured_ms: float | None
    params: int
    macs: int
    table_sha256: str
    seed: int
    resources: Resources | None = None
    left_out: tuple[LeftOut, ...] = ()
    schema: int = SCHEMA

    @property
    def batch(self) -> int:
        """Images per call that its budget is for."""
        return self.resources.batch if self.resources else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle whose every file has the hash that it was made with."""

    card: ModelCard
    derivation: Derivation
    twin: SlimNetwork
    model: bytes

    @property
    def budgets(self) -> Budgets:
        """All bounds that its engine must keep."""
        return budgets_of(self.card.budget_ms, self.card.resources)


def open_bundle(path: Path) -> Bundle:
    """Check a bundle's files and load what is in it. Nothing is compiled before its hash is known.

    The PyTorch twin is built again from the space and the genotype. Of a user's own space, that
    runs the code which the space is named for: `user:FILE.py:function`, from the current folder. It
    is not in the bundle, and it runs with the rights of whoever opens it, so it must be at least as
    well known as the bundle. The engine, `model.onnx`, holds no code and needs none.

    Raises:
        ArtifactError: The folder is no bundle, or a file is missing or was changed.
        InputFileError: The code of a user's space is not where its name says.
        ConfigError: It is not what it was when the space was profiled.
    """
    check_checksums(path)  # the manifest among them, before it is believed
    read_manifest(path, kind="export")
    card = read_json(path / CARD_FILE, ModelCard)
    derivation = read_derivation(path / GENOTYPE_FILE)
    twin = _twin(path, derivation)
    read_weights(path / WEIGHTS_FILE, twin)
    return Bundle(
        card=card,
        derivation=derivation,
        twin=twin.eval(),
        model=(path / MODEL_FILE).read_bytes(),
    )


def _twin(path: Path, derivation: Derivation) -> SlimNetwork:
    space = derivation.space
    try:
        return space_from_spec(space).network(derivation.genotype)
    except (InputFileError, ConfigError) as error:
        if not isinstance(space, UserSpec):
            raise
        raise type(error)(
            f"the PyTorch twin of {path} is built by code that is not in it, {space.name}: "
            f"{error.message}",
            hint="run this from the folder which that path is relative to, with the code as it was "
            f"when the space was profiled; {MODEL_FILE} itself runs without it",
        ) from error


def arrays_of(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return a split's pixels in [0, 1] and its labels, as runners take them."""
    pixels: NDArray[np.float32] = split.pixels().numpy()
    labels: NDArray[np.int64] = split.labels.numpy()
    return pixels, labels
