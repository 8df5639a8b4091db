"""Encoded image bytes to pixels: the one decoder of training and serving. Pillow and NumPy, no TensorFlow.

Shape letters: H height, W width.
"""

import io
import math
import struct
import warnings
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, UnidentifiedImageError

# Raised by one whenever the same bytes and PixelSpec would give other pixels than before.
VERSION = 1

FORMATS = ("JPEG", "PNG", "WEBP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")  # RIFF is WebP with WEBP behind its length.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")  # of usual file names; a picture is told by its content alone
# Each scan of a JPEG takes a pass over the whole picture, and may have no more than 75 bytes: 200 kB can cost 10 s.
# Usual ones have about 10.
_SCAN, _MAX_SCANS = b"\xff\xda", 100
LARGE_MEGAPIXELS = 16
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Luminance is this much red, green and blue: ITU-R BT.601, as of JPEG's Y and Pillow's greys."""
_TOGETHER = nullcontext()

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTER = Image.Resampling.BILINEAR  # With antialiasing, in Pillow.
_SIDES_SWAPPED = {_UPRIGHT[value] for value in (5, 6, 7, 8)}

# What Pillow raises on damaged input, MemoryError where a header claims more than there is.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError, IndexError, KeyError, struct.error,
    zlib.error,
)  # fmt: skip

# Pillow would warn or raise at a limit of its own; `decode` checks the header against the spec's limit instead.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about metadata that says nothing about the pixels.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(Exception):  # noqa: N818
    """The bytes are not a picture that this project accepts. The message is the reason, in a few words."""


class UnsupportedImage(BadImage):
    """Of another format, or animated."""


class TooManyPixels(BadImage):
    """Larger than the specification allows."""


@dataclass(frozen=True)
class PixelSpec:
    """How bytes become pixels.

    Attributes:
        height: rows of the result, in pixels.
        width: columns of the result, in pixels.
        crop: fraction of the aspect-preserving resized picture's shorter side that the centre crop keeps,
            in (0, 1]. 0.875 is the usual "resize to 256, crop 224".
        max_megapixels: a picture with more pixels than this, by its header, is refused before it is decoded.
    """

    height: int
    width: int
    crop: float = 0.875
    max_megapixels: float = 50.0


def decode(data: bytes, spec: PixelSpec, large: AbstractContextManager[object] = _TOGETHER) -> np.ndarray:
    """Decodes one picture: upright by its EXIF orientation, RGB, aspect-preserving resize, centre crop.

    Transparency is dropped, not blended; 16-bit greyscale is scaled to 8 bits. Resizing is bilinear with
    antialiasing, and reads only the part of the picture that the centre crop keeps.

    Args:
        data: the encoded picture, JPEG, PNG or WebP, told apart by content.
        spec: the size of the result and how it is cropped.
        large: entered while a picture of more than LARGE_MEGAPIXELS is decoded, e.g. a lock: 50 megapixels take 0.3 GB
            as JPEG, 0.6 GB as PNG and 1 GB as WebP, however few bytes they come in.

    Returns:
        uint8 [H, W, 3] in 0..255, RGB.

    Raises:
        UnsupportedImage: the bytes are of another format, or animated.
        TooManyPixels: the picture is too large.
        BadImage: they are empty, truncated or damaged.
    """
    if not data:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, spec)
            if image.format in ("JPEG", "MPO") and data.count(_SCAN) > _MAX_SCANS:
                raise BadImage(f"it has more than {_MAX_SCANS} scans")
            if image.format == "PNG":
                _check_chunks(data)
            is_large = image.width * image.height > LARGE_MEGAPIXELS * 1e6
            turn = _turn(image)
            # Cropped and resized as stored, then turned: a small picture is cheaper to turn than a large one.
            stored = spec if turn not in _SIDES_SWAPPED else replace(spec, height=spec.width, width=spec.height)
            # A JPEG decodes straight to a half, a quarter or an eighth of its size, as long as that covers the crop.
            image.draft("RGB", (round(stored.width / spec.crop), round(stored.height / spec.crop)))
            with large if is_large else _TOGETHER:
                resized = _resize(image, stored)
            return np.asarray(resized if turn is None else resized.transpose(turn))
    except UnidentifiedImageError:
        if data.startswith(_MAGIC) and (data[:4] != b"RIFF" or data[8:12] == b"WEBP"):
            raise BadImage("damaged or truncated: no whole header") from None
        raise UnsupportedImage("not a JPEG, PNG or WebP picture") from None
    except BadImage:
        raise
    except _DAMAGE as error:
        raise BadImage(f"damaged or truncated: {error}") from error


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of an encoded picture, by its header alone; None where no header can be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            return (height, width) if _turn(image) in _SIDES_SWAPPED else (width, height)
    except (UnidentifiedImageError, *_DAMAGE):
        return None


def to_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 of any shape: the nearest to each value; those beyond 0..255 are cut off there."""
    return np.asarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def centre_box(width: int, height: int, spec: PixelSpec) -> tuple[float, float, float, float]:
    """The part of a `width` × `height` picture that the centre crop keeps: left, top, right, bottom, in its pixels."""
    # Written so that no rounding error puts the box outside the picture, where Pillow refuses it.
    left = (width - min(width, height * spec.width / spec.height) * spec.crop) / 2
    top = (height - min(height, width * spec.height / spec.width) * spec.crop) / 2
    return left, top, width - left, height - top


def _resize(image: Image.Image, spec: PixelSpec) -> Image.Image:
    """The centre crop of a picture as it is stored, resized across and then down.

    Left to itself, Pillow chooses which direction comes first, and rounds in between: other pixels for tall pictures
    than for wide ones, and than in an exported graph.
    """
    left, top, right, bottom = centre_box(image.width, image.height, spec)
    # What the filter reaches of the picture, so that a picture of one column costs no more than a square one.
    reach = max(right - left, spec.width) / spec.width + 1
    x, y = max(0, math.floor(left - reach)), max(0, math.floor(top - reach))
    end = min(image.width, math.ceil(right + reach)), min(image.height, math.ceil(bottom + reach))
    part = _to_rgb(image.crop((x, y, *end)))
    across = part.resize((spec.width, part.height), _FILTER, box=(left - x, 0, right - x, part.height))
    return across.resize((spec.width, spec.height), _FILTER, box=(0, top - y, spec.width, bottom - y))


def _check_header(image: Image.Image, spec: PixelSpec) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > spec.max_megapixels:
        raise TooManyPixels(f"too large: {megapixels:.0f} megapixels, the limit is {spec.max_megapixels:g}")
    # A phone's JPEG may carry a depth map or a second view behind the photograph: MPO, and not animated.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UnsupportedImage(f"animated: {frames} frames")


def _check_chunks(data: bytes) -> None:
    """Checks the checksums of a PNG's chunks. Pillow leaves out those of the pixels, and gives noise if they are wrong.

    As `Image.verify` does, which opens the file a second time: for a small picture that is a tenth of all the work.
    """
    view = memoryview(data)
    start, kind = 8, b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise BadImage("damaged or truncated: the end is missing")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if data[end : end + 4] != zlib.crc32(view[start + 4 : end]).to_bytes(4, "big"):
            raise BadImage(f"damaged or truncated: wrong checksum in {kind!r}")
        start = end + 4


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts the picture upright. With damaged EXIF data nothing is known to be wrong, and nothing is turned."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale: Pillow's own conversion clips at 255.
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    image.info.pop("transparency", None)  # Dropped here: with several transparent colours Pillow would warn.
    return image.convert("RGB")
