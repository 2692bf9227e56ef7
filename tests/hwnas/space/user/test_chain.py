"""What may be declared, and what each mistake is answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.core.errors import ConfigError, InputFileError
from hwnas.space.spec import space_spec
from hwnas.space.user.parts import Follows, Searched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAD = """
from torch import nn
from hwnas.space.user.parts import Follows, Searched

def conv(i, o, stride=1):
    return nn.Conv2d(i, o, 3, stride, 1)

def head(width, classes=4):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

CONV = {"conv": conv}
"""
SHAPE, CLASSES = (3, 8, 8), 4


@pytest.fixture
def name_of(tmp_path: Path) -> Callable[[str], str]:
    """Write a file whose network has the given parts, and name it."""

    def write(parts: str, *, before: str = "", arguments: str = "") -> str:
        path = tmp_path / "net.py"
        code = f"{HEAD}{before}\ndef network({arguments}):\n    return nn.Sequential({parts})\n"
        path.write_text(code, encoding="utf-8")
        return f"user:{path}:network"

    return write


@pytest.mark.parametrize(
    ("parts", "told", "hint"),
    [
        ("conv(3, 8), Follows(head)", "has no searched part", "Searched"),
        ("conv(3, 8), Searched(CONV, (8, 4))", "nothing makes logits", "Follows"),
        (
            "Searched(CONV, (8, 4)), conv(8, 4), Searched(CONV, (4,)), Follows(head)",
            "part2 is a fixed Conv2d behind a searched width (8, 4)",
            "Follows(lambda width: Conv2d",
        ),
        (
            "Searched(CONV, (8, 4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)",
            "part4 is a fixed Linear behind a searched width (8, 4)",
            "Follows",
        ),
        (
            "Searched({'a': lambda i, o: conv(i, 8), 'b': conv}, (8, 4)), Follows(head)",
            "part1, option `a`, gives 8 channels where 4 were asked for",
            "lambda i, o",
        ),
        (
            "Searched({'a': conv, 'b': lambda i, o: conv(i, o, 2)}, (8, 4)), Follows(head)",
            "options of part1 give different sizes (a 4x8x8, b 4x4x4)",
            "same stride",
        ),
        (
            "Searched({'a': lambda i, o: conv(i, 2 * o)}), Follows(head)",
            "part1, option `a`, gives 6 channels for 3, but part1 has no `widths`",
            "declare",
        ),
        (
            "Searched({'a': conv, 'none': None}, (8, 4)), Follows(head)",
            "option `none`, runs nothing, so it keeps 3 channels, but part1 has widths 8, 4",
            "leave `widths` out",
        ),
        (
            "Searched({'a': lambda i, o: nn.Conv2d(i, o, 3, groups=7)}, (8, 4)), Follows(head)",
            "part1, option `a`, cannot be built for 3 -> 8 channels: ValueError: ",
            "",
        ),
        (
            "Searched({'a': lambda i, o: conv(i + 1, o)}, (8, 4)), Follows(head)",
            "part1, option `a`, cannot run on 3x8x8: RuntimeError",
            "",
        ),
        ("Searched({'a': lambda i, o: 3}, (8, 4)), Follows(head)", "gives int, not a", "None"),
        (
            "Searched({'a': lambda i, o: nn.LSTM(8, 8)}), nn.Flatten()",
            "part1, option `a`, cannot run on 3x8x8",
            "",
        ),
        (
            "Searched(CONV, (8, 4)), Follows(lambda w: nn.Flatten(0)), Searched(CONV, (8,)), "
            "Follows(head)",
            "part2 gives (1024,) for a batch of 2",
            "",
        ),
        (
            "Searched(CONV, (8, 4)), nn.Flatten(), Searched(CONV, (8,)), Follows(head)",
            "part2 gives (512,) per image, not channels, height and width",
            "flatten them in what comes after",
        ),
        (
            "Searched(CONV, (8, 4)), Follows(lambda w: head(w, 7))",
            "part2 gives (7,) per image, not 4 logits",
            "def network(classes)",
        ),
        (
            "nn.ReLU(), nn.ModuleList([Searched(CONV)]), Follows(head)",
            "part2 is a ModuleList with a searched place inside it",
            "an option of its own",
        ),
        (
            "Searched(CONV, tuple(range(33, 1, -1))), Searched({'a': conv, 'b': conv, 'c': conv}), "
            "Searched({'a': conv, 'b': conv}), Follows(head)",
            "part1, part2, part3 have 192 options together, more than 96",
            "give part3 a width of its own, e.g. widths=(33,)",
        ),
        ("Searched({}, (8, 4)), Follows(head)", "Searched has no options", "conv3"),
        ("Searched({'a.b': conv}), Follows(head)", "'a.b' is no name of an option", "letters"),
        ("Searched({'a': 3}), Follows(head)", "option `a` is int, not a function", "lambda"),
        ("Searched(CONV, (4, 8)), Follows(head)", "from the widest down", ""),
        ("Searched(CONV, ()), Follows(head)", "at least 1", ""),
        ("Searched(CONV, (8.0,)), Follows(head)", "whole numbers", ""),
        ("Searched(CONV), Follows(head(3))", "takes a function of the width", "Follows(lambda"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(name_of: Callable[[str], str], parts: str, told: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_spec(name_of(parts), image_shape=SHAPE, classes=CLASSES)
    assert told in caught.value.message
    assert hint in caught.value.hint
    assert "net.py:network" in caught.value.message


def test_parts_of_one_name_are_told(name_of: Callable[..., str]) -> None:
    inner = "nn.Sequential(OrderedDict(b=Searched(CONV)))"
    parts = f"OrderedDict([('a', {inner}), ('a_b', conv(3, 3)), ('head', Follows(head))])"
    name = name_of(parts, before="from collections import OrderedDict")
    with pytest.raises(ConfigError, match="two parts called `a_b`"):
        space_spec(name, image_shape=SHAPE, classes=CLASSES)


def test_parts_are_called_as_in_the_sequential(name_of: Callable[..., str]) -> None:
    parts = (
        "OrderedDict(stem=conv(3, 8), stage=nn.Sequential(Searched(CONV, (8, 4)), nn.ReLU(), "
        "Searched({'conv': conv, 'skip': None})), head=Follows(head))"
    )
    name = name_of(parts, before="from collections import OrderedDict")
    spec = space_spec(name, image_shape=SHAPE, classes=CLASSES)
    assert getattr(spec, "begin_parts") == ("stem",)  # noqa: B009
    assert [block.parts for block in getattr(spec, "blocks")] == [  # noqa: B009
        ("stage_1", "stage_2", "stage_3")
    ]
    assert getattr(spec, "end_parts") == ("head",)  # noqa: B009


def test_images_and_classes_are_the_functions_own_or_the_given(
    name_of: Callable[..., str],
) -> None:
    parts = "Searched(CONV, (8, 4)), Follows(lambda w: head(w, classes))"
    name = name_of(parts, arguments="classes=5, image_shape=(2, 6, 6)")
    own = space_spec(name)
    assert (own.image_shape, own.classes) == ((2, 6, 6), 5)
    given = space_spec(name, image_shape=(1, 9, 9), classes=3)
    assert (given.image_shape, given.classes) == ((1, 9, 9), 3)
    flat = name_of(parts, arguments="classes=5, image_shape=(6, 6)")
    with pytest.raises(ConfigError, match=r"image_shape is \(channels, height, width\)"):
        space_spec(flat)
    bare = name_of("Searched(CONV, (8, 4)), Follows(head)")
    with pytest.raises(ConfigError, match="for which images and classes") as caught:
        space_spec(bare)
    assert "--image-shape" in caught.value.hint


@pytest.mark.parametrize(
    ("ending", "error", "told", "hint"),
    [
        ("net.py", ConfigError, "names no space", "net.py:network"),
        ("nett.py:network", InputFileError, "nett.py does not exist", "net.py"),
        ("net.py:netwrk", ConfigError, "there is no `netwrk`", "did you mean `network`?"),
        ("net.py:CONV", ConfigError, "is dict, not a function", "def network"),
        ("net.py:fails", ConfigError, "cannot be called: KeyError", "image_shape"),
        ("net.py:needs", ConfigError, "cannot be called: TypeError", "and nothing else"),
        ("net.py:one", ConfigError, "gives ReLU, not a torch.nn.Sequential", ""),
        ("broken.py:network", ConfigError, "cannot be imported: SyntaxError", ""),
    ],
)
def test_a_name_that_leads_nowhere_is_told(
    name_of: Callable[..., str],
    tmp_path: Path,
    ending: str,
    error: type[Exception],
    told: str,
    hint: str,
) -> None:
    more = "fails = lambda: {}['x']\nneeds = lambda depth: None\none = lambda: nn.ReLU()"
    name_of("Searched(CONV), Follows(head)", before=more)
    (tmp_path / "broken.py").write_text("def network(:\n", encoding="utf-8")
    with pytest.raises(error) as caught:
        space_spec(f"user:{tmp_path}/{ending}", image_shape=SHAPE, classes=CLASSES)
    assert told in str(caught.value)
    assert hint in str(caught.value)


def test_a_module_is_found_from_the_current_folder(
    name_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_of("Searched(CONV, (8, 4)), Follows(head)")
    (tmp_path / "net.py").rename(tmp_path / "my_user_network.py")
    monkeypatch.chdir(tmp_path)
    spec = space_spec("user:my_user_network:network", image_shape=SHAPE, classes=CLASSES)
    as_file = space_spec("user:my_user_network.py:network", image_shape=SHAPE, classes=CLASSES)
    assert spec.name == "user:my_user_network:network"
    assert as_file.name == "user:my_user_network.py:network"
    with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
        space_spec("user:my_other_network:network", image_shape=SHAPE, classes=CLASSES)


def test_a_path_without_its_prefix_is_told() -> None:
    with pytest.raises(ConfigError, match=r"user:examples/user_space\.py:network"):
        space_spec("examples/user_space.py:network")


def test_describing_a_space_draws_nothing_from_the_generator(
    name_of: Callable[..., str],
) -> None:
    name = name_of("Searched(CONV, (8, 4)), Follows(head)")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    space_spec(name, image_shape=SHAPE, classes=CLASSES)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "mark", [Searched({"a": lambda i, o: nn.Conv2d(i, o, 1)}), Follows(lambda width: nn.ReLU())]
)
def test_a_mark_does_not_run(mark: nn.Module) -> None:
    with pytest.raises(ConfigError, match="cannot be run itself"):
        mark(torch.zeros(1, 3, 4, 4))
