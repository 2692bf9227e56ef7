from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwnas.core.errors import ConfigError, InputFileError
from hwnas.study.plan import merged, read_study

STUDY = """
[study]
name = "s"
question = "Which?"
seeds = [0, 1]
baseline = "a"

[judge]
attacks = ["fgsm"]

[[threat]]
name = "pixel"
eps = "8/255"

[[threat]]
name = "normalized"
eps = "8/255"
protocol = "normalized"
attacks = ["pgd"]

[base]
seed = 7

[base.train]
epochs = 3

[[arm]]
name = "a"

[[arm]]
name = "b"
kind = "train"
genotype = "smallest"
settings.train.epochs = 5
settings.budget.ms = 1.5

[scale.smoke.study]
seeds = [0]

[scale.smoke.base.train]
epochs = 1

[scale.smoke.arm.b.train]
epochs = 2

[scale.smoke.threat.pixel]
steps = 2
"""


def write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_an_arm_has_the_settings_of_the_base_and_its_own_before_them(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    a, b = study.arms
    assert study.configs["a"].train.epochs == 3
    assert study.configs["b"].train.epochs == 5
    assert study.config_of(b, 1).seed == 1
    assert study.configs["b"].budget.ms == 1.5
    assert study.configs["b"].budget.fraction is None
    assert [threat.attacks for threat in study.threats] == [("fgsm",), ("pgd",)]
    assert study.threats[1].model.protocol == "normalized"
    # One teacher for all seeds, by the seed of [base].
    assert study.teacher_config_of(a, 1).seed == 7


def test_teachers_may_be_trained_per_seed(tmp_path: Path) -> None:
    text = STUDY.replace('baseline = "a"', 'baseline = "a"\nteachers = "per-seed"')
    study = read_study(write(tmp_path, text))
    assert study.teacher_config_of(study.arms[0], 1).seed == 1


def test_a_scale_comes_before_base_and_arms(tmp_path: Path) -> None:
    study = read_study(write(tmp_path), "smoke")
    assert study.scale == "smoke"
    assert study.settings.seeds == (0,)
    assert study.configs["a"].train.epochs == 1
    assert study.configs["b"].train.epochs == 2
    assert [threat.model.steps for threat in study.threats] == [2, 20]


def test_the_figures_are_those_of_the_threats_unless_they_are_named(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    assert study.figures[:4] == ("clean", "pixel.worst", "pixel.hrs", "pixel.fgsm")
    assert "normalized.pgd" in study.figures
    named = STUDY.replace('baseline = "a"', 'figures = ["pixel.worst", "params"]')
    assert read_study(write(tmp_path, named)).figures == ("pixel.worst", "params")


def test_some_arms_and_seeds_can_be_chosen(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    chosen = study.only(arms=["b"], seeds=[1])
    assert [arm.name for arm in chosen.arms] == ["b"]
    assert chosen.settings.seeds == (1,)
    assert study.only(arms=[], seeds=[]) == study
    with pytest.raises(ConfigError, match="no arm `c`"):
        study.only(arms=["c"], seeds=[])
    with pytest.raises(ConfigError, match="no seed 5"):
        study.only(arms=[], seeds=[5])


# What is written in the place of what, and what is said of it.
BAD = [
    ("epochs = 5", "epoch = 5", "arm `b`: unknown key `epoch` in [train]", "`epochs`"),
    ("epochs = 3", "epoch = 3", "[base]: unknown key `epoch` in [train]", "`epochs`"),
    ("epochs = 5", "epochs = 0", "arm `b`", ""),
    ("settings.train.epochs = 5", "settings.trian.epochs = 5", "unknown key `trian`", "`train`"),
    ("epochs = 1", "epocs = 1", "at scale smoke [base]: unknown key `epocs`", "`epochs`"),
    ("epochs = 2", 'epochs = "two"', "at scale smoke, arm `b`", ""),
    ("scale.smoke.arm.b", "scale.smoke.arm.c", "at scale smoke: there is no arm `c`", "a, b"),
    ("threat.pixel]", "threat.pixels]", "there is no threat `pixels`", "`pixel`"),
    ('baseline = "a"', 'baseline = "aa"', "there is no baseline arm `aa`", "`a`"),
    ('name = "b"', 'name = "a"', "two arms are called `a`", ""),
    ('name = "normalized"', 'name = "pixel"', "two threats are called `pixel`", ""),
    ('name = "normalized"', 'name = "paper"', "which its name must say", "paper-normalized"),
    ('name = "pixel"', 'name = "unnormalized"', 'its protocol is "pixel"', '"pixel"'),
    ("seeds = [0, 1]", "seeds = []", "`seeds` is empty", "[0, 1, 2]"),
    ("seeds = [0, 1]", "seeds = [0, 0]", "each named once", ""),
    ("seeds = [0, 1]", "seeds = [-1]", "at least 0", ""),
    ("seeds = [0, 1]", "seds = [0]", "[study]: unknown key `seds`", "`seeds`"),
    ('["fgsm"]', '["fgsn"]', "there is no attack 'fgsn'", "'fgsm'"),
    ('["pgd"]', '["autoattack"]', "threat `normalized`: autoattack works within the box", "pgd"),
    ('["fgsm"]', "[]", "no attack is named", ""),
    ('eps = "8/255"\n\n[[', 'eps = "8"\n\n[[', "threat `pixel`: eps 8 is not in pixel units", ""),
    ('eps = "8/255"\n\n[[', 'esp = 0.1\n\n[[', "unknown key `esp`", "`eps`"),
    ('name = "pixel"', 'name = "a.b"', "a [[threat]] needs a `name`", ""),
    ('name = "b"', 'name = "b/c"', "an arm's `name` is of letters", ""),
    ('genotype = "smallest"', "", "needs a `genotype`", "smallest"),
    ('kind = "train"', 'kind = "search"', "takes no `genotype`", "train"),
    ('kind = "train"', 'kind = "tain"', "tain", ""),
    ('kind = "train"', 'kind = "train"\nmodel = "x"', "unknown key `model`", ""),
    ('baseline = "a"', 'figures = ["pixel.pdg"]', "there is no figure `pixel.pdg`", "pixel."),
    ('baseline = "a"', 'arms = ["c"]', "there is no arm `c`", ""),
    ('baseline = "a"', "measure = true", "measure", ""),
    ("[study]", "[sudy]", "unknown key `sudy`", "`study`"),
    ('question = "Which?"', "", "question", ""),
    ("[study]", "[study", "not valid TOML", ""),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message", "hint"), BAD)
def test_bad_studies_are_refused_with_one_clear_message(
    old: str, new: str, message: str, hint: str, tmp_path: Path
) -> None:
    assert old in STUDY
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_study(write(tmp_path, STUDY.replace(old, new, 1)))
    assert hint in caught.value.hint


def test_every_scale_is_checked_whichever_is_run(tmp_path: Path) -> None:
    text = STUDY.replace("[scale.smoke.base.train]\nepochs = 1", "[scale.smoke.base.train]\nx = 1")
    for scale in ("", "smoke"):
        with pytest.raises(ConfigError, match="at scale smoke"):
            read_study(write(tmp_path, text), scale)


def test_an_unknown_scale_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no scale `smok`") as caught:
        read_study(write(tmp_path), "smok")
    assert caught.value.hint == "did you mean `smoke`?"
    with pytest.raises(InputFileError, match=r"other\.toml does not exist"):
        read_study(tmp_path / "other.toml")


def test_a_study_without_arms_or_threats_is_none(tmp_path: Path) -> None:
    head = STUDY[: STUDY.index("[[threat]]")].replace('baseline = "a"', "")
    with pytest.raises(ConfigError, match=r"no \[\[threat\]\]"):
        read_study(write(tmp_path, head))
    with pytest.raises(ConfigError, match=r"no \[\[arm\]\]"):
        read_study(write(tmp_path, head + '[[threat]]\nname = "pixel"\n'))


def test_settings_are_merged_without_touching_what_they_come_from() -> None:
    base = {"budget": {"ms": 1.0, "params_k": 5.0}, "seed": 0}
    over = {"budget": {"fraction": 0.5}}
    assert merged(base, over) == {"budget": {"fraction": 0.5, "params_k": 5.0}, "seed": 0}
    assert base["budget"] == {"ms": 1.0, "params_k": 5.0}


@pytest.mark.parametrize("scale", ["", "long"])
def test_the_example_is_a_study(scale: str) -> None:
    study = read_study(Path(__file__).parents[3] / "examples" / "study_smoke.toml", scale)
    assert [arm.name for arm in study.arms] == ["searched", "narrowest"]
    assert len(study.settings.seeds) == (5 if scale else 2)
