"""The look at the data as one web page: counts, sizes, contact sheets, findings with their pictures, augmentations.

However many pictures there are, the page shows a bounded number of them and stays below 15 MB.

Shape letters: N pictures that can be used, V views, S side of a thumbnail, H height, W width.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pages
from pipeline.audit_findings import CLEAREST, KINDS, Finding, Kind
from pipeline.audit_pictures import Measures
from pipeline.sources.base import SPLIT_NAMES, SplitName
from pipeline.splits import LeftOut, Split

TILES = 24  # of each kind of finding
ROWS = 300  # of each kind's table
SHEET, MOST_ON_SHEETS, SHEETS = 24, 600, 100  # pictures of a class, of all classes; classes
STRIPS, VIEWS = 6, 8
_SIDE, _SMALL = 192, 112  # pixels of the longer side: of findings, and on contact sheets
_MOST_BARS = 40  # classes in a chart
_MOST_DOTS = 3000  # pictures in a chart


@dataclass(frozen=True, eq=False)
class Strip:
    """One picture in several views, or several mixed ones.

    Attributes:
        title: what they are of.
        views: uint8 [V, H, W, 3].
        captions: V of them.
    """

    title: str
    views: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Look:
    """What the page shows.

    Attributes:
        name: the run's.
        fix: the command that applies the reviewed list.
        classes: their names.
        pictures: N of them, in the order of the source.
        splits: where a run puts each of them.
        left_out: pictures that cannot be used.
        measures: of the N pictures.
        mean: uint8 [S, S, 3], the mean of the training pictures; None where there are none.
        findings: by kind, the worst first.
        conflicting: by name, uint8 [H, W, 3], some pictures that are left out for their labels.
        strips: pictures as augmentation changes them.
        augmented: the settings of it.
        pretrained: whether pictures were compared by a pretrained network, or by their pixels.
        not_judged: kinds of findings that were not, as the network's weights could not be had.
        image_size: side of the picture that the network sees.
        crop: the share of it that the centre crop keeps.
        refused: why a run would not start; None if it would.
        notes: how a run would use the data.
    """

    name: str
    fix: str
    classes: tuple[str, ...]
    pictures: Split
    splits: tuple[SplitName, ...]
    left_out: tuple[LeftOut, ...]
    measures: Measures
    mean: np.ndarray | None
    findings: tuple[Finding, ...]
    conflicting: Mapping[str, np.ndarray]
    strips: tuple[Strip, ...]
    augmented: Mapping[str, Any]
    pretrained: bool
    not_judged: tuple[str, ...]
    image_size: int
    crop: float
    refused: str | None
    notes: tuple[str, ...]

    @cached_property
    def by_kind(self) -> dict[str, list[Finding]]:
        return {kind: [f for f in self.findings if f.kind == kind] for kind in KINDS}


@dataclass(frozen=True)
class _Tile:
    """A picture, and what it shows in words."""

    picture: pages.Tile
    alt: str


@dataclass(frozen=True)
class _Section:
    """One kind of finding, with the first of them as pictures: the finding, its picture, and the one it is like."""

    name: str
    kind: Kind
    findings: list[Finding]
    gallery: list[tuple[Finding, list[_Tile]]]
    affected: int

    @property
    def anchor(self) -> str:
        return self.name.replace(" ", "-")


def write(path: Path, look: Look) -> None:
    """Writes the page."""
    sheets = _sheets(look)
    shown = [f for found in look.by_kind.values() for f in found[:TILES]]
    rows = {row for f in shown for row in (f.row, f.other) if row is not None}
    large = _tiles(look, rows, _SIDE)
    small = _tiles(look, {row for _, _, sheet in sheets for row in sheet}, _SMALL)
    for name, pixels in look.conflicting.items():
        large[name] = _Tile(pages.tile(pixels, _SIDE), name)

    def gallery(found: Sequence[Finding]) -> list[tuple[Finding, list[_Tile]]]:
        keys = [(f, (f.name if f.row is None else f.row, f.other)) for f in found[:TILES]]
        return [(f, [large[key] for key in both if key is not None and key in large]) for f, both in keys]

    def views(strip: Strip) -> list[_Tile]:
        pairs = zip(strip.views, strip.captions, strict=True)
        return [_Tile(pages.tile(view, _SMALL), f"{strip.title}, {caption}") for view, caption in pairs]

    sections = [
        _Section(name, KINDS[name], found, [pair for pair in gallery(found) if pair[1]], len({f.name for f in found}))
        for name, found in look.by_kind.items()
    ]
    with pages.drawing():
        pages.write(
            path,
            "data.html",
            look=look,
            total=len(look.pictures) + len(look.left_out),
            found=len({f.name for f in look.findings}),
            table=_table(look),
            split_names=SPLIT_NAMES,
            charts=_charts(look),
            sections=sections,
            sheets=[(label, count, [small[row] for row in sheet]) for label, count, sheet in sheets],
            strips=[(strip, views(strip)) for strip in look.strips],
            mean=None
            if look.mean is None
            else _Tile(pages.tile(look.mean, _SIDE), "the mean of the training pictures"),
            channels=_channels(look),
            clearest=CLEAREST,
            most_rows=ROWS,
            most_sheets=SHEETS,
        )


# ------------------------------------------------------------------------------------------------------------ pictures


def _sheets(look: Look) -> list[tuple[str, int, list[int]]]:
    """Of each class its name, how many pictures it has, and rows of some of them, at random, the same each time."""
    each = max(4, min(SHEET, MOST_ON_SHEETS // max(1, len(look.classes))))
    random = np.random.default_rng(0)
    sheets = []
    for number, label in enumerate(look.classes[:SHEETS]):
        rows = np.flatnonzero(look.pictures.labels == number)
        sheets.append((label, len(rows), sorted(random.permutation(rows)[:each].tolist())))
    return sheets


def _tiles(look: Look, rows: Iterable[int], side: int) -> dict[int | str, _Tile]:
    """By row, pictures as the network sees them."""
    tiles: dict[int | str, _Tile] = {}
    pictures = look.pictures
    for some, images in pictures.stream(np.array(sorted(rows), int)):
        for row, image in zip(some.tolist(), images, strict=True):
            tiles[row] = _Tile(pages.tile(image, side), f"{look.classes[pictures.labels[row]]}: {pictures.names[row]}")
    return tiles


def _table(look: Look) -> list[tuple[str, list[int], int, int]]:
    """Of each class its name, pictures by split, those left out, and all of them."""
    used = Counter(zip(look.pictures.labels.tolist(), look.splits, strict=True))
    out = Counter(item.label for item in look.left_out)
    rows = []
    for number, label in enumerate(look.classes):
        counts = [used[number, split] for split in SPLIT_NAMES]
        rows.append((label, counts, out[label], sum(counts) + out[label]))
    return rows


def _channels(look: Look) -> list[tuple[str, float, float]]:
    """Name, mean and standard deviation between pictures of each channel, over the training pictures."""
    mine = look.measures.channels[np.array([split == "train" for split in look.splits], bool)]
    if not len(mine):
        return []
    return [
        (name, float(mine[:, channel].mean(dtype=np.float64)), float(mine[:, channel].std(dtype=np.float64)))
        for channel, name in enumerate(("red", "green", "blue"))
    ]


# -------------------------------------------------------------------------------------------------------------- charts


def _charts(look: Look) -> list[pages.Chart]:
    if not len(look.pictures):
        return []
    return [_counts(look), _sizes(look), _shapes(look), _brightness(look), _sharpness(look)]


def _counts(look: Look) -> pages.Chart:
    """Pictures by class and split; of many classes, the largest and the smallest."""
    rows = sorted(_table(look), key=lambda row: -sum(row[1]))
    half = _MOST_BARS // 2
    shown = rows if len(rows) <= _MOST_BARS else rows[:half] + rows[-half:]
    figure = pages.figure(7.5, 1.4 + 0.3 * len(shown))
    axes = figure.subplots()
    places = np.arange(len(shown))
    left = np.zeros(len(shown))
    for split, colour, values in zip(
        SPLIT_NAMES, (pages.BLUE, pages.SKY, pages.ORANGE), zip(*(row[1] for row in shown), strict=True), strict=True
    ):
        axes.barh(places, values, left=left, color=colour, label=split, height=0.7)
        left += values
    axes.set_yticks(places, [pages.short(row[0]) for row in shown])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("pictures")
    axes.set_title("Pictures of each class", pad=26)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    which = "" if len(shown) == len(rows) else f" The {half} largest and the {half} smallest of {len(rows)} classes."
    sizes = [sum(row[1]) for row in rows]
    return pages.Chart(
        figure,
        f"How many pictures a run trains, tunes and tests on.{which}",
        f"Bars: pictures of each class by split, from {sizes[0]} to {sizes[-1]}.",
    )


def _sizes(look: Look) -> pages.Chart:
    figure = pages.figure(7.5, 4.4)
    axes = figure.subplots()
    sizes = look.measures.sizes[_sample(len(look.pictures))]
    odd = {f.row for f in look.by_kind["odd size"]} | {f.row for f in look.by_kind["odd shape"]}
    odd_sizes = look.measures.sizes[sorted(row for row in odd if row is not None)]
    axes.scatter(sizes[:, 0], sizes[:, 1], s=12, color=pages.BLUE, alpha=0.45, linewidths=0)
    axes.scatter(
        odd_sizes[:, 0], odd_sizes[:, 1], s=36, facecolors="none", edgecolors=pages.ORANGE, linewidths=1.5, label="odd"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Smaller than this, pictures are enlarged for the network.
    needed = look.image_size / look.crop
    for axis, values in ((axes.xaxis, look.measures.sizes[:, 0]), (axes.yaxis, look.measures.sizes[:, 1])):
        _plain_ticks(axis, np.append(values, needed))
    axes.axvline(needed, color=pages.SOFT, linewidth=1, linestyle="--")
    axes.axhline(needed, color=pages.SOFT, linewidth=1, linestyle="--")
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")
    axes.set_title("Sizes")
    if len(odd_sizes):
        axes.legend()
    width, height = np.median(look.measures.sizes, axis=0)
    enlarged = int((look.measures.sizes.min(axis=1) < needed).sum())
    return pages.Chart(
        figure,
        f"The median picture has {width:.0f} × {height:.0f} pixels. {enlarged:,} of {len(look.pictures):,} have "
        f"a side below {needed:.0f} pixels (dashed), and are enlarged for the network.",
        f"Dots: width and height of pictures, the median at {width:.0f} by {height:.0f} pixels.",
    )


def _shapes(look: Look) -> pages.Chart:
    figure = pages.figure(7.5, 3.2)
    axes = figure.subplots()
    ratios = look.measures.sizes[:, 0] / np.maximum(look.measures.sizes[:, 1], 1)
    logs = np.log2(ratios)
    reach = max(1.0, float(np.abs(logs).max()))
    axes.hist(logs, bins=np.linspace(-reach, reach, 41).tolist(), color=pages.BLUE)
    ticks = [t for t in (-4, -3, -2, -1, 0, 1, 2, 3, 4) if abs(t) <= reach]
    axes.set_xticks(ticks, [f"1:{2**-t}" if t < 0 else f"{2**t}:1" for t in ticks])
    axes.set_xlabel("width to height")
    axes.set_ylabel("pictures")
    axes.set_title("Aspect ratios")
    upright, square = int((ratios < 0.98).sum()), int((np.abs(ratios - 1) <= 0.02).sum())
    return pages.Chart(
        figure,
        f"{upright:,} upright, {square:,} square and {len(ratios) - upright - square:,} wide pictures. The network "
        "sees the middle square.",
        f"Histogram of width to height: {upright} upright, {square} square, {len(ratios) - upright - square} wide.",
    )


def _brightness(look: Look) -> pages.Chart:
    figure = pages.figure(7.5, 3.2)
    axes = figure.subplots()
    measures = look.measures
    bins = np.linspace(0, 255, 52).tolist()
    axes.hist(measures.luminance, bins=bins, color=pages.BLUE, label="mean")
    for values, colour, words in (
        (measures.shadow, pages.PURPLE, "shadows: a twentieth of the pixels is darker"),
        (measures.light, pages.ORANGE, "lights: a twentieth of the pixels is brighter"),
    ):
        axes.hist(values, bins=bins, histtype="step", linewidth=1.6, color=colour, label=words)
    axes.set_xlim(0, 255)
    axes.set_xlabel("luminance, 0 to 255")
    axes.set_ylabel("pictures")
    axes.set_title("Brightness", pad=52)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=1, fontsize=8.5)
    return pages.Chart(
        figure,
        "A picture is dark where its lights are, and bright where its shadows are far from what is usual here.",
        f"Histogram of mean luminance, its median at {np.median(measures.luminance):.0f}; of shadows and lights.",
    )


def _sharpness(look: Look) -> pages.Chart:
    figure = pages.figure(7.5, 3.2)
    axes = figure.subplots()
    values = np.maximum(look.measures.sharpness, 1)
    axes.hist(values, bins=np.geomspace(1, max(float(values.max()), 10) * 1.01, 50).tolist(), color=pages.BLUE)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis, values)
    axes.set_xlabel("variance after the edge kernel, in the sharpest part")
    axes.set_ylabel("pictures")
    axes.set_title("Sharpness")
    return pages.Chart(
        figure,
        "At the size that the network sees. Blurred pictures are far to the left.",
        f"Histogram of sharpness, the median at {np.median(values):.0f}.",
    )


def _sample(count: int) -> np.ndarray:
    """Rows of at most _MOST_DOTS pictures, int [n]."""
    return np.sort(np.random.default_rng(0).permutation(count)[:_MOST_DOTS])


def _plain_ticks(axis: Any, values: np.ndarray) -> None:
    """Of a logarithmic axis around the values: 100, 200, 500, written like that; as many as a short or a long one has
    room for."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

    low, high = float(values.min()) / 1.3, float(values.max()) * 1.3
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [m * 10**e for e in range(6) for m in steps]
    axis.set_major_locator(MaxNLocator(5, integer=True) if high < 10 * low else FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
