"""A network's depth as a drawing: where its units, weights and connections are, and what its layers see."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline import pages
from pipeline.inspection import Inspection, Layer, Sizes, by_kind, total
from pipeline.pages import BLUE, GREEN, INK, ORANGE, SKY, SOFT, Chart, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# So many names fit beside each other, and so many letters if they are not to be slanted.
MOST_NAMES = 26
MOST_LETTERS = 90


def chart(inspection: Inspection) -> Chart:
    """A bar for each convolution and dense layer, in the order data flows; on it what follows up to the next.

    Call it, and save the chart, within `pages.drawing`.
    """
    groups = _groups(inspection.layers)
    kernels = [next(layer for layer in group if layer.sizes.connections) for group in groups]
    kinds = [("convolutions", BLUE), ("dense layers", ORANGE), ("what follows them: pooling, normalisation, …", SKY)]
    colors = [ORANGE if kernel.kind == "dense" else BLUE for kernel in kernels]
    fields = [_field(group) for group in groups]
    places = range(len(groups))

    figure = pages.figure(11, 9)
    figure.suptitle(f"{inspection.title}, at {inspection.input[0]} pixels", color=SOFT, x=0.01, ha="left")
    rows = figure.subplots(4, 1, sharex=True, height_ratios=[1, 1, 1, 1.1])
    for axes, what in zip(rows, ("units", "weights", "connections"), strict=False):
        count = getattr(total(inspection.layers), what)
        own = [100 * getattr(kernel.sizes, what) / count for kernel in kernels]
        whole = [100 * getattr(total(group), what) / count for group in groups]
        axes.bar(places, whole, width=0.85, color=SKY)
        axes.bar(places, own, width=0.85, color=colors)
        axes.set_title(f"{count:,} {what}")
        axes.set_ylabel("% of them")
        axes.grid(axis="x", visible=False)
    for label, color in kinds:
        if color in (*colors, SKY):
            rows[0].bar([0], [0], color=color, label=label)
    rows[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)
    _draw_fields(rows[3], inspection, fields)
    _name_places(rows[3], inspection, groups, kernels)
    _mark_cuts(rows, inspection, groups)
    figure.align_ylabels()

    dense = by_kind(inspection.layers).get("dense", Sizes())
    sums = total(inspection.layers)
    return Chart(
        figure,
        "Each bar is a convolution or dense layer, in the order data flows; on it is what follows it up to the next. "
        "The receptive field is that of the last of them, and counts what lies beyond the picture's border too.",
        f"{inspection.name} along its depth, {len(groups)} convolutions and dense layers: {sums.units:,} units, "
        f"{sums.weights:,} weights, {dense.weights / sums.weights:.0%} of them in dense layers, and "
        f"{sums.connections:,} connections. The receptive field grows to {max(filter(None, fields))} pixels; the "
        f"picture has {inspection.input[0]}.",
    )


def _groups(layers: tuple[Layer, ...]) -> list[tuple[Layer, ...]]:
    """From one layer with connections to the next; what comes before the first one joins it."""
    starts = [i for i, layer in enumerate(layers) if layer.sizes.connections]
    return [layers[a:b] for a, b in pairwise([0, *starts[1:], len(layers)])]


def _field(group: tuple[Layer, ...]) -> int | None:
    """The longer side of what its last layer sees; None where that has no place."""
    sides = [layer.receptive_field for layer in group if layer.receptive_field]
    return max(sides[-1]) if sides else None


def _draw_fields(axes: "Axes", inspection: Inspection, fields: list[int | None]) -> None:
    placed = [(float(place), field) for place, field in enumerate(fields) if field is not None]
    side = inspection.input[0]
    (first, least), (last, most) = placed[0], placed[-1]
    placed = [(first - 0.5, least), *placed, (last + 0.5, most)]
    axes.plot(*zip(*placed, strict=True), color=INK, drawstyle="steps-mid")
    axes.axhline(side, color=SOFT, linestyle="--", linewidth=1.2)
    axes.text(
        0.005, 0.93 * side, f"the picture, {side}", color=SOFT, fontsize=9, va="top",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(1, 1.6 * max(side, *(field for _, field in placed)))
    axes.set_title("receptive field")
    axes.set_ylabel("pixels")
    axes.grid(axis="x", visible=False)


def _name_places(axes: "Axes", inspection: Inspection, groups: list[tuple[Layer, ...]], kernels: list[Layer]) -> None:
    """Names the layers where there is room for it, else the ends of blocks, where there is."""
    axes.set_xlim(-0.7, len(groups) - 0.3)
    if len(groups) <= MOST_NAMES:
        places, names = [*range(len(groups))], [kernel.name for kernel in kernels]
    else:
        ends = [(block[-1], name) for name, block in inspection.blocks]
        found: list[tuple[int, str]] = []
        for end, name in reversed(ends):
            place = next(place for place, group in enumerate(groups) if end in group)
            if not found or found[-1][0] - place >= len(groups) / MOST_NAMES:
                found.append((place, name))
        places, names = [place for place, _ in found], [name for _, name in found]
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    upright = sum(map(len, names)) <= MOST_LETTERS
    axes.set_xticks(places, [short(name) for name in names], **({} if upright else slanted))
    axes.tick_params(axis="x", labelsize=9)


def _mark_cuts(rows: Sequence["Axes"], inspection: Inspection, groups: list[tuple[Layer, ...]]) -> None:
    """A line where each phase divides the network."""
    if inspection.classes is None:
        return
    ends = [sum(map(len, groups[:i])) for i in range(len(groups) + 1)]
    phases: dict[float, list[int]] = {}
    for number, step in enumerate(inspection.steps, start=1):
        cut = next(i for i, end in enumerate(ends) if end >= step.below) - 0.5
        phases.setdefault(cut, []).append(number)
    for cut, numbers in phases.items():
        for axes in rows:
            axes.axvline(cut, color=GREEN, linestyle=":", linewidth=1.6)
        left = cut > len(groups) / 2
        rows[3].annotate(
            f"{'phase' if len(numbers) == 1 else 'phases'} {', '.join(map(str, numbers))} →",
            (cut, 0.04), xycoords=rows[3].get_xaxis_transform(), color=GREEN, fontsize=9,
            xytext=(-5 if left else 5, 0), textcoords="offset points", ha="right" if left else "left",
        )  # fmt: skip
