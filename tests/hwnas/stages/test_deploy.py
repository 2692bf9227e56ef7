"""`hwnas deploy` onto this machine, which a shell in the place of ssh makes a board."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from hwnas.core.artifacts import read_manifest, sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from click.testing import Result

    Call = Callable[..., Result]
    Replace = Callable[[Mapping[str, str]], None]

pytestmark = pytest.mark.slow

BOARD = "ssh://pi@board:2222/onnxruntime-cpu"
# So few that a test takes seconds; of a hardly trained network attacks find what they find.
FEW = (
    "--images", 40, "--square-queries", 5, "--square-samples", 20, "--adaptive-steps", 2,
    "--adaptive-samples", 10, "--relative-width", 0.5,
)  # fmt: skip
LOOSE = {"adaptive_gap_points": 100.0, "square_gap_points": 100.0, "robust_drop_points": 100.0}


def seal(bundle: Path) -> None:
    """Make manifest and checksums agree with the files, as who changes them on purpose would."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["outputs"] = {name: sha256_of_file(bundle / name) for name in manifest["outputs"]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    lines = [
        f"{sha256_of_file(file)}  {file.relative_to(bundle).as_posix()}\n"
        for file in files
        if file.name != "SHA256SUMS"
    ]
    (bundle / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def bundle(finished: Any, tmp_path: Path) -> Path:
    """A copy that may be changed, whose gates this few images can pass."""
    copy: Path = tmp_path / "bundle"
    shutil.copytree(finished.bundle, copy)
    card = json.loads((copy / "card.json").read_text())
    card["verify"]["tolerances"] |= LOOSE
    (copy / "card.json").write_text(json.dumps(card))
    seal(copy)
    return copy


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    return result.stderr[result.stderr.index("error:") :]


@pytest.mark.usefixtures("shell_for_ssh")
def test_an_engine_is_verified_on_a_board_and_left_there(
    bundle: Path, tmp_path: Path, hwnas: Call
) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    result = hwnas("deploy", bundle, BOARD, "--out", out, "--keep", there, *FEW, "--json")
    assert result.exit_code == 0, result.stderr
    assert "MiB will be sent" in result.stderr
    assert "MiB were sent" in result.stderr
    found = json.loads(result.stdout)
    assert found["passed"] is True
    read_manifest(out, kind="deploy")
    verification = json.loads((out / "verification.json").read_text())
    assert verification == found["verification"]
    assert verification["engine"] == BOARD
    assert verification["parity"]["n"] == 40
    assert verification["speed"]["latency"]["median_us"] > 0
    assert "latency" in {gate["name"] for gate in verification["gates"]}
    board = json.loads((out / "board.json").read_text())
    assert board == found["board"]
    assert board["packages"]["onnxruntime"]
    assert board["device"]["facts"]["python"]
    assert board["measuring"]["rounds"] > 0
    assert board["sent_bytes"] > board["model_bytes"] == (bundle / "model.onnx").stat().st_size
    assert board["kept"] == str(there)

    sidecar = there / "engines" / "onnxruntime-cpu" / "engine.json"
    kept = json.loads(sidecar.read_text())
    assert kept["device"]["name"] == board["device"]["name"]
    assert kept["figures"]["clean_accuracy"] == verification["clean_accuracy"]["engine"]["value"]
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=there, check=True)
    ran = subprocess.run(
        [sys.executable, there / "run.py"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split()[0] in kept["class_names"]


def test_a_board_that_is_killed_midway_is_gone_on_with(
    bundle: Path, tmp_path: Path, hwnas: Call, shell_for_ssh: Replace
) -> None:
    flag = str(tmp_path / "killed")
    once = f"os.path.exists({flag!r}) or (open({flag!r}, 'w').close(), os.kill(os.getpid(), 9))"
    place = "images = unpacked(command, payload)\n        "
    shell_for_ssh({place: f"{place}{once}\n        "})
    out = tmp_path / "out"
    result = hwnas("deploy", bundle, BOARD, "--out", out, *FEW)
    assert result.exit_code == 0, result.stderr
    assert "connecting again" in result.stderr
    board = json.loads((out / "board.json").read_text())
    assert board["measuring"]["facts"]["connections"] == "2"
    assert board["kept"] == ""


@pytest.mark.usefixtures("shell_for_ssh")
def test_what_fails_a_gate_is_told_and_not_left_there(
    bundle: Path, tmp_path: Path, hwnas: Call
) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    result = hwnas(
        "deploy", bundle, BOARD, "--out", out, "--keep", there, "--budget-ms", 1e-6, *FEW, "--json"
    )
    assert result.exit_code == 3, result.stderr
    assert "the budget is 1e-06 ms" in result.stderr
    assert f"nothing was left in {there}" in result.stderr
    found = json.loads(result.stdout)
    failed = [gate["name"] for gate in found["verification"]["gates"] if not gate["passed"]]
    assert failed == ["latency"]
    assert json.loads((out / "board.json").read_text())["kept"] == ""
    assert not there.exists()


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_bundle_without_engines_is_deployed_by_its_portable_model(
    bundle: Path, tmp_path: Path, hwnas: Call
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    outputs = manifest["outputs"].items()
    manifest["outputs"] = {name: digest for name, digest in outputs if "engines/" not in name}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    seal(bundle)
    result = hwnas("deploy", bundle, BOARD, "--out", tmp_path / "out", *FEW, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["board"]["engine"]["model"] == "model.onnx"


@pytest.mark.parametrize(
    ("board", "options", "told"),
    [
        ("onnxruntime-cpu", (), "hwnas verify"),
        ("ssh://pi@board/torch-cpu", (), "cannot measure torch-cpu over ssh"),
        ("ssh://pi@board/onnxruntime-cpu-int8", (), "no engine for target `onnxruntime-cpu-int8`"),
        ("ssh://pi@board/no-such", (), "there is no target"),
        ("ssh://pi board/onnxruntime-cpu", (), "cannot be read"),
        (BOARD, ("--images", 0), "images is 0"),
        (BOARD, ("--square-queries", 0), "square_queries must be at least 1"),
        (BOARD, ("--budget-ms", -1), "above 0"),
        (BOARD, ("--keep", "/no/such/parent"), "there is no folder /no/such"),
    ],
)
@pytest.mark.usefixtures("shell_for_ssh")
def test_what_cannot_be_is_told(
    board: str, options: tuple[object, ...], told: str, bundle: Path, tmp_path: Path, hwnas: Call
) -> None:
    out = tmp_path / "out"
    assert told in error_of(hwnas("deploy", bundle, board, "--out", out, *options))
    assert not out.exists()


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_bundle_that_was_changed_is_not_sent(bundle: Path, tmp_path: Path, hwnas: Call) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(data)
    said = error_of(hwnas("deploy", bundle, BOARD, "--out", tmp_path / "out"))
    assert "model.onnx was changed" in said


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_bundle_for_other_images_is_refused(bundle: Path, tmp_path: Path, hwnas: Call) -> None:
    card = json.loads((bundle / "card.json").read_text())
    card["image_shape"] = [1, 9, 9]
    (bundle / "card.json").write_text(json.dumps(card))
    seal(bundle)
    said = error_of(hwnas("deploy", bundle, BOARD, "--out", tmp_path / "out"))
    assert "takes images of 1x9x9" in said


@pytest.mark.usefixtures("shell_for_ssh")
def test_a_place_of_something_else_is_refused_first(
    bundle: Path, tmp_path: Path, hwnas: Call
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").write_text("mine")
    assert "hwnas did not make" in error_of(hwnas("deploy", bundle, BOARD, "--out", out))


@pytest.mark.parametrize(
    ("replacing", "told"),
    [
        ({"import onnxruntime as ort\n": "import no_ort as ort\n"}, "-m pip install numpy onnxrun"),
        ({"def main(": "sys.exit('no such luck')\ndef main("}, "no such luck"),
        (
            {"network = self._open(": "raise OSError('no room')\n                self._open("},
            "no room",
        ),
    ],
)
def test_a_board_that_cannot_is_told(
    replacing: dict[str, str],
    told: str,
    bundle: Path,
    tmp_path: Path,
    hwnas: Call,
    shell_for_ssh: Replace,
) -> None:
    shell_for_ssh(replacing)
    out = tmp_path / "out"
    assert told in error_of(hwnas("deploy", bundle, BOARD, "--out", out))
    assert not out.exists()


def test_a_board_that_cannot_be_reached_is_told(
    bundle: Path, tmp_path: Path, hwnas: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = tmp_path / "ssh"
    words = "ssh: connect to host board port 2222: Connection refused"
    refusing.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 255\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("HWNAS_SSH", str(refusing))
    said = error_of(hwnas("deploy", bundle, BOARD, "--out", tmp_path / "out"))
    assert "Connection refused" in said
    assert "is sshd running there" in said
