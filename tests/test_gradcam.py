"""Grad-CAM where the truth is known, and what holds of every map."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import layers

from pipeline import gradcam, model
from pipeline.backbones import BACKBONES, weights
from pipeline.backbones.base import Backbone
from pipeline.config import Cache, Head
from pipeline.feed import Pictures
from pipeline.finetune import finetune
from pipeline.seeding import reproducible
from pipeline.splits import Split
from tests.networks import QUIET, SMALLEST, InMemory, data, network, phase
from tests.pieces import digest

# ------------------------------------------------------------------------------- three networks, and what decides them


def _convolved(x, maps, kernel, stride=1, padding="same"):
    x = layers.Conv2D(maps, kernel, stride, padding, use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))


def _plain(input_shape, weights):
    """A narrow VGG: 3×3 convolutions and pooling, one after the other."""
    x = image = keras.Input(input_shape)
    for number, maps in enumerate([12, 24, 32]):
        x = _convolved(_convolved(x, maps, 3), maps, 3)
        x = layers.MaxPooling2D(2, name=f"block{number}")(x)
    return keras.Model(image, x)


def _residual(input_shape, weights):
    """A narrow ResNet: its stem, and three blocks that learn changes to the identity."""
    image = keras.Input(input_shape)
    x = layers.MaxPooling2D(3, 2, "same", name="block0")(_convolved(image, 16, 5, 2))
    for number, (maps, stride) in enumerate([(16, 1), (32, 2), (32, 1)], start=1):
        identity = x if stride == 1 else layers.Conv2D(maps, 1, stride)(x)
        change = layers.Conv2D(maps, 3, padding="same")(_convolved(x, maps, 3, stride))
        x = layers.ReLU(name=f"block{number}")(layers.Add()([identity, layers.BatchNormalization()(change)]))
    return keras.Model(image, x)


def _branching(input_shape, weights):
    """A narrow Inception: 1×1, 3×3, two 3×3 and pooling side by side."""

    def mixed(x, maps, name):
        twice = _convolved(_convolved(_convolved(x, maps, 1), maps, 3), maps, 3)
        pooled = _convolved(layers.AveragePooling2D(3, 1, "same")(x), maps, 1)
        once = _convolved(_convolved(x, maps, 1), maps, 3)
        return layers.Concatenate(name=name)([_convolved(x, maps, 1), once, twice, pooled])

    image = keras.Input(input_shape)
    x = _convolved(_convolved(image, 16, 3, 2, "valid"), 16, 3, 1, "valid")
    x = mixed(layers.MaxPooling2D(3, 2, name="block0")(x), 8, "block1")
    halves = [_convolved(x, 16, 3, 2, "valid"), layers.MaxPooling2D(3, 2)(x)]
    return keras.Model(image, mixed(layers.Concatenate(name="block2")(halves), 12, "block3"))


ROWS = {
    name: Backbone(name, name, build, 96, 96, "tf", r"block\d", "after each block", imagenet=False)
    for name, build in (("plain", _plain), ("residual", _residual), ("branching", _branching))
} | {"lenet5": BACKBONES["lenet5"]}


def build(name, seed=0, **head):
    row = ROWS[name]
    reproducible(seed)
    channels = 1 if row.contract == "grey" else 3
    backbone = row.build(input_shape=(row.default_size, row.default_size, channels), weights=None)
    return model.build(backbone, row, None, Head(**head), 3)


def patched(count, size, side, seed):
    """Grey noise; class 0 has no patch, 1 and 2 one of horizontal and vertical stripes at a random place.

    A patch fades in: at a sharp border, networks learn the border, and their maps' maxima lie there, as they should.

    Returns:
        Pictures, uint8 [N, size, size, 3]; labels, int [N]; the patches' top left corners, int [N, 2].
    """
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(60, 196, (count, size, size, 3)).astype(np.uint8)
    corners = random.integers(0, size - side + 1, (count, 2))
    stripes = 255 * (np.indices((side, side)) // 2 % 2)
    hill = np.hanning(side + 2)[1:-1]
    share = np.outer(hill, hill)[..., None]
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        if label:
            patch = image[top : top + side, left : left + side]
            patch[:] = (1 - share) * patch + share * stripes[label - 1][..., None]
    return images, labels, corners


def as_split(images, labels, name):
    names = tuple(f"{number}.png" for number in range(len(images)))
    digests = tuple(digest(number) for number in range(len(images)))
    return Split(name, labels.astype(np.int32), names, digests, np.arange(len(images)), InMemory(images))


def trained(name, side):
    """A network that has learned which stripes its pictures hold: two passes over 1,500 of them."""
    net, size = build(name), ROWS[name].default_size
    splits = [
        as_split(*patched(count, size, side, seed)[:2], of)
        for seed, (of, count) in enumerate([("train", 1500), ("validation", 30)])
    ]
    schedule = phase(optimizer={"name": "adam"}, epochs=2, learning_rate=2e-3, unfreeze="all", backbone_mode="training")
    finetune(net, [schedule], Pictures(*splits, 3, data(batch_size=32), Cache(use="off"), None, {}, 0), None, QUIET, id)
    return net


def under_the_maximum(net, size, side):
    """How many of 100 fresh pictures have the map's greatest pixel inside the patch, and nowhere beside it."""
    images, labels, corners = patched(150, size, side, seed=2)
    images, labels, corners = (part[labels > 0] for part in (images, labels, corners))
    assert len(images) == 100
    assert (net.model(images.astype(np.float32), training=False).numpy().argmax(axis=1) == labels).all()
    found = gradcam.maps(net, images, labels)
    tops = np.stack(np.unravel_index(found.reshape(100, -1).argmax(axis=1), found.shape[1:]), axis=1)
    return int(((tops >= corners) & (tops < corners + side)).all(axis=1).sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "residual", "branching"])
