"""Each picture by itself: brightness, contrast, sharpness, size and shape, and which of them are out of the ordinary.

A picture is judged by two bounds at once. The absolute one says what would do harm anywhere; the relative one that it
is unusual in this data, so that night photographs among night photographs are nothing to report. It counts robust
standard deviations, 1.4826 times the median absolute deviation, from the median.

All but the size is measured on the pixels that the network sees, so on one scale, however large the file is.

Shape letters: N pictures, n of them, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.audit_findings import Mark

VERSION = 1
"""Raised by one whenever the same pixels would give other figures than before."""
LEVELS = 4
"""Sharpness is measured at the network's size, and at a half, a quarter and an eighth of it."""
FIGURES = 7 + LEVELS

_CELLS, _LEAST_CELL = 4, 8  # The sharpest of 4 × 4 cells counts, of at least 8 × 8 pixels.

# Absolute bounds, with what 397 photographs of ants and bees have for comparison.
CONSTANT = 3.0  # standard deviation of luminance, grey levels; photographs: 16 and more
DARK = 70.0  # grey levels, 19 of 20 pixels are darker; photographs: 102 and more
BRIGHT = 170.0  # grey levels, 19 of 20 pixels are brighter; photographs: 127 and less
# Variance after the edge kernel in the sharpest cell; photographs: 145 and more. Blurred with a standard deviation of
# 2 pixels at the network's size of 224, their variance is 46 at most; of 1 pixel, 58 to 376.
BLURRED = 50.0
SIZE = 4.0  # times the median side; photographs: 0.37 to 5.2
SHAPE = 3.0  # longer side by shorter side; photographs: 3.42, and otherwise below 2.2
RELATIVE = 3.0  # robust standard deviations

# The least that a robust standard deviation is taken to be, where most pictures are alike.
_LEAST_TONE, _LEAST_LOG = 10.0, 0.1


@dataclass(frozen=True, eq=False)
class Measures:
    """Of N pictures, luminance being 0..255.

    Attributes:
        sizes: int [N, 2], width and height in pixels, upright.
        luminance: float32 [N], the mean.
        contrast: float32 [N], the standard deviation of luminance.
        shadow: float32 [N], the luminance that a twentieth of the pixels lie below.
        light: float32 [N], the luminance that a twentieth of the pixels lie above.
        sharpness: float32 [N], the variance of luminance after the edge kernel, in the sharpest part of the picture.
        channels: float32 [N, 3], the means of red, green and blue, 0..255.
    """

    sizes: np.ndarray
    luminance: np.ndarray
    contrast: np.ndarray
    shadow: np.ndarray
    light: np.ndarray
    sharpness: np.ndarray
    channels: np.ndarray

    @classmethod
    def of(cls, figures: np.ndarray, sizes: np.ndarray, image_size: int, crop: float) -> "Measures":
        """From `figures`, float32 [N, FIGURES], and the pictures' sizes.

        A picture that was enlarged is as sharp as it is at its own size, or the nearest level to it.
        """
        enlarged = image_size / (crop * np.maximum(sizes.min(axis=1), 1))
        level = np.round(np.log2(enlarged)).clip(0, LEVELS - 1).astype(int)
        luminance, contrast, shadow, light = figures[:, :4].T
        sharpness = figures[np.arange(len(figures)), 7 + level]
        return cls(sizes, luminance, contrast, shadow, light, sharpness, figures[:, 4:7])

    @property
    def sides(self) -> np.ndarray:
        """float [N], in pixels: of a square of the same area."""
        return np.asarray(np.sqrt(self.sizes.prod(axis=1)))

    @property
    def shapes(self) -> np.ndarray:
        """float [N]: the longer side by the shorter one."""
        return np.asarray(self.sizes.max(axis=1) / np.maximum(self.sizes.min(axis=1), 1))


def figures(images: np.ndarray) -> np.ndarray:
    """What is kept of pictures, uint8 [n, H, W, 3] in 0..255, RGB: float32 [n, FIGURES].

    Mean, standard deviation, 5th and 95th percentile of luminance (ITU-R BT.601), the means of red, green and blue, and
    the sharpness at each level.
    """
    found = np.empty((len(images), FIGURES), np.float32)
    for row, pixels in enumerate(images):
        colours = Image.fromarray(pixels)
        image = colours.convert("L")
        # By the histogram: sorting all pixels would take longer than all the rest.
        counts = np.asarray(image.histogram())
        below, tones = np.cumsum(counts) / counts.sum(), np.arange(256)
        mean = tones @ counts / counts.sum()
        deviation = np.sqrt((tones - mean) ** 2 @ counts / counts.sum())
        found[row, 4:7] = np.array(colours.histogram()).reshape(3, 256) @ tones / counts.sum()
        found[row, :4] = mean, deviation, np.searchsorted(below, 0.05), np.searchsorted(below, 0.95)
        for level in range(LEVELS):
            found[row, 7 + level] = _sharpness(np.asarray(image, np.int16))
            image = image.reduce(2)
    return found


