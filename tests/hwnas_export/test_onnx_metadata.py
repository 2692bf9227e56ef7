from __future__ import annotations

import json

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from hwnas.core.errors import ExportError
from hwnas_export.onnx_export import check_onnx
from hwnas_export.onnx_metadata import (
    CLASS_NAMES,
    NORMALIZATION,
    PIXEL_RANGE,
    PRECISION,
    described,
    metadata_of,
    names_source,
    with_metadata,
)
from hwnas_export.precision import onnx_in_precision, precision_of

NAMES = ("Katze", "čmelák", 'the "other"', "main.py")


@pytest.fixture
def model() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [1.0] * 16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_what_is_written_is_read_again_and_by_onnxruntime_too(model: onnx.ModelProto) -> None:
    entries = described(class_names=NAMES, pixel_range=(0.0, 1.0))
    assert metadata_of(model) == {}
    marked = with_metadata(model, entries)
    check_onnx(marked)
    assert metadata_of(model) == {}, "the model that was given is left as it was"
    session = ort.InferenceSession(marked.SerializeToString())
    for found in (metadata_of(marked), session.get_modelmeta().custom_metadata_map):
        assert found == entries
        assert tuple(json.loads(found[CLASS_NAMES])) == NAMES
        assert json.loads(found[PIXEL_RANGE]) == [0.0, 1.0]
        assert found[NORMALIZATION] == "inside the model"


def test_other_entries_stay_and_old_ones_are_replaced(model: onnx.ModelProto) -> None:
    first = with_metadata(model, {"license": "Apache-2.0", NORMALIZATION: "none"})
    second = with_metadata(first, {NORMALIZATION: "inside the model"})
    assert metadata_of(second) == {"license": "Apache-2.0", NORMALIZATION: "inside the model"}
    check_onnx(second)


def test_equal_entries_make_equal_bytes(model: onnx.ModelProto) -> None:
    entries = described(class_names=NAMES)
    backwards = dict(reversed(entries.items()))
    assert (
        with_metadata(model, entries).SerializeToString()
        == with_metadata(model, backwards).SerializeToString()
    )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_entries_and_precision_survive_each_other(precision: str) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], [0.5] * 9)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "graph", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    entries = described(class_names=NAMES)
    before = onnx_in_precision(with_metadata(model, entries), precision)
    after = with_metadata(onnx_in_precision(model, precision), entries)
    for marked in (before, after):
        assert metadata_of(marked) == entries | {PRECISION: precision}
        assert precision_of(marked) == precision
        onnx.checker.check_model(marked, full_check=True)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"": "nothing"}, "'nothing' has no key"),
        ({PRECISION: "int8"}, "not for others to set"),
        ({"source": "/home/me/net.py"}, "`source` names a file"),
        ({"trace": 'File "/opt/net", line 3'}, "`trace` names a file"),
        ({"windows": r"C:\Users\me"}, "`windows` names a file"),
        ({"module": "network.py:31"}, "`module` names a file"),
    ],
)
def test_what_is_no_entry_is_refused(
    model: onnx.ModelProto, entries: dict[str, str], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        with_metadata(model, entries)
    assert metadata_of(model) == {}


@pytest.mark.parametrize("value", ["https://example.org/a/b", "a/b", "1/255", "pypi", "x.python"])
def test_what_only_looks_like_a_path_is_none(value: str) -> None:
    assert not names_source("key", value)
