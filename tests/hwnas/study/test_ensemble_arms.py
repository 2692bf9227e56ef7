from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.stats import gmean

from hwnas.core.decoding import decode_toml, encode_json
from hwnas.core.errors import ConfigError
from hwnas.search.records import Derivation
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.ensemble import feature_shape
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.study.ensemble_arms import lineup, widened_to, wider_base
from hwnas.study.ensemble_config import EnsembleConfig, MembersConfig
from hwnas.study.ensemble_latency import match_wider
from hwnas.study.ensemble_models import (
    Architecture,
    Model,
    ModelBuilder,
    draw_members,
    member_seeds,
)
from hwnas_profilers.statistics import summarize

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.records import Statistics

PLAIN = ([0.5], [0.25])


@pytest.fixture
def xs() -> ChainSpace:
    return space_from_spec(space_spec("rnas-cl-xs"))


@pytest.fixture
def small(small_spec: ChannelSpec) -> ChannelSpace:
    return ChannelSpace(small_spec)


def config(**members: Any) -> EnsembleConfig:
    return EnsembleConfig(seeds=(0, 1), members=MembersConfig(**members))


def test_random_members_differ_and_end_alike(xs: ChainSpace) -> None:
    members = draw_members(xs, 4, np.random.default_rng(0))
    assert len({member.genotype for member in members}) == 4
    shapes = {
        feature_shape(xs.network(member.genotype), (1, 16, 16))
        for member in members
        if member.genotype is not None
    }
    assert len(shapes) == 1


def test_every_seed_has_other_random_members_and_the_same_genotype(xs: ChainSpace) -> None:
    found = lineup(config(), xs)
    assert found.members["random", 0] != found.members["random", 1]
    assert found.members["genotype", 0] == found.members["genotype", 1]
    assert len(set(found.members["genotype", 0])) == 1
    assert lineup(config(), xs) == found  # by the seed alone


def test_arms_are_every_source_by_every_combination(xs: ChainSpace) -> None:
    found = lineup(config(combinations=("average", "logits")), xs)
    assert [arm.name for arm in found.arms] == [
        "random-single", "random-average", "random-logits", "random-wider",
        "genotype-single", "genotype-average", "genotype-logits", "genotype-wider",
    ]  # fmt: skip
    single, average = found.arms[:2]
    assert found.model(single, 1).members == found.model(average, 1).members[:1]


def test_a_space_of_too_few_networks_says_so(small_spec: ChannelSpec) -> None:
    stages = tuple(replace(stage, widths=stage.widths[:1]) for stage in small_spec.stages)
    with pytest.raises(ConfigError, match="only 1 differ") as caught:
        draw_members(ChannelSpace(replace(small_spec, stages=stages)), 3, np.random.default_rng(0))
    assert "fewer members" in caught.value.hint


def test_children_of_one_genotype_differ_in_their_weights_alone(small: ChannelSpace) -> None:
    builder = ModelBuilder(small, PLAIN)
    found = lineup(config(count=2), small)
    model = builder.model(found.model(found.ensembles("genotype")[0], 0), member_seeds(0, 2))
    first, second = (
        dict(member.named_parameters()) for member in model.get_submodule("members").children()
    )
    assert first.keys() == second.keys()
    assert not torch.equal(first["stem.conv.0.weight"], second["stem.conv.0.weight"])


def test_models_are_built_anew_to_the_same_weights(small: ChannelSpace) -> None:
    builder = ModelBuilder(small, PLAIN)
    found = lineup(config(), small)
    for arm in found.arms:
        seeds = member_seeds(3, len(found.model(arm, 1).members))
        once, again = (builder.model(found.model(arm, 1), seeds).state_dict() for _ in range(2))
        assert all(torch.equal(once[name], again[name]) for name in once)


def test_labels_tell_models_apart(small: ChannelSpace) -> None:
    found = lineup(config(), small)
    models = {found.model(arm, seed) for arm in found.arms for seed in (0, 1)}
    assert len({model.label for model in models}) == len(models)


def test_hand_crafted_members_go_round(small: ChannelSpace) -> None:
    wanted = config(
        sources=("handcrafted",), networks=("resnet20", "vgg16"), count=3, width=0.125,
        combinations=("logits",),
    )  # fmt: skip
    found = lineup(wanted, small)
    names = [member.handcrafted for member in found.members["handcrafted", 0]]
    assert names == ["resnet20", "vgg16", "resnet20"]
    model = ModelBuilder(small, PLAIN).model(found.model(found.arms[1], 0), [0, 1, 2])
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 10)


def test_what_is_widened_is_the_first_member_or_what_is_asked_for() -> None:
    member = Architecture(handcrafted="vgg16", width=0.5)
    asked = replace(config(), compare=replace(EnsembleConfig().compare, wider="resnet20"))
    assert wider_base(config(), member) == member
    assert wider_base(asked, member) == Architecture(handcrafted="resnet20")
    assert widened_to(member, 3.0).width == 1.5


