"""What agreement and speed share: options, the network under attack, rivals, results."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _subject import Subject, write_subject
from torch.nn import functional

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.environment import provenance
from hwnas.data.sources import DataConfig, load_data
from hwnas.distill.teacher import TEACHER_FILE, TeacherCard, load_teacher
from hwnas.distill.teacher_network import TeacherNetwork, TeacherSpec
from hwnas.robustness.pgd import perturb
from hwnas.robustness.threat import ThreatModel, parse_eps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hwnas.data.images import ImageData

RESULTS = Path(__file__).parents[1] / "results" / "robustness"
WORKER = Path(__file__).with_name("_rival.py")

_OF_MACHINE = ("out", "rival_python")

# The attacks that each library has, with the same meaning as ours; l_2 where it has that too.
_AUTOATTACK = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack")
HAS: dict[str, dict[str, tuple[str, ...]]] = {
    "reference": {"linf": _AUTOATTACK, "l2": _AUTOATTACK},
    "pyautoattack": {"linf": _AUTOATTACK, "l2": _AUTOATTACK},
    "foolbox": {"linf": ("fgsm", "pgd", "mi-fgsm"), "l2": ("fgsm", "pgd", "cw")},
    # Its AutoAttack takes 10 steps where the reference takes 100: not the same attack.
    "torchattacks": {
        "linf": (
            "fgsm",
            "pgd",
            "mi-fgsm",
            "apgd-ce",
            "apgd-dlr",
            "apgd-t",
            "fab-t",
            "square",
        ),
        "l2": ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"),
    },
    "art": {
        "linf": ("fgsm", "pgd", "mi-fgsm", "apgd-ce", "apgd-dlr", "square"),
        "l2": ("fgsm", "pgd", "cw"),
    },
}


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write_result(name: str, document: Mapping[str, Any], out: Path | None) -> None:
    """Write a benchmark's raw figures, with the machine and the versions, all or nothing."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"benchmark": f"robustness/{name}", **document, "provenance": provenance()}
    write_atomically(path, encode_json(whole, indent=1))
    say(f"written: {path}")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that both scripts take."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--teacher", type=Path, help="a folder made by `hwnas teacher`")
    parser.add_argument("--data", default="digits", help="as in [data] source, e.g. cifar10:FOLDER")
    parser.add_argument("--epochs", type=int, default=8, help="of training, without --teacher")
    parser.add_argument("--width", type=int, default=16, help="of the network, without --teacher")
    parser.add_argument("--n", type=int, default=500, help="samples, drawn from the test images")
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--steps", type=int, default=20, help="of PGD and MI-FGSM")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rival-python",
        type=Path,
        default=os.environ.get("HWNAS_ATTACKS_PYTHON"),
        help="an interpreter with the other libraries; without it pyautoattack alone is compared",
    )
    parser.add_argument("--out", type=Path, help="another file for the figures")
    return parser


def options_of(given: argparse.Namespace) -> dict[str, str]:
    """Return the options as they are recorded: where files lie on this machine is no one's."""
    said = {name: str(value) for name, value in vars(given).items() if name not in _OF_MACHINE}
    if given.teacher:
        said["teacher"] = given.teacher.name
    source, folder, _ = given.data.partition(":")
    return said | {"data": f"{source}:FOLDER" if folder else source}


def threat_of(given: argparse.Namespace) -> ThreatModel:
    """Return the threat model of the options."""
    return ThreatModel(norm=given.norm, eps=parse_eps(given.eps, given.norm), steps=given.steps)


def job_of(given: argparse.Namespace, library: str, attack: str, **more: object) -> dict[str, Any]:
    """Return a job for the worker that asks for what ours does."""
    threat = threat_of(given)
    return {
        "library": library,
        "attack": attack,
        "norm": given.norm,
        "eps": float(threat.eps_pixels),
        "steps": threat.steps,
        "step_size": float(threat.step_size_pixels),
        "seed": given.seed,
        "batch": given.batch,
        "queries": given.queries,
        "random_start": True,
        **more,
    }


def subject_of(given: argparse.Namespace) -> Subject:
    """Read or train the network under attack, and draw its samples."""
    flip = not given.data.startswith("digits")
    data = load_data(DataConfig(source=given.data, flip=flip))
    if given.teacher:
        trained_weights = load_teacher(given.teacher, attention_size=1).network.state_dict()
        spec = read_json(given.teacher / TEACHER_FILE, TeacherCard).network
        if spec is None:
            raise SystemExit(f"{given.teacher} holds no network of our own")
        # As anyone's module comes: weights that record gradients, laid out as torch makes them.
        network = TeacherNetwork(spec)
        network.load_state_dict(trained_weights)
    else:
        network, spec = trained(data, given)
    chosen = data.test.subset(given.n, torch.Generator().manual_seed(given.seed))
    return Subject(
        network=network.eval(),
        spec=spec,
        images=chosen.pixels().numpy(),
        labels=chosen.labels.numpy(),
    )


def trained(data: ImageData, given: argparse.Namespace) -> tuple[TeacherNetwork, TeacherSpec]:
    """Train a small network by FGSM from random starts: attacks then differ in what they break."""
    spec = TeacherSpec(
        image_shape=data.image_shape, classes=len(data.class_names), width=given.width
    )
    generator = torch.Generator().manual_seed(given.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given.seed)
        network = TeacherNetwork(spec)
    network.normalize.set_statistics(*data.pixel_statistics())
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    eps = parse_eps("8/255" if given.norm == "l2" else given.eps)
    for epoch in range(given.epochs):
        for rows in torch.randperm(len(data.train), generator=generator).split(128):
            images, labels = data.train.images[rows] / 255.0, data.train.labels[rows]
            points = perturb(
                network,
                images,
                labels,
                eps=eps,
                steps=1,
                step_size=1.25 * eps,
                generator=generator,
            )
            loss = functional.cross_entropy(network(points), labels)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
        say(f"training: epoch {epoch + 1} of {given.epochs}, loss {loss.item():.3f}")
    return network, spec


class Rivals:
    """A worker with the other libraries; see _rival.py."""

    def __init__(self, worker: subprocess.Popen[str]) -> None:
        self._worker = worker
        self.versions: dict[str, str] = self._ask("libraries")

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run a job; return seconds, and flags as an array."""
        answer: dict[str, Any] = self._ask(job)
        answer["broken"] = np.array(answer["broken"])
        return answer

    def _ask(self, question: object) -> Any:
        pipe_in, pipe_out = self._worker.stdin, self._worker.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        pipe_in.write(json.dumps(question) + "\n")
        pipe_in.flush()
        line = pipe_out.readline()
        if not line:
            raise SystemExit(f"the rivals' interpreter ended at: {question}")
        return json.loads(line)


@contextmanager
def rivals_of(given: argparse.Namespace, subject: Subject) -> Iterator[Rivals]:
    """Start the worker on the same network and samples; end it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        write_subject(Path(folder), subject)
        command = [
            str(given.rival_python or sys.executable),
            str(WORKER),
            folder,
            str(given.threads),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as worker:
            yield Rivals(worker)
            assert worker.stdin is not None
            worker.stdin.close()
