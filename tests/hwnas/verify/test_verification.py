from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ConfigError, DataError, GateFailedError
from hwnas.robustness.threat import ThreatModel
from hwnas.search.budget import Budgets
from hwnas.verify.verification import Verification, VerifySettings, verify_engine
from hwnas_export.memory import ModelMemory
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.torch_runner import TorchRunner
from hwnas_profilers.records import EnergyStatistics, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from torch import Tensor

    from hwnas_export.runner import Runner
    from tests.hwnas.verify.conftest import Trained


FEW: dict[str, Any] = {"adaptive_samples": 20, "adaptive_steps": 5}


def latency_of(median_us: float) -> Statistics:
    return Statistics(
        n=100,
        median_us=median_us,
        low_us=median_us * 0.99,
        high_us=median_us * 1.01,
        min_us=median_us * 0.9,
        p10_us=median_us * 0.95,
        p90_us=median_us * 1.1,
    )


def verify(trained: Trained, engine: Runner, **changes: Any) -> Verification:
    with engine:
        arguments: dict[str, Any] = {
            "twin": trained.twin,
            "engine": engine,
            "images": trained.images,
            "labels": trained.labels,
            "threat": trained.threat,
            "settings": trained.settings,
        }
        return verify_engine(**(arguments | changes))


def as_engine(module: nn.Module, batch: int | None = None) -> TorchRunner:
    return TorchRunner(module, (batch, 1, 8, 8))


def failed(found: Verification) -> set[str]:
    return {gate.name for gate in found.gates if not gate.passed}


@pytest.fixture(scope="module")
def sound(trained: Trained, model: onnx.ModelProto) -> Verification:
    return verify(
        trained,
        OnnxRuntimeRunner(model.SerializeToString()),
        budget_ms=1.0,
        latency=latency_of(980.0),
    )


def test_a_sound_engine_passes_every_gate(sound: Verification) -> None:
    assert failed(sound) == set()
    assert sound.passed
    sound.require()
    assert sound.engine == "onnxruntime-cpu"
    assert [gate.name for gate in sound.gates] == [
        "finite_logits",
        "max_abs_diff",
        "relative_l2",
        "margin_drift",
        "agreement",
        "tie_rate",
        "distinct_logits",
        "clean_drop",
        "robust_drop",
        "replay_gain",
        "adversarial_agreement",
        "black_box_gap",
        "square_gap",
        "adaptive_gap",
        "adaptive_drop",
        "more_steps",
        "larger_eps",
        "unbounded_eps",
        "attack_beats_noise",
        "latency",
    ]


def test_the_figures_of_a_sound_engine_are_in_their_order(sound: Verification) -> None:
    assert sound.clean_accuracy.engine.value > 0.9
    assert sound.robust_accuracy.engine.value < sound.clean_accuracy.engine.value - 0.05
    assert sound.robust_accuracy.twin.n == 200
    box = sound.black_box
    assert box.worst_case.correct <= min(box.replay.correct, box.square.correct)
    assert box.square.n == 100
    assert box.square.value < 1
    assert box.queries > 100


def test_a_verification_survives_its_round_trip(sound: Verification) -> None:
    assert decode_json(encode_json(sound), Verification, source="test") == sound


@pytest.mark.parametrize("batch", [1, 64])
def test_an_engine_of_a_fixed_batch_is_verified_as_well(trained: Trained, batch: int) -> None:
    model = onnx_from_module(trained.twin, (batch, 1, 8, 8))
    settings = replace(
        trained.settings, square_queries=5, square_samples=20, masking_samples=20, **FEW
    )
    found = verify(trained, OnnxRuntimeRunner(model.SerializeToString()), settings=settings)
    assert failed(found) == set()
    assert found.clean_accuracy.engine.n == 200


def test_the_same_seed_gives_the_same_verification(trained: Trained) -> None:
    settings = replace(trained.settings, square_queries=10, masking_samples=20, **FEW)
    first, second = (verify(trained, as_engine(trained.twin), settings=settings) for _ in range(2))
    assert first == second


def test_a_twin_in_training_mode_is_verified_in_eval_mode(
    trained: Trained, sound: Verification
) -> None:
    twin = copy.deepcopy(trained.twin).train()
    settings = replace(trained.settings, square_queries=5, square_samples=20, **FEW)
    found = verify(trained, as_engine(copy.deepcopy(trained.twin)), twin=twin, settings=settings)
    assert twin.training
    assert found.clean_accuracy.twin == sound.clean_accuracy.twin


def _scaled_channel(network: nn.Sequential) -> nn.Module:
    network.get_parameter("4.weight")[3] *= 1.5
    return network


def _slightly_scaled_weight(network: nn.Sequential) -> nn.Module:
    network.get_parameter("7.weight").mul_(1.001)
    return network


def _swapped_channels(network: nn.Sequential) -> nn.Module:
    weight = network.get_parameter("1.weight")
    weight[[0, 1]] = weight[[1, 0]]
    return network


