"""Grad-CAM: which parts of a picture speak for a class.

Shape letters: N pictures, H height, W width; h, w and K of the feature maps.
"""

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.backbones.cuts import cut_points
from pipeline.inspection import inspect
from pipeline.model import Network
from pipeline.pixels import LUMA, to_bytes
from pipeline.receptive import Window

LEAST_CELLS = 10
"""Coarser maps say too little of where. Grad-CAM is customarily made of the topmost maps, 7×7 in many networks; on the
photographs of ants and bees, 20 % of a picture chosen by MobileNet's 14×14 maps mattered more (docs/seeing.md)."""

_TOGETHER = 32  # Pictures that pass the network at once.


def maps(network: Network, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Where each picture's evidence for a class is.

    Grad-CAM = ReLU(Σ_k α_k A_k), α_k the mean over all places of the derivative of the class's logit with respect to
    the feature map A_k; made as large as the picture by bilinear interpolation between the centres of what the cells
    see. Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization",
    ICCV 2017. The feature maps are those of `layer`.

    Args:
        network: with its weights; it is used in inference mode.
        images: uint8 [N, H, W, 3], as the network takes them.
        classes: int [N], the class whose evidence is asked for, for each picture.

    Returns:
        float32 [N, H, W] in 0..1: each map is divided by its own maximum, so that strengths cannot be compared between
        pictures. Zero everywhere where nothing speaks for the class.
    """
    name, windows = layer(network.backbone, network.block_end)
    coarse = _compiled(network, name)
    starts = range(0, len(images), _TOGETHER)
    cells = [coarse(images[a : a + _TOGETHER], classes[a : a + _TOGETHER]).numpy() for a in starts]
    height, width = images.shape[1:3]
    if not cells:
        return np.zeros((0, height, width), np.float32)
    found = np.concatenate(cells)
    rows = _interpolation(windows[0], found.shape[1], height)
    columns = _interpolation(windows[1], found.shape[2], width)
    large: np.ndarray = rows @ found @ columns.T
    largest = large.max(axis=(1, 2), keepdims=True)
    return large / np.where(largest > 0, largest, np.float32(1))


def layer(backbone: keras.Model, block_end: str) -> tuple[str, tuple[Window, Window]]:
    """The topmost layer that what is seen passes through and whose maps still have places to tell apart.

    Such layers are those at which the backbone can be cut, and the ends of its blocks, which NASNet's cells are. A map
    with a padded border has cells that see nothing and is none of them.

    Returns:
        The layer's name: the topmost with at least LEAST_CELLS cells a side; where the picture is too small for that,
        the topmost of those with the most cells.
        What a cell of it sees, along H and W.
    """
    cuts = set(cut_points(backbone))
    # A model inside of the backbone is one operation of it, and its last layer's output is the operation's.
    tops = {row.operation: row for row in inspect(backbone)}
    rows = [
        row
        for name, row in tops.items()
        if (name in cuts or re.fullmatch(block_end, name)) and row.windows is not None and row.layer != "ZeroPadding2D"
    ]
    chosen = max(reversed(rows), key=lambda row: min(*row.output[:2], LEAST_CELLS))
    assert chosen.windows is not None
    return chosen.operation, chosen.windows


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture in grey with a map over it: purple, orange and yellow for more and more evidence, clear for none.

    The colours are matplotlib's inferno, whose lightness rises evenly with the value, so that it reads the same
    without colours and to colour-blind readers.

    Args:
        image: uint8 [H, W, 3].
        heat: float [H, W] in 0..1.

    Returns:
        uint8 [H, W, 3].
    """
    from matplotlib import colormaps

    grey = image.astype(np.float32) @ LUMA
    opacity = 0.75 * heat[..., None]
    colours = 255 * colormaps["inferno"](heat)[..., :3]
    return to_bytes((1 - opacity) * grey[..., None] + opacity * colours)


def _compiled(network: Network, name: str) -> Callable[[np.ndarray, np.ndarray], tf.Tensor]:
    """A function of pictures and classes giving float32 [N, h, w], 0 or more; traced once for all batch sizes."""
    backbone = network.backbone
    chosen = next(operation.output for operation in backbone.operations if operation.name == name)
    looked_into = keras.Model(backbone.inputs[0], [chosen, backbone.outputs[0]])

    def coarse(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        normal = network.normalise(images)
        with tf.GradientTape() as tape:
            tape.watch(normal)
            features, top = looked_into(normal, training=False)
            logits = network.head(network.pool(top), training=False)
            evidence = tf.gather(logits, classes, batch_dims=1)
        weights = tf.reduce_mean(tape.gradient(evidence, features), axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))

    signature = [tf.TensorSpec(network.model.input_shape, tf.uint8), tf.TensorSpec([None], tf.int32)]
    traced: Any = tf.function(coarse, autograph=False).get_concrete_function(*signature)
    return lambda images, classes: traced(tf.constant(images), tf.constant(classes, tf.int32))


def _interpolation(window: Window, cells: int, pixels: int) -> np.ndarray:
    """float32 [pixels, cells]: how much each cell counts at each pixel; the outermost cells reach to the border."""
    centres = [float(window.stride * cell + (window.low + window.high) / 2) for cell in range(cells)]
    return np.stack([np.interp(np.arange(pixels), centres, one) for one in np.eye(cells)], axis=1).astype(np.float32)
