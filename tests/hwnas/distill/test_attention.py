from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from hwnas.distill.attention import attention_distances, attention_loss, attention_maps

pytestmark = pytest.mark.usefixtures("one_thread")

seeds = st.integers(0, 2**32)


def features_of(seed: int, *shapes: tuple[int, int, int], batch: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


@given(seed=seeds, size=st.integers(1, 9))
def test_maps_are_unit_vectors_of_one_size(seed: int, size: int) -> None:
    maps = attention_maps(features_of(seed, (4, 8, 8), (7, 3, 5), (1, 1, 1)), size)
    assert maps.shape == (3, 3, size * size)
    torch.testing.assert_close(maps.norm(dim=2), torch.ones(3, 3))
    assert (maps >= 0).all()


@given(seed=seeds, scale=st.floats(0.01, 100))
def test_maps_show_where_and_not_how_much(seed: int, scale: float) -> None:
    features = features_of(seed, (4, 8, 8), (7, 4, 4))
    scaled = [each * scale for each in features]
    torch.testing.assert_close(attention_maps(features, 5), attention_maps(scaled, 5))
    # Nor how many channels say so, in which order and with which sign.
    doubled = [torch.cat([each, -each.flip(1)], dim=1) for each in features]
    torch.testing.assert_close(attention_maps(features, 5), attention_maps(doubled, 5))


@given(
    seed=seeds,
    size=st.integers(1, 9),
    sides=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5),
)
def test_maps_are_those_of_an_interpolation_of_each(
    seed: int, size: int, sides: list[tuple[int, int]]
) -> None:
    # Layers of one size next to each other, apart, and of the common size already.
    shapes = [(3, *side) for side in [*sides, sides[0], sides[0], (size, size)]]
    features = features_of(seed, *shapes)
    expected = []
    for layer in features:
        energy = layer.square().sum(1, keepdim=True)
        resized = functional.interpolate(energy, (size, size), mode="bilinear", align_corners=False)
        expected.append(functional.normalize(resized.flatten(1), dim=1))
    torch.testing.assert_close(
        attention_maps(features, size), torch.stack(expected, 1), atol=1e-5, rtol=1e-5
    )


def test_gradients_of_maps_are_those_of_an_interpolation() -> None:
    first, second = (each.double() for each in features_of(0, (2, 6, 6), (2, 3, 4)))
    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda *each: attention_maps(each, 4), inputs)


def test_autocast_rounds_neither_maps_nor_distances() -> None:
    student, teacher = features_of(1, (4, 8, 8), (2, 4, 4)), features_of(2, (3, 6, 6))
    exact = attention_distances(attention_maps(student, 5), attention_maps(teacher, 5))
    with torch.autocast("cpu", torch.bfloat16):
        maps = attention_maps(student, 5), attention_maps(teacher, 5)
        distances = attention_distances(*maps)
    assert torch.equal(distances, exact)


def test_a_map_is_of_its_own_sample() -> None:
    (first,) = features_of(0, (4, 6, 6), batch=5)
    alone = torch.cat([attention_maps([sample[None]], 4) for sample in first])
    torch.testing.assert_close(attention_maps([first], 4), alone)


def test_the_brightest_place_is_where_the_activation_was() -> None:
    features = torch.zeros(1, 3, 4, 4)
    features[0, :, 1, 2] = -2.0
    (position,) = attention_maps([features], 4).flatten().nonzero().flatten().tolist()
    assert divmod(position, 4) == (1, 2)


def test_a_layer_that_is_silent_has_an_empty_map_and_no_bad_gradient() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    maps = attention_maps([features], 2)
    assert not maps.any()
    (gradient,) = torch.autograd.grad(maps.sum(), features)
    assert gradient.isfinite().all()


@given(seed=seeds)
def test_distances_are_those_of_a_loop(seed: int) -> None:
    student = attention_maps(features_of(seed, (4, 8, 8), (2, 4, 4), batch=4), 5)
    teacher = attention_maps(features_of(seed + 1, *[(3, 6, 6)] * 3, batch=4), 5)
    distances = attention_distances(student, teacher)
    assert distances.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            pairs = zip(student[:, i], teacher[:, j], strict=True)
            mean = sum(float((s - t).square().sum()) for s, t in pairs) / 4
            assert float(distances[i, j]) == pytest.approx(mean, abs=1e-5)


@given(seed=seeds)
def test_a_layer_is_at_no_distance_from_itself_and_at_some_from_others(seed: int) -> None:
    maps = attention_maps(features_of(seed, *[(2, 5, 5)] * 3), 5)
    distances = attention_distances(maps, maps)
    torch.testing.assert_close(distances, distances.T)
    assert distances.diagonal().abs().max() < 1e-5
    assert distances[~torch.eye(3, dtype=torch.bool)].min() > 1e-3


def test_certain_tutors_pick_their_entries() -> None:
    distances = torch.arange(6.0).view(2, 3)
    weights = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    # 1/(n_s n_t) times the sum of what was picked.
    assert float(attention_loss(distances, weights)) == pytest.approx((2 + 3) / 6)


def test_the_gradient_prefers_the_nearer_tutor() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = attention_loss(torch.tensor([[0.9, 0.1, 0.5]]), torch.softmax(logits, 1))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0].argsort().tolist() == [1, 2, 0]


def test_following_the_loss_moves_a_students_attention_to_the_teachers() -> None:
    (target,) = features_of(0, (1, 6, 6))
    teacher = attention_maps([target], 6)
    student = torch.nn.Parameter(features_of(1, (1, 6, 6))[0])
    optimizer = torch.optim.Adam([student], lr=0.05)
    distances = []
    for _ in range(100):
        distance = attention_distances(attention_maps([student], 6), teacher)
        distances.append(float(distance.detach()))
        optimizer.zero_grad()
        torch.autograd.backward(attention_loss(distance, torch.ones(1, 1)))
        optimizer.step()
    assert distances[-1] < 0.1 * distances[0]
