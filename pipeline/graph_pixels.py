"""`pixels.decode` in TensorFlow operations, for models that take encoded pictures: the same steps in the same order.

Pillow resamples in fixed point, TensorFlow in floating point: one value in thousands rounds to a neighbour.
"""

from functools import partial

import tensorflow as tf

from pipeline.pixels import PixelSpec

# A JPEG has Exif at its beginning, in a segment of at most 64 KiB. WebP has it behind the pixels, PNG on either side.
_JPEG_EXIF_REACH = 1 << 16


def decode(data: tf.Tensor, spec: PixelSpec) -> tf.Tensor:
    """Decodes one picture.

    Args:
        data: string [], a JPEG, PNG or WebP file.
        spec: the size of the result and how it is cropped.

    Returns:
        uint8 [H, W, 3] in 0..255, RGB.

    Raises:
        tf.errors.InvalidArgumentError: the picture is damaged, or of another format.
    """
    with tf.control_dependencies([tf.debugging.Assert(_is_accepted(data), ["not a JPEG, PNG or WebP picture"])]):
        data = tf.identity(data)
    turn = orientation(data)
    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data, spec, sides_swapped=turn >= 5),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    size = tf.where(turn >= 5, tf.constant([spec.width, spec.height]), tf.constant([spec.height, spec.width]))
    image = upright(_centre_crop(tf.ensure_shape(image, [None, None, 3]), size, spec.crop), turn)
    return tf.ensure_shape(image, [spec.height, spec.width, 3])


def _is_accepted(data: tf.Tensor) -> tf.Tensor:
    """Whether a file, string [], begins as JPEG, PNG or WebP. TensorFlow would decode GIF and BMP too, `pixels` not."""
    png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    webp = tf.strings.regex_full_match(tf.strings.substr(data, 0, 12), r"(?s)RIFF\C{4}WEBP")
    return tf.io.is_jpeg(data) | png | webp


def _centre_crop(image: tf.Tensor, size: tf.Tensor, crop: float) -> tf.Tensor:
    """The centre crop of uint8 [h, w, 3], resized across, then down, to `size`; rounded after each, as in `pixels`."""
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    step = tf.reduce_min(shape / tf.cast(size, tf.float32)) * crop  # of one resulting pixel, in source pixels
    start = (shape - step * tf.cast(size, tf.float32)) / 2
    # What the filter reaches of the picture, so that a picture of one column costs no more than a square one.
    reach = tf.maximum(step, 1.0) + 1.0
    first = tf.maximum(tf.cast(tf.floor(start - reach), tf.int32), 0)
    last = tf.minimum(tf.cast(tf.math.ceil(shape - start + reach), tf.int32), tf.shape(image)[:2])
    part = image[first[0] : last[0], first[1] : last[1]]
    start -= tf.cast(first, tf.float32)
    return _resize(_resize(part, 1, size[1], step, start[1]), 0, size[0], step, start[0])


def _resize(image: tf.Tensor, axis: int, size: tf.Tensor, step: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Resamples uint8 [H, W, 3] along one axis to `size` pixels, each `step` source pixels wide, from `start` on."""
    shape = tf.shape(image)[:2]
    along = tf.one_hot(axis, 2)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image, tf.float32)[tf.newaxis],
        size=tf.where(along > 0, size, shape),
        scale=tf.where(along > 0, 1.0 / step, 1.0),
        translation=tf.where(along > 0, -start / step, 0.0),
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.cast(tf.clip_by_value(tf.floor(resized + 0.5), 0.0, 255.0), tf.uint8)


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation, int32 [] in 1..8, of an encoded picture, string []; 1 where it has none.

    Finds the tag's 12-byte entry (tag 0x0112, type SHORT, count 1) behind the word Exif, in either byte order.
    """
    searched = tf.strings.substr(data, 0, tf.where(tf.io.is_jpeg(data), _JPEG_EXIF_REACH, tf.strings.length(data)))

    def find() -> tf.Tensor:
        values = tf.io.decode_raw(searched, tf.uint8)
        little = _value_after(values, [0x12, 0x01, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00], 0)
        big = _value_after(values, [0x01, 0x12, 0x00, 0x03, 0x00, 0x00, 0x00, 0x01], 1)
        found = tf.maximum(little, big)
        return tf.where((found >= 1) & (found <= 8), found, 1)

    has_exif = tf.strings.regex_full_match(searched, r"(?s)\C*(Exif|EXIF|eXIf)\C*")
    return tf.cond(has_exif, find, lambda: tf.constant(1))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors a picture, uint8 [H, W, 3], as its EXIF orientation says."""

    def turned() -> tf.Tensor:
        stored = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        mirrored = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7]))
        flipped = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8]))
        stored = tf.cond(mirrored, lambda: tf.reverse(stored, [1]), lambda: stored)
        return tf.cond(flipped, lambda: tf.reverse(stored, [0]), lambda: stored)

    return tf.cond(orientation > 1, turned, lambda: image)


def _decode_jpeg(data: tf.Tensor, spec: PixelSpec, sides_swapped: tf.Tensor) -> tf.Tensor:
    """Decodes at full size, a half, a quarter or an eighth: the smallest that covers the crop, as Pillow's draft."""
    height, width = round(spec.height / spec.crop), round(spec.width / spec.crop)
    wanted = tf.where(sides_swapped, tf.constant([width, height]), tf.constant([height, width]))
    scale = tf.reduce_min(tf.image.extract_jpeg_shape(data)[:2] // wanted)

    def at(ratio: int) -> tf.Tensor:
        # TensorFlow's default transform is a faster, coarser one than Pillow's: 1.2 grey levels apart on average.
        return tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    ratios = (1, 2, 4, 8)
    smallest = tf.reduce_sum([tf.cast(scale >= ratio, tf.int32) for ratio in ratios[1:]])
    return tf.switch_case(smallest, [partial(at, ratio) for ratio in ratios])


def _value_after(values: tf.Tensor, pattern: list[int], gap: int) -> tf.Tensor:
    """The first element `gap` places behind `pattern` in `values`, uint8 [L], as int32; 0 where it does not occur."""
    length = tf.maximum(tf.size(values) - len(pattern) - gap, 0)
    matches = tf.ones([length], tf.bool)
    for place, expected in enumerate(pattern):
        matches &= values[place : place + length] == expected
    places = tf.where(matches)[:, 0]
    return tf.cond(
        tf.size(places) > 0,
        lambda: tf.cast(values[places[0] + len(pattern) + gap], tf.int32),
        lambda: tf.constant(0),
    )
