"""`hwnas certify` on everything that it takes, on bad input, interrupted and resumed."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import hwnas.api
from hwnas.core.decoding import read_json
from hwnas.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    InputFileError,
    UnboundedOperationError,
)
from hwnas.data.sources import DataConfig, load_data
from hwnas.distill.teacher_sources import network_from_source
from hwnas.robustness.bounds.records import CertifyRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import click.testing

    from hwnas.stages.certify import CertifyResult
    from tests.hwnas.conftest import Interrupter
    from tests.hwnas.stages.conftest import Finished

QUICK: dict[str, Any] = {
    "data": "digits", "n": 20, "batch": 8, "steps": 5, "radius_steps": 2, "eps": ("2/255", "0.05"),
}  # fmt: skip

CODE = """
import torch
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.Hardswish(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def normed():
    return nn.Sequential(net()[0], nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(384, 10))


def softmax():
    return nn.Sequential(net(), nn.Softmax(1))


def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 10))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, images):
        return self.net(images + 0.1 * torch.rand(images.shape))
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "nets.py"
    path.write_text(CODE)
    return path


@pytest.fixture(scope="module")
def weights(code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of `net` that know digits."""
    data = load_data(DataConfig())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = network_from_source(str(named(code, "net")), classes=10, pretrained=False)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(80):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(data.train.pixels()), data.train.labels)
            torch.autograd.backward(loss)
            optimizer.step()
    path: Path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def certified(
    code: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CertifyResult]:
    out = tmp_path_factory.mktemp("certified") / "out"
    return out, hwnas.api.certify(named(code, "net"), out, weights=weights, **QUICK)


def named(code: Path, function: str) -> Path:
    return code.with_name(f"{code.name}:{function}")


def test_what_is_proven_lies_below_what_pgd_leaves(certified: tuple[Path, CertifyResult]) -> None:
    _, result = certified
    assert (result.n, result.seed, result.method) == (20, 0, "crown")
    assert 0.5 < result.clean_accuracy <= 1
    assert [line.eps for line in result.lines] == ["2/255", "0.05"]
    for line in result.lines:
        assert 0 <= line.certified <= line.attacked <= result.clean_accuracy
        assert line.certified_low <= line.certified <= line.certified_high
        assert line.undecided == pytest.approx(line.attacked - line.certified)
    first, second = result.lines
    assert first.certified > 0.3
    assert first.certified > second.certified
    radii = result.radii_levels
    for one, two in pairwise((radii.p10, radii.p25, radii.median, radii.p75, radii.p90)):
        assert one <= two
    assert 0 < radii.median <= radii.largest_tried == pytest.approx(0.05 * 255)
    assert 0 < result.slack < 1e-3


def test_the_folder_holds_the_record_a_page_and_a_picture(
    certified: tuple[Path, CertifyResult],
) -> None:
    out, result = certified
    record = read_json(out / "certify.json", CertifyRecord)
    assert record.lines == result.lines
    assert len(record.samples) == len({row for row, _ in record.samples}) == 20
    for line, eps in zip(record.lines, (2 / 255, 0.05), strict=True):
        assert sum(radius >= eps for _, radius in record.samples) == round(20 * line.certified)
    page = (out / "certify.html").read_text()
    assert "certified at 2/255" in page
    assert "<script" not in page
    assert "hwnas.api.certify(" in page
    assert (out / "certify.svg").read_text().startswith("<svg")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "certify"
    assert set(manifest["outputs"]) == {"certify.json", "certify.html", "certify.svg"}


def test_a_finished_one_is_found(
    certified: tuple[Path, CertifyResult],
    code: Path,
    weights: Path,
    hashes_in: Callable[[Path], dict[str, str]],
) -> None:
    out, result = certified
    before = hashes_in(out)
    assert hwnas.api.certify(named(code, "net"), out, weights=weights, **QUICK) == result
    assert hashes_in(out) == before


def test_interrupted_it_ends_with_the_same(
    certified: tuple[Path, CertifyResult],
    code: Path,
    weights: Path,
    tmp_path: Path,
    interrupted_after: Callable[[int], Interrupter],
) -> None:
    out = tmp_path / "out"
    stopped = interrupted_after(6)  # within the second of three batches
    with pytest.raises(KeyboardInterrupt):
        hwnas.api.certify(named(code, "net"), out, weights=weights, **QUICK, progress=stopped)
    state = tmp_path / "out.checkpoint"
    assert len(list(state.rglob("batch-*.json"))) == 1
    hwnas.api.certify(named(code, "net"), out, weights=weights, **QUICK)
    assert not state.exists()
    assert (out / "certify.json").read_bytes() == (certified[0] / "certify.json").read_bytes()


def test_methods_differ_in_what_they_prove(
    certified: tuple[Path, CertifyResult], code: Path, weights: Path, tmp_path: Path
) -> None:
    settings = QUICK | {"method": "ibp"}
    found = hwnas.api.certify(named(code, "net"), tmp_path / "ibp", weights=weights, **settings)
    assert found.lines[1].certified < certified[1].lines[1].certified
    assert found.radii_levels.p25 < certified[1].radii_levels.p25
    assert [line.attacked for line in found.lines] == [line.attacked for line in certified[1].lines]


@pytest.mark.parametrize("part", ["network", "teacher", "bundle"])
def test_folders_of_a_run_are_certified(
    part: str,
    finished: Finished,
    tmp_path: Path,
    hwnas: Callable[..., click.testing.Result],
) -> None:
    ran = hwnas(
        "certify", finished.out / part, "--out", tmp_path / "out", "--method", "crown-ibp",
        "--n", 8, "--batch", 4, "--steps", 2, "--radius-steps", 1, "--eps", "0.0001,1/255",
        "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert [line["eps"] for line in result["lines"]] == ["0.0001", "1/255"]
    assert result["n"] == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": ()}, "above 0"),
        ({"eps": ("0", "1/255")}, "above 0"),
        ({"eps": ("8",)}, "pixel units"),
        ({"eps": ("far",)}, "not a number"),
        ({"n": 0}, "`n` is at least 1"),
        ({"batch": 0}, "`batch` is at least 1"),
        ({"steps": 0}, "`steps` is at least 1"),
        ({"radius_steps": -1}, "`radius_steps` is at least 0"),
        ({"seed": -1}, "`seed` is at least 0"),
        ({"data": "digitz"}, "digitz"),
    ],
)
def test_settings_out_of_range_are_refused(
    settings: dict[str, Any], said: str, code: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        hwnas.api.certify(
            named(code, "net"), tmp_path / "out", weights=weights, **(QUICK | settings)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("normed", UnboundedOperationError, "`group_norm` has no sound bound.*in GroupNorm"),
        ("softmax", DataError, "probabilities"),
        ("Noisy", DataError, "gives different logits for equal images"),
        ("wide", ConfigError, "cannot take images of 1x16x16"),
        ("absent", ConfigError, "absent"),
    ],
)
def test_networks_without_bounds_are_refused_by_name(
    function: str, error: type[Exception], said: str, code: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        hwnas.api.certify(named(code, function), tmp_path / "out", **QUICK)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished hwnas artifact"):
        hwnas.api.certify(tmp_path, tmp_path / "out", **QUICK)


def test_a_folder_of_something_else_is_not_replaced(
    code: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputFileError, match="did not make"):
        hwnas.api.certify(named(code, "net"), tmp_path, weights=weights, **QUICK)
