from __future__ import annotations

import re
import shutil
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from hwnas.core.errors import ArtifactError, InputFileError
from hwnas.report.numbers import DASH
from hwnas.report.page import page_from_run
from hwnas.robustness.threat import ThreatModel
from hwnas.verify.gates import at_least, at_most
from hwnas.verify.masking import MaskingSigns

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hwnas.report.conftest import NewRun

PICTURES = (
    "operators",
    "stack",
    "predictions",
    "search",
    "options",
    "tutors",
    "attacks",
    "training",
)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Checks that tags nest, and gathers ids, attributes and tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)).replace("\N{NO-BREAK SPACE}", " ")


def test_passed_run_says_so_first(passed_page: str) -> None:
    headings = re.findall(r"<h[12]>(.*?)</h[12]>", passed_page)
    assert headings[0] == "All 3 gates passed"
    assert "<title>All 3 gates passed · tiny on onnxruntime-cpu · hwnas</title>" in passed_page
    assert "✓ passed" in passed_page
    assert "✗ failed" not in passed_page


def test_failed_gates_are_named_first_and_not_by_color_alone(new_run: NewRun) -> None:
    gates = (
        at_most("clean_drop", 0.0, 0.5, unit="points", meaning="lost accuracy"),
        at_most("max_abs_diff", None, 1e-3, unit="logits", meaning="other numbers"),
        at_least("agreement", 0.5, 0.995, unit="of clean images", meaning="decides otherwise"),
    )
    page = page_from_run(new_run(gates=gates))
    assert "<h1>2 of 3 gates failed: max abs diff, agreement</h1>" in page
    assert page.count("✗ failed") == 2
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>\s*<td><span class="state', page)
    assert rows == ["max abs diff", "agreement", "clean drop"]
    assert "50.0 % ≥ 99.5 % of clean images" in text_of(page)
    assert f"{DASH} ≤ 0.001 logits" in text_of(page)  # a figure that could not be computed


def test_every_picture_has_alt_text_title_and_caption(passed_page: str) -> None:
    assert re.findall(r'<figure id="(\w+)"', passed_page) != []
    assert set(re.findall(r'<figure id="(\w+)"', passed_page)) == set(PICTURES)
    for name in PICTURES:
        figure = re.search(rf'<figure id="{name}".*?</figure>', passed_page, re.DOTALL)
        assert figure is not None
        alt = re.search(r'<svg role="img" aria-label="([^"]*)"', figure[0])
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure[0], re.DOTALL)
        assert alt is not None
        assert caption is not None
        assert len(alt[1]) > 40
        assert re.search(r"\d", caption[1])  # the figure that matters


def test_page_is_well_formed_and_asks_for_nothing(passed_page: str) -> None:
    reader = Reader(passed_page)
    assert len(reader.ids) == len(set(reader.ids))
    assert "script" not in reader.tags
    links = [v for name, v in reader.attributes if name in ("href", "xlink:href", "src")]
    assert all(link.startswith("#") for link in links)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', passed_page))
    assert used
    assert used <= set(reader.ids)
    assert "@import" not in passed_page
    assert len(passed_page.encode()) < 1_500_000


def test_text_of_pictures_is_text_in_the_page_colors(passed_page: str) -> None:
    svg = passed_page[passed_page.index("<svg") :]
    assert ">expected latency, µs<" in svg
    assert "DejaVu" not in svg
    assert "var(--ink)" in svg
    assert "#20262e" not in svg


def test_equal_runs_give_equal_pages(passed_run: Path, passed_page: str) -> None:
    started = time.perf_counter()
    assert page_from_run(passed_run) == passed_page
    assert time.perf_counter() - started < 6


def test_users_names_are_escaped(new_run: NewRun) -> None:
    names = ("<script>alert(1)</script>", 'a"b & $c$', *map(str, range(30)))
    page = page_from_run(new_run(class_names=names))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "and 12 more" in page
    Reader(page)


def test_hostile_layer_names_stay_text(new_run: NewRun) -> None:
    run = new_run(teacher_layers=('</text><script x="1">', "$\\frac{$ & co"))
    page = page_from_run(run)
    assert "<script" not in page
    Reader(page)


