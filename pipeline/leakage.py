"""The leakage guard: the frozen test set is what is tested on, and pictures that show the same stay in one split.

Shape letters: N pictures of all splits, D features, S side of a thumbnail.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pipeline import duplicates, kept, testset
from pipeline.activations import Store
from pipeline.artifacts import CLUSTERS, write_atomically
from pipeline.backbones import BACKBONES
from pipeline.config import Augment, Head, Phase, RunConfig
from pipeline.console import Console
from pipeline.feed import Pictures
from pipeline.frozen import PLAIN, Frozen, Views
from pipeline.model import build, divide
from pipeline.pixels import PixelSpec
from pipeline.sources.base import SPLIT_NAMES, SplitName
from pipeline.splits import Split, Splits
from pipeline.testset import FrozenTest

LIKE_TEST = "shows the same as a test picture"
_CHUNK = 64  # pictures


@dataclass(frozen=True, eq=False)
class Seen:
    """What near duplicates are found by.

    Attributes:
        digests: of the N pictures.
        embeddings: float32 [N, D], or None.
        thumbnails: uint8 [N, S, S, 3].
    """

    digests: list[str]
    embeddings: np.ndarray | None
    thumbnails: np.ndarray


def look(
    config: RunConfig,
    splits: Splits,
    backbone: keras.Model | None,
    spec: PixelSpec,
    store: Store | None,
    console: Console,
) -> Seen | None:
    """What the pretrained network, and a small picture, say of every picture; what is in the store is read from there.

    Args:
        config: the run's.
        splits: its pictures.
        backbone: with the weights that training starts from; None where small pictures alone are to tell.
        spec: how encoded pictures become pixels.
        store: where activations are kept; None where they are not.
        console: hears of trouble.

    Returns:
        None where the config does not ask for near duplicates.
    """
    if config.retrain.near_duplicates == "ignore":
        return None
    embeddings = None
    if backbone is not None and config.backbone.weights != "none":  # Random layers tell nothing of what is seen.
        embeddings = _embeddings(config, splits, backbone, spec, store, console)
    digests = [digest for split in splits.all for digest in split.digests]
    return Seen(digests, embeddings, _thumbnails(splits, spec, store, console))


def guarded(
    splits: Splits, frozen: FrozenTest | None, seen: Seen | None, run_dir: Path, console: Console
) -> tuple[Splits, FrozenTest]:
    """Divides a run's pictures so that nothing of the test set is learned from.

    Of pictures that show the same, all go to the most held-out split that one of them is in. Where that is a test set
    that was frozen before, the others are left out of the splits.

    Args:
        splits: by content and by what the data brings, from `ingest`.
        frozen: the test set in force; None to freeze the test split.
        seen: from `look`; None to leave near duplicates where they are.
        run_dir: gets the list of pictures that show the same.
        console: hears what was found.

    Raises:
        DataError: a split is empty then, or none of the frozen pictures is there any more.
    """
    if frozen is not None:
        splits = testset.separated(splits, frozen)
    clusters: list[list[str]] = []
    if seen is not None:
        in_splits = {digest for split in splits.all for digest in split.digests}
        found = duplicates.find(seen.digests, seen.embeddings, seen.thumbnails).clusters
        alike = [sorted({seen.digests[row] for row in cluster} & in_splits) for cluster in found]
        clusters = [cluster for cluster in alike if len(cluster) > 1]
    _write(run_dir / CLUSTERS, splits, clusters)
    if clusters:
        splits = _together(splits, clusters, frozen is not None, run_dir / CLUSTERS, console)
    waiting = sum(item.reason == testset.WAITS for item in splits.held)
    if waiting:
        console.say(f"new test pictures that wait for the next test set (graft freeze-test CONFIG): {waiting}")
    return splits, frozen or testset.of_splits(splits, version=1)


def _embeddings(
    config: RunConfig, splits: Splits, backbone: keras.Model, spec: PixelSpec, store: Store | None, console: Console
) -> np.ndarray:
    """float32 [N, D]: the backbone's pooled output for the plain pictures; what training the head alone reads, too."""
    network = build(backbone, BACKBONES[config.backbone.name], None, Head(), len(splits.classes))
    division = divide(network, Phase(epochs=1, learning_rate=1.0, unfreeze="head"))
    settings = Pictures.of(config, splits, spec, store).settings | {"mean": "backbone"}
    dtype = None if config.cache.use == "off" else config.cache.dtype
    views = Views(Augment(), splits.train.image_shape)
    frozen = Frozen(division, views, dtype, settings, store, splits.train, console)
    wanted = [(split, np.arange(len(split)), np.full(len(split), PLAIN, np.int32)) for split in splits.all]
    frozen.keep(wanted, uses=sum(len(rows) for _, rows, _ in wanted), always=True)
    if frozen.kept:
        return np.concatenate([frozen.read(*these) for these in wanted])
    return np.concatenate(
        [
            frozen.compute(images.astype(np.float32))
            for split, rows, _ in wanted
            for _, images in split.stream(rows, _CHUNK)
        ]
    )


def _thumbnails(splits: Splits, spec: PixelSpec, store: Store | None, console: Console) -> np.ndarray:
    """uint8 [N, S, S, 3]."""
    side = duplicates.SIDE
    like = np.empty((side, side, 3), np.uint8)
    settings = {"side": side}
    return np.concatenate(
        [
            kept.of_pixels(split, "thumbnails", settings, duplicates.thumbnail, like, spec, store, console)
            for split in splits.all
        ]
    )


def _together(splits: Splits, clusters: list[list[str]], is_frozen: bool, path: Path, console: Console) -> Splits:
    """Each cluster in one split."""
    home: dict[str, Split] = {digest: split for split in splits.all for digest in split.digests}
    places: dict[str, SplitName] = {}
    held: dict[str, str] = {}
    for cluster in clusters:
        most = max((home[digest].name for digest in cluster), key=SPLIT_NAMES.index)
        for digest in cluster:
            if home[digest].name != most:
                if most == "test" and is_frozen:
                    held[digest] = LIKE_TEST
                else:
                    places[digest] = most
    labels = {digest: split.labels[row] for split in splits.all for row, digest in enumerate(split.digests)}
    if conflicts := sum(len({labels[digest] for digest in cluster}) > 1 for cluster in clusters):
        console.warn(f"groups of pictures that show the same and have different labels: {conflicts}; see {path}")
    if places or held:
        console.say(
            f"groups of pictures that show the same: {len(clusters)}; moved to a more held-out split: {len(places)}; "
            f"left out, as they show what a test picture shows: {len(held)}; see {path}"
        )
    return splits.moved(places, held)


def _write(path: Path, splits: Splits, clusters: list[list[str]]) -> None:
    """A CSV file with the columns cluster, path, label, split, sha256, conflict; by cluster, from 1 on."""
    rows = {
        digest: (name, splits.classes[label], split.name, digest)
        for split in splits.all
        for name, label, digest in zip(split.names, split.labels, split.digests, strict=True)
    }
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["cluster", "path", "label", "split", "sha256", "conflict"])
    for number, cluster in enumerate(clusters, start=1):
        labels = {rows[digest][1] for digest in cluster}
        conflict = "" if len(labels) == 1 else f"labelled {' and '.join(sorted(labels))}"
        writer.writerows((number, *rows[digest], conflict) for digest in cluster)
    write_atomically(path, stream.getvalue())
