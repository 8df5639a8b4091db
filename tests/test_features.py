"""Kernels, their answers and feature maps, as pictures."""

from functools import cache

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import features, model, pages
from pipeline.backbones import BACKBONES
from pipeline.backbones.base import Backbone
from pipeline.config import Head
from tests.networks import SMALLEST, network


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def with_kernels(weights, contract="tf", size=16, padding="valid"):
    """A network of one convolution with given weights, [h, w, C, K]."""
    image = keras.Input((size, size, weights.shape[2]))
    convolution = keras.layers.Conv2D(weights.shape[-1], weights.shape[:2], padding=padding, name="first")
    backbone = keras.Model(image, convolution(image))
    convolution.set_weights([weights, np.full(weights.shape[-1], 7.0, np.float32)])
    row = Backbone("x", "x", None, size, size, contract, "first", "")
    return model.build(backbone, row, np.zeros(3, np.float32), Head(), 3)


@cache
def lenet():
    return network("lenet5")


def dense_network():
    image = keras.Input((16, 16, 3))
    x = keras.layers.Dense(8, name="first")(keras.layers.Flatten()(image))
    row = Backbone("x", "x", None, 16, 16, "tf", "first", "")
    return model.build(keras.Model(image, x), row, None, Head(), 3)


# -------------------------------------------------------------------------------------------------------------- kernels


def test_kernels_are_grey_at_0_and_share_one_scale():
    weights = np.zeros((5, 5, 3, 4), np.float32)
    weights[..., 1], weights[..., 2], weights[..., 3] = 0.5, -1, 1
    pictures = features.kernels(with_kernels(weights))
    assert pictures.shape == (4, 5, 5, 3)
    assert pictures.dtype == np.uint8
    assert [set(np.unique(picture)) for picture in pictures] == [{128}, {192}, {1}, {255}]


@pytest.mark.parametrize(("contract", "red"), [("tf", 0), ("caffe", 2)])
def test_kernels_that_read_blue_first_are_shown_in_red_green_and_blue(contract, red):
    weights = np.zeros((3, 3, 3, 1), np.float32)
    weights[:, :, red] = 1
    assert features.kernels(with_kernels(weights, contract))[0, 0, 0].tolist() == [255, 128, 128]


def test_kernels_on_grey_pictures_have_no_channels():
    assert features.kernels(network("lenet5")).shape == (6, 5, 5)


def test_a_network_that_begins_with_something_else_has_neither_kernels_nor_maps():
    net = dense_network()
    assert features.kernels(net) is None
    assert features.responses(net, noise(16)) is None
    assert features.maps(net, noise(16)) == []
    assert features.kernel_chart(net) is None
    assert features.response_chart(net, noise(16)) is None
    assert features.maps_chart(net, noise(16)) is None


# ------------------------------------------------------------------------------------------------------------ responses


def test_learned_kernels_with_the_canonical_weights_answer_as_the_canonical_ones_do():
    """Ours are computed by SciPy and theirs by the network's own convolution: not flipped, and without the bias."""
    edge, sobel = features.CANONICAL["edge"], features.CANONICAL["Sobel, vertical"]
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    image = noise(16)
    for name, kernel in (("edge", edge), ("Sobel, vertical", sobel)):
        weights = (kernel[:, :, None] * luma)[..., None].repeat(2, axis=-1) * [1, 0]
        found = features.responses(with_kernels(weights.astype(np.float32)), image)
        assert found.channels == [0, 1]
        theirs, ours = found.learned[0].astype(float), found.canonical[name][1:-1, 1:-1].astype(float)
        assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.999
        assert (found.learned[1] == 128).all()