def test_what_was_not_computed_is_a_dash(new_run: NewRun) -> None:
    gates = (at_most("relative_l2", None, 1e-4, unit="of the logits' norm", meaning="damaged"),)
    run = new_run(gates=gates, latency=False, measured_when_derived=False, masking=None, networks=2)
    page = page_from_run(run)
    text = text_of(page)
    assert f"Measured latency {DASH} not measured when verified" in text
    assert f"measured when derived: {DASH}" in text
    assert "The attack was not checked for gradient masking" in text
    assert re.search(
        rf"calibrated \(used\) [\d.]+ {DASH} {DASH}", text
    )  # no rank correlation of two
    Reader(page)


def test_losses_that_are_not_finite_are_dashes(new_run: NewRun) -> None:
    masking = MaskingSigns(
        n=20, attacked=0.6, more_steps=0.5, larger_eps=0.2, unbounded=0.0, majority=0.4,
        attacked_loss=None, noise_loss=None,
    )  # fmt: skip
    assert f"loss under attack {DASH}" in text_of(page_from_run(new_run(masking=masking)))


def test_run_without_gates_has_not_passed(new_run: NewRun) -> None:
    page = page_from_run(new_run(gates=()))
    assert "<h1>No gate was checked</h1>" in page
    assert 'class="verdict failed"' in page


def test_uncalibrated_table_has_no_predictions(new_run: NewRun) -> None:
    page = page_from_run(new_run(calibrated=False))
    assert 'id="predictions"' not in page
    assert "The table is not calibrated" in page
    assert "plain sums of operators" in page


def test_given_teacher_has_no_training_curve(new_run: NewRun) -> None:
    page = page_from_run(new_run(teacher_trained=False))
    assert "The teacher was given, not trained here." in text_of(page)
    assert ">teacher: training loss<" not in page
    assert ">network: training loss<" in page


def test_what_the_supernet_gave_is_told_where_training_began_with_it(
    new_run: NewRun, passed_page: str
) -> None:
    said = "As cut out of the supernet, the network began with 41.0 % clean."
    assert said in text_of(page_from_run(new_run(initial_accuracy=0.41)))
    assert "cut out of the supernet" not in passed_page


def test_subset_of_square_is_named_with_its_size(new_run: NewRun) -> None:
    page = page_from_run(new_run(square_samples=40, governor="performance"))
    assert "images of Square (n = 40)" in text_of(page.replace('aria-label="', ">"))
    assert "clock could not be read" not in page


def test_milliseconds_for_slow_networks_and_eps_as_configured(new_run: NewRun) -> None:
    run = new_run(scale=1000.0, threat=ThreatModel(eps="8/255"), choices=(1, 0))
    text = text_of(page_from_run(run))
    assert "50.0 ms" in text
    assert "µs" not in text
    assert "8/255 (0.0314)" in text
    assert "0 of 2 blocks got their likeliest option: the others gave way to the budget." in text


def test_table_from_elsewhere_is_read(new_run: NewRun, tmp_path: Path) -> None:
    page = page_from_run(new_run(elsewhere=tmp_path / "given.jsonl"))
    assert "given.jsonl" in page


@pytest.mark.parametrize("missing", ["config.json", "genotype.json", "engine", "verification"])
def test_unfinished_run_is_refused(new_run: NewRun, missing: str) -> None:
    run = new_run()
    part = run / missing
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
    with pytest.raises(InputFileError, match="has not reached its verification") as caught:
        page_from_run(run)
    assert missing in caught.value.message
    assert "hwnas run CONFIG.toml" in caught.value.hint


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="is no folder of a run"):
        page_from_run(tmp_path / "nothing")


@pytest.mark.parametrize("changed", ["table.jsonl", "search/search.json", "engine/manifest.json"])
def test_parts_of_two_runs_are_not_mixed(new_run: NewRun, changed: str) -> None:
    run = new_run()
    path = run / changed
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ArtifactError, match="changed"):
        page_from_run(run)
