"""What work an ensemble study consists of: see `hwnas.study.workshop`, whose pieces these are like.

    latencies -+-> train, one per model; of averaged logits, one per member -> attacks

All training waits for the latencies: from them it is known how wide the wider networks are, and a
machine that trains measures badly.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import msgspec
import numpy as np
import torch

from hwnas.core.artifacts import (
    MANIFEST,
    ManifestDraft,
    new_artifact,
    read_manifest,
    sha256_of_file,
    write_atomically,
)
from hwnas.core.decoding import encode_json, read_json
from hwnas.core.threads import torch_threads
from hwnas.core.weights import read_weights, write_weights
from hwnas.robustness.attacks.table import AttackTable, run_attacks
from hwnas.robustness.evaluate import logits_from_module, predictions_of
from hwnas.robustness.hrs import HarmonicRobustness
from hwnas.space.ensemble import JOINT
from hwnas.stages.artifacts import checkpoint_beside, data_inputs
from hwnas.study.ensemble_latency import EnsembleLatencies, measure_latencies
from hwnas.study.ensemble_models import Model, member_seeds
from hwnas.study.ensemble_training import TASK, train_model
from hwnas.study.work import Work, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.data.images import ImageData
    from hwnas.space.supernet import SlimNetwork
    from hwnas.study.ensemble_arms import EnsembleArm, Lineup
    from hwnas.study.ensemble_config import EnsembleConfig
    from hwnas.study.ensemble_models import ModelBuilder

WEIGHTS_FILE = "weights.safetensors"
HISTORY_FILE = "history.json"
JUDGED_FILE = "result.json"
FLAGS_FILE = "right.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What attacks left of a model, attacked as one.

    Attributes:
        attacks: Every attack, and the worst case over them.
        hrs: Harmonic mean of clean and worst-case accuracy, with its interval over the images.
    """

    attacks: AttackTable
    hrs: HarmonicRobustness


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A model or a member that is trained by itself.

    Attributes:
        depends_on: What it is, as far as it is known before anything is measured.
        model: Returns what it is.
        seeds: Seeds of its members' weights; the first one draws its batches and attacks too.
    """

    depends_on: dict[str, Any]
    model: Callable[[], Model]
    seeds: list[int]


@final
class EnsembleWorkshop:
    """Makes the work of an ensemble study.

    Args:
        config: The settings.
        lineup: The arms.
        builder: Builds models.
        data: The images.
        folder: Where the work is kept.
    """

    def __init__(
        self,
        config: EnsembleConfig,
        lineup: Lineup,
        builder: ModelBuilder,
        data: ImageData,
        folder: Path,
    ) -> None:
        self._config, self._lineup, self._builder = config, lineup, builder
        self._data, self._folder = data, folder
        self._inputs = data_inputs(config.data)
        if config.train.teacher:
            self._inputs["teacher"] = sha256_of_file(Path(config.train.teacher) / MANIFEST)
        on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
        self._device = "cuda" if on_gpu else "cpu"
        self._works: dict[str, Work] = {}
        self.measured = self._latencies()

    def latencies(self) -> EnsembleLatencies:
        """Read what was measured."""
        return read_json(self.measured.path, EnsembleLatencies)

    def judged(self, arm: EnsembleArm, seed: int) -> Work:
        """Return the attacks on an arm in a seed, and with them all that they need."""
        config = self._config
        parts = self._parts(arm, seed)
        trained = tuple(self._trained(part) for part in parts)
        key = key_of(
            "attacks",
            {
                "combination": arm.combination,
                "seed": seed,
                "threat": msgspec.to_builtins(config.threat),
                "judge": msgspec.to_builtins(config.judge),
            },
            [work.key for work in trained],
        )
        path = self._folder / key

        def make(progress: Progress) -> None:
            network = self._assembled(arm, parts, [work.path for work in trained])
            self._attack(network, seed, path, [work.path for work in trained], progress)

        return self._work(key, path, path / MANIFEST, make, needs=trained, attacks=True)

    def result(self, work: Work) -> Judged:
        """Read what attacks left.

        Raises:
            ArtifactError: It was changed after it was made.
        """
        read_manifest(work.path, kind="attacks")
        return read_json(work.path / JUDGED_FILE, Judged)

    def _latencies(self) -> Work:
        config, lineup = self._config, self._lineup
        models = {
            f"{arm.name} {seed}": msgspec.to_builtins(lineup.model(arm, seed))
            for arm in lineup.arms
            for seed in config.seeds
        }
        key = key_of(
            "latencies",
            {
                "models": models,
                "space": msgspec.to_builtins(self._builder.space.spec),
                "compare": msgspec.to_builtins(config.compare),
                "target": msgspec.to_builtins(config.target),
            },
        )
        path = self._folder / f"{key}.json"

        def make(progress: Progress) -> None:
            found = measure_latencies(config, lineup, self._builder, progress=progress)
            write_atomically(path, encode_json(found, indent=2))

        return self._work(key, path, path, make)

    def _parts(self, arm: EnsembleArm, seed: int) -> list[_Part]:
        """Return what is trained by itself: the model, or each member of averaged logits."""
        seeds = member_seeds(seed, self._config.members.count)
        if arm.role == "wider":
            # Which it is, is measured: the measurement stands for it.
            return [
                _Part(
                    depends_on={"wider": arm.source, "seed": seed, "in": self.measured.key},
                    model=lambda: self.latencies().model(self._lineup, arm, seed),
                    seeds=seeds[:1],
                )
            ]
        model = self._lineup.model(arm, seed)
        if not arm.combination or arm.combination in JOINT:
            return [_part(model, seeds[: len(model.members)])]
        return [
            _part(Model(members=(member,)), [own])
            for member, own in zip(model.members, seeds, strict=True)
        ]

    def _trained(self, part: _Part) -> Work:
        config = self._config
        key = key_of(
            "train",
            {
                **part.depends_on,
                "seeds": part.seeds,
                "space": msgspec.to_builtins(self._builder.space.spec),
                "data": msgspec.to_builtins(config.data),
                "threat": msgspec.to_builtins(config.threat),
                "train": msgspec.to_builtins(config.train),
                **self._inputs,
            },
        )
        path = self._folder / key

        def make(progress: Progress) -> None:
            model = part.model()
            network = self._builder.model(model, part.seeds)
            checkpoint = checkpoint_beside(path)
            with torch_threads(config.training_threads):
                history = train_model(
                    network,
                    self._data,
                    config,
                    seed=part.seeds[0],
                    checkpoint=checkpoint,
                    device=self._device,
                    progress=progress,
                )
            draft = ManifestDraft(
                kind="train", settings={"model": msgspec.to_builtins(model)}, inputs=self._inputs
            )
            with new_artifact(path, draft) as folder:
                write_weights(folder / WEIGHTS_FILE, network.cpu())
                (folder / HISTORY_FILE).write_bytes(encode_json(history, indent=2))
            checkpoint.unlink(missing_ok=True)

        needs = (self.measured,)
        return self._work(key, path, path / MANIFEST, make, needs=needs, training=TASK)

    def _assembled(self, arm: EnsembleArm, parts: list[_Part], folders: list[Path]) -> nn.Module:
        """Build an arm's model with its trained weights, in eval mode."""
        trained: list[nn.Module] = []
        for part, folder in zip(parts, folders, strict=True):
            read_manifest(folder, kind="train")
            network = self._builder.model(part.model(), part.seeds)
            read_weights(folder / WEIGHTS_FILE, network)
            trained.append(network)
        if len(trained) == 1:
            return trained[0].eval()
        members = cast("list[SlimNetwork]", trained)
        return self._builder.joined(members, arm.combination).eval()

    def _attack(
        self, network: nn.Module, seed: int, path: Path, trained: list[Path], progress: Progress
    ) -> None:
        config = self._config
        judge, test = config.judge, self._data.test
        if judge.images:  # the same ones in every arm and seed
            generator = torch.Generator().manual_seed(config.data.seed)
            test = test.subset(judge.images, generator)
        images, labels = test.pixels().numpy(), test.labels.numpy()
        network.to(self._device)
        state = path.with_name(f"{path.name}.state")
        with torch_threads(config.training_threads):
            logits = logits_from_module(network, images, batch=judge.batch)
            outcome = run_attacks(
                network,
                images,
                labels,
                config.threat,
                attacks=judge.attacks,
                seed=seed,
                batch=judge.batch,
                queries=judge.queries,
                state=state,
                progress=progress,
            )
        right = {name: ~broken for name, broken in outcome.flags.items()}
        worst = np.logical_and.reduce(list(right.values()))
        clean = predictions_of(logits) == labels
        judged = Judged(
            attacks=outcome.table,
            hrs=HarmonicRobustness.from_flags(clean, worst, seed=seed),
        )
        draft = ManifestDraft(
            kind="attacks",
            inputs={f"model {i}": sha256_of_file(p / MANIFEST) for i, p in enumerate(trained)},
        )
        with new_artifact(path, draft) as folder:
            (folder / JUDGED_FILE).write_bytes(encode_json(judged, indent=2))
            packed: dict[str, Any] = {"clean": clean, **right}
            np.savez_compressed(folder / FLAGS_FILE, **packed)
        shutil.rmtree(state, ignore_errors=True)  # large, and the seed draws it again

    def _work(
        self,
        key: str,
        path: Path,
        product: Path,
        make: Callable[[Progress], Any],
        *,
        needs: tuple[Work, ...] = (),
        training: str = "",
        attacks: bool = False,
    ) -> Work:
        """Return the work of a key, the same for all who ask."""
        work = Work(
            stage=key.partition("-")[0],
            key=key,
            path=path,
            done=product.is_file,
            make=make,
            needs=needs,
            training=training,
            attacks=attacks,
        )
        return self._works.setdefault(key, work)


def _part(model: Model, seeds: list[int]) -> _Part:
    return _Part(depends_on={"model": msgspec.to_builtins(model)}, model=lambda: model, seeds=seeds)
