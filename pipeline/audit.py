"""A look at the data before a training: what is in it, what is wrong with it, and a list of that to review.

One pass reads and decodes each picture once. What the network makes of it is kept in the activation store, where a
training finds it.

Shape letters: N pictures that can be used, D features.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from pipeline import audit_labels, audit_page, audit_pictures, audit_tiles, duplicates, ingest, kept, leakage
from pipeline.activations import Store, opened
from pipeline.audit_findings import KINDS, Finding, Mark, ordered, write
from pipeline.backbones import weights
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.errors import DataError, WeightsError
from pipeline.finetune import strategy
from pipeline.pixels import PixelSpec, upright_size
from pipeline.seeding import reproducible
from pipeline.sources import open_source
from pipeline.sources.base import SPLIT_NAMES, Example, Source, SplitName
from pipeline.splits import LeftOut, Split, Splits, check_splits

PAGE, LIST = "data.html", "findings.csv"
_BY_WEIGHTS = ("likely mislabel", "outlier")


@dataclass(frozen=True)
class Audit:
    """What a look at the data found.

    Attributes:
        pictures: how many there are, with those that are left out.
        classes: how many there are.
        counts: findings by kind, of all KINDS that were judged.
        not_judged: the kinds that were not, as the network's weights could not be had.
        refused: why a run would not start with this data; None if it would.
        page: the web page.
        findings: the list to review.
    """

    pictures: int
    classes: int
    counts: dict[str, int]
    not_judged: tuple[str, ...]
    refused: str | None
    page: Path
    findings: Path


@dataclass(frozen=True)
class _Noted:
    """What a picture's encoded bytes say before they are decoded, and where the data itself puts it."""

    size: tuple[int, int] | None
    given: SplitName | None


def folder_of(config: RunConfig) -> Path:
    """Where a look at a run's data is written."""
    return Path(config.output_dir).resolve() / config.name / "data"


def audit(config: RunConfig, console: Console, fix: str = f"graft data CONFIG --fix {LIST}") -> Audit:
    """Looks at a run's data and writes `data.html` and `findings.csv` to `folder_of(config)`.

    Data that a run would refuse is reported all the same. Where the network's weights cannot be had, near copies are
    found by thumbnails alone, and _BY_WEIGHTS are not judged.

    Args:
        config: the run's.
        console: hears how it goes.
        fix: the command that applies the reviewed list, as the page shows it.

    Raises:
        GraftError: there is no data, the network cannot be built, or the disk is too small.
    """
    data = config.data
    spec = PixelSpec(config.image_size, config.image_size, data.crop, data.max_megapixels)
    noted: dict[tuple[str, str], _Noted] = {}
    source = _noting(open_source(data), noted)
    reproducible(config.seed)
    folder = folder_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".pixels-", dir=folder) as scratch,
        opened(config.cache, Path(config.cache_dir), console) as store,
    ):
        splits = ingest.read(data, source, spec, Path(scratch), store, console)
        refused, notes = _verdict(splits, config, folder / LIST)
        places = {digest: split.name for split in splits.all for digest in split.digests}
        pictures = _in_one(splits)
        own = [noted[name, splits.classes[label]] for name, label in zip(pictures.names, pictures.labels, strict=True)]
        sizes = np.array([picture.size or (spec.width, spec.height) for picture in own], int).reshape(-1, 2)
        figures, seen, not_judged = _looked_at(config, splits, pictures, spec, store, console)
        measures = audit_pictures.Measures.of(figures, sizes, config.image_size, data.crop)
        marks: list[Mark] = []
        if seen is not None:
            console.say("judging the pictures and their labels")
            detailed = sizes.min(axis=1) * data.crop >= duplicates.SIDE  # A thumbnail is not enlarged then.
            if small := int((~detailed).sum()):
                which, them = ("1 picture is", "it") if small == 1 else (f"{small:,} pictures are", "them")
                notes += (f"{which} so small that near copies of {them} cannot be told from others.",)
            given = [picture.given for picture in own]
            marks = _judged(seen, measures, detailed, pictures, places, given, splits.classes, not_judged)
        findings = ordered([*_of_marks(marks, pictures, places, splits.classes), *_of_left_out(splits.quarantine)])
        if (earlier := write(folder / LIST, findings)) is not None:
            console.say(f"the earlier list has actions for what is not found now: it is kept as {earlier}")
        console.say("writing the page")
        look = audit_page.Look(
            name=config.name,
            fix=fix,
            classes=splits.classes,
            pictures=pictures,
            splits=tuple(places[digest] for digest in pictures.digests),
            left_out=splits.quarantine,
            measures=measures,
            mean=None if seen is None else audit_tiles.mean_of_training(seen, pictures, places),
            findings=tuple(findings),
            conflicting=audit_tiles.conflicting(source, splits.quarantine, spec),
            strips=audit_tiles.strips(config, pictures, places, splits.classes),
            augmented=config.data.augment.model_dump(mode="json", exclude_defaults=True),
            pretrained=config.backbone.weights != "none",
            not_judged=not_judged,
            image_size=config.image_size,
            crop=data.crop,
            refused=refused,
            notes=notes,
        )
        audit_page.write(folder / PAGE, look)
    counts = Counter(finding.kind for finding in findings)
    return Audit(
        pictures=len(pictures) + len(splits.quarantine),
        classes=len(splits.classes),
        counts={kind: counts[kind] for kind in KINDS if kind not in not_judged},
        not_judged=not_judged,
        refused=refused,
        page=folder / PAGE,
        findings=folder / LIST,
    )


