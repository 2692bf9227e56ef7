"""The page of runs in every kind of space, with every selection of tutors."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from hwnas.latency.model import LatencyModel
from hwnas.report.latency_pictures import network_shares
from hwnas.report.operator_labels import operator_labels
from hwnas.report.operators_picture import MAX_ROWS, MAX_STRIPS, rows_of
from hwnas.report.options_picture import blocks_of
from hwnas.report.page import page_from_run
from hwnas.report.run_files import read_run
from hwnas.space.cells.space import CellSpace
from hwnas.space.cells.spec import CellSpec
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.space.chain_space import ChainSpace
    from tests.hwnas.report.conftest import NewRun

MBCONV = MBConvSpace(
    MBConvSpec(
        name="few",
        image_shape=(1, 8, 8),
        classes=3,
        stem=8,
        stem_stride=1,
        stages=(
            MBConvStage(blocks=2, widths=(8,)),
            MBConvStage(blocks=2, widths=(16, 12), stride=2),
        ),
        kernels=(3, 5),
        expansions=(1, 2),
    )
)
CELLS = CellSpace(
    CellSpec(name="few", image_shape=(1, 8, 8), classes=3, cells=3, channels=4, nodes=2)
)
USERS_CODE = """
from torch import nn
from hwnas.space.user.parts import Follows, Searched

def conv(kernel):
    return lambda i, o: nn.Sequential(nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.ReLU())

def network(image_shape=(1, 8, 8), classes=3):
    return nn.Sequential(
        Searched({"a-name-that-is-longer-than-there-is-room-for": conv(5), "conv3": conv(3)},
                 widths=(16, 8)),
        nn.MaxPool2d(2),
        Searched({"conv5": conv(5), "conv3": conv(3), "one": conv(1)}, widths=(16, 8)),
        Follows(lambda width: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                            nn.Linear(width, classes))),
    )
