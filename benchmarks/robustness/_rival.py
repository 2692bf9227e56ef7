"""A worker that runs other libraries' attacks, in their own interpreter: jobs in, answers out.

    python _rival.py FOLDER THREADS

Each line of standard input is a job, JSON: library, attack, norm, eps, steps, step_size, seed,
batch, queries, random_start. Each answer is a line: seconds, seconds of CPU, and of each sample
whether it is broken. "libraries" in place of a job asks what is installed, with versions.

A timing holds what it takes to know clean and attacked accuracy: a pass over the images, an attack
on those that are classified right, and the verdict. AutoAttack makes that first pass itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "profilers")]

from _subject import Subject, read_subject  # noqa: E402  (found by the path above)

Job = dict[str, Any]
Images = torch.Tensor

# By the name used here: what is imported, and the package whose version counts.
LIBRARIES = {
    "reference": ("autoattack", "autoattack"),
    "pyautoattack": ("pyautoattack", "pyautoattack"),
    "foolbox": ("foolbox", "foolbox"),
    "torchattacks": ("torchattacks", "torchattacks"),
    "art": ("art.attacks.evasion", "adversarial-robustness-toolbox"),
}
STEPS, CLASSES = 100, 9
CW_SEARCHES, CW_STEPS = 9, 200
LONG_NORM = {"linf": "Linf", "l2": "L2"}


def main() -> None:
    """Answer jobs until standard input ends."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    subject = read_subject(folder)
    answers = sys.stdout
    for line in sys.stdin:
        if line.strip() == '"libraries"':
            answer: object = installed()
        else:
            # The libraries print.
            with contextlib.redirect_stdout(io.StringIO()):
                answer = run(subject, json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def installed() -> dict[str, str]:
    """Return the versions of the libraries that can be imported."""
    found = {}
    for name, (module, package) in LIBRARIES.items():
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            found[name] = importlib.metadata.version(package)
    return found


def run(subject: Subject, job: Job) -> dict[str, object]:
    """Run one attack of one library."""
    logging.disable(logging.CRITICAL)
    images, labels = torch.from_numpy(subject.images), torch.from_numpy(subject.labels)
    network = subject.network.eval()
    own_pass = BUILDERS[job["library"]] is autoattack
    start, start_cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1) for part in images.split(job["batch"])])
    rows = (found == labels).nonzero()[:, 0]
    if own_pass:
        start, start_cpu = time.perf_counter(), time.process_time()
    attack = BUILDERS[job["library"]](subject, job)
    points = attack(images[rows], labels[rows])
    with torch.no_grad():
        found = torch.cat([network(part).argmax(1) for part in points.split(job["batch"])])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    broken = np.ones(len(labels), dtype=bool)
    broken[rows] = (found != labels[rows]).numpy()
    change = (points - images[rows]).flatten(1)
    largest = change.abs().amax(1) if job["norm"] == "linf" else change.norm(dim=1)
    network.zero_grad(set_to_none=True)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "broken": broken.tolist(),
        "largest_change": float(largest.max()) if len(rows) else 0.0,
    }


Attack = Callable[[Images, Images], Images]


def in_batches(attack: Attack, batch: int) -> Attack:
    """Return an attack that works on a batch at a time."""

    def whole(images: Images, labels: Images) -> Images:
        parts = zip(images.split(batch), labels.split(batch), strict=True)
        return torch.cat([attack(*part) for part in parts])

    return whole


def autoattack(subject: Subject, job: Job) -> Attack:
    """Build an attack of AutoAttack: the reference package, or pyautoattack."""
    norm = LONG_NORM[job["norm"]]
    if job["library"] == "reference":
        from autoattack import AutoAttack

        whole = AutoAttack(
            subject.network,
            norm=norm,
            eps=job["eps"],
            seed=job["seed"],
            device="cpu",
            verbose=False,
        )
        call = {"bs": job["batch"]}
    else:
        from pyautoattack.autoattack import AutoAttack

        whole = AutoAttack(subject.network, norm=norm, eps=job["eps"], seed=job["seed"])
        call = {"batch_size": job["batch"]}
    whole.square.n_queries = job["queries"]
    if job["attack"] != "autoattack":
        whole.attacks_to_run = [job["attack"]]

    def attack(images: Images, labels: Images) -> Images:
        found = whole.run_standard_evaluation(images, labels, **call)
        return found[0] if isinstance(found, tuple) else found

    return attack


