"""NVIDIA modelopt's side of modelopt.py: runs in an environment of its own, and knows no hwnas.

    python modelopt_rival.py FOLDER

reads FOLDER/task.json and FOLDER/data.npz, and leaves network.onnx and result.json there.
`train_plainly` is what both sides fine-tune with, so it lies here and needs torch alone.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

DEPLOYMENT = {"runtime": "ORT", "accelerator": "CPU", "precision": "fp32", "onnx_opset": "13"}
"""All that its client for ONNX Runtime on the CPU offers."""


def main() -> None:
    """Convert, train, search under a budget, fine-tune and export."""
    folder = Path(sys.argv[1])
    # modelopt.py lies beside this file and would be imported in place of the package.
    here = Path(__file__).parent.resolve()
    sys.path = [place for place in sys.path if Path(place).resolve() != here]
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "data.npz") as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    result = run(task, data, folder)
    (folder / "result.json").write_text(json.dumps(result))


def run(task: Mapping[str, Any], data: Mapping[str, Tensor], out: Path) -> dict[str, Any]:
    """Follow the recipe of its guide, with its defaults where the task gives none."""
    import modelopt
    import modelopt.torch.nas as mtn
    import onnxruntime
    from modelopt.torch._deploy import get_latency

    use_threads(task["threads"])
    draws = note_draws()
    seconds: dict[str, float] = {}

    @contextmanager
    def clocked(stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - began

    def score(model: nn.Module) -> float:
        return accuracy(model, data["validation_images"], data["validation_labels"])

    network = Network(task["network"], data["mean"], data["std"])
    widest_params = parameters(network)
    dummy = torch.zeros(1, *data["train_images"].shape[1:])
    own_widest_ms = get_latency(network.eval(), dummy, DEPLOYMENT)
    export(network, dummy, out / "widest.onnx")
    with clocked("space"):
        mode = [("autonas", task["space"])] if task["space"] else "autonas"
        network = mtn.convert(network, mode=mode)
    fit = (data["train_images"], data["train_labels"])
    with clocked("supernet"):
        train_plainly(network, *fit, **task["supernet"], seed=task["seed"])
    images = pixels(data["train_images"])
    batch = task["supernet"]["batch"]
    with clocked("search"):
        network, state = mtn.search(
            network,
            constraints={"latency": task["budget"]},
            dummy_input=dummy,
            config={
                "data_loader": list(images.split(batch)),
                "collect_func": lambda images: images,
                "score_func": score,
                "deployment": DEPLOYMENT,
                "num_iters": task["iterations"],
            },
        )
    ended = time.perf_counter()
    own_ms = get_latency(network.eval(), dummy, DEPLOYMENT)
    with clocked("fine-tuning"):
        train_plainly(network, *fit, **task["finetuning"], seed=task["seed"])
    with clocked("export"):
        export(network, dummy, out / "network.onnx")
    return {
        "seconds": seconds,
        "iterations": task["iterations"],
        "drawing_s": ended - draws[0],
        "satisfied": state["num_satisfied"],
        "constraints_of_best": {
            name: float(value) for name, value in (state["best"]["constraints"] or {}).items()
        },
        "own_widest_ms": float(own_widest_ms),
        "own_latency_ms": float(own_ms),
        "widest_params": widest_params,
        "params": parameters(network),
        "subnet": {name: str(value) for name, value in state["best"]["config"].items()},
        "versions": {
            "nvidia-modelopt": modelopt.__version__,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }


def use_threads(count: int) -> None:
    """Make its client measure with so many threads: it takes all cores and offers no setting."""
    import onnxruntime
    from modelopt.torch._deploy._runtime.ort_client import ORTLocalClient

    of_its_own = ORTLocalClient._init_session

    def init_session(self: object, model: bytes, options: object = None) -> object:
        options = options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = count  # type: ignore[attr-defined]
        return of_its_own(self, model, options)

    ORTLocalClient._init_session = init_session


def note_draws() -> list[float]:
    """Make its searcher note when it begins to draw each network; return where."""
    from modelopt.torch.nas.autonas import EvolveSearcher

    began: list[float] = []
    of_its_own = EvolveSearcher.before_step

    def before_step(self: object) -> None:
        began.append(time.perf_counter())
        of_its_own(self)

    EvolveSearcher.before_step = before_step
    return began


def export(network: nn.Module, dummy: Tensor, out: Path) -> None:
    """Write a network as ONNX of one input and one output."""
    torch.onnx.export(
        network.eval(),
        (dummy,),
        str(out),
        dynamo=True,
        opset_version=20,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )


# The widest network of a channel-mask space, in plain modules that modelopt converts by itself


def unit(width_in: int, width_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1,
         activate: bool = True) -> nn.Sequential:  # fmt: skip
    """Return convolution, batch normalization and h-swish."""
    layers: list[nn.Module] = [
        nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width_out),
    ]
    return nn.Sequential(*layers, *([nn.Hardswish()] if activate else []))


class Block(nn.Module):
    """Inverted residual."""

    def __init__(self, width_in: int, width_out: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.expand = unit(width_in, hidden)
        self.depthwise = unit(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = unit(hidden, width_out, activate=False)
        self.shortcut = stride == 1 and width_in == width_out

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        output: Tensor = self.project(self.depthwise(self.expand(features)))
        return features + output if self.shortcut else output


class Network(nn.Module):
    """Normalization, stem, stages as sequences (so that depth is searched too), and classifier."""

    mean: Tensor
    std: Tensor

    def __init__(self, task: Mapping[str, Any], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.stem = unit(len(mean), task["stem"], kernel=3, stride=task["stem_stride"])
        self.stages = nn.Sequential(
            *(nn.Sequential(*(Block(*block) for block in stage)) for stage in task["stages"])
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(task["stages"][-1][-1][1], task["classes"])

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels of [0, 1], (batch, channels, height, width), to (batch, classes)."""
        features = self.stages(self.stem((images - self.mean) / self.std))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