def test_the_canonical_kernels_are_those_of_the_books():
    sums = {name: kernel.sum() for name, kernel in features.CANONICAL.items()}
    assert sums == {"blur": 1, "sharpen": 1, "edge": 0, "Sobel, vertical": 0}
    even = np.full((16, 16, 3), 90, np.uint8)
    even[:, 8:] = 200
    found = features.responses(network("lenet5", size=32), even.repeat(2, axis=0).repeat(2, axis=1))
    assert found.luminance[0, [0, -1]].tolist() == [90, 200]
    assert found.canonical["blur"][5, [0, 15, 16, 31]].tolist() == [90, 104, 186, 200]
    assert found.canonical["sharpen"][5, [0, 15, 16, 31]].tolist() == [90, 0, 255, 200]
    assert found.canonical["edge"][5, [0, 15, 16, 31]].tolist() == [128, 1, 255, 128]
    assert found.canonical["Sobel, vertical"][5, [0, 15, 16, 31]].tolist() == [128, 1, 1, 128]


def test_the_kernels_shown_are_those_that_answer_most_and_their_numbers_are_told():
    weights = np.zeros((1, 1, 3, 12), np.float32)
    weights[0, 0, 0] = np.arange(12)
    found = features.responses(with_kernels(weights), noise(16))
    assert found.channels == list(range(11, 1, -1))
    assert found.count == 12
    np.testing.assert_array_equal(found.kernels, features.kernels(with_kernels(weights))[found.channels])
    spread = found.learned.astype(float).std(axis=(1, 2))
    assert (np.diff(spread) <= 0).all()


# --------------------------------------------------------------------------------------------------------- feature maps


def test_maps_are_those_of_the_blocks_from_below_to_the_top():
    net = network("mobilenet", size=64)
    found = features.maps(net, noise(64))
    assert [layer.layer for layer in found] == [
        "conv1_relu", *(f"conv_pw_{number}_relu" for number in (2, 4, 6, 7, 9, 11, 13))
    ]  # fmt: skip
    assert found[0].shape == (32, 32, 8)
    assert found[0].pictures.shape == (8, 32, 32)
    assert found[-1].shape == (2, 2, 256)
    assert found[-1].pictures.shape == (12, 2, 2)


def test_each_map_is_stretched_and_those_that_vary_most_come_first():
    weights = np.zeros((1, 1, 3, 3), np.float32)
    weights[0, 0, :, 0], weights[0, 0, :, 2] = 1, -4
    image = np.zeros((16, 16, 3), np.uint8)
    image[2, 3], image[5, 5] = 255, 51
    (found,) = features.maps(with_kernels(weights), image)
    assert found.channels == [2, 0, 1]
    assert found.pictures[:, 2, 3].tolist() == [0, 255, 0]
    assert found.pictures[:, 5, 5].tolist() == [204, 51, 0]
    assert found.pictures[:, 0, 0].tolist() == [255, 0, 0]


@given(arrays(np.uint8, (32, 32, 3), elements=st.integers(0, 255)))
@settings(deadline=None, max_examples=15)
def test_any_picture_has_maps_and_responses(image):
    net = lenet()
    found = features.responses(net, image)
    assert found.learned.dtype == found.luminance.dtype == np.uint8
    assert all(answer.shape == (32, 32) for answer in found.canonical.values())
    assert [layer.layer for layer in features.maps(net, image)] == ["s2", "s4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in SMALLEST.values()])
def test_every_family_has_charts_with_words_for_who_cannot_see_them(name, tmp_path):
    row, options = BACKBONES[name], dict(SMALLEST.values())[name]
    size = row.default_size if row.fixed_size else max(row.min_size, 96)
    net, image = network(name, options, size=size), noise(size)
    with pages.drawing():
        for number, chart in enumerate(
            (features.kernel_chart(net), features.response_chart(net, image), features.maps_chart(net, image))
        ):
            chart.save(tmp_path / f"{number}.png")
            assert "<svg" in chart.svg
            assert len(chart.svg) < 1_500_000
            assert len(chart.alt) > 20
            assert len(chart.caption) > 50


def test_of_many_kernels_those_with_the_greatest_norms_are_drawn_and_the_title_says_so():
    weights = np.random.default_rng(0).normal(size=(3, 3, 3, 200)).astype(np.float32)
    chart = features.kernel_chart(with_kernels(weights))
    title = chart.figure.axes[0].get_title(loc="left") or chart.figure.axes[0].get_title()
    assert "96 of the 200 kernels of first, 3×3" in title
    assert title in chart.alt