def judged(measures: Measures) -> list[Mark]:
    """The pictures that are constant, blurred, dark, bright, or of odd size or shape."""
    constant = measures.contrast < CONSTANT
    marks = [
        Mark("constant", row, -float(x), f"contrast {x:.1f} grey levels") for row, x in _at(constant, measures.contrast)
    ]

    # A constant picture is that alone: of course it is not sharp. In dark and bright ones, too, all edges are faint.
    dark = ~constant & (measures.light < DARK) & (_unusual(measures.light, _LEAST_TONE) < -RELATIVE)
    bright = ~constant & (measures.shadow > BRIGHT) & (_unusual(measures.shadow, _LEAST_TONE) > RELATIVE)
    soft = (measures.sharpness < BLURRED) & (_unusual(np.log(measures.sharpness + 1.0), _LEAST_LOG) < -RELATIVE)
    for row, x in _at(~constant & ~dark & ~bright & soft, measures.sharpness):
        why = f"sharpness {x:.0f}, the median is {np.median(measures.sharpness):.0f}"
        marks.append(Mark("blurred", row, -float(x), why))
    for row, x in _at(dark, measures.light):
        marks.append(Mark("dark", row, -float(x), f"19 of 20 pixels are no lighter than {x:.0f} of 255"))
    for row, x in _at(bright, measures.shadow):
        marks.append(Mark("bright", row, float(x), f"19 of 20 pixels are no darker than {x:.0f} of 255"))

    sides = measures.sides
    times = np.log(np.maximum(sides, 1) / np.median(sides)) if len(sides) else sides
    odd = (np.abs(times) > np.log(SIZE)) & (np.abs(_unusual(times, _LEAST_LOG)) > RELATIVE)
    for row, x in _at(odd, times):
        width, height = measures.sizes[row]
        words = "larger" if x > 0 else "smaller"
        why = f"{width} × {height} pixels, {np.exp(abs(x)):.1f} times {words} than the median side"
        marks.append(Mark("odd size", row, abs(float(x)), why))
    shapes = measures.shapes
    narrow = (shapes > SHAPE) & (_unusual(np.log(shapes), _LEAST_LOG) > RELATIVE)
    for row, x in _at(narrow, shapes):
        width, height = measures.sizes[row]
        marks.append(Mark("odd shape", row, float(x), f"{width} × {height} pixels, {x:.1f} to 1"))
    return marks


def _sharpness(luminance: np.ndarray) -> float:
    """The variance of luminance, int16 [H, W], after the edge kernel (0 -1 0, -1 4 -1, 0 -1 0), in the sharpest cell.

    Over the whole picture it would say how much of the picture is sharp: little of a small animal before a soft
    background. The variance of the Laplacian as a measure of focus is Pech-Pacheco et al. (2000).
    """
    if min(luminance.shape) < 3:
        return 0.0
    middle = luminance[1:-1, 1:-1]
    edges = 4 * middle - luminance[:-2, 1:-1] - luminance[2:, 1:-1] - luminance[1:-1, :-2] - luminance[1:-1, 2:]
    rows, columns = (max(1, min(_CELLS, side // _LEAST_CELL)) for side in edges.shape)
    height, width = edges.shape[0] // rows, edges.shape[1] // columns
    cells = edges[: rows * height, : columns * width].astype(np.float32)

    def means(values: np.ndarray) -> np.ndarray:
        down = values.reshape(rows, height, columns * width).sum(axis=1)  # first, as pixels lie in memory
        return np.asarray(down.reshape(rows, columns, width).sum(axis=2) / (height * width))

    return float((means(cells * cells) - means(cells) ** 2).max())


def _unusual(values: np.ndarray, least: float) -> np.ndarray:
    """Robust standard deviations, of at least `least`, from the median: float [N]."""
    if not len(values):
        return values
    away = values - np.median(values)
    return np.asarray(away / max(1.4826 * float(np.median(np.abs(away))), least))


def _at(which: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    """The rows where `which`, bool [N], holds, with their values."""
    rows = np.flatnonzero(which)
    return list(zip(rows.tolist(), values[rows].tolist(), strict=True))
