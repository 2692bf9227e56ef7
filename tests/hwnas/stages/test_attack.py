"""`hwnas attack` on everything that it takes, on bad input, killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import nn

import hwnas.api
from hwnas.core.decoding import read_json
from hwnas.core.errors import ConfigError, DataError, ExportError, GateFailedError, InputFileError
from hwnas.data.sources import DataConfig, load_data
from hwnas.robustness.attack_records import AttackRecord
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import onnx_in_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import click.testing

    from hwnas.robustness.attack_records import CheckLine
    from hwnas.stages.attack import AttackResult
    from tests.hwnas.conftest import Interrupter
    from tests.hwnas.stages.conftest import Finished

QUICK: dict[str, Any] = {
    "n": 60, "check_samples": 40, "queries": 60, "steps": 4, "batch": 64, "data": "digits",
}  # fmt: skip

CODE = """
import torch
from safetensors.torch import load_file
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, images):
        return self.head(torch.relu(self.conv(images)).flatten(1))


def plain():
    return Net()


def trained():
    net = Net()
    net.load_state_dict(load_file("{weights}"))
    return net


class Behind(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = trained(), change

    def forward(self, images):
        return self.change(self.net(images))


def softmax():
    return Behind(lambda logits: torch.softmax(logits, 1))


def dropping():
    return Behind(lambda logits: nn.functional.dropout(logits, 0.5))


def some_nan():
    def spoil(logits):
        return torch.where(logits[:, :1] > logits[:, :1].median(), torch.nan, logits)
    return Behind(spoil)


def all_nan():
    return Behind(lambda logits: logits * torch.nan)


def huge():
    return Behind(lambda logits: logits * 1e6)
"""


class Net(nn.Module):
    """What the code above builds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.conv(images)).flatten(1))
        return logits


@pytest.fixture(scope="module")
def network(that_knows_digits: Callable[..., Net]) -> Net:
    return that_knows_digits(Net, steps=60)


