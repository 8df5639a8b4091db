"""Encoded bytes to pixels, on files that Pillow writes and on files that something broke."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.pixels import BadImage, PixelSpec, centre_box, decode

# Outside pytest, which sets filters of its own, the module under test ignores Pillow's remarks on damaged metadata.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:PIL\.")

SPEC = PixelSpec(32, 32)
ORIENTATION = 0x0112


def photo(width: int, height: int) -> Image.Image:
    """A smooth picture whose four corners differ, so that no turn or mirror image of it looks the same."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [255 * x, 255 * y, 127 + 100 * np.sin(7 * x * y + 3 * x)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(data: bytes, spec: PixelSpec) -> np.ndarray:
    """The same steps one by one, at full size: upright, RGB, shorter side resized, centre crop."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    scale = max(spec.width / image.width, spec.height / image.height) / spec.crop
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - spec.width) / 2, (height - spec.height) / 2
    box = (left, top, left + spec.width, top + spec.height)
    return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=box))


def assert_close(pixels: np.ndarray, reference: np.ndarray, mean: float = 3.0) -> None:
    assert pixels.shape == reference.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(float) - reference).mean() < mean


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (64, 64), (33, 500), (50, 40)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("spec", [SPEC, PixelSpec(48, 24), PixelSpec(32, 32, crop=1.0), PixelSpec(32, 32, crop=0.5)])
def test_agrees_with_the_plain_steps(kind: str, size: tuple[int, int], spec: PixelSpec) -> None:
    data = encoded(photo(*size), kind, quality=95)
    assert_close(decode(data, spec), plain(data, spec))


@pytest.mark.parametrize("spec", [SPEC, PixelSpec(48, 24)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(kind: str, orientation: int, spec: PixelSpec) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo(300, 200), kind, exif=exif)
    assert_close(decode(data, spec), plain(data, spec))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert_close(decode(encoded(photo(60, 40), "JPEG", exif=exif), SPEC), plain(encoded(photo(60, 40), "JPEG"), SPEC))


@pytest.mark.parametrize("damaged", [b"", b"MM", b"nonsense", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\xff\xff\xff\xff"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_costs_the_orientation_and_not_the_picture(kind: str, damaged: bytes) -> None:
    image = photo(60, 40)
    data = encoded(image, kind, exif=b"Exif\0\0" + damaged)
    assert_close(decode(data, SPEC), plain(encoded(image, kind), SPEC))


@pytest.mark.parametrize("size", [(3000, 5), (5, 3000), (1, 1), (1, 2000), (8, 8)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_extreme_sizes(kind: str, size: tuple[int, int]) -> None:
    data = encoded(photo(*size), kind)
    assert_close(decode(data, SPEC), plain(data, SPEC), mean=6.0)


def test_upscaling_keeps_the_picture() -> None:
    digit = np.kron(np.eye(4, dtype=np.uint8) * 255, np.ones((2, 2), np.uint8))
    pixels = decode(encoded(Image.fromarray(digit), "PNG"), PixelSpec(32, 32, crop=1.0))
    assert (pixels[4::8, 4::8, 0] > 127).tolist() == np.eye(4, dtype=bool).tolist()
    assert (pixels[..., 0] == pixels[..., 2]).all()


@given(
    size=st.tuples(st.integers(1, 20000), st.integers(1, 20000)),
    out=st.tuples(st.integers(8, 2048), st.integers(8, 2048)),
    crop=st.floats(0.01, 1.0),
)
def test_the_crop_is_central_inside_and_of_the_right_shape(
    size: tuple[int, int], out: tuple[int, int], crop: float
) -> None:
    (width, height), (out_width, out_height) = size, out
    left, top, right, bottom = centre_box(width, height, PixelSpec(out_height, out_width, crop))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert left == pytest.approx(width - right)
    assert top == pytest.approx(height - bottom)
    assert (right - left) / (bottom - top) == pytest.approx(out_width / out_height)
    assert max((right - left) / width, (bottom - top) / height) == pytest.approx(crop)


def test_no_rounding_error_makes_a_whole_picture_unreadable() -> None:
    data = encoded(Image.new("L", (1497, 1497)), "PNG")
    assert decode(data, PixelSpec(299, 299, crop=1.0)).shape == (299, 299, 3)


# ------------------------------------------------------------------------------------------------------------- colours


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (40, 30), colour)  # type: ignore[arg-type]


GREY_16 = Image.fromarray(np.full((30, 40), 0x80FF, np.uint16))


@pytest.mark.parametrize(
    ("data", "rgb"),
    [
        (encoded(flat("RGB", (200, 100, 50)), "PNG"), (200, 100, 50)),
        (encoded(flat("RGB", (200, 100, 50)), "JPEG", quality=95), (200, 100, 50)),
        (encoded(flat("RGB", (200, 100, 50)), "WEBP", lossless=True), (200, 100, 50)),
        (encoded(flat("RGB", (200, 100, 50)), "JPEG", progressive=True, quality=95), (200, 100, 50)),
        (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0)),
        (encoded(flat("L", 77), "JPEG"), (77, 77, 77)),
        (encoded(flat("L", 77), "PNG"), (77, 77, 77)),
        (encoded(flat("1", 1), "PNG"), (255, 255, 255)),
        (encoded(flat("LA", (77, 10)), "PNG"), (77, 77, 77)),
        (encoded(flat("RGBA", (200, 100, 50, 0)), "PNG"), (200, 100, 50)),
        (encoded(flat("RGBA", (200, 100, 50, 128)), "WEBP", lossless=True), (200, 100, 50)),
        (encoded(flat("RGB", (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), (200, 100, 50)),
        (encoded(flat("RGB", (200, 100, 50)), "PNG", transparency=(200, 100, 50)), (200, 100, 50)),
        (encoded(GREY_16, "PNG"), (0x80, 0x80, 0x80)),
    ],
    ids=[
        "rgb-png", "rgb-jpeg", "rgb-webp", "progressive", "cmyk", "grey-jpeg", "grey-png", "1-bit", "la", "rgba-png",
        "rgba-webp", "palette", "colour-key", "16-bit-grey",
    ],
)  # fmt: skip
def test_every_kind_of_colour_becomes_rgb(data: bytes, rgb: tuple[int, int, int]) -> None:
    pixels = decode(data, SPEC)
    assert pixels.shape == (32, 32, 3)
    assert np.abs(pixels.reshape(-1, 3).astype(int) - rgb).max() <= 3


def test_a_palette_with_several_transparent_colours() -> None:
    image = photo(40, 30).convert("P", palette=Image.Palette.ADAPTIVE)
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(data, SPEC)
    assert_close(pixels, plain(encoded(image, "PNG"), SPEC))


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG of any header, for what Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour_type", "samples", "rgb"),
    [(2, (0xC8FF, 0x6400, 0x3280), (0xC8, 0x64, 0x32)), (4, (0x4DFF, 0x0100), (0x4D, 0x4D, 0x4D))],
    ids=["rgb", "grey-alpha"],
)
def test_16_bits_per_channel_become_8(colour_type: int, samples: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 40
    assert decode(png(40, 30, 16, colour_type, row * 30), SPEC)[16, 16].tolist() == list(rgb)


# ------------------------------------------------------------------------------------------------- what is not accepted


FRAMES = {"save_all": True, "append_images": [photo(40, 30).rotate(90)]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"these are words\n" * 50, "not a JPEG, PNG or WebP"),
        (encoded(photo(40, 30), "GIF"), "not a JPEG, PNG or WebP"),
        (encoded(photo(40, 30), "BMP"), "not a JPEG, PNG or WebP"),
        (encoded(photo(40, 30), "TIFF"), "not a JPEG, PNG or WebP"),
        (encoded(photo(40, 30), "PNG", **FRAMES), "animated: 2 frames"),
        (encoded(photo(40, 30), "WEBP", **FRAMES), "animated: 2 frames"),
        (png(60000, 50000, 8, 2, b""), "too large: 3000 megapixels, the limit is 50"),
        (png(40, 30, 8, 2, b"\0" * 100), "damaged or truncated"),
    ],
    ids=["empty", "text", "gif", "bmp", "tiff", "apng", "animated-webp", "bomb", "short-png"],
)
def test_what_is_refused_and_why(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(data, SPEC)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    data = encoded(photo(200, 150), kind, quality=95)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * kept)], SPEC)


def test_any_flipped_byte_of_a_png_is_noticed() -> None:
    data = encoded(photo(20, 15), "PNG")
    for at in range(len(data) - 12):  # The last chunk holds nothing.
        with pytest.raises(BadImage):
            decode(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], SPEC)


def test_a_damaged_png_says_what_is_wrong() -> None:
    data = encoded(photo(40, 30), "PNG")
    at = data.index(b"IDAT") + 40
    with pytest.raises(BadImage, match="damaged or truncated: wrong checksum in b'IDAT'"):
        decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], SPEC)
    with pytest.raises(BadImage, match="damaged or truncated: the end is missing"):
        decode(data[:-12], SPEC)


def test_what_follows_the_end_of_a_png_is_ignored() -> None:
    data = encoded(photo(40, 30), "PNG")
    assert (decode(data + b"more", SPEC) == decode(data, SPEC)).all()


def test_the_limit_on_size_is_the_specs() -> None:
    data = encoded(Image.new("L", (2000, 1000)), "PNG")
    assert decode(data, PixelSpec(32, 32, max_megapixels=2.0)).shape == (32, 32, 3)
    with pytest.raises(BadImage, match=r"too large: 2 megapixels, the limit is 1\.9"):
        decode(data, PixelSpec(32, 32, max_megapixels=1.9))


def test_a_photograph_with_a_second_view_behind_it_is_that_photograph() -> None:
    data = encoded(photo(40, 30), "MPO", **FRAMES)
    assert_close(decode(data, SPEC), plain(encoded(photo(40, 30), "JPEG"), SPEC))


def valid() -> list[bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "the camera's maker"
    image = photo(40, 30)
    return [
        *(encoded(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("P"), "PNG", transparency=bytes(range(256))),
        encoded(GREY_16, "PNG"),
        *(encoded(image, kind, **FRAMES) for kind in ("PNG", "WEBP", "MPO")),
    ]


VALID = valid()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_happens_to_a_file_it_is_pixels_or_a_bad_image(data: st.DataObject) -> None:
    broken = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(broken) - 1)))
        match data.draw(st.sampled_from(["change", "delete", "insert", "cut"])):
            case "change" if broken:
                broken[at] = data.draw(st.integers(0, 255))
            case "delete":
                del broken[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                broken[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del broken[at:]
    try:
        pixels = decode(bytes(broken), SPEC)
    except BadImage:
        return
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