def test_the_patch_that_decides_lies_under_the_maximum(name):
    """Inside the patch itself, without an allowance for the maps' cells of 8 pixels; by chance it would be 1 in 9."""
    assert under_the_maximum(trained(name, side=32), 96, 32) >= 95


# ---------------------------------------------------------------------------------------------- what holds of every map


def noise(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in SMALLEST.values()])
def test_every_family_has_maps_of_the_pictures_size_from_0_to_1(name):
    row, options = BACKBONES[name], dict(SMALLEST.values())[name]
    size = row.default_size if row.fixed_size else max(row.min_size, 96)
    found = gradcam.maps(network(name, options, size=size), noise(2, size), np.array([0, 2]))
    assert found.shape == (2, size, size)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert set(found.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet5", "c3"),
        ("alexnet", "conv5"),
        ("vgg16", "block5_conv3"),
        ("resnet50", "conv4_block6_out"),
        ("inception_v3", "mixed7"),
        ("mobilenet", "conv_pw_11_relu"),
        ("nasnet_mobile", "normal_concat_8"),
        ("convnext_tiny", "add_14"),
    ],
)
def test_the_layer_is_the_topmost_that_still_tells_places_apart(name, expected):
    row = BACKBONES[name]
    backbone = weights.outline(name, row.default_size)
    chosen, windows = gradcam.layer(backbone, row.block_end)
    assert chosen == expected
    cells = next(operation for operation in backbone.operations if operation.name == chosen).output.shape[1]
    assert gradcam.LEAST_CELLS <= cells <= 2 * gradcam.LEAST_CELLS
    assert windows[0].stride * cells == pytest.approx(row.default_size, rel=0.4)


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_any_head_has_maps_and_batches_do_not_change_them(pooling, monkeypatch):
    net = build("plain", pooling=pooling, hidden_units=[8], batch_norm=True, dropout=0.5)
    images, classes = noise(5, 96), np.array([0, 1, 2, 0, 1])
    together = gradcam.maps(net, images, classes)
    assert together.max() == 1
    monkeypatch.setattr(gradcam, "_TOGETHER", 2)
    np.testing.assert_allclose(gradcam.maps(net, images, classes), together, atol=1e-4)
    assert gradcam.maps(net, images[:0], classes[:0]).shape == (0, 96, 96)