def _swapped_classes(network: nn.Sequential) -> nn.Module:
    for name in ("7.weight", "7.bias"):
        network.get_parameter(name)[[3, 8]] = network.get_parameter(name)[[8, 3]]
    return network


def _wrong_normalization(network: nn.Sequential) -> nn.Module:
    network.get_buffer("0.mean").fill_(0.5)
    return network


def _missing_normalization(network: nn.Sequential) -> nn.Module:
    return network[1:]


def _pixels_in_255(network: nn.Sequential) -> nn.Module:
    network.get_buffer("0.std").mul_(255)
    return network


def _truncated_weights(network: nn.Sequential) -> nn.Module:
    weight = network.get_parameter("4.weight")
    weight.copy_((weight * 8).trunc() / 8)
    return network


def _lost_tail(network: nn.Sequential) -> nn.Module:
    network.get_parameter("7.weight").view(-1)[2048:] = 0
    return network


def _lost_bias(network: nn.Sequential) -> nn.Module:
    network.get_parameter("7.bias").zero_()
    return network


def _stale_statistics(network: nn.Sequential) -> nn.Module:
    network.get_buffer("2.running_mean").zero_()
    return network


def _stale_engine(network: nn.Sequential) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network


def _transposed_images(network: nn.Sequential) -> nn.Module:
    return _Around(network, before=lambda images: images.transpose(2, 3))


def _constant_output(network: nn.Sequential) -> nn.Module:
    return _Around(network, after=torch.zeros_like)


def _quantized_output(network: nn.Sequential) -> nn.Module:
    return _Around(network, after=lambda logits: torch.round(logits / 2) * 2)


def _nan_on_some(network: nn.Sequential) -> nn.Module:
    return _Around(network, after=lambda logits: logits.where(logits < 6, torch.nan))


class _Around(nn.Module):
    """A network between two functions."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.network(self.before(images)))


@pytest.mark.parametrize(
    ("damage", "gates"),
    [
        (_scaled_channel, {"max_abs_diff", "relative_l2"}),
        (_slightly_scaled_weight, {"relative_l2"}),
        (_swapped_channels, {"max_abs_diff", "relative_l2", "adversarial_agreement"}),
        (_swapped_classes, {"max_abs_diff", "agreement", "clean_drop", "robust_drop"}),
        (_wrong_normalization, {"max_abs_diff", "relative_l2"}),
        (_missing_normalization, {"max_abs_diff", "relative_l2", "robust_drop"}),
        (_pixels_in_255, {"max_abs_diff", "agreement", "clean_drop"}),
        (_truncated_weights, {"max_abs_diff", "agreement"}),
        (_lost_tail, {"max_abs_diff", "agreement", "clean_drop"}),
        (_lost_bias, {"max_abs_diff", "relative_l2"}),
        (_stale_statistics, {"max_abs_diff", "relative_l2"}),
        (_stale_engine, {"max_abs_diff", "agreement"}),
        (_transposed_images, {"max_abs_diff", "agreement", "clean_drop"}),
        (_constant_output, {"max_abs_diff", "agreement", "tie_rate", "clean_drop"}),
        (_quantized_output, {"max_abs_diff", "tie_rate"}),
        (_nan_on_some, {"finite_logits", "max_abs_diff", "relative_l2", "agreement"}),
    ],
)
def test_a_damaged_engine_is_caught(
    trained: Trained, damage: Callable[[nn.Sequential], nn.Module], gates: set[str]
) -> None:
    with torch.no_grad():
        damaged = damage(copy.deepcopy(trained.twin)).eval()
    settings = replace(
        trained.settings, square_queries=5, square_samples=20, masking_samples=20, **FEW
    )
    found = verify(trained, as_engine(damaged), settings=settings)
    assert gates <= failed(found)
    assert not found.passed
    with pytest.raises(GateFailedError) as caught:
        found.require()
    assert all(f"  {gate}: " in str(caught.value) for gate in gates)
    # However badly the engine computes, what was found can be written down and read again.
    assert decode_json(encode_json(found), Verification, source="test") == found


def test_an_engine_that_denies_the_twins_examples_is_no_more_robust(trained: Trained) -> None:
    labels = torch.from_numpy(trained.labels)
    seen = iter([0, 1])  # first the clean images, then the replayed ones, then Square's
    calls = {"replay": False}

    class Oracle(nn.Module):
        """Answers the clean and the replayed images right, and the rest as the twin."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = trained.twin(images)
            if len(images) == len(labels) and next(seen, None) is not None:
                calls["replay"] = True
                return logits + 100 * nn.functional.one_hot(labels, 10)
            return logits

    settings = replace(trained.settings, batch=200)
    found = verify(trained, as_engine(Oracle()), settings=settings)
    assert calls["replay"]
    wanted = {"replay_gain", "adversarial_agreement", "black_box_gap", "adaptive_gap"}
    assert wanted <= failed(found)


