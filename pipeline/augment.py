"""Random changes to training pictures as pure functions of the picture and a seed.

Keras's layers draw from generators that advance with every call, so what a picture becomes would depend on everything
drawn before it. Here each layer draws from the seed it is given: the same picture and seed give the same result in any
order, on any worker, in any run.

Shape letters: N pictures, H height, W width, C classes.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from pipeline.config import Augment

# Raised by one whenever the same picture, settings and seed would give another picture than before.
VERSION = 1

_RANGE = (0, 255)


class _GivenSeed(keras.random.SeedGenerator):
    """A Keras seed generator whose draws follow from a seed tensor, in the order in which layers ask."""

    def __init__(self) -> None:
        super().__init__(0)
        self._seed: Any = None
        self._draws = 0

    def start(self, seed: tf.Tensor) -> None:
        self._seed, self._draws = seed, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self._draws += 1
        return tf.bitcast(tf.random.experimental.stateless_fold_in(self._seed, self._draws), tf.uint32)


def augmentation(augment: Augment, image_shape: tuple[int, int, int]) -> Callable[..., tf.Tensor] | None:
    """The changes made to each picture by itself, or None where the config asks for none.

    Args:
        augment: the changes.
        image_shape: (H, W, 3).

    Returns:
        A function of images, float32 [N, H, W, 3] in 0..255, and seeds, int32 [N, 2], giving images of the same
        shape, dtype and range.
    """
    layers = _layers(augment)
    if not layers and augment.crop_scale is None:
        return None
    seed_generator = _GivenSeed()
    for layer in layers:
        _draw_from(layer, seed_generator)

    def one(image_and_seed: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, seed = image_and_seed
        if augment.crop_scale is not None:
            image = random_resized_crop(image, seed, augment.crop_scale)
        seed_generator.start(seed)
        for layer in layers:
            image = layer(image, training=True)
        return tf.clip_by_value(image, *map(float, _RANGE))

    def every(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.map_fn(one, (images, seeds), fn_output_signature=tf.float32), images.shape)

    return _compiled(every, tf.TensorSpec([None, *image_shape]), tf.TensorSpec([None, 2], tf.int32))


def mixture(
    augment: Augment, image_shape: tuple[int, int, int], classes: int
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]] | None:
    """Mixup or CutMix of a batch with itself, or None where the config asks for neither.

    Args:
        augment: which of them.
        image_shape: (H, W, 3).
        classes: C.

    Returns:
        A function of images, float32 [N, H, W, 3], labels, float32 [N, C], one-hot, and a seed, int32 [2], giving
        mixed images and labels.
    """
    if augment.mixup is not None:
        layer = keras.layers.MixUp(alpha=augment.mixup)
    elif augment.cutmix is not None:
        layer = keras.layers.CutMix(factor=augment.cutmix)
    else:
        return None
    seed_generator = _GivenSeed()
    _draw_from(layer, seed_generator)

    def mix(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seed_generator.start(seed)
        mixed = layer({"images": images, "labels": labels}, training=True)
        return mixed["images"], mixed["labels"]

    signature = tf.TensorSpec([None, *image_shape]), tf.TensorSpec([None, classes]), tf.TensorSpec([2], tf.int32)
    return _compiled(mix, *signature)


def random_resized_crop(image: tf.Tensor, seed: tf.Tensor, smallest_area: float) -> tf.Tensor:
    """Inception's crop (Szegedy et al., 2015): a random part of random shape, stretched to the picture's size.

    Args:
        image: float32 [H, W, 3].
        seed: int32 [2].
        smallest_area: least share of the area that is kept, in (0, 1]. The sides' ratio lies between 3:4 and 4:3.
    """
    draws = tf.random.stateless_uniform([4], seed)
    area = smallest_area + (1.0 - smallest_area) * draws[0]
    # A ratio beyond the area's own bounds would not fit into the picture.
    widest = tf.minimum(tf.math.log(4.0 / 3.0), -tf.math.log(area))
    ratio = tf.exp((2.0 * draws[1] - 1.0) * widest)
    height, width = tf.minimum(tf.sqrt(area / ratio), 1.0), tf.minimum(tf.sqrt(area * ratio), 1.0)
    top, left = draws[2] * (1.0 - height), draws[3] * (1.0 - width)
    box = tf.stack([top, left, top + height, left + width])
    return tf.image.crop_and_resize(image[tf.newaxis], box[tf.newaxis], [0], image.shape[:2])[0]


def _compiled(function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
    """A function of a batch of any size. Compiled here and now: seeds are counted while it is, by one thread alone."""
    compiled = tf.function(function, input_signature=signature)
    compiled.get_concrete_function()
    return compiled  # type: ignore[no-any-return]


def _layers(augment: Augment) -> list[keras.Layer]:
    layers: list[keras.Layer] = []
    if augment.flip != "none":
        layers.append(keras.layers.RandomFlip("horizontal_and_vertical" if augment.flip == "both" else augment.flip))
    if augment.rotation:
        layers.append(keras.layers.RandomRotation(augment.rotation / 360))
    if augment.color:
        strength = augment.color
        layers.append(
            keras.layers.RandomColorJitter(
                value_range=_RANGE,
                brightness_factor=strength,
                contrast_factor=strength,
                # Keras counts saturation from 0 (grey) over 0.5 (unchanged) to 1.
                saturation_factor=(0.5 - strength / 2, 0.5 + strength / 2),
                hue_factor=strength / 10,
            )
        )
    if augment.rand_augment is not None:
        layers.append(
            keras.layers.RandAugment(
                value_range=_RANGE,
                num_ops=augment.rand_augment.operations,
                factor=augment.rand_augment.magnitude,
            )
        )
    return layers


def _draw_from(layer: keras.Layer, seed_generator: _GivenSeed) -> None:
    """Makes a layer, and the layers it is made of, draw from `seed_generator`."""
    for part in layer._flatten_layers():
        if hasattr(part, "generator"):
            part.generator = seed_generator
