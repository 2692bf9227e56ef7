"""Judging a network under one threat model: attacks on the test images, sample by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.data.images import Split
    from hwnas.data.sources import DataConfig
    from hwnas.robustness.attacks.table import AttackTable
    from hwnas.stages.config import RunConfig
    from hwnas.study.plan import ArmKind, JudgeSettings, StudyThreat

RESULT_FILE = "result.json"
FLAGS_FILE = "broken.npz"
KIND = "attacks"


def make_attacks(
    kind: ArmKind,
    network: Path,
    config: RunConfig,
    threat: StudyThreat,
    judge: JudgeSettings,
    out: Path,
    state: Path,
    *,
    progress: Progress,
) -> AttackTable:
    """Attack a network, and keep the table and which samples each attack broke.

    The network's seed draws the attacks' starts.

    Args:
        kind: Kind of the arm.
        network: Folder of the network.
        config: The arm's settings.
        threat: Threat model and attacks.
        judge: How many images, and how many at a time.
        out: Folder of the result.
        state: Folder of what is finished, removed at the end.
        progress: Where to report.

    Raises:
        ConfigError: An attack does not suit the threat model or the classes.
        ArtifactError: The network was changed, or the state is of other settings.
    """
    import shutil

    import numpy as np
    import torch

    from hwnas.core.artifacts import MANIFEST, ManifestDraft, new_artifact, sha256_of_file
    from hwnas.core.decoding import encode_json
    from hwnas.core.threads import torch_threads
    from hwnas.robustness.attacks.table import run_attacks

    test = test_images(config.data, judge.images)
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    module = trained_network(kind, network).to("cuda" if on_gpu else "cpu")
    with torch_threads(config.training_threads):
        outcome = run_attacks(
            module,
            test.pixels().numpy(),
            test.labels.numpy(),
            threat.model,
            attacks=threat.attacks,
            seed=config.seed,
            batch=judge.batch,
            queries=judge.queries,
            state=state,
            progress=progress,
        )
    draft = ManifestDraft(kind=KIND, inputs={"network": sha256_of_file(network / MANIFEST)})
    with new_artifact(out, draft) as folder:
        (folder / RESULT_FILE).write_bytes(encode_json(outcome.table, indent=2))
        # One row per attack, in the order of the table.
        broken = np.array([outcome.flags[row.attack] for row in outcome.table.rows])
        np.savez_compressed(folder / FLAGS_FILE, broken=broken)
    shutil.rmtree(state, ignore_errors=True)  # adversarial images: large, and drawn again by seed
    return outcome.table


def test_images(data: DataConfig, count: int) -> Split:
    """Return the test images that a study judges by; a count of 0 takes all.

    They are chosen by the seed of the data alone, so that they are the same for every arm, seed and
    engine, and differences are between networks.
    """
    import torch

    from hwnas.data.sources import load_data

    test = load_data(data).test
    return test.subset(count, torch.Generator().manual_seed(data.seed)) if count else test


def trained_network(kind: ArmKind, folder: Path) -> nn.Module:
    """Load the network of an arm, in eval mode; it takes pixels in [0, 1].

    Raises:
        ArtifactError: It is unfinished or was changed.
    """
    from hwnas.core.artifacts import read_manifest
    from hwnas.core.weights import read_weights
    from hwnas.search.records import read_derivation
    from hwnas.space.registry import space_from_spec
    from hwnas.stages.train import GENOTYPE_FILE, WEIGHTS_FILE

    if kind == "teacher":
        from hwnas.distill.teacher import load_teacher

        return load_teacher(folder, attention_size=1).network
    if kind == "handcrafted":
        from hwnas.study.handcrafted import load_handcrafted

        return load_handcrafted(folder)
    read_manifest(folder, kind="train")
    derivation = read_derivation(folder / GENOTYPE_FILE)
    network = space_from_spec(derivation.space).network(derivation.genotype).eval()
    read_weights(folder / WEIGHTS_FILE, network)
    return network
