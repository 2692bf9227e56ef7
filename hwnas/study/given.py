"""A network that no search chose, recorded as a derived one is, with its tutors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hwnas.stages.config import RunConfig


def make_given(
    wanted: str | Sequence[int | str],
    config: RunConfig,
    table_path: Path,
    teacher_path: Path,
    search_path: Path | None,
    out: Path,
) -> None:
    """Write the `genotype.json` of an architecture that an arm names.

    Args:
        wanted: The architecture: see `hwnas.study.architectures.architecture`.
        config: The arm's settings: [budget] is what it is within, and the `tutors` of [search] are
            those that it is trained with.
        table_path: Latency table of the space.
        teacher_path: Folder of the teacher.
        search_path: Folder of the search whose tutors it takes; None where none is searched.
        out: The file.

    Raises:
        ConfigError: There is no such architecture, or the search had another teacher.
        BudgetError: No network of the kind meets the budgets.
    """
    import numpy as np

    from hwnas.core.artifacts import sha256_of_file, write_atomically
    from hwnas.core.decoding import encode_json, read_json
    from hwnas.distill.teacher import TEACHER_FILE, TeacherCard
    from hwnas.latency.resources import SpaceCosts
    from hwnas.search.derive import check_budgets
    from hwnas.search.records import Derivation
    from hwnas.stages.budgets import resources_of
    from hwnas.stages.search import SEARCH_FILE
    from hwnas.stages.spaces import estimates_in, space_of_table
    from hwnas.study.architectures import architecture
    from hwnas_profilers.table import LatencyTable

    table = LatencyTable.read(table_path)
    space = space_of_table(table)
    costs = SpaceCosts(space, table)
    budgets = config.budget.resolve(costs)
    check_budgets(costs, budgets)
    genotype = architecture(wanted, costs, budgets, np.random.default_rng(config.seed))
    layers = space.network(genotype).tap_names
    teacher_layers = read_json(teacher_path / TEACHER_FILE, TeacherCard).layers
    derivation = Derivation(
        genotype=genotype,
        space=space.spec,
        target=table.header.target,
        threads=table.header.threads,
        budget_ms=budgets.latency_ms,
        predicted_ms=costs.latency.predict_ms(genotype),
        measured_ms=None,
        macs=space.macs(genotype),
        params=space.parameters(genotype),
        student_layers=layers,
        teacher_layers=teacher_layers,
        tutor_weights=tutor_weights(config, layers, teacher_layers, search_path),
        selection=config.search.tutors,
        attention_size=config.search.attention_size,
        attempts=(),
        table_sha256=sha256_of_file(table_path),
        search_sha256=sha256_of_file(search_path / SEARCH_FILE) if search_path else "",
        resources=resources_of(costs, genotype, budgets, None),
        estimated=estimates_in(table, space.operators_of(genotype)),
    )
    write_atomically(out, encode_json(derivation, indent=2))


def tutor_weights(
    config: RunConfig,
    layers: Sequence[str],
    teacher_layers: Sequence[str],
    search_path: Path | None = None,
) -> tuple[tuple[float, ...], ...]:
    """Return the weights of the teacher's layers for each layer of a network.

    Args:
        config: The arm's settings: how tutors are selected, and the seed of those at random.
        layers: Layers of the network.
        teacher_layers: Layers of the teacher.
        search_path: The search, where tutors are searched.

    Raises:
        ConfigError: The search was with another teacher, or knows no such layer.
    """
    import torch

    from hwnas.core.errors import ConfigError
    from hwnas.distill.tutors import fixed_tutors
    from hwnas.search.records import read_search
    from hwnas.stages.search import SEARCH_FILE

    selection = config.search.tutors
    if search_path is not None:
        record = read_search(search_path / SEARCH_FILE)
        if record.teacher_layers != tuple(teacher_layers):
            raise ConfigError(f"{search_path} was searched with another teacher's layers")
        return record.tutor_weights_of(layers)
    assert selection != "searched"
    generator = torch.Generator().manual_seed(config.seed)
    rows = fixed_tutors(selection, len(layers), len(teacher_layers), generator)
    return tuple(tuple(row) for row in rows.tolist())
