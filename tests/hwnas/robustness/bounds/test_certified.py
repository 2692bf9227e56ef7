"""Certificates: who has one, up to where, and that no attack breaks one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.core.errors import CertificateBrokenError, ConfigError
from hwnas.robustness.bounds import Method
from hwnas.robustness.bounds import run as running
from hwnas.robustness.bounds.certified import (
    certified_flags,
    certified_radius,
    is_certified,
    margin_slack,
)
from hwnas.robustness.bounds.records import CertifyLine, Radii
from hwnas.robustness.bounds.run import CertifySettings, certify_images
from hwnas.robustness.pgd import attack_in_batches
from hwnas.robustness.threat import Eps, ThreatModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

METHODS: tuple[Method, ...] = get_args(Method)
RADII = (Eps(0.01), Eps(0.03), Eps(0.04), Eps(0.05), Eps(0.07))
SETTINGS: dict[str, Any] = {
    "eps": RADII,
    "method": "crown",
    "radius_steps": 3,
    "steps": 5,
    "restarts": 1,
    "seed": 0,
    "batch": 8,
}


def double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double().eval()


@pytest.mark.parametrize("method", METHODS)
def test_no_certified_image_is_broken(problem: Any, method: Method) -> None:
    images, labels = problem.images[:48], problem.labels[:48]
    pixels, classes = problem.tensors(48)
    network = double(problem.model)
    flags = certified_flags(network, pixels, classes, eps=RADII, method=method)
    assert 0.1 < flags.float().mean() < 0.9
    for eps, row in zip(RADII, flags.numpy(), strict=True):
        threat = ThreatModel(eps=eps, steps=20, restarts=2)
        attacked = attack_in_batches(problem.model, images, labels, threat, batch=48, seed=0)
        assert np.abs(attacked - images).max() <= eps + 1e-7
        with torch.no_grad():
            right = (problem.model(torch.from_numpy(attacked)).argmax(1) == classes).numpy()
        assert right[row].all()
        assert right.mean() >= row.mean()


def test_tighter_methods_certify_more(problem: Any) -> None:
    pixels, classes = problem.tensors(48)
    network = double(problem.model)
    shares = [
        float(certified_flags(network, pixels, classes, eps=RADII, method=each).float().mean())
        for each in METHODS
    ]
    assert shares[0] < shares[1] <= shares[2]


def test_a_larger_ball_is_certified_for_fewer(problem: Any) -> None:
    pixels, classes = problem.tensors(32)
    flags = certified_flags(double(problem.model), pixels, classes, eps=RADII, method="crown")
    counts = flags.sum(1).tolist()
    assert 0 < counts[3] < counts[0] <= 32
    assert counts == sorted(counts, reverse=True)
    assert not (flags[1:] & ~flags[:-1]).any()


def test_a_wrong_image_is_never_certified(problem: Any) -> None:
    pixels, classes = problem.tensors(16)
    wrong = (classes + 1) % 4
    for method in METHODS:
        network = double(problem.model)
        with torch.no_grad():
            right = network(pixels.double()).argmax(1) == wrong
        found = is_certified(network, pixels, wrong, eps=Eps(0.0), method=method)
        assert not (found & ~right).any()


def test_slack_is_asked_of_every_margin(problem: Any) -> None:
    pixels, classes = problem.tensors(16)
    network = double(problem.model)
    assert is_certified(network, pixels, classes, eps=Eps(0.0), method="ibp").any()
    found = is_certified(network, pixels, classes, eps=Eps(0.0), method="ibp", slack=1e6)
    assert not found.any()


def test_slack_is_what_rounding_does_and_some(problem: Any) -> None:
    pixels, classes = problem.tensors(32)
    with torch.no_grad():
        single, wide = problem.model(pixels), double(problem.model)(pixels.double())
    apart = (single.double() - wide).abs().max()
    assert apart < margin_slack(single, wide, classes) < 100 * apart
    assert margin_slack(wide.float(), wide.float().double(), classes) == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_radius_is_certified_and_nearly_the_largest(problem: Any, method: Method) -> None:
    pixels, classes = problem.tensors(16)
    network = double(problem.model)
    found = certified_radius(
        network, pixels, classes,
        low=torch.zeros(16), high=torch.full((16,), 0.1), steps=8, method=method,
    )  # fmt: skip
    some = found > 0
    assert some.any()
    at = is_certified(network, pixels[some], classes[some], eps=found[some], method=method)
    assert at.all()
    beyond = found[some] + 0.1 / 2**8
    assert not is_certified(network, pixels[some], classes[some], eps=beyond, method=method).any()


def test_the_radius_of_a_linear_network_is_its_distance() -> None:
    # margin = 2 (x0 - x1), so the distance in l_inf is (x0 - x1) / 2.
    class Difference(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pixels = images.flatten(1)
            difference = (pixels[:, 0] - pixels[:, 1])[:, None]
            return torch.cat([difference, -difference], dim=1)

    gaps = torch.tensor([0.4, 0.1, 0.0, -0.2])
    images = torch.full((4, 1, 1, 2), 0.3)
    images[:, 0, 0, 0] += gaps
    labels = torch.zeros(4, dtype=torch.long)
    found = certified_radius(
        Difference(), images, labels,
        low=torch.zeros(4), high=torch.full((4,), 0.5), steps=20, method="crown",
    )  # fmt: skip
    assert found.tolist() == pytest.approx([0.2, 0.05, 0.0, 0.0], abs=2e-6)


def test_radii_must_ascend(problem: Any) -> None:
    pixels, classes = problem.tensors(2)
    with pytest.raises(ConfigError, match="ascend"):
        certified_flags(
            double(problem.model), pixels, classes, eps=(Eps(0.2), Eps(0.1)), method="ibp"
        )


def certified_of(problem: Any, state: Path | None = None, **others: Any) -> Any:
    settings = CertifySettings(**(SETTINGS | others))
    return certify_images(
        problem.model, problem.images[:20], problem.labels[:20], settings, state=state
    )


def test_a_whole_set_is_certified_and_attacked(problem: Any) -> None:
    found = certified_of(problem)
    certified, attacked = np.array(found.certified), np.array(found.attacked)
    assert certified.shape == attacked.shape == (len(RADII), 20)
    assert not (certified & ~attacked).any()
    assert not (attacked & ~np.array(found.clean)).any()
    radii = np.array(found.radii)
    for eps, row in zip(RADII, certified, strict=True):
        assert (row == (radii >= eps)).all()
    assert radii.max() <= RADII[-1]
    assert len(set(radii)) > len(RADII)
    assert 0 < found.slack < 1e-3


def test_it_goes_on_where_it_stopped(
    problem: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = certified_of(problem)
    done = running._batch
    calls: list[Any] = []

    def stopping(*args: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(args[2]))
        return done(*args)

    monkeypatch.setattr(running, "_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        certified_of(problem, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    calls.clear()
    assert certified_of(problem, tmp_path) == expected
    assert calls == [4]
    assert certified_of(problem, tmp_path) == expected
    assert calls == [4]


def test_a_broken_certificate_is_our_fault(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def everyone(forward: Any, images: Tensor, labels: Tensor, **_: Any) -> Tensor:
        return torch.ones(len(RADII), len(images), dtype=torch.bool)

    monkeypatch.setattr(running, "certified_flags", everyone)
    with pytest.raises(CertificateBrokenError, match="PGD broke"):
        certified_of(problem)


def test_a_network_that_cannot_decide_is_certified_for_nobody() -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return functional.pad(0.0 * images.flatten(1)[:, :1], (0, 3))

    images: NDArray[np.float32] = np.full((4, 1, 2, 2), 0.5, dtype=np.float32)
    found = certify_images(
        Flat().eval(), images, np.zeros(4, dtype=np.int64), CertifySettings(**SETTINGS)
    )
    assert not np.array(found.certified).any()
    assert found.radii == (0.0,) * 4


def test_records_count_all_samples() -> None:
    line = CertifyLine.from_counts("1/255", 3, 7, 10)
    assert (line.certified, line.attacked, line.undecided) == (0.3, 0.7, 0.4)
    assert line.certified_low < 0.3 < line.certified_high
    radii = Radii.from_pixels([0.0, 1 / 255, 2 / 255, 4 / 255], 4 / 255)
    assert (radii.p10, radii.median, radii.largest_tried) == pytest.approx((0.0, 1.0, 4.0))