def test_each_picture_has_the_map_of_its_own_class():
    net = build("residual")
    images = np.repeat(noise(1, 96), 3, axis=0)
    found = gradcam.maps(net, images, np.array([0, 1, 2]))
    assert len({one.tobytes() for one in found}) == 3
    np.testing.assert_allclose(gradcam.maps(net, images[:1], np.array([2]))[0], found[2], atol=1e-5)


def test_a_logit_that_nothing_speaks_for_has_an_empty_map_and_its_scale_does_not_matter():
    net = build("residual")
    logits = net.head.get_layer("logits")
    kernel, bias = logits.get_weights()
    kernel[:, 0] = 0
    logits.set_weights([kernel, bias])
    images = noise(4, 96)
    nothing, before = (gradcam.maps(net, images, np.full(4, number)) for number in (0, 1))
    assert (nothing == 0).all()
    logits.set_weights([5 * kernel, bias + 3])
    np.testing.assert_allclose(gradcam.maps(net, images, np.full(4, 1)), before, atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "flatten"])
def test_the_map_is_grad_cam_by_its_definition(pooling):
    """Against the sum written out. With average pooling it is a class activation map, which Grad-CAM generalises
    (section 3.1 of its paper); with flattening the derivatives differ from place to place, and their mean counts."""
    reproducible(0)
    image = keras.Input((25, 25, 3))
    features = layers.Conv2D(4, 3, 2, activation="relu", name="block0")(image)  # The centre of cell i is pixel 2 i + 1.
    backbone = keras.Model(image, features)
    net = model.build(backbone, Backbone("x", "x", None, 25, 25, "tf", "block0", ""), None, Head(pooling=pooling), 3)
    images = noise(3, 25)
    kernel = net.head.get_layer("logits").get_weights()[0]
    weight = kernel[:, 1].reshape(-1, 4).mean(axis=0)
    activation_maps = backbone(net.normalise(images.astype(np.float32))).numpy() @ weight
    expected = np.maximum(activation_maps, 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    found = gradcam.maps(net, images, np.ones(3, int))
    np.testing.assert_allclose(found[:, 1::2, 1::2], expected, atol=1e-5)
    np.testing.assert_allclose(found[:, 2:-1:2, 1::2], (expected[:, 1:] + expected[:, :-1]) / 2, atol=1e-5)
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_mirrored_picture_has_the_mirrored_map(axis):
    """Exactly so where every kernel is its own mirror image, and every cell's centre too."""
    net = build("plain")
    for part in net.backbone.layers:
        if isinstance(part, layers.Conv2D):
            kernel = part.get_weights()[0]
            part.set_weights([(kernel + np.flip(kernel, axis - 1)) / 2])
    images, classes = noise(2, 96), np.array([0, 1])
    mirrored = gradcam.maps(net, np.flip(images, axis), classes)
    np.testing.assert_allclose(np.flip(mirrored, axis), gradcam.maps(net, images, classes), atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- overlay


@given(
    arrays(np.uint8, (5, 7, 3)),
    arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32)),
)
@settings(deadline=None)
def test_the_overlay_is_a_picture_and_clear_where_there_is_no_evidence(image, heat):
    drawn = gradcam.overlay(image, heat)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    clear = drawn[heat == 0].astype(int)
    assert (clear == clear[:, :1]).all()
    np.testing.assert_allclose(clear[:, 0], image[heat == 0] @ [0.299, 0.587, 0.114], atol=1)


def test_more_evidence_is_lighter_on_a_dark_picture():
    heat = np.linspace(0, 1, 50, dtype=np.float32)[None]
    drawn = gradcam.overlay(np.zeros((1, 50, 3), np.uint8), heat).astype(float)
    assert (np.diff(drawn @ [0.2126, 0.7152, 0.0722]) >= -0.5).all()