# ------------------------------------------------------------------------------------------------------------- looking


def _noting(source: Source, noted: dict[tuple[str, str], _Noted]) -> Source:
    """The same source; whoever reads a picture has its size and its own split noted, by name and label."""

    def reading(example: Example) -> Example:
        def read() -> bytes:
            encoded = example.read()
            noted[example.name, example.label] = _Noted(upright_size(encoded), example.split)
            return encoded

        return replace(example, read=read)

    return replace(source, examples=lambda: map(reading, source.examples()))


def _verdict(splits: Splits, config: RunConfig, list_file: Path) -> tuple[str | None, tuple[str, ...]]:
    """Why a run would refuse the data, or None, and notes on how it would use it."""
    try:
        ingest.check_quarantine(splits, config.data, list_file)
        more = check_splits({split.name: split for split in splits.all}, splits.classes)
    except DataError as error:
        return str(error), splits.notes
    return None, splits.notes + more


def _in_one(splits: Splits) -> Split:
    """The pictures of all splits in the order of the source, as the training pictures of a run without any others."""
    rows = sorted(
        row
        for split in splits.all
        for row in zip(split.positions.tolist(), split.labels.tolist(), split.names, split.digests, strict=True)
    )
    return Split.of_rows("train", rows, splits.train.pixels)


def _looked_at(
    config: RunConfig, splits: Splits, pictures: Split, spec: PixelSpec, store: Store | None, console: Console
) -> tuple[np.ndarray, leakage.Seen | None, tuple[str, ...]]:
    """Figures float32 [N, FIGURES] of N pictures; what near duplicates are found by, None where N is 0; and the kinds
    that cannot be judged.
    """
    with ThreadPoolExecutor(1) as aside:  # The network's layers run beside it.
        measured = aside.submit(
            kept.of_pixels,
            pictures, "measures", {"version": audit_pictures.VERSION}, audit_pictures.figures,
            np.empty(audit_pictures.FIGURES, np.float32), spec, store, console,
        )  # fmt: skip
        if not len(pictures):
            return measured.result(), None, ()
        backbone = _backbone(config, console)
        seen = _seen(config, splits, pictures, backbone, spec, store, console)
    return measured.result(), seen, _BY_WEIGHTS if backbone is None else ()


def _backbone(config: RunConfig, console: Console) -> keras.Model | None:
    """The network with its weights; None where they cannot be had: most of a look needs none."""
    try:
        with strategy().scope():
            return weights.load(config.backbone, config.image_size, Path(config.output_dir))
    except WeightsError as error:
        console.warn(
            f"{error} Without them, the kinds {' and '.join(_BY_WEIGHTS)} are not judged, and near copies are found by "
            "thumbnails alone; look again when the weights are there."
        )
        return None


def _seen(
    config: RunConfig,
    splits: Splits,
    pictures: Split,
    backbone: keras.Model | None,
    spec: PixelSpec,
    store: Store | None,
    console: Console,
) -> leakage.Seen:
    """What near duplicates are found by, of the pictures in their order."""
    # Also where training is to leave near duplicates as they are.
    together = config.retrain.model_copy(update={"near_duplicates": "together"})
    none = Split.of_rows("validation", [], pictures.pixels)
    alone = replace(splits, train=pictures, validation=none, test=replace(none, name="test"))
    seen = leakage.look(config.model_copy(update={"retrain": together}), alone, backbone, spec, store, console)
    assert seen is not None
    return seen


def _judged(
    seen: leakage.Seen,
    measures: audit_pictures.Measures,
    detailed: np.ndarray,
    pictures: Split,
    places: Mapping[str, SplitName],
    given: Sequence[SplitName | None],
    classes: tuple[str, ...],
    not_judged: tuple[str, ...],
) -> list[Mark]:
    """What is wrong with the pictures and their labels.

    Args:
        seen, measures: of N pictures.
        detailed, given: as in `_alike`.
        pictures: N of them.
        places: by digest, the split of each in a run.
        classes: names of the labels.
        not_judged: the kinds that are left aside, which are _BY_WEIGHTS or none.
    """
    marks = audit_pictures.judged(measures)
    marks += _alike(seen, detailed, pictures, [places[digest] for digest in pictures.digests], given, classes)
    if not not_judged:
        features = _features(seen)
        marks += audit_labels.mislabels(features, pictures.labels, classes)
        marks += audit_labels.outliers(features)
    return marks


