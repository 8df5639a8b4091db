"""The SavedModel's own decoder does what Pillow's does."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import graph_pixels, pixels

SPEC = pixels.PixelSpec(height=64, width=64)


def picture(width=150, height=90, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def decode():
    return tf.function(lambda data: graph_pixels.decode(data, SPEC), input_signature=[tf.TensorSpec([], tf.string)])


def mean_difference(data, decode):
    return np.abs(pixels.decode(data, SPEC).astype(int) - decode(data).numpy().astype(int)).mean()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", pixels.FORMATS)
def test_every_format_and_orientation(kind, orientation, decode):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    assert mean_difference(encode(picture(), kind, exif=exif), decode) < 0.02


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_exif(order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = 6
    data = encode(picture(), "JPEG", exif=exif.tobytes())
    assert graph_pixels.orientation(tf.constant(data)).numpy() == 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_behind_more_than_64_kib_of_pixels(kind, decode):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (200, 300, 3)).astype(np.uint8))
    data = encode(noise, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "PNG":  # Pillow writes its eXIf chunk before the pixels; here it goes to the end.
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert max(data.rfind(b"EXIF"), data.rfind(b"eXIf")) > 1 << 16
    assert mean_difference(data, decode) < 0.02


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")]
)
def test_every_mode(mode, kind, decode):
    assert mean_difference(encode(picture(mode=mode), kind), decode) < 0.7


@pytest.mark.parametrize(("width", "height"), [(64, 64), (8, 8), (500, 20), (20, 500), (1, 1), (2, 30_000)])
def test_every_shape(width, height, decode):
    assert mean_difference(encode(picture(width, height), "PNG"), decode) < 0.3


@pytest.mark.parametrize(("width", "height"), [(150, 90), (400, 300), (701, 502), (1600, 1200), (90, 2000)])
def test_large_jpegs_differ_by_a_rounding_only(width, height, decode):
    noise = np.random.default_rng(1).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3)).astype(np.uint8)
    data = encode(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=80)
    difference = np.abs(pixels.decode(data, SPEC).astype(int) - decode(data).numpy().astype(int))
    assert difference.max() <= 1


def test_sixteen_bits(decode):
    deep = Image.fromarray(np.linspace(0, 65535, 80 * 80).reshape(80, 80).astype(np.uint16))
    assert mean_difference(encode(deep, "PNG"), decode) < 0.02


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_as_in_training(kind, decode):
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a JPEG, PNG or WebP"):
        decode(encode(picture(), kind))
