"""What is computed of each picture's pixels, kept in the store like activations: a picture is decoded for it once.

Shape letters: N pictures of a split, n of a batch, H height, W width; ... the shape of one picture's value.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np

from pipeline.activations import Key, Store
from pipeline.console import Console
from pipeline.decoded import pixel_settings
from pipeline.errors import CacheError
from pipeline.parallel import WORKERS, in_order
from pipeline.pixels import PixelSpec
from pipeline.splits import Split

_CHUNK = 64  # pictures


def of_pixels(
    split: Split,
    name: str,
    settings: Mapping[str, Any],
    compute: Callable[[np.ndarray], np.ndarray],
    like: np.ndarray,
    spec: PixelSpec,
    store: Store | None,
    console: Console,
) -> np.ndarray:
    """One value for each picture: [N, ...].

    Args:
        split: whose pictures.
        name: of the values, in the plural.
        settings: with the name, all that a value follows from besides the pixels.
        compute: gives [n, ...] for uint8 [n, H, W, 3] in 0..255. Called from several threads.
        like: a value, for its shape and dtype.
        spec: how encoded pictures become pixels.
        store: where values are kept; None where they are not.
        console: hears of trouble.

    Raises:
        DataError: as `Split.load`.
    """
    table = np.empty((len(split), *like.shape), like.dtype)
    space = None if store is None else store.space({"of": name, **settings, "pixels": pixel_settings(spec)})
    keys: list[Key] = [(bytes.fromhex(digest), b"") for digest in split.digests]
    known: list[bytes | None] = [None] * len(split)
    if store is not None and space is not None:
        known = store.read(space, keys)
    for row, value in enumerate(known):
        if value is not None:
            table[row] = np.frombuffer(value, like.dtype).reshape(like.shape)
    missing = np.array([row for row, value in enumerate(known) if value is None], int)

    def of_batch(batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        rows, images = batch
        return rows, compute(images)

    with (
        closing(split.stream(missing, _CHUNK)) as batches,
        ThreadPoolExecutor(WORKERS) as pool,
        closing(in_order(pool, of_batch, batches, window=WORKERS + 1)) as computed,
    ):
        for rows, values in computed:
            table[rows] = values
            if store is not None and space is not None:
                try:
                    store.write(space, [(keys[row], table[row].tobytes()) for row in rows])
                except CacheError as error:
                    console.warn(f"{error} {name.capitalize()} are made again next time.")
                    store = None
    return table
