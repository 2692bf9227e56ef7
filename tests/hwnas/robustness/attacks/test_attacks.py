"""What every attack owes, asserted of all of them."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.core.decoding import decode_json, encode_json
from hwnas.core.errors import ArtifactError, ConfigError, DataError, HwnasError
from hwnas.robustness.attacks import registry
from hwnas.robustness.attacks.registry import ATTACKS
from hwnas.robustness.attacks.table import AttackOutcome, AttackTable, run_attacks
from hwnas.robustness.threat import Norm, ThreatModel
from tests.hwnas.robustness.attacks.conftest import EPS, Digits, SmallNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

NAMES = list(ATTACKS)
BATCH = 12


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks shortened; their full settings are compared with the reference's elsewhere."""
    monkeypatch.setattr(registry, "_STEPS", 10)
    monkeypatch.setattr(registry, "_CW_STEPS", 20)
    monkeypatch.setattr(registry, "_CLASSES", 2)


def attacked(
    digits: Digits,
    attack: str,
    norm: Norm = "linf",
    *,
    count: int = 24,
    eps: float | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    state: Path | None = None,
) -> AttackOutcome:
    return run_attacks(
        model or digits.model,
        digits.images[:count],
        digits.labels[:count],
        ThreatModel(norm=norm, eps=EPS[norm] if eps is None else eps, steps=10),
        attacks=[attack],
        seed=seed,
        batch=BATCH,
        queries=60,
        state=state,
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", NAMES)
def test_an_attack_lowers_accuracy_within_its_ball(digits: Digits, attack: str, norm: Norm) -> None:
    before = torch.random.get_rng_state()
    outcome = attacked(digits, attack, norm)
    (row,) = outcome.table.rows
    flags, images = outcome.flags[attack], outcome.images[attack]
    assert row.accuracy.value < outcome.table.clean.value
    assert row.accuracy == outcome.table.worst_case
    changes = (images - digits.images[: len(images)]).reshape(len(images), -1)
    sizes = np.linalg.norm(changes, ord=np.inf if norm == "linf" else 2, axis=1)
    assert sizes.max() <= EPS[norm] * (1 + 1e-5)
    assert 0 <= images.min() <= images.max() <= 1
    with torch.no_grad():
        wrong = digits.model(torch.from_numpy(images)).argmax(1).numpy() != digits.labels[:24]
    np.testing.assert_array_equal(flags, wrong)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (row.queries is not None) == ATTACKS[attack].black_box
    assert (outcome.table.norm, outcome.table.protocol) == (norm, "pixel")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", NAMES)
def test_more_eps_is_never_weaker(digits: Digits, attack: str, norm: Norm) -> None:
    weak, strong = (
        attacked(digits, attack, norm, eps=scale * EPS[norm]).table.worst_case.correct
        for scale in (0.5, 1.5)
    )
    assert strong < weak


@pytest.mark.parametrize("attack", NAMES)
def test_a_seed_gives_one_result_and_leaves_the_model_as_it_was(
    digits: Digits, attack: str
) -> None:
    digits.model.train()
    digits.model.classifier.eval()
    weights = {name: weight.clone() for name, weight in digits.model.state_dict().items()}
    first, again = (attacked(digits, attack, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.images[attack], again.images[attack])
    assert digits.model.training
    assert not digits.model.classifier.training
    digits.model.eval()
    for name, weight in digits.model.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert weight.is_contiguous()
    assert all(p.requires_grad and p.grad is None for p in digits.model.parameters())
    if attack not in ("fgsm", "mi-fgsm", "fab-t"):  # these draw nothing
        other = attacked(digits, attack, seed=2)
        assert not np.array_equal(first.images[attack], other.images[attack])


class NaNWhenMoved(nn.Module):
    """Right on the images themselves, NaN on all others; its gradient leads away from them."""

    def __init__(self, model: nn.Module, images: NDArray[np.float32]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("known", torch.from_numpy(images).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        known = self.get_buffer("known")
        distance = torch.cdist(images.detach().flatten(1), known).amin(1, keepdim=True)
        logits: Tensor = self.model(images)
        return torch.where(distance < 1e-2, logits, torch.nan)


@pytest.mark.parametrize("attack", NAMES)
def test_nan_logits_count_as_broken(digits: Digits, attack: str) -> None:
    model = NaNWhenMoved(digits.model, digits.images).eval()
    table = attacked(digits, attack, model=model).table
    assert table.clean.value > 0.7
    assert table.worst_case.correct == 0


class NoGradient(nn.Module):
    """The gradient is NaN everywhere, the logits are not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        # The derivative of sqrt at 0 is infinite, and 0 * inf is NaN.
        return logits + torch.sqrt(torch.relu(-1 - images).sum(dim=(1, 2, 3)))[:, None]


@pytest.mark.parametrize("attack", [name for name in NAMES if not ATTACKS[name].parts])
def test_nan_gradients_leave_no_nan_points(digits: Digits, attack: str) -> None:
    outcome = attacked(digits, attack, model=NoGradient(digits.model), count=12)
    assert np.isfinite(outcome.images[attack]).all()


@pytest.mark.parametrize("attack", NAMES)
def test_a_killed_run_resumes_to_the_same_result(
    digits: Digits, attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attacked(digits, attack)
    parts = ATTACKS[attack].parts or (attack,)
    last = parts[-1]
    real, calls = ATTACKS[last].run, 0
    assert real is not None

    def dies(batch: registry.Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(batch)

    dying = {**ATTACKS, last: replaced(last, dies)}
    monkeypatch.setattr("hwnas.robustness.attacks.table.ATTACKS", dying)
    if attack != "autoattack":  # its last part may have but one batch left
        with pytest.raises(KeyboardInterrupt):
            attacked(digits, attack, state=tmp_path / "state")
    else:
        attacked(digits, attack, state=tmp_path / "state")
    calls = 2  # it dies no more
    resumed = attacked(digits, attack, state=tmp_path / "state")
    np.testing.assert_array_equal(resumed.images[attack], whole.images[attack])
    np.testing.assert_array_equal(resumed.flags[attack], whole.flags[attack])
    done = calls
    again = attacked(digits, attack, state=tmp_path / "state")
    assert calls == done  # nothing was attacked again
    assert again.table == resumed.table


def replaced(name: str, run: object) -> registry.Attack:
    return replace(ATTACKS[name], run=run)  # type: ignore[arg-type]


def test_a_state_of_other_settings_is_refused_and_says_what_differs(
    digits: Digits, tmp_path: Path
) -> None:
    attacked(digits, "fgsm", state=tmp_path)
    with pytest.raises(ArtifactError, match=r"eps 0\.1 there, 0\.05 here") as refused:
        attacked(digits, "fgsm", eps=0.05, state=tmp_path)
    assert "seed" not in refused.value.message
    with pytest.raises(ArtifactError, match="seed 0 there, 5 here"):
        attacked(digits, "fgsm", seed=5, state=tmp_path)
    with pytest.raises(ArtifactError, match="model"):
        attacked(digits, "fgsm", model=SmallNetwork().eval(), state=tmp_path)
    attacked(digits, "pgd", state=tmp_path)  # another attack joins it


def test_a_state_that_was_changed_is_refused(digits: Digits, tmp_path: Path) -> None:
    attacked(digits, "fgsm", state=tmp_path / "state")
    (stored, *_) = sorted((tmp_path / "state").glob("fgsm-*.npz"))
    whole = stored.read_bytes()
    stored.write_bytes(whole[:100])
    with pytest.raises(ArtifactError, match="changed after it was written"):
        attacked(digits, "fgsm", state=tmp_path / "state")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is no state"):
        attacked(digits, "fgsm", state=tmp_path / "other")


def test_an_ensemble_is_the_worst_of_its_parts_and_shares_the_first(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    halting = replaced("apgd-ce", lambda batch: halved(batch, ATTACKS["apgd-ce"]))
    monkeypatch.setattr("hwnas.robustness.attacks.table.ATTACKS", {**ATTACKS, "apgd-ce": halting})
    outcome = run_attacks(
        digits.model,
        digits.images[:24],
        digits.labels[:24],
        ThreatModel(eps=EPS["linf"]),
        attacks=["apgd-ce", "autoattack"],
        seed=0,
        batch=BATCH,
        queries=60,
    )
    first, whole = outcome.table.rows
    assert (outcome.flags["autoattack"] | ~outcome.flags["apgd-ce"]).all()
    assert whole.accuracy.correct < first.accuracy.correct
    assert whole.seconds > first.seconds
    both = outcome.flags["apgd-ce"]
    np.testing.assert_array_equal(
        outcome.images["autoattack"][both], outcome.images["apgd-ce"][both]
    )


def halved(batch: registry.Batch, attack: registry.Attack) -> Tensor:
    """Attack the first half of a batch alone."""
    assert attack.run is not None
    points = attack.run(batch)
    middle = len(points) // 2
    return torch.cat([points[:middle], batch.images[middle:]])


def test_an_array_function_is_attacked_as_a_black_box(digits: Digits) -> None:
    asked = 0

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal asked
        assert images.flags.c_contiguous
        assert images.dtype == np.float32
        asked += len(images)
        with torch.no_grad():
            return np.asarray(digits.model(torch.from_numpy(images)).numpy())

    given = (digits.images[:24], digits.labels[:24], ThreatModel(eps=EPS["linf"]))
    outcome = run_attacks(predict, *given, attacks=["square"], seed=0, batch=BATCH, queries=60)
    twin = attacked(digits, "square")
    np.testing.assert_array_equal(outcome.flags["square"], twin.flags["square"])
    (row,) = outcome.table.rows
    assert row.queries is not None
    assert 24 < row.queries < asked  # the clean pass and the verdict are not the attack's
    with pytest.raises(ConfigError, match="no gradients"):
        run_attacks(predict, *given, attacks=["square", "pgd"], seed=0, batch=BATCH)


class Recorder:
    """A progress that counts; it is its own task."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.steps: list[float] = []

    @contextmanager
    def task(self, name: str, total: float, *, done: float = 0) -> Iterator[Recorder]:
        self.totals.append(total)
        yield self

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.steps.append(steps)

    def say(self, message: str) -> None:
        raise AssertionError(message)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_that_was_promised_is_reported(digits: Digits, norm: Norm) -> None:
    progress = Recorder()
    run_attacks(
        digits.model,
        digits.images[:8],
        digits.labels[:8],
        ThreatModel(norm=norm, eps=EPS[norm], steps=3, restarts=2),
        attacks=NAMES,
        seed=0,
        batch=BATCH,
        queries=20,
        progress=progress,
    )
    assert min(progress.steps) >= 0
    assert sum(progress.steps) == sum(progress.totals) > 100


def test_a_table_survives_its_round_trip(digits: Digits) -> None:
    table = attacked(digits, "square").table
    assert decode_json(encode_json(table), AttackTable, source="test") == table


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "mi-fgsm", "cw"])
def test_the_normalized_protocol_attacks_behind_the_normalization(
    digits: Digits, attack: str
) -> None:
    model = digits.model
    outcome = run_attacks(
        model,
        digits.images[:24],
        digits.labels[:24],
        ThreatModel(eps=0.3, protocol="normalized"),
        attacks=[attack],
        seed=0,
        batch=BATCH,
    )
    assert outcome.table.protocol == "normalized"
    plain = attacked(digits, attack)
    assert outcome.table.clean == plain.table.clean
    assert outcome.table.worst_case.value < outcome.table.clean.value
    right = outcome.table.clean
    # The released code clamps normalized tensors to [0, 1], also where the image lies outside.
    touched = outcome.images[attack]
    with torch.no_grad():
        normalized = model.normalize(torch.from_numpy(digits.images[:24])).numpy()
    moved = ~np.isclose(touched, normalized).all(axis=(1, 2, 3))
    assert np.count_nonzero(moved) >= right.correct - outcome.table.worst_case.correct
    for index in np.flatnonzero(moved):
        assert 0 <= touched[index].min() <= touched[index].max() <= 1
    assert not model.normalize._forward_hooks


class Logits(nn.Module):
    """Answers alike to everything, for as many classes as asked."""

    def __init__(self, classes: int, *, flat: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, classes)
        self.flat = flat

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.mean(dim=(1, 2, 3))[:, None])
        return logits[:, 0] if self.flat else logits


class Detached(Logits):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"attacks": ["pdg"]}, ConfigError, "did you mean 'pgd'"),
        ({"attacks": []}, ConfigError, "no attack is named"),
        ({"attacks": ["pgd", "pgd"]}, ConfigError, "named twice"),
        ({"batch": 0}, ConfigError, "at least 1"),
        ({"queries": 0}, ConfigError, "at least 1"),
        ({"images": np.full((2, 1, 8, 8), 255, np.float32)}, DataError, r"pixels in \[0, 1\]"),
        ({"images": np.full((2, 1, 8, 8), np.nan, np.float32)}, DataError, r"pixels in \[0, 1\]"),
        ({"images": np.zeros((0, 1, 8, 8), np.float32)}, DataError, "N at least 1"),
        ({"images": np.zeros((2, 64), np.float32)}, DataError, "N at least 1"),
        ({"labels": np.array([0, 9])}, DataError, "labels reach from 0 to 9"),
        ({"labels": np.array([0])}, DataError, "N at least 1"),
        ({"attacks": ["apgd-t"], "model": Logits(3)}, ConfigError, "at least 4 classes"),
        ({"attacks": ["autoattack"], "model": Logits(2)}, ConfigError, "apgd-ce, fab-t, square"),
        ({"attacks": ["apgd-dlr"], "model": Logits(2)}, ConfigError, "at least 3 classes"),
        ({"model": Logits(4, flat=True)}, DataError, r"\(1, classes\)"),
        ({"model": Detached(4)}, ConfigError, "no gradient"),
        (
            {"threat": ThreatModel(protocol="normalized"), "attacks": ["autoattack"]},
            ConfigError,
            "fgsm, pgd, mi-fgsm, cw",
        ),
        ({"threat": ThreatModel(protocol="normalized")}, ConfigError, r"in `\.normalize`"),
        (
            {
                "threat": ThreatModel(norm="l2", eps=1),
                "attacks": ["square"],
                "images": np.zeros((2, 1, 4, 4), np.float32),
            },
            ConfigError,
            "at least 5x5",
        ),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], kind: type[HwnasError], says: str) -> None:
    constant = Logits(4)
    nn.init.zeros_(constant.layer.weight)
    given: dict[str, object] = {
        "model": constant,
        "images": np.zeros((2, 1, 8, 8), np.float32),
        "labels": np.repeat(int(constant.layer.bias.argmax()), 2),
        "threat": ThreatModel(),
        "attacks": ["pgd"],
        "seed": 0,
        "batch": 4,
        **change,
    }
    with pytest.raises(kind) as refused:
        run_attacks(**given)  # type: ignore[arg-type]
    assert re.search(says, str(refused.value))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes_have_few_targets(classes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    images = torch.rand(12, 1, 8, 8)
    labels = model(images).argmax(1)
    usable = [name for name in NAMES if ATTACKS[name].least_classes <= classes]
    outcome = run_attacks(
        model,
        images.numpy(),
        labels.numpy(),
        ThreatModel(eps=0.2),
        attacks=usable,
        seed=0,
        batch=6,
        queries=40,
    )
    assert all(row.accuracy.value < 0.5 for row in outcome.table.rows)