@pytest.fixture(scope="module")
def weights(network: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def code(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("code") / "net.py"
    path.write_text(CODE.replace("{weights}", str(weights)))
    return path


@pytest.fixture(scope="module")
def onnx_file(network: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(onnx_from_module(network, (1, 1, 16, 16), dynamic_batch=True), path)
    return path


def named(code: Path, name: str) -> Path:
    return Path(f"{code}:{name}")


def found(model: Path, out: Path, **options: Any) -> AttackResult:
    """Attack, whether or not every check is passed: these networks are small, and n is."""
    try:
        return hwnas.api.attack(model, out, **{**QUICK, **options})
    except GateFailedError as error:
        result: AttackResult = error.result  # type: ignore[assignment]
        return result


def accuracies(result: AttackResult, on: str = "model", eps: str = "") -> dict[str, float]:
    return {
        line.attack: line.accuracy
        for line in result.lines
        if line.on == on and line.eps == (eps or result.lines[0].eps)
    }


def checks_of(result: AttackResult) -> tuple[CheckLine, ...]:
    record = read_json(Path(result.record), AttackRecord)
    assert len(record.checks) == result.checks
    assert record.failed == result.failed
    return record.checks


def test_a_module_of_code(code: Path, tmp_path: Path) -> None:
    result = found(
        named(code, "trained"), tmp_path / "out", attacks=("fgsm", "pgd", "square"), eps=("0.15",)
    )
    assert result.access == "white-box"
    assert result.kind == "module"
    left = accuracies(result)
    assert list(left) == ["clean", "fgsm", "pgd", "square", "worst case"]
    assert left["worst case"] <= min(left["fgsm"], left["pgd"], left["square"])
    assert left["pgd"] <= left["fgsm"] + 0.05 < left["clean"]
    line = result.lines[2]
    assert (line.n, line.norm, line.eps, line.protocol, line.seed) == (60, "linf", "0.15", "pixel",
                                                                        0)  # fmt: skip
    assert line.low < line.accuracy < line.high or line.accuracy in (0.0, 1.0)
    assert not result.failed
    page = (tmp_path / "out" / "attack.html").read_text()
    assert "all" in page
    assert "<script" not in page
    assert "Wilson" in page
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "attack.json", "attack.html", "attack.svg", "manifest.json"
    }  # fmt: skip
    assert not (tmp_path / "out.checkpoint").exists()


def test_weights_of_a_module(code: Path, weights: Path, tmp_path: Path) -> None:
    model = named(code, "plain")
    trained = found(model, tmp_path / "a", weights=weights, attacks=("fgsm",))
    assert accuracies(trained)["clean"] > 0.8
    assert accuracies(found(model, tmp_path / "b", attacks=("fgsm",)))["clean"] < 0.5


def test_an_onnx_file_is_attacked_as_twin_and_as_engine(onnx_file: Path, tmp_path: Path) -> None:
    result = found(onnx_file, tmp_path / "out", attacks=("pgd", "square"), eps=("0.15",))
    assert result.access == "white-box twin, black-box engine"
    assert result.parity is not None
    assert result.parity.agreement == 1.0
    assert result.parity.max_abs_diff is not None
    assert result.parity.max_abs_diff < 1e-4
    twin, engine = accuracies(result, "twin"), accuracies(result, "engine")
    assert list(twin) == ["clean", "pgd", "worst case"]
    assert list(engine) == ["clean", "pgd", "square", "worst case"]
    assert twin["clean"] == engine["clean"]
    assert abs(twin["pgd"] - engine["pgd"]) <= 1 / 60  # replayed on what computes the same
    assert engine["worst case"] <= min(engine["pgd"], engine["square"])
    names = {(check.name, check.on) for check in checks_of(result)}
    assert {("twin_agreement", "twin"), ("black_box_gap", "engine")} <= names


def test_an_int8_file_is_attacked_through_its_fake_quantization(
    network: Net, tmp_path: Path
) -> None:
    images = load_data(DataConfig()).train.pixels()[:64].numpy()
    model = onnx_in_precision(
        onnx_from_module(network, (1, 1, 16, 16), dynamic_batch=True), "int8", calibration=images
    )
    onnx.save(model, tmp_path / "int8.onnx")
    result = found(tmp_path / "int8.onnx", tmp_path / "out", n=30, eps=("0.15",))
    engine = accuracies(result, "engine")
    assert list(engine) == ["clean", "fgsm", "pgd", "autoattack", "square", "worst case"]
    assert engine["pgd"] < engine["clean"] - 0.2


def test_an_onnx_file_without_a_rule_is_a_black_box(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    first = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["waves" if name == first else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Sin", [first], ["waves"], name="wave"))
    path = tmp_path / "waves.onnx"
    onnx.save(model, path)
    result = found(path, tmp_path / "out", eps=("0.15",))
    assert result.access == "black-box"
    assert result.reason is not None
    assert "node `wave` (Sin" in result.reason
    assert list(accuracies(result)) == ["clean", "square", "worst case"]
    assert "No attack with gradients was possible" in (tmp_path / "out/attack.html").read_text()
    with pytest.raises(ConfigError, match=r"pgd needs gradients.*`wave`") as caught:
        hwnas.api.attack(path, tmp_path / "other", attacks=("pgd",), **QUICK)
    assert "--attacks square" in caught.value.hint


@pytest.mark.slow
def test_folders_of_hwnas(
    finished: Finished, tmp_path: Path, hwnas: Callable[..., click.testing.Result]
) -> None:
    quick = ("--n", 30, "--attacks", "fgsm,square", "--queries", 20, "--check-samples", 20,
             "--json")  # fmt: skip
    kinds = {"teacher": "teacher", "network": "trained network", "bundle": "bundle"}
    for name, kind in kinds.items():
        result = hwnas("attack", finished.out / name, "--out", tmp_path / name, *quick)
        assert result.exit_code in (0, 3), result.output
        told = json.loads(result.stdout)
        assert told["kind"] == kind
        # What it was made for is what it is attacked with.
        assert told["lines"][0]["eps"] == "0.1"
        assert told["data"].startswith("npz:")
        if name == "bundle":
            assert told["parity"]["max_abs_diff"] < 1e-3
            assert {line["on"] for line in told["lines"]} == {"twin", "engine"}
    wrong = hwnas("attack", finished.out, "--out", tmp_path / "x", *quick)
    assert wrong.exit_code == 1
    assert "bundle" in wrong.stderr
    wrong = hwnas("attack", finished.out / "search", "--out", tmp_path / "x", *quick)
    assert "made by `hwnas search`" in wrong.stderr


def test_several_eps_make_a_curve(code: Path, tmp_path: Path) -> None:
    bounds = ("0.05", "0.3", "40/255")
    result = found(named(code, "trained"), tmp_path / "out", attacks=("fgsm",), eps=bounds)
    left = [accuracies(result, eps=eps)["fgsm"] for eps in ("0.05", "40/255", "0.3")]
    assert left == sorted(left, reverse=True)
    assert "Accuracy over eps" in (tmp_path / "out/attack.html").read_text()


def test_l2_and_the_normalized_protocol_are_named(code: Path, tmp_path: Path) -> None:
    result = found(named(code, "trained"), tmp_path / "l2", norm="l2", eps=("1.5",),
                   attacks=("pgd",))  # fmt: skip
    assert {line.norm for line in result.lines} == {"l2"}
    assert accuracies(result)["pgd"] < accuracies(result)["clean"]
    with pytest.raises(ConfigError, match="normalized"):
        found(named(code, "trained"), tmp_path / "x", protocol="normalized", attacks=("pgd",))


def test_adversarial_images_are_kept_if_asked_for(code: Path, tmp_path: Path) -> None:
    found(named(code, "trained"), tmp_path / "out", attacks=("pgd",), eps=("8/255",),
          save_images=True)  # fmt: skip
    with np.load(tmp_path / "out/adversarial.npz") as kept:
        assert set(kept.files) == {"labels", "pgd 8_255"}
        points = kept["pgd 8_255"]
    assert points.shape == (60, 1, 16, 16)
    assert points.min() >= 0
    assert points.max() <= 1


def test_a_second_call_finds_it_finished(code: Path, tmp_path: Path) -> None:
    first = found(named(code, "trained"), tmp_path / "out", attacks=("fgsm",))
    before = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    assert found(named(code, "trained"), tmp_path / "out", attacks=("fgsm",)) == first
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on_to_the_same_result(
    code: Path, tmp_path: Path, interrupted_after: Callable[[int], Interrupter]
) -> None:
    options = {"attacks": ("fgsm", "pgd", "square"), "eps": ("0.1",), "batch": 20}
    whole = found(named(code, "trained"), tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        found(named(code, "trained"), tmp_path / "out", progress=interrupted_after(30), **options)
    kept = list((tmp_path / "out.checkpoint").rglob("*.npz"))
    assert kept
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    with pytest.raises(KeyboardInterrupt):
        found(named(code, "trained"), tmp_path / "out", progress=interrupted_after(60), **options)
    assert stamps == {path: path.stat().st_mtime_ns for path in kept}
    resumed = found(named(code, "trained"), tmp_path / "out", **options)
    assert accuracies(resumed) == accuracies(whole)
    assert checks_of(resumed) == checks_of(whole)


# Bad input.


def test_probabilities_are_refused(code: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="probabilities, not logits"):
        found(named(code, "softmax"), tmp_path / "out")


def test_a_model_of_nothing_but_nan_is_refused(code: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="infinity for all"):
        found(named(code, "all_nan"), tmp_path / "out")


def test_some_nan_logits_fail_a_check_by_name(code: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailedError, match=r"finite_logits, on the model: \d+") as caught:
        hwnas.api.attack(named(code, "some_nan"), tmp_path / "out", attacks=("fgsm",), **QUICK)
    result: AttackResult = caught.value.result  # type: ignore[assignment]
    assert accuracies(result)["clean"] < 0.7


def test_a_random_model_fails_a_check_by_name(
    code: Path, tmp_path: Path, hwnas: Callable[..., click.testing.Result]
) -> None:
    result = hwnas(
        "attack", f"{code}:dropping", "--out", tmp_path / "out", "--n", 40, "--attacks", "fgsm",
        "--queries", 20, "--check-samples", 20, "--data", "digits",
    )  # fmt: skip
    assert result.exit_code == 3
    assert "deterministic, on the model" in result.stderr
    assert "Every figure of attacks is too high" in result.stderr
    assert "worst case" in result.stdout  # what was found is told all the same


def test_a_model_of_huge_logits_fails_checks(code: Path, tmp_path: Path) -> None:
    result = found(named(code, "huge"), tmp_path / "out", attacks=("pgd",), eps=("0.15",))
    meanings = {check.name: check.meaning for check in result.failed}
    assert {"zero_gradients", "unbounded_eps"} <= set(meanings)
    assert meanings["zero_gradients"] is not None
    assert "trust CW" in meanings["zero_gradients"]
    assert "checks failed" in (tmp_path / "out/attack.html").read_text()


@pytest.mark.parametrize(
    ("options", "reason", "hint"),
    [
        ({"eps": ("8",)}, "not in pixel units", "8/255"),
        ({"attacks": ("pdg",)}, "no attack 'pdg'", "'pgd'"),
        ({"n": 0}, "`n` is at least 1", ""),
        ({"seed": -1}, "`seed` is at least 0", ""),
        ({"data": "digit"}, "unknown data source", "digits"),
        ({"attacks": ("fgsm", "fgsm")}, "named twice", ""),
    ],
)
def test_settings_that_make_no_sense(
    code: Path, tmp_path: Path, options: dict[str, Any], reason: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        found(named(code, "trained"), tmp_path / "out", **options)
    assert hint in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_data_that_does_not_fit(code: Path, onnx_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[data]\nimage_size = 12\n")
    options = {**QUICK, "data": None, "config": config}
    for model in (named(code, "trained"), onnx_file):
        with pytest.raises((ConfigError, ExportError), match=r"12x12|\(.*12, 12\)"):
            hwnas.api.attack(model, tmp_path / "out", **options)


def test_what_is_no_model(code: Path, onnx_file: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        found(tmp_path / "none.onnx", tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no `trainde`") as caught:
        found(named(code, "trainde"), tmp_path / "out")
    assert "trained" in caught.value.hint
    with pytest.raises(ConfigError, match="holds its own weights"):
        found(onnx_file, tmp_path / "out", weights=weights)
    (tmp_path / "net.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match="pickle"):
        found(tmp_path / "net.pt", tmp_path / "out")
