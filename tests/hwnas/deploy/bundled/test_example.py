"""A bundle's example: it runs where there is no hwnas, and runs nothing that was changed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from hwnas.core.errors import ExportError
from hwnas.deploy.example import example_py

if TYPE_CHECKING:
    from tests.hwnas.deploy.bundled.conftest import SmallBundle

# Isolated from the folder and the user's settings; and the packages that must not be needed are
# made impossible to import.
RUN = """
import runpy, sys
for name in ("hwnas", "hwnas_export", "hwnas_profilers", "torch", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not [name for name in sys.modules if name.startswith(("hwnas", "torch.", "onnx."))
            and sys.modules[name] is not None]
"""


def run(bundle: SmallBundle, *arguments: object) -> subprocess.CompletedProcess[str]:
    (bundle.folder / "run.py").write_text(example_py(bundle.card))
    return subprocess.run(
        [sys.executable, "-I", "-c", RUN, "run.py", *map(str, arguments)],
        cwd=bundle.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_gives_the_networks_logits(small_bundle: SmallBundle) -> None:
    images = np.random.default_rng(1).random((2, 1, 8, 8), dtype=np.float32)
    np.save(small_bundle.folder / "images.npy", images)
    with torch.inference_mode():
        expected = small_bundle.twin(torch.from_numpy(images)).numpy()
    found = run(small_bundle, "images.npy")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.replace("\nname", " name").splitlines()
    assert len(lines) == 2
    for line, logits in zip(lines, expected, strict=True):
        name, _, values = line.rpartition(" [")
        own = small_bundle.card.class_names[int(logits.argmax())]
        assert name == own.replace("\n", " ")
        shown = [float(value) for value in values.rstrip("]").split(",")]
        assert shown == pytest.approx(logits.tolist(), abs=1e-3)


def test_it_makes_an_image_where_none_is_given(small_bundle: SmallBundle) -> None:
    found = run(small_bundle)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("[") == 1


def test_it_runs_no_engine_that_was_changed(small_bundle: SmallBundle) -> None:
    content = bytearray(small_bundle.model)
    content[-1] ^= 1
    (small_bundle.folder / "model.onnx").write_bytes(content)
    found = run(small_bundle)
    assert found.returncode == 1
    assert "not the file that its sidecar describes" in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize(
    "image",
    [
        np.full((1, 8, 8), 2.0, np.float32),
        np.full((1, 8, 8), np.nan, np.float32),
        np.zeros((3, 8, 8), np.float32),
    ],
    ids=["beyond the range", "NaN", "another shape"],
)
def test_it_refuses_images_that_are_none(
    small_bundle: SmallBundle, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    np.save(small_bundle.folder / "image.npy", image)
    found = run(small_bundle, "image.npy")
    assert found.returncode == 1
    assert "images are [1, 8, 8]" in found.stderr


def test_settings_of_the_session_are_in_it(small_bundle: SmallBundle) -> None:
    session = {"graph_optimization": "extended", "memory_arena": "off", "memory_pattern": "off",
               "spinning": "off"}  # fmt: skip
    text = example_py(replace(small_bundle.card, session=session))
    for line in ("ORT_ENABLE_EXTENDED", "enable_cpu_mem_arena = False", "allow_spinning",
                 "enable_mem_pattern = False"):  # fmt: skip
        assert line in text
        assert line not in example_py(small_bundle.card)


def test_that_of_openvino_names_the_precision(small_bundle: SmallBundle) -> None:
    for target, hint in (("openvino-cpu", '"f32"'), ("openvino-cpu-bf16", '"bf16"')):
        text = example_py(replace(small_bundle.card, target=target))
        compile(text, "run.py", "exec")
        assert hint in text


@pytest.mark.parametrize(
    ("packages", "module"),
    [({"tensorrt": "10.3.0"}, "tensorrt"), ({"tensorrt-rtx": "1.4"}, "tensorrt_rtx")],
)
def test_that_of_tensorrt_checks_the_plan_before_it_is_deserialized(
    small_bundle: SmallBundle, packages: dict[str, str], module: str
) -> None:
    card = replace(small_bundle.card, target="tensorrt-fp16", packages=packages)
    text = example_py(card)
    compile(text, "run.py", "exec")
    assert f"import {module} as trt" in text
    order = [text.index(part) for part in ("plan_sha256", "engine_host_code", "deserialize")]
    assert order == sorted(order)


def test_there_is_none_for_torch(small_bundle: SmallBundle) -> None:
    with pytest.raises(ExportError, match="torch-cpu"):
        example_py(replace(small_bundle.card, target="torch-cpu"))
