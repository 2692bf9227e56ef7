"""Triton's model repository: its files, and a configuration that its messages can be read from.

No server could be had. The configuration is parsed by protocol buffers' own text format into
messages with the names and types that Triton publishes (model_config.proto), of those fields that
are written: an unknown field, a wrong type or an unknown word of an enumeration is an error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx
import onnx.helper as oh
import pytest
from google.protobuf import (  # type: ignore[import-untyped]  # it ships no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)

from hwnas.core.artifacts import sha256_of
from hwnas.core.errors import ArtifactError, ExportError
from hwnas.deploy.triton import MAX_BATCH, config_pbtxt, model_name, unserved_reason, write_triton

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hwnas.deploy.bundled.conftest import SmallBundle

FIELDS = {
    "Value": "string_value",
    "Input": "name data_type:DataType *dims:int64",
    "Output": "name data_type:DataType *dims:int64 label_filename",
    "Specific": "*versions:int64",
    "VersionPolicy": "specific:Specific",
    "InstanceGroup": "count:int32 kind:Kind",
    "DynamicBatching": "max_queue_delay_microseconds:uint64",
    "Graph": "level:int32",
    "Optimization": "graph:Graph",
    "Parameter": "key value:Value",
    "ModelConfig": "name backend max_batch_size:int32 *input:Input *output:Output "
    "version_policy:VersionPolicy *instance_group:InstanceGroup dynamic_batching:DynamicBatching "
    "optimization:Optimization *parameters:Parameter",
}
ENUMS = {"DataType": ("TYPE_INVALID", "TYPE_FP32"), "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU")}


@pytest.fixture(scope="module")
def config_class() -> Any:
    """The class of Triton's ModelConfig, less the fields that hwnas does not write."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    for name, words in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, word in enumerate(words):
            enum.value.add(name=word, number=number)
    scalar = descriptor_pb2.FieldDescriptorProto
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, text in enumerate(fields.split(), start=1):
            own, _, kind = text.lstrip("*").partition(":")
            field = message.field.add(name=own, number=number, label=scalar.LABEL_OPTIONAL)
            if text.startswith("*"):
                field.label = scalar.LABEL_REPEATED
            if kind in FIELDS or kind in ENUMS:
                field.type = scalar.TYPE_MESSAGE if kind in FIELDS else scalar.TYPE_ENUM
                field.type_name = f".t.{kind}"
            else:
                field.type = getattr(scalar, f"TYPE_{(kind or 'string').upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


def test_the_repository_is_what_the_server_looks_for(
    small_bundle: SmallBundle, config_class: Any
) -> None:
    triton = small_bundle.folder / "triton"
    write_triton(triton, [small_bundle.card], bundle=small_bundle.folder)
    place = triton / "onnxruntime-cpu"
    assert {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()} == {
        "config.pbtxt", "labels.txt", "1/model.onnx",
    }  # fmt: skip
    model = place / "1" / "model.onnx"
    assert not model.is_symlink()
    assert model.read_bytes() == small_bundle.model
    assert (place / "labels.txt").read_text().splitlines() == ["cat", 'a "quoted" name', "dog"]
    config = text_format.Parse((place / "config.pbtxt").read_text(), config_class())
    assert (config.name, config.backend) == ("onnxruntime-cpu", "onnxruntime")
    assert config.max_batch_size == MAX_BATCH
    images, logits = config.input[0], config.output[0]
    assert (images.name, list(images.dims)) == ("images", [1, 8, 8])  # without the batch
    assert (logits.name, list(logits.dims)) == ("logits", [3])
    assert images.data_type == logits.data_type == ENUMS["DataType"].index("TYPE_FP32")
    assert logits.label_filename == "labels.txt"
    assert config.instance_group[0].kind == ENUMS["Kind"].index("KIND_CPU")
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [1]


def test_what_is_no_configuration_is_refused(config_class: Any) -> None:
    for wrong in ("nme: 'a'", "max_batch_size: 'a'", "input [ { data_type: FP32 } ]", "name: a"):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(wrong, config_class())


def test_settings_of_the_session_have_the_backends_names(
    small_bundle: SmallBundle, config_class: Any
) -> None:
    session = {"graph_optimization": "extended", "memory_arena": "off", "memory_pattern": "off"}
    card = replace(small_bundle.card, threads=3, session=session)
    model = small_bundle.folder / "model.onnx"
    text = config_pbtxt(card, model, backend="onnxruntime")
    config = text_format.Parse(text, config_class())
    assert {each.key: each.value.string_value for each in config.parameters} == {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "1",
        "execution_mode": "0",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
    }
    assert config.optimization.graph.level == 1


def test_a_plan_is_served_on_a_gpu(small_bundle: SmallBundle, config_class: Any) -> None:
    plan = small_bundle.folder / "engine.plan"
    plan.write_bytes(b"plan")
    card = replace(
        small_bundle.card,
        target="tensorrt-fp16",
        plan="engine.plan",
        plan_sha256=sha256_of(b"plan"),
        batches=(1, 4, 8),
    )
    write_triton(small_bundle.folder / "triton", [card], bundle=small_bundle.folder)
    place = small_bundle.folder / "triton" / "tensorrt-fp16"
    assert (place / "1" / "model.plan").read_bytes() == b"plan"
    config = text_format.Parse((place / "config.pbtxt").read_text(), config_class())
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    assert config.instance_group[0].kind == ENUMS["Kind"].index("KIND_GPU")
    assert not config.parameters


def test_a_fixed_batch_is_a_size_like_others(
    tmp_path: Path, small_bundle: SmallBundle, config_class: Any
) -> None:
    model = onnx.load_model_from_string(small_bundle.model)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    text = config_pbtxt(small_bundle.card, tmp_path / "fixed.onnx", backend="onnxruntime")
    config = text_format.Parse(text, config_class())
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 1, 8, 8]
    assert not config.HasField("dynamic_batching")