@pytest.mark.parametrize(
    ("median_us", "passed"), [(500.0, True), (1040.0, True), (1060.0, False), (5000.0, False)]
)
def test_a_slow_engine_fails_the_latency_gate(
    trained: Trained, median_us: float, passed: bool
) -> None:
    settings = replace(trained.settings, square_queries=1, square_samples=1, masking_samples=1)
    found = verify(
        trained,
        as_engine(trained.twin),
        budget_ms=1.0,
        latency=latency_of(median_us),
        settings=settings,
        threat=ThreatModel(eps=0.0, steps=1),
    )
    (gate,) = [gate for gate in found.gates if gate.name == "latency"]
    assert gate.passed is passed
    assert f"{median_us / 1000:.4g} ms" in gate.meaning


MEMORY = ModelMemory(weights_bytes=2_048, peak_activation_bytes=1_024, peak_node="Add at 3")
ENERGY = EnergyStatistics(n=6, median_uj=1_040.0, low_uj=1_000.0, high_uj=1_100.0)


@pytest.mark.parametrize(
    ("budgets", "memory", "energy", "fails"),
    [
        ({"memory_kib": 1.0}, MEMORY, None, set()),
        ({"memory_kib": 1.0 - 1e-6}, MEMORY, None, {"memory"}),  # counted: no tolerance
        ({"weights_kib": 2.0}, MEMORY, None, set()),
        ({"weights_kib": 1.9}, MEMORY, None, {"weights"}),
        ({"energy_mj": 1.0}, None, ENERGY, set()),  # 4 % over: within the tolerance
        ({"energy_mj": 0.98}, None, ENERGY, {"energy"}),
        # What was not counted or metered passes no gate.
        ({"memory_kib": 9e9, "weights_kib": 9e9, "energy_mj": 9e9}, None, None,
         {"memory", "weights", "energy"}),
        ({}, MEMORY, ENERGY, set()),
    ],
)  # fmt: skip
def test_each_budget_that_is_given_is_a_gate(
    trained: Trained,
    budgets: dict[str, float],
    memory: ModelMemory | None,
    energy: EnergyStatistics | None,
    fails: set[str],
) -> None:
    settings = replace(trained.settings, square_queries=1, square_samples=1, masking_samples=1)
    found = verify(
        trained,
        as_engine(trained.twin),
        budgets=Budgets(latency_ms=1.0, **budgets),
        memory=memory,
        energy=energy,
        settings=settings,
        threat=ThreatModel(eps=0.0, steps=1),
    )
    gates = {
        gate.name: gate for gate in found.gates if gate.name in ("memory", "weights", "energy")
    }
    assert set(gates) == {name.partition("_")[0] for name in budgets}
    assert failed(found) == fails
    assert (found.memory, found.energy) == (memory, energy)
    assert decode_json(encode_json(found), Verification, source="test") == found
    if len(fails) == 3:
        assert all("not " in gate.meaning for gate in gates.values())
    if fails == {"memory"}:
        assert "at Add at 3" in gates["memory"].meaning


def test_without_a_budget_there_is_no_latency_gate_and_without_eps_no_masking(
    trained: Trained,
) -> None:
    settings = replace(trained.settings, square_queries=1, square_samples=10)
    found = verify(
        trained,
        as_engine(trained.twin),
        settings=settings,
        threat=ThreatModel(eps=0.0, steps=1),
        latency=latency_of(1.0),
    )
    assert found.masking is None
    assert found.robust_accuracy == found.clean_accuracy
    assert not {"latency", "unbounded_eps"} & {gate.name for gate in found.gates}
    assert found.passed


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_no_time_is_refused(trained: Trained, budget_ms: float) -> None:
    with pytest.raises(ConfigError, match="budget"):
        verify(trained, as_engine(trained.twin), budget_ms=budget_ms)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": np.zeros(3, dtype=np.int64)}, "200 labels"),
        ({"labels": np.zeros(200, dtype=np.int32)}, "labels int64"),
        ({"images": np.zeros((200, 1, 8, 8))}, "images are float32"),
        ({"images": np.zeros((0, 1, 8, 8), dtype=np.float32)}, "no images"),
        ({"labels": np.full(200, 10)}, "10 classes"),
        ({"labels": np.full(200, -1)}, "10 classes"),
        ({"images": np.full((200, 1, 8, 8), 2, dtype=np.float32)}, r"pixels in \[0, 1\]"),
    ],
)
def test_bad_data_is_refused(trained: Trained, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        verify(trained, as_engine(trained.twin), **changes)


def test_probabilities_are_refused(trained: Trained) -> None:
    softmax = nn.Sequential(trained.twin, nn.Softmax(1))
    with pytest.raises(DataError, match="remove the softmax"):
        verify(trained, as_engine(softmax), twin=softmax)


def test_an_engine_of_other_classes_is_refused(trained: Trained) -> None:
    with pytest.raises(DataError, match="another network"):
        verify(trained, as_engine(nn.Sequential(trained.twin, nn.Linear(10, 7))))


@pytest.mark.parametrize(
    "changes", [{"square_queries": 0}, {"square_samples": 0}, {"batch": 0}, {"seed": -1}]
)
def test_bad_settings_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        VerifySettings(**changes)  # type: ignore[arg-type] # one int setting at a time
