"""What `hwnas verify` takes, and what it finds on FP32, FP16 and INT8 engines of a real network.

Asked: 1,000 images, PGD-20 replayed and Square with 1,000 queries within 3 minutes on 2 cores, for
a network of rnas-cl-s7. The network is trained here, by one-step adversarial training (N-FGSM), so
that attacks have work to do: on an untrained one every image survives, or none.

    python benchmarks/deploy/verify_cost.py --data cifar10:FOLDER [--weights W.safetensors]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance, this_device, usable_cores
from hwnas.core.weights import read_weights, write_weights
from hwnas.data.sources import DataConfig, load_data
from hwnas.robustness.pgd import perturb
from hwnas.robustness.threat import Eps, ThreatModel
from hwnas.space.memory_format import channels_last
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.bundle import arrays_of
from hwnas.verify.speed import measure_speed
from hwnas.verify.verification import VerifySettings, verify_engine
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_export.precision import onnx_in_precision
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from torch import nn

    from hwnas.data.images import ImageData
    from hwnas.verify.verification import Verification

RESULTS = Path(__file__).parents[1] / "results" / "deploy"
SPACE = "rnas-cl-s7"
EPS = Eps(8 / 255)
ASKED_SECONDS = 180.0
CALIBRATION = 512


def main() -> None:
    """Train, verify each engine, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--weights", type=Path, help="trained before; written where missing")
    parser.add_argument("--precisions", default="fp32,fp16,int8")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    data = load_data(DataConfig(source=given.data))
    space = space_from_spec(space_spec(SPACE, image_shape=data.image_shape,
                                       classes=len(data.class_names)))  # fmt: skip
    twin = space.network(space.random_genotype(np.random.default_rng(0)))
    if given.weights is not None and given.weights.is_file():
        read_weights(given.weights, twin)
    else:
        trained(twin, data, given.steps, given.batch)
        if given.weights is not None:
            write_weights(given.weights, twin.eval())
    images, labels = arrays_of(data.test)
    rows = np.random.default_rng(0).permutation(len(images))[: given.n]
    model = onnx_from_module(twin.eval(), (1, *data.image_shape), dynamic_batch=True)
    calibration, _ = arrays_of(data.validation)
    runs: dict[str, Any] = {}
    for precision in given.precisions.split(","):
        content = onnx_in_precision(
            model, precision, calibration=calibration[:CALIBRATION], float_head=True
        ).SerializeToString()
        begin = time.perf_counter()
        with OnnxRuntimeRunner(content, precision=precision) as engine:
            found = verify_engine(
                twin=twin,
                engine=engine,
                images=images[rows],
                labels=labels[rows],
                threat=ThreatModel(eps="8/255", steps=20),
                precision=precision,
                model=content,
                speed=measure_speed(engine, settings=TimingSettings.quick()),
                settings=VerifySettings(square_queries=given.queries, square_samples=given.n),
            )
        seconds = time.perf_counter() - begin
        tell(precision, found, seconds)
        runs[precision] = {"seconds": seconds, "verification": found}
    given.out.mkdir(parents=True, exist_ok=True)
    record = {
        "network": {"space": SPACE, "params": sum(each.numel() for each in twin.parameters())},
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "asked_seconds": ASKED_SECONDS,
        "load_average": os.getloadavg()[0],
        # Not where things are: that is of no account, and of one machine.
        "settings": {
            name: str(value)
            for name, value in vars(given).items()
            if name not in ("data", "weights", "out")
        },
        "provenance": provenance(this_device()),
        "runs": runs,
    }
    write_atomically(given.out / "verify_cost.json", encode_json(record, indent=1))


def trained(network: nn.Module, data: ImageData, steps: int, batch: int) -> None:
    """Train on single-step adversarial examples, in place."""
    network = channels_last(network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    draws = torch.Generator().manual_seed(0)
    pixels, labels = data.train.pixels(), data.train.labels
    for _ in range(steps):
        rows = torch.randint(len(labels), (batch,), generator=draws)
        images, targets = pixels[rows], labels[rows]
        attacked = perturb(
            network, images, targets, eps=EPS, steps=1, step_size=EPS, noise=2.0, project=False,
            generator=draws,
        )  # fmt: skip
        loss = functional.cross_entropy(network(attacked), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def tell(precision: str, found: Verification, seconds: float) -> None:
    """Print one engine."""
    parity, own = found.parity, found.adaptive
    assert own is not None
    parts = ", ".join(f"{name} {taken:.1f}" for name, taken in found.seconds.items())
    lines = [
        f"{precision}: {seconds:.1f} s ({parts}); asked {ASKED_SECONDS:.0f}",
        f"  relative L2 {parity.relative_l2}, max {parity.max_abs_diff}, margin drift "
        f"{parity.margin_drift}, agreement {parity.agreement:.4f}, under attack "
        f"{found.adversarial_agreement:.4f}, distinct logits {parity.distinct_logits_engine}",
        f"  clean {found.clean_accuracy.engine.value:.3f} (twin "
        f"{found.clean_accuracy.twin.value:.3f}), replay {found.robust_accuracy.engine.value:.3f} "
        f"(twin {found.robust_accuracy.twin.value:.3f}), Square "
        f"{found.black_box.square.value:.3f}",
        f"  of {own.worst_case.n}: twin {own.twin.value:.3f}, replay {own.replay.value:.3f}, "
        f"adaptive {own.adaptive.value:.3f} through {own.gradients}, Square "
        f"{own.square.value:.3f}, worst case {own.worst_case.value:.3f}",
        f"  failed: {[str(gate) for gate in found.gates if not gate.passed] or 'no gate'}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