"""


@pytest.fixture
def users_space(tmp_path: Path) -> ChainSpace:
    (tmp_path / "net.py").write_text(USERS_CODE)
    return space_from_spec(space_spec(f"user:{tmp_path / 'net.py'}:network"))


def searched(space: ChainSpace, chosen: dict[int, int] | None = None) -> dict[str, Any]:
    """A search whose likeliest options are derived, but for those of some blocks."""
    generator = torch.Generator().manual_seed(1)
    logs = [
        torch.log_softmax(2 * torch.randn(len(options), generator=generator), 0).tolist()
        for options in space.options
    ]
    choices = [max(range(len(row)), key=row.__getitem__) for row in logs]
    for block, choice in (chosen or {}).items():
        choices[block] = choice
    return {"space": space, "log_probabilities": tuple(map(tuple, logs)), "choices": tuple(choices)}


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)).replace("\N{NO-BREAK SPACE}", " ")


def alt_of(page: str, name: str) -> str:
    found = re.search(rf'<figure id="{name}".*?aria-label="([^"]*)"', page, re.DOTALL)
    assert found is not None
    return found[1].replace("\N{NO-BREAK SPACE}", " ")


def test_options_of_mbconv_are_drawn_by_what_they_are_made_of(new_run: NewRun) -> None:
    case = searched(MBCONV, {1: len(MBCONV.options[1]) - 1})
    run = new_run(**case)
    page = page_from_run(run)
    drawing = re.search(r'<figure id="options".*?</svg>', page, re.DOTALL)
    assert drawing is not None
    texts = re.findall(r">([^<>]+)</text>", drawing[0])
    for head in ("kernel", "expansion", "SE", "skip", "width", "derived"):
        assert texts.count(head) == 1 + (head == "skip")  # the derived block's name besides
    first = MBCONV.spec.blocks[0].options
    probabilities = [math.exp(value) for value in case["log_probabilities"][0]]
    of_kernel_3 = sum(
        p
        for p, choice in zip(probabilities, first.values(), strict=True)
        if choice.block is not None and choice.block.kernel == 3
    )
    assert f"{100 * of_kernel_3:.0f}" in texts
    assert "block 2: skip (" in alt_of(page, "options")
    assert "3 of 4 blocks got their likeliest option" in text_of(page)
    names = [MBCONV.options[b][c] for b, c in enumerate(case["choices"])]
    assert f"few, blocks {' '.join(names)}" in text_of(page)


def test_options_of_cells_are_drawn_by_edges_and_operations(new_run: NewRun) -> None:
    case = searched(CELLS, {2: 0})
    page = page_from_run(new_run(**case))
    drawing = re.search(r'<figure id="options".*?</svg>', page, re.DOTALL)
    assert drawing is not None
    texts = re.findall(r">([^<>]+)</text>", drawing[0])
    for head in (*CELLS.spec.candidates, "normal 1 ← 0", "← 1", "reduce 2 ← 0"):
        assert head in texts
    # Ten edges, seven operations each; of every node the shares sum to two hundred percent.
    shares = [int(text) for text in texts if text.isdecimal()]
    assert len(shares) == 10 * 7
    assert sum(shares) == pytest.approx(4 * 200, abs=40)
    assert "reduce 1: sep5@0+sep5@1 (" in alt_of(page, "options")
    assert "3 of 4 blocks got their likeliest option" in text_of(page)


def test_what_stands_for_several_places_has_one_share(new_run: NewRun) -> None:
    run = read_run(new_run(**searched(CELLS)))
    latency = LatencyModel(CELLS, run.table)
    shares = network_shares(run, latency)
    fixed = CELLS.transitions[0][0][0]
    assert shares[0].name == f"stem, preprocess, factorized, {len(fixed)} operators"
    blocks = [share.name for share in shares[1:-1]]
    for name, block in zip(CELLS.block_names, run.derivation.genotype.blocks, strict=True):
        assert sum(each.startswith(f"{name} {block}") for each in blocks) == 1
    total_us = sum(share.latency_us for share in shares) + latency.intercept_us
    assert total_us == pytest.approx(1e3 * latency.predict_ms(run.derivation.genotype))


def test_options_of_a_users_space_are_ranked_and_long_names_cut(
    new_run: NewRun, users_space: ChainSpace
) -> None:
    unlikely = 0
    case = searched(users_space, {1: unlikely})
    row = case["log_probabilities"][1]
    assert sorted(row).index(row[unlikely]) < len(row) - 2  # so that rank alone would not show it
    page = page_from_run(new_run(**case))
    drawing = re.search(r'<figure id="options".*?</svg>', page, re.DOTALL)
    assert drawing is not None
    assert f"▸ {users_space.options[1][unlikely]}" in drawing[0]
    texts = re.findall(r">([^<>]+)</text>", drawing[0])
    assert any(text.removeprefix("▸ ").startswith("a-name-that") for text in texts)
    assert not any("a-name-that-is-longer-than-there-is-room-for" in text for text in texts)
    assert "a-name-that-is-longer-than-there-is-room-for" in alt_of(page, "options")
    assert re.search(r">\d more: \d+", drawing[0])


def test_blocks_bring_together_what_the_search_left(new_run: NewRun) -> None:
    case = searched(MBCONV, {3: 0})
    blocks = blocks_of(read_run(new_run(**case)), MBCONV)
    assert [block.options for block in blocks] == list(MBCONV.options)
    assert all(sum(block.probabilities) == pytest.approx(1) for block in blocks)
    assert [block.is_likeliest for block in blocks] == [True, True, True, False]


def test_a_skipped_block_has_no_share_of_the_latency_and_no_tutor(new_run: NewRun) -> None:
    skip = len(MBCONV.options[1]) - 1
    run_path = new_run(**searched(MBCONV, {1: skip, 3: 0}))
    run = read_run(run_path)
    names = [share.name for share in network_shares(run, LatencyModel(MBCONV, run.table))]
    assert [name.split()[1] for name in names[1:-1]] == ["1", "3", "4"]
    assert names[0] == "stem, 1 → 8"
    assert names[-1].startswith("head, ")
    assert names[-2] == f"block 4 {MBCONV.options[3][0]}, {_width_before(run)} → 16"
    page = page_from_run(run_path)
    assert "3 layers of the supernet that the derived network does not have" in text_of(page)
    assert "block2.expand:" not in alt_of(page, "tutors")
    assert "block1.expand:" in alt_of(page, "tutors")


def _width_before(run: Any) -> int:
    width: int = run.derivation.genotype.widths[2]
    return width


def test_a_resized_skip_has_its_share(new_run: NewRun) -> None:
    """Block 4 is skipped at another width than block 3 has."""
    names = MBCONV.options[3]
    third = next(i for i, name in enumerate(MBCONV.options[2]) if name.endswith("w16"))
    run = read_run(new_run(**searched(MBCONV, {2: third, 3: names.index("skip-w12")})))
    shares = network_shares(run, LatencyModel(MBCONV, run.table))
    assert shares[-2].name == "block 4 skip-w12, 16 → 12"


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("none", "there are no tutors"),
        ("uniform", "uniform: every layer. All 2 layers of the teacher teach each of"),
        ("last", "layers learns from blocks.0, the last of the teacher"),
    ],
)
def test_a_selection_that_a_sentence_tells_has_no_picture(
    new_run: NewRun, selection: str, says: str
) -> None:
    page = page_from_run(new_run(selection=selection))
    assert '<figure id="tutors"' not in page
    assert says in text_of(page)
    assert "Heat map" not in page


@pytest.mark.parametrize(
    ("selection", "says"),
    [("random", "drawn once by the seed"), ("depth", "the tutor at the same relative depth")],
)
def test_a_selection_that_was_not_searched_is_called_so(
    new_run: NewRun, selection: str, says: str
) -> None:
    page = page_from_run(new_run(selection=selection))
    text = text_of(page)
    assert f"{selection}: " in text
    assert says in text
    assert "Nothing was searched" in text
    assert "its probability" not in text[text.index("Tutor map") : text.index("Robustness")]


def test_many_teacher_layers_are_told_beside_their_rows(new_run: NewRun) -> None:
    layers = tuple(f"block{index // 10}.layer.{index % 10}.conv" for index in range(31))
    page = page_from_run(new_run(teacher_layers=layers))
    drawing = re.search(r'<figure id="tutors".*?</svg>', page, re.DOTALL)
    assert drawing is not None
    assert all(f">{layer}<" in drawing[0] for layer in layers)


def test_each_budget_is_drawn_beside_its_cost_and_told_beside_the_figure(new_run: NewRun) -> None:
    page = page_from_run(
        new_run(
            budgets={"macs_m": 20.0, "params_k": 900.0, "weights_kib": 77.0},
            figures={
                "expected_macs_m": 18.0,
                "expected_params_k": 880.0,
                "expected_weights_kib": 70.0,
                "expected_forbidden_operators": 0.2,
                "macs_multiplier": 1.0,
            },
        )
    )
    drawing = re.search(r'<figure id="search".*?</svg>', page, re.DOTALL)
    assert drawing is not None
    for title, budget in (
        ("expected MACs, millions", "budget 20"),
        ("expected parameters, thousands", "budget 900"),
        ("expected weights, KiB", "budget 77"),
        ("expected forbidden operators", "budget 0"),
    ):
        assert f">{title}<" in drawing[0]
        assert f">{budget}<" in drawing[0]
    assert ">expected sum of energies, mJ<" not in drawing[0]
    assert "10 line charts over 4 epochs" in alt_of(page, "search")


@pytest.mark.parametrize("name", ["rnas-cl-s7", "mbconv-32", "mbconv-32-widths", "darts"])
def test_operators_have_no_more_rows_than_there_is_room_for(name: str) -> None:
    space = space_from_spec(space_spec(name))
    keys = [operator.key for operator in space.operators()]
    names = operator_labels(keys)
    rows, is_single = rows_of(keys, names)
    of_rows = [members for group in rows.values() for members in group.values()]
    assert sorted(map(str, keys)) == sorted(str(key) for members in of_rows for key in members)
    assert len(of_rows) <= (MAX_ROWS if is_single else MAX_STRIPS)
    assert is_single == isinstance(space, ChannelSpace | CellSpace)
    assert is_single == all(len(members) == 1 for members in of_rows)


def test_operators_are_called_what_tells_them_apart() -> None:
    keys = [operator.key for operator in MBCONV.operators()]
    names = operator_labels(keys)
    blocks = {names[key] for key in keys if key.kind == "mbconv"}
    assert blocks == {f"k{k} e{e}{se}" for k in (3, 5) for e in (1, 2) for se in ("", " SE")}
    assert {names[key] for key in keys if key.kind in ("stem", "head", "resize")} == {""}
    plain = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    channel_names = operator_labels(operator.key for operator in plain.operators())
    assert set(channel_names.values()) == {""}


def test_pages_of_every_space_are_whole(new_run: NewRun, users_space: ChainSpace) -> None:
    page = page_from_run(new_run(**searched(users_space)))
    for name in ("operators", "stack", "search", "options", "tutors", "attacks", "training"):
        assert f'<figure id="{name}"' in page
    assert ">begin, 8×8<" in page  # noqa: RUF001 - a size
    assert ">part3, 4×4<" in page  # noqa: RUF001


def test_what_large_networks_take_longer_is_a_bar_of_its_own(new_run: NewRun) -> None:
    folder = new_run(**searched(CELLS), networks=40, curvature_per_us=5e-3)
    run = read_run(folder)
    latency = LatencyModel(CELLS, run.table)
    assert latency.cost_us.curvature > 0
    page = page_from_run(folder)
    heights = re.search(r"curvature ([\d.]+)", alt_of(page, "stack"))
    assert heights is not None
    genotype = run.derivation.genotype
    bend_us = 1e3 * latency.predict_ms(genotype) - latency.intercept_us
    bend_us -= sum(share.latency_us for share in network_shares(run, latency))
    assert float(heights[1]) == pytest.approx(bend_us, rel=0.02)
    assert "being together in a network of this size" in text_of(page)