# What both sides do alike


def train_plainly(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    pad: int,
    flip: bool,
    seed: int,
) -> None:
    """Train by cross-entropy: Adam, cosine down to zero, shifts and mirrors.

    Args:
        network: Trained in place.
        images: uint8, (n, channels, height, width).
        labels: int64, (n,).
        epochs: Epochs.
        batch: Images per step; a rest of fewer is left out of its epoch.
        learning_rate: The first and highest rate.
        weight_decay: Weight decay.
        pad: Shift by up to this many pixels.
        flip: Mirror every other image, at random.
        seed: Seed of order and augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate, weight_decay=weight_decay)
    batch = min(batch, len(labels))
    steps, done = epochs * (len(labels) // batch), 0
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order.split(batch)[: len(labels) // batch]:
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * learning_rate * (1 + math.cos(math.pi * done / steps))
            augmented = shifted(pixels(images[chosen]), pad, generator)
            if flip:
                mirrored = torch.rand(len(chosen), generator=generator) < 0.5
                augmented = torch.where(mirrored[:, None, None, None], augmented.flip(3), augmented)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(functional.cross_entropy(network(augmented), labels[chosen]))
            optimizer.step()
            done += 1
    network.eval()


def shifted(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Crop each image at a place of its own out of its zero-padded self."""
    count, _, height, width = images.shape
    top, left = torch.randint(2 * pad + 1, (2, count), generator=generator)
    padded = functional.pad(images, (pad, pad, pad, pad))
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # -> (n, C, places, places, H, W)
    return crops[torch.arange(count), :, top, left]


def pixels(images: Tensor) -> Tensor:
    """Return uint8 images as pixels in [0, 1]."""
    return images.to(torch.float32) / 255.0


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of uint8 images that are classified right, in eval mode."""
    network.eval()
    right = 0
    for start in range(0, len(labels), 256):
        part = slice(start, start + 256)
        right += int((network(pixels(images[part])).argmax(1) == labels[part]).sum())
    return right / len(labels)


def parameters(network: nn.Module) -> int:
    """Count a network's trained parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