def _features(seen: leakage.Seen) -> np.ndarray:
    """float32 [N, D], what labels and outliers are judged by: the embeddings, or the thumbnails at half their size."""
    if seen.embeddings is not None:
        return audit_labels.evened(seen.embeddings)
    count, half = len(seen.thumbnails), duplicates.SIDE // 2
    smaller = seen.thumbnails.reshape(count, half, 2, half, 2, 3).mean(axis=(2, 4), dtype=np.float32)
    return np.asarray(smaller.reshape(count, -1))


def _alike(
    seen: leakage.Seen,
    detailed: np.ndarray,
    pictures: Split,
    places: Sequence[SplitName],
    given: Sequence[SplitName | None],
    classes: tuple[str, ...],
) -> list[Mark]:
    """Copies, near copies, leaks and conflicting labels among pictures that show the same.

    Args:
        seen: what they are found by.
        detailed: bool [N], which have enough pixels to tell a near copy from a picture that is merely alike.
        pictures: N of them.
        places: the split of each, in a run.
        given: the split that the data gives it.
        classes: names of the labels.
    """
    pairs, clusters = _same(seen, detailed)
    how = {pair[:2]: pair.why for pair in pairs}

    def mark(kind: str, row: int, others: Sequence[int], place_of: Callable[[int], str] = lambda other: "") -> Mark:
        """Beside the first of the others that it forms a pair with; else the two are connected by pictures between."""
        other = next((other for other in others if (min(row, other), max(row, other)) in how), others[0])
        why = how.get((min(row, other), max(row, other)), "same picture, by way of others")
        # Pictures that show the same stand together in the list.
        return Mark(kind, row, -cluster_of[row], f"{why}: {pictures.names[other]}{place_of(other)}", other)

    cluster_of = {row: number for number, cluster in enumerate(clusters) for row in cluster}
    marks = []
    for cluster in clusters:
        # The most held-out one first, which is to stay.
        order = sorted(cluster, key=lambda row: (-_rank(given[row]), -_rank(places[row]), row))
        for place, row in enumerate(order):
            same = [other for other in order[:place] if seen.digests[other] == seen.digests[row]]
            unlike = [other for other in order if pictures.labels[other] != pictures.labels[row]]
            held = [other for other in order if _rank(places[other]) > _rank(places[row])]
            moved = [other for other in same if _rank(given[other]) > _rank(given[row])]
            if same:
                marks.append(mark("copy", row, same))
            elif place:
                marks.append(mark("near copy", row, order[:place]))
            if unlike:
                marks.append(
                    mark(
                        "conflicting labels", row, unlike, lambda other: f", labelled {classes[pictures.labels[other]]}"
                    )
                )
            if held:
                marks.append(mark("leak", row, held, lambda other: f", which is in {places[other]}"))
            elif moved:
                marks.append(
                    mark(
                        "leak",
                        row,
                        moved,
                        lambda other: f", which the data has in {given[other]}; a run moves it there",
                    )
                )
    return marks


def _same(seen: leakage.Seen, detailed: np.ndarray) -> tuple[list[duplicates.Pair], list[list[int]]]:
    """Pairs and clusters of pictures that show the same; of those without much detail, by their bytes alone."""
    pairs, clusters = [], []
    for rows, thumbnails in (
        (np.flatnonzero(detailed), seen.thumbnails),
        # Where next to nothing is to be seen, nothing but bytes is compared.
        (np.flatnonzero(~detailed), np.zeros_like(seen.thumbnails)),
    ):
        embeddings = None if seen.embeddings is None else seen.embeddings[rows]
        found = duplicates.find([seen.digests[row] for row in rows], embeddings, thumbnails[rows])
        pairs += [duplicates.Pair(int(rows[first]), int(rows[second]), why) for first, second, why in found.pairs]
        clusters += [rows[list(cluster)].tolist() for cluster in found.clusters]
    return pairs, clusters


def _rank(split: SplitName | None) -> int:
    """Larger, the more a split is held out."""
    return -1 if split is None else SPLIT_NAMES.index(split)


# ------------------------------------------------------------------------------------------------------------ findings


def _of_marks(
    marks: Sequence[Mark], pictures: Split, places: Mapping[str, SplitName], classes: tuple[str, ...]
) -> Iterator[Finding]:
    for mark in marks:
        digest, other = pictures.digests[mark.row], mark.other
        named = (pictures.names[mark.row], pictures.labels[mark.row])
        yield Finding(
            kind=mark.kind,
            name=pictures.names[mark.row],
            label=classes[pictures.labels[mark.row]],
            digest=digest,
            split=places[digest],
            score=mark.score,
            why=mark.why,
            row=mark.row,
            other=other,
            listed_twice=other is not None and named == (pictures.names[other], pictures.labels[other]),
        )


def _of_left_out(quarantine: Sequence[LeftOut]) -> Iterator[Finding]:
    """Damaged pictures, and those with the same bytes under several labels."""
    for item in quarantine:
        conflict = item.reason.startswith(ingest.CONTRADICTION)
        kind = "conflicting labels" if conflict else "damaged"
        # Of conflicts, identical bytes are the worst; copies of one another stand together.
        score = 1 + int(item.digest[:8], 16) / 2**32 if conflict else 0.0
        yield Finding(kind, item.name, item.label, item.digest, "", score, item.reason)
