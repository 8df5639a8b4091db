"""scikit-learn's handwritten digits: 1797 pictures of 8x8 pixels that come with the package, so need no network.

Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits.
"""

import io
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from pipeline.config import Data
from pipeline.sources.base import Example, Source, choose_classes

_BRIGHTEST = 16  # The dataset's own scale is 0..16.


def open_digits(data: Data) -> Source:
    """The digits as 8-bit greyscale PNGs of 8x8 pixels, classes "0" to "9". Raises DataError for unknown classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.round(digits.images * (255 / _BRIGHTEST)).astype(np.uint8)
    classes = choose_classes([str(name) for name in digits.target_names], data.classes)
    chosen = [(index, label) for index, label in enumerate(map(str, digits.target)) if label in classes]

    def examples() -> Iterator[Example]:
        for index, label in chosen:
            yield Example(f"digits/{index}", label, None, partial(_png, pictures[index]))

    return Source(classes, len(chosen), examples)


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    # Uncompressed, so that the bytes, which decide the splits, do not depend on the compressor's version.
    Image.fromarray(picture).save(file, "PNG", compress_level=0)
    return file.getvalue()
