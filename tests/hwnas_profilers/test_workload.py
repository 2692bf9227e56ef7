from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwnas.core.decoding import decode_json, encode_json
from hwnas_profilers.workload import Operator, OperatorKey, chain_of, nearest_keys

sizes = st.integers(0, 10_000)
shapes = st.tuples(sizes, sizes, sizes)
keys = st.builds(
    OperatorKey,
    kind=st.text(min_size=1, max_size=10),
    in_shape=shapes,
    out_shape=shapes,
    kernel=sizes,
    stride=sizes,
    hidden=sizes,
    variant=st.text(max_size=10),
    batch=sizes,
    dtype=st.sampled_from(["fp32", "fp16", "int8"]),
)


@given(keys)
def test_a_key_survives_the_round_trip(key: OperatorKey) -> None:
    again = decode_json(encode_json(key), OperatorKey, source="test")
    assert again == key
    assert hash(again) == hash(key)


@given(st.lists(keys, min_size=1, max_size=8, unique=True), st.data())
def test_a_key_is_nearest_to_itself(candidates: list[OperatorKey], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(candidates))
    assert nearest_keys(key, candidates)[0] == key


def test_the_same_kind_with_one_small_change_comes_first() -> None:
    key = OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(8, 8, 8), kernel=3)
    wider = OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(12, 8, 8), kernel=3)
    widest = OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(64, 8, 8), kernel=3)
    other = OperatorKey(kind="head", in_shape=(3, 8, 8), out_shape=(8, 8, 8), kernel=3)
    half = OperatorKey(kind="conv", in_shape=(3, 8, 8), out_shape=(8, 8, 8), kernel=3, dtype="fp16")
    variant = OperatorKey(
        kind="conv", in_shape=(3, 8, 8), out_shape=(8, 8, 8), kernel=3, variant="relu"
    )
    candidates = [other, half, variant, widest, wider]
    assert nearest_keys(key, candidates, count=5) == [wider, widest, variant, half, other]
    assert nearest_keys(key, []) == []


def test_a_chain_is_its_parts_in_a_row() -> None:
    def operator(channels: int, out: int) -> Operator:
        return Operator(
            name=f"{channels} to {out}",
            build=lambda: nn.Conv2d(channels, out, 1),
            input_shape=(2, channels, 4, 4),
            key=OperatorKey(kind="conv", in_shape=(channels, 4, 4), out_shape=(out, 4, 4)),
        )

    parts = [operator(3, 5), operator(5, 7)]
    chain = chain_of(parts)
    assert chain.name == "3 to 5 then 5 to 7"
    assert chain_of(parts, "both").name == "both"
    assert chain.input_shape == (2, 3, 4, 4)
    assert chain.parts == tuple(parts)
    module = chain.build()
    assert not module.training
    assert module(torch.zeros(2, 3, 4, 4)).shape == (2, 7, 4, 4)
