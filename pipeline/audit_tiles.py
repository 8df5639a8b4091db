"""Pictures for the page of a look at the data that are in no file: the mean, what is left out, what augmentation makes.

Shape letters: S side of a thumbnail, H height, W width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from pipeline import augment, ingest
from pipeline.audit_page import STRIPS, TILES, VIEWS, Strip
from pipeline.config import Augment, RunConfig
from pipeline.feed import seeds_of_views
from pipeline.frozen import Views
from pipeline.leakage import Seen
from pipeline.pixels import PixelSpec, decode, to_bytes
from pipeline.sources.base import Source, SplitName
from pipeline.splits import LeftOut, Split


def mean_of_training(seen: Seen, pictures: Split, places: Mapping[str, SplitName]) -> np.ndarray | None:
    """uint8 [S, S, 3], the mean of the training pictures' thumbnails; None where there are none.

    Args:
        seen: of the pictures.
        pictures: of all splits.
        places: by digest, the split of each.
    """
    mine = np.array([places[digest] == "train" for digest in pictures.digests], bool)
    return to_bytes(seen.thumbnails[mine].mean(axis=0)) if mine.any() else None


def conflicting(source: Source, quarantine: Sequence[LeftOut], spec: PixelSpec) -> dict[str, np.ndarray]:
    """By name, the first few pictures that are left out for their labels: uint8 [H, W, 3]."""
    names = [item.name for item in quarantine if item.reason.startswith(ingest.CONTRADICTION)][:TILES]
    wanted, found = set(names), {}
    if wanted:
        for example in source.examples():
            if example.name in wanted:
                found[example.name] = decode(example.read(), spec)
    return found


def strips(
    config: RunConfig, pictures: Split, places: Mapping[str, SplitName], classes: tuple[str, ...]
) -> tuple[Strip, ...]:
    """Some training pictures, each with views of it as the network is given them; then some that are mixed.

    Args:
        config: the run's, with its augmentation.
        pictures: of all splits.
        places: by digest, the split of each.
        classes: names of the labels.
    """
    wanted = config.data.augment
    training = np.flatnonzero([places[digest] == "train" for digest in pictures.digests])
    if not len(training) or wanted == Augment():
        return ()
    rows = np.sort(np.random.default_rng(config.seed).permutation(training)[:STRIPS])
    images = np.concatenate([images for _, images in pictures.stream(rows)])
    made, contents = [], pictures.contents[rows]
    if wanted.of_each:
        views = Views(wanted, pictures.image_shape)
        seeds = seeds_of_views(config.seed, min(config.data.views or VIEWS, VIEWS))
        for row, image, content in zip(rows, images, contents, strict=True):
            every = views.pixels(np.stack([image] * len(seeds)), np.full(len(seeds), content), seeds)
            captions = ("as it is", *(f"view {number}" for number in range(1, len(seeds))))
            made.append(Strip(pictures.names[row], to_bytes(every), captions))
    mix = augment.mixture(wanted, pictures.image_shape, len(classes))
    if mix is not None:
        labels = np.eye(len(classes), dtype=np.float32)[pictures.labels[rows]]
        seed = tf.constant([contents[0], config.seed], tf.int32)
        mixed, shares = (
            part.numpy() for part in mix(tf.constant(images.astype(np.float32)), tf.constant(labels), seed)
        )
        captions = tuple(
            ", ".join(f"{classes[label]} {share[label]:.2f}" for label in np.flatnonzero(share > 0.005))
            for share in shares
        )
        made.append(Strip("mixed" if wanted.mixup is not None else "cut and mixed", to_bytes(mixed), captions))
    return tuple(made)