def test_what_is_not_served_is_left_out_with_a_reason(small_bundle: SmallBundle) -> None:
    unbuilt = replace(small_bundle.card, target="tensorrt-fp16")
    other = replace(small_bundle.card, target="openvino-cpu")
    assert unserved_reason(small_bundle.card) == ""
    assert "hwnas rebuild" in unserved_reason(unbuilt)
    assert "openvino-cpu" in unserved_reason(other)
    triton = small_bundle.folder / "triton"
    write_triton(triton, [unbuilt, small_bundle.card, other], bundle=small_bundle.folder)
    assert [place.name for place in triton.iterdir()] == ["onnxruntime-cpu"]
    with pytest.raises(ExportError, match="serves no engine"):
        write_triton(small_bundle.folder / "t", [unbuilt, other], bundle=small_bundle.folder)


def test_a_swapped_model_is_not_served(small_bundle: SmallBundle) -> None:
    (small_bundle.folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(ArtifactError, match="SHA-256"):
        write_triton(small_bundle.folder / "t", [small_bundle.card], bundle=small_bundle.folder)
    (small_bundle.folder / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        write_triton(small_bundle.folder / "t", [small_bundle.card], bundle=small_bundle.folder)


def test_a_model_of_another_kind_is_refused(small_bundle: SmallBundle, tmp_path: Path) -> None:
    ends = [oh.make_tensor_value_info(name, onnx.TensorProto.INT64, ["n", 2]) for name in "xy"]
    graph = oh.make_graph([oh.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(oh.make_model(graph), tmp_path / "int.onnx")
    with pytest.raises(ExportError, match="one input of float32"):
        config_pbtxt(small_bundle.card, tmp_path / "int.onnx", backend="onnxruntime")


def test_names_have_letters_that_servers_take(small_bundle: SmallBundle) -> None:
    assert model_name(replace(small_bundle.card, target="ssh://pi@board/onnxruntime-cpu")) == (
        "ssh-pi-board-onnxruntime-cpu"
    )