def foolbox(subject: Subject, job: Job) -> Attack:
    """Build an attack of foolbox."""
    import foolbox.attacks as library
    from foolbox import PyTorchModel

    model = PyTorchModel(subject.network, bounds=(0, 1), device="cpu")
    prefix = {"linf": "Linf", "l2": "L2"}[job["norm"]]
    sizes = {"abs_stepsize": job["step_size"], "steps": job["steps"]}
    match job["attack"]:
        case "fgsm":
            kind = f"{prefix}FastGradientAttack"
            attack = getattr(library, kind)(random_start=False)
        case "pgd":
            kind = f"{prefix}ProjectedGradientDescentAttack"
            attack = getattr(library, kind)(random_start=job["random_start"], **sizes)
        case "mi-fgsm":
            kind = f"{prefix}MomentumIterativeFastGradientMethod"
            own = {**sizes, "abs_stepsize": job["eps"] / job["steps"]}
            attack = getattr(library, kind)(momentum=1.0, random_start=False, **own)
        case "cw":
            attack = library.L2CarliniWagnerAttack(
                binary_search_steps=CW_SEARCHES,
                steps=CW_STEPS,
                stepsize=0.01,
                initial_const=0.01,
                abort_early=False,
            )
        case other:
            raise ValueError(other)

    def one(images: Images, labels: Images) -> Images:
        return attack(model, images, labels, epsilons=job["eps"])[1]

    return in_batches(one, job["batch"])


def torchattacks(subject: Subject, job: Job) -> Attack:
    """Build an attack of torchattacks."""
    import torchattacks as library

    network, eps, steps = subject.network, job["eps"], job["steps"]
    norm = {"norm": LONG_NORM[job["norm"]], "eps": eps, "seed": job["seed"]}
    classes = subject.spec.classes
    makers: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: library.FGSM(network, eps=eps),
        "pgd": lambda: library.PGD(
            network, eps, job["step_size"], steps, random_start=job["random_start"]
        ),
        "mi-fgsm": lambda: library.MIFGSM(network, eps, eps / steps, steps, decay=1.0),
        "apgd-ce": lambda: library.APGD(network, steps=STEPS, loss="ce", **norm),
        "apgd-dlr": lambda: library.APGD(network, steps=STEPS, loss="dlr", **norm),
        "apgd-t": lambda: library.APGDT(network, steps=STEPS, n_classes=classes, **norm),
        "fab-t": lambda: library.FAB(
            network, steps=STEPS, multi_targeted=True, n_classes=classes, **norm
        ),
        "square": lambda: library.Square(network, n_queries=job["queries"], **norm),
    }
    return in_batches(makers[job["attack"]](), job["batch"])


def art(subject: Subject, job: Job) -> Attack:
    """Build an attack of the Adversarial Robustness Toolbox."""
    from art.attacks import evasion as library
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(
        subject.network,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=subject.spec.image_shape,
        nb_classes=subject.spec.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    norm = {"linf": np.inf, "l2": 2}[job["norm"]]
    common = {"batch_size": job["batch"], "verbose": False}
    ball = {"norm": norm, "eps": job["eps"]}
    auto = {"max_iter": STEPS, "nb_random_init": 1, "eps_step": 2 * job["eps"]}
    makers: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: library.FastGradientMethod(model, batch_size=job["batch"], **ball),
        "pgd": lambda: library.ProjectedGradientDescentPyTorch(
            model,
            eps_step=job["step_size"],
            max_iter=job["steps"],
            num_random_init=int(job["random_start"]),
            **ball,
            **common,
        ),
        "mi-fgsm": lambda: library.MomentumIterativeMethod(
            model,
            decay=1.0,
            eps_step=job["eps"] / job["steps"],
            max_iter=job["steps"],
            **ball,
            **common,
        ),
        "cw": lambda: library.CarliniL2Method(
            model,
            binary_search_steps=CW_SEARCHES,
            max_iter=CW_STEPS,
            learning_rate=0.01,
            initial_const=0.01,
            **common,
        ),
        "apgd-ce": lambda: library.AutoProjectedGradientDescent(
            model, loss_type="cross_entropy", **auto, **ball, **common
        ),
        "apgd-dlr": lambda: library.AutoProjectedGradientDescent(
            model, loss_type="difference_logits_ratio", **auto, **ball, **common
        ),
        "square": lambda: library.SquareAttack(
            model, max_iter=job["queries"], nb_restarts=1, **ball, **common
        ),
    }
    attack = makers[job["attack"]]()

    def whole(images: Images, labels: Images) -> Images:
        return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))

    return whole


BUILDERS: dict[str, Callable[[Subject, Job], Attack]] = {
    "reference": autoattack,
    "pyautoattack": autoattack,
    "foolbox": foolbox,
    "torchattacks": torchattacks,
    "art": art,
}

if __name__ == "__main__":
    main()