class _Machine:
    """Times models by their parameters: nothing is compiled."""

    def __init__(self, builder: ModelBuilder) -> None:
        self.builder = builder
        self.sessions: list[set[str]] = []
        self._known: dict[str, float] = {}

    def measure(self, models: Iterable[Model]) -> dict[str, Statistics]:
        found = {model.label: summarize(np.full(6, self.us(model))) for model in models}
        self.sessions.append(set(found))
        return found

    def us(self, model: Model) -> float:
        if model.label not in self._known:
            network = self.builder.model(model, range(len(model.members)))
            parameters = sum(each.numel() for each in network.parameters())
            self._known[model.label] = 10.0 + 1e-2 * parameters
        return self._known[model.label]


def test_wider_networks_take_as_long_as_the_ensembles(small: ChannelSpace) -> None:
    wanted = config(count=3)
    found = lineup(wanted, small)
    machine = _Machine(ModelBuilder(small, PLAIN))
    wider = match_wider(wanted, found, machine.measure)
    assert {(each.source, each.seed) for each in wider} == set(found.members)
    for each in wider:
        assert each.architecture.width > 1.0
        assert replace(each.architecture, width=1.0) == found.members[each.source, each.seed][0]
        own = machine.us(Model(members=(each.architecture,)))
        ensembles = [found.model(arm, each.seed) for arm in found.ensembles(each.source)]
        # Widths go in steps, and small networks have few of them.
        assert own == pytest.approx(gmean([machine.us(model) for model in ensembles]), rel=0.1)
    # One genotype is widened once, whatever the seed.
    assert len({each.architecture for each in wider if each.source == "genotype"}) == 1


def test_ensembles_are_measured_in_every_round_beside_what_they_are_compared_with(
    small: ChannelSpace,
) -> None:
    wanted = config(sources=("genotype",), count=2)
    found = lineup(wanted, small)
    machine = _Machine(ModelBuilder(small, PLAIN))
    match_wider(wanted, found, machine.measure)
    ensembles = {found.model(arm, 0).label for arm in found.ensembles("genotype")}
    assert all(ensembles < session for session in machine.sessions)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[members]\ncount = 1", "at least two members, not 1", ""),
        ('[members]\ncombinations = ["avrage"]', "combined by `avrage`", "mean `average`?"),
        ('[members]\nsources = ["genotipe"]', "come from `genotipe`", "mean `genotype`?"),
        ("[members]\nsources = []", "`sources` are at least one", ""),
        ('[members]\nsources = ["handcrafted"]', "give both, or none", 'networks = ["resnet20"]'),
        ('[members]\nnetworks = ["resnet20"]', "give both, or none", ""),
        ('[members]\nsources = ["handcrafted"]\nnetworks = ["resnet2O"]', "resnet2O", "`resnet20`"),
        ('[members]\nsources = ["random"]\ngenotype = "g.json"', "not among the sources", ""),
        ("[members]\nwidth = 0", "positive number", ""),
        ("[compare]\ntolerance = 1.0", "between 0 and 1", ""),
        ('[compare]\nwider = "vgg"', "unknown hand-crafted network `vgg`", "`vgg16`"),
        ("seeds = []", "at least one", "seeds = [0, 1, 2]"),
        ("seeds = [1, 1]", "named once", ""),
        ("training_threads = -1", "at least 0", ""),
        ('[train]\nrobust = "rslad"', "there is no teacher", "fast-at"),
        ('[train]\nrobust = "fast"', "fast", ""),
        ('[judge]\nattacks = ["pgdd"]', "no attack 'pgdd'", "'pgd'"),
        (
            '[threat]\nprotocol = "normalized"\n[judge]\nattacks = ["square"]',
            "square works within",
            'protocol = "pixel"',
        ),
        ('handcrafted = [{name = "resnet20"}, {name = "resnet20"}]', "comes twice", ""),
        ("[member]\ncount = 2", "unknown key `member`", "`members`"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str, hint: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        decode_toml(file, EnsembleConfig)
    assert hint in caught.value.hint


def test_a_genotype_of_another_space_is_refused(xs: ChainSpace, tmp_path: Path) -> None:
    other = space_from_spec(space_spec("rnas-cl-s3"))
    genotype = other.largest
    derivation = Derivation(
        genotype=genotype, space=other.spec, target="onnxruntime-cpu", threads=1, budget_ms=1.0,
        predicted_ms=1.0, measured_ms=None, macs=1, params=1, student_layers=(),
        teacher_layers=(), tutor_weights=(), selection="none", attention_size=4, attempts=(),
        table_sha256="", search_sha256="",
    )  # fmt: skip
    file = tmp_path / "genotype.json"
    file.write_bytes(encode_json(derivation))
    with pytest.raises(ConfigError, match="a network of rnas-cl-s3") as caught:
        lineup(config(genotype=str(file)), xs)
    assert 'name = "rnas-cl-s3"' in caught.value.hint
    found = lineup(config(genotype=str(file), sources=("genotype",)), other)
    assert found.members["genotype", 0][0] == Architecture(genotype=genotype)
