"""Do our attacks break the samples that other libraries' break? One network, seed and eps.

    python benchmarks/robustness/agreement.py --rival-python VENV/bin/python
        [--teacher FOLDER] [--data cifar10:FOLDER] [--n 500] [--eps 8/255] [--norm linf]
        [--attacks fgsm,pgd,apgd-ce,autoattack] [--seed 0] [--batch 250] [--threads 1]

The other libraries run in an environment of their own (--rival-python, or $HWNAS_ATTACKS_PYTHON):

    python -m venv VENV
    VENV/bin/pip install torch==2.13.0 msgspec safetensors pyautoattack==0.2.0 foolbox==3.3.4
    VENV/bin/pip install packaging multiprocess statsmodels scikit-learn tqdm requests six
    VENV/bin/pip install --no-deps torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1
    VENV/bin/pip install --no-deps git+https://github.com/fra31/auto-attack

What draws random numbers is compared with the reference AutoAttack and with pyautoattack alone,
which draw what we draw. FGSM and PGD are compared with all, PGD from the image itself and by its
last point, as the others judge it; `hwnas attack` starts at random and keeps each sample's worst
point. Per pair: samples whose verdict differs, and both accuracies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from _shared import (
    HAS,
    job_of,
    options_of,
    parser_of,
    rivals_of,
    say,
    subject_of,
    threat_of,
    write_result,
)

from hwnas.core.threads import torch_threads
from hwnas.robustness.attacks.ball import ball_around
from hwnas.robustness.attacks.losses import fooled, gradient_of
from hwnas.robustness.attacks.table import run_attacks

if TYPE_CHECKING:
    import argparse

    from _subject import Subject
    from numpy.typing import NDArray

# The same without random draws; the others only where the draws are the same.
DETERMINISTIC = ("fgsm", "pgd")
SAME_DRAWS = ("reference", "pyautoattack")


def main() -> None:
    """Attack with all, compare, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--attacks", default="fgsm,pgd,apgd-ce,autoattack")
    given = parser.parse_args()
    attacks = given.attacks.split(",")
    rows: list[dict[str, object]] = []
    with torch_threads(given.threads):
        subject = subject_of(given)
        with rivals_of(given, subject) as rivals:
            say(f"{'attack':<12} {'library':<14} {'ours':>7} {'theirs':>7}  differ of {given.n}")
            for attack in attacks:
                ours = our_flags(subject, attack, given)
                for library in rivals.versions:
                    comparable = attack in DETERMINISTIC or library in SAME_DRAWS
                    if attack not in HAS[library][given.norm] or not comparable:
                        continue
                    answer = rivals.run(job_of(given, library, attack, random_start=False))
                    theirs = answer["broken"]
                    differing = np.flatnonzero(ours != theirs)
                    rows.append(
                        {
                            "attack": attack,
                            "library": library,
                            "version": rivals.versions[library],
                            "robust_ours": float(np.mean(~ours)),
                            "robust_theirs": float(np.mean(~theirs)),
                            "differing": differing.tolist(),
                            "only_ours_broke": int(np.count_nonzero(ours & ~theirs)),
                            "largest_change_theirs": answer["largest_change"],
                        }
                    )
                    say(
                        f"{attack:<12} {library:<14} {100 * np.mean(~ours):6.2f}% "
                        f"{100 * np.mean(~theirs):6.2f}%  {len(differing)}"
                    )
    facts = {**options_of(given), "rows": rows}
    write_result(f"agreement_{given.norm}", facts, given.out)


def our_flags(subject: Subject, attack: str, given: argparse.Namespace) -> NDArray[np.bool_]:
    """Return which samples our attack breaks."""
    if attack == "pgd":
        return last_point_flags(subject, given)
    outcome = run_attacks(
        subject.network,
        subject.images,
        subject.labels,
        threat_of(given),
        attacks=[attack],
        seed=given.seed,
        batch=given.batch,
        queries=given.queries,
    )
    return outcome.flags[attack]


def last_point_flags(subject: Subject, given: argparse.Namespace) -> NDArray[np.bool_]:
    """Return what plain PGD breaks: from the image itself, judged by its last point alone."""
    threat, flags = threat_of(given), []
    for start in range(0, len(subject.images), given.batch):
        images = torch.from_numpy(subject.images[start : start + given.batch])
        labels = torch.from_numpy(subject.labels[start : start + given.batch])
        with torch.no_grad():
            wrong = fooled(subject.network(images), labels)
        ball, points = ball_around(images, threat.norm, threat.eps_pixels), images.clone()
        for _ in range(threat.steps):
            points = points.detach().requires_grad_()
            losses = torch.nn.functional.cross_entropy(
                subject.network(points), labels, reduction="none"
            )
            gradient = gradient_of(losses, points)
            points = ball.step(points.detach(), gradient, threat.step_size_pixels)
        with torch.no_grad():
            flags.append((wrong | fooled(subject.network(points), labels)).numpy())
    return np.concatenate(flags)


if __name__ == "__main__":
    main()
