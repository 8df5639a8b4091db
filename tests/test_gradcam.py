"""Grad-CAM where the truth is known, and what holds of every map."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import layers

from pipeline import gradcam, model
from pipeline.backbones import BACKBONES
from pipeline.backbones.base import Backbone
from pipeline.config import Cache, Head
from pipeline.feed import Pictures
from pipeline.finetune import finetune
from pipeline.run import reproducible
from pipeline.splits import Split
from tests.networks import QUIET, InMemory, data, network, phase
from tests.pieces import digest
from tests.test_backbones import SMALLEST

# ------------------------------------------------------------------------------- three networks, and what decides them


def _convolved(x, maps, kernel, stride=1, padding="same"):
    x = layers.Conv2D(maps, kernel, stride, padding, use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))


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
    "lenet5": BACKBONES["lenet5"],
    **{
        name: Backbone(name, name, build, 64, 64, "tf", r"block\d", "after each block", imagenet=False)
        for name, build in (("residual", _residual), ("branching", _branching))
    },
}


def build(name, seed=0, **head):
    row = ROWS[name]
    reproducible(seed)
    channels = 1 if row.contract == "grey" else 3
    backbone = row.build(input_shape=(row.default_size, row.default_size, channels), weights=None)
    return model.build(backbone, row, None, Head(**head), 3)


def patched(count, size, side, seed):
    """Grey noise; class 0 has no patch, 1 and 2 one of horizontal and vertical stripes at a random place.

    Returns:
        Pictures, uint8 [N, size, size, 3]; labels, int [N]; the patches' top left corners, int [N, 2].
    """
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = random.integers(60, 196, (count, size, size, 3)).astype(np.uint8)
    corners = random.integers(0, size - side + 1, (count, 2))
    stripes = 255 * (np.indices((side, side)) // 2 % 2)
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        if label:
            image[top : top + side, left : left + side] = stripes[label - 1][..., None]
    return images, labels, corners


def as_split(images, labels, name):
    names = tuple(f"{number}.png" for number in range(len(images)))
    digests = tuple(digest(number) for number in range(len(images)))
    return Split(name, labels.astype(np.int32), names, digests, np.arange(len(images)), InMemory(images))


def trained(name, side, epochs, learning_rate, seed=0, **head):
    net, size = build(name, seed, **head), ROWS[name].default_size
    splits = [
        as_split(*patched(count, size, side, number)[:2], of)
        for number, (of, count) in enumerate([("train", 3000), ("validation", 60)])
    ]
    schedule = phase(optimizer={"name": "adam"}, epochs=epochs, learning_rate=learning_rate, unfreeze="all", backbone_mode="training")
    finetune(net, [schedule], Pictures(*splits, 3, data(batch_size=32), Cache(use="off"), None, {}, seed), None, QUIET,
             lambda epoch: print(epoch.loss, epoch.validation_accuracy))
    return net


def under_the_maximum(net, size, side):
    images, labels, corners = patched(150, size, side, seed=2)
    images, labels, corners = (part[labels > 0] for part in (images, labels, corners))
    assert len(images) == 100
    assert (net.model(images.astype(np.float32), training=False).numpy().argmax(axis=1) == labels).mean() > 0.97
    found = gradcam.maps(net, images, labels)
    tops = np.stack(np.unravel_index(found.reshape(100, -1).argmax(axis=1), found.shape[1:]), axis=1)
    return int(((tops >= corners) & (tops < corners + side)).all(axis=1).sum())
