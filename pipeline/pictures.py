"""Pictures of an earlier run, read again from its data.

Shape letters: H height, W width.
"""

import hashlib
from collections.abc import Collection
from contextlib import suppress

import numpy as np

from pipeline.config import Data
from pipeline.pixels import BadImage, PixelSpec, decode
from pipeline.sources import open_source


def read_again(data: Data, spec: PixelSpec, names: Collection[str], digests: Collection[str]) -> dict[str, np.ndarray]:
    """Pictures as a network sees them, by the digest of their encoded bytes.

    Args:
        data: where they were.
        spec: how encoded pictures become pixels.
        names: what they were called; others are not read.
        digests: SHA-256 hex digests of what is wanted.

    Returns:
        uint8 [H, W, 3] in 0..255 of each one that is still there, unchanged.

    Raises:
        DataError: there is no such data any more.
    """
    called, wanted = set(names), set(digests)
    found: dict[str, np.ndarray] = {}
    for example in open_source(data).examples():
        if wanted <= found.keys():
            break
        if example.name in called:
            with suppress(OSError, BadImage):  # It is not the picture that it was.
                encoded = example.read()
                digest = hashlib.sha256(encoded).hexdigest()
                if digest in wanted:
                    found[digest] = decode(encoded, spec)
    return found
