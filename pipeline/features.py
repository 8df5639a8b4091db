"""What a network makes of a picture, layer by layer: its first kernels, what they answer, and the maps above them.

Shape letters: H height, W width of a picture; h, w of kernels and maps; K kernels or maps of a layer, k those shown.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from PIL import Image
from scipy.ndimage import correlate

from pipeline import pages
from pipeline.backbones.contracts import CONTRACTS
from pipeline.model import Network
from pipeline.pages import Chart, short
from pipeline.pixels import LUMA, to_bytes

CANONICAL: dict[str, np.ndarray] = {
    "blur": np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 8,
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], np.float32),
    "edge": np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32),
    "Sobel, vertical": np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32),
}
"""The kernels that image processing has always had. They are not flipped, as in the layers of a network."""

MOST_LAYERS = 8
MOST_CHANNELS = 12
MOST_RESPONSES = 10
MOST_KERNELS = 96


@dataclass(frozen=True, eq=False)
class Responses:
    """What kernels answer to one picture.

    Attributes:
        luminance: of the picture, uint8 [H, W].
        canonical: of each of CANONICAL on the luminance, uint8 [H, W].
        channels: of the first layer, the MOST_RESPONSES whose responses vary most over the picture (standard
            deviation), the most varied first: [k].
        learned: their responses, before bias and activation, uint8 [k, h, w].
        count: how many kernels the first layer has.
        kernels: their kernels, as `kernels` gives them, uint8 [k, ...].

    Blur and sharpen give a picture again, in 0..255. What the others answer is grey (128) for 0, lighter above and
    darker below; the 99.5th percentile of the magnitudes, of each canonical answer and of all learned ones together, is
    black or white. So a kernel that hardly answers is seen to.
    """

    luminance: np.ndarray
    canonical: dict[str, np.ndarray]
    channels: list[int]
    learned: np.ndarray
    kernels: np.ndarray
    count: int


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """What one layer makes of one picture.

    Attributes:
        layer: its name.
        shape: of all its maps: (h, w, K).
        channels: those that vary most over the picture (standard deviation), the most varied first: [k].
        pictures: uint8 [k, h, w]: each from its own least value, 0, to its own greatest, 255.
    """

    layer: str
    shape: tuple[int, int, int]
    channels: list[int]
    pictures: np.ndarray


def kernels(network: Network) -> np.ndarray | None:
    """The kernels of the first convolution, as pictures.

    0 is grey (128). All are divided by one number, the 99.5th percentile of their weights' magnitudes, so that one
    outlier does not turn the others grey, and strengths can be compared: a weight as large as that, or larger, is black
    or white in its colour. Three channels are shown as red, green and blue, in whichever order the network reads them.

    Returns:
        uint8 [K, h, w, 3], or [K, h, w] where the network reads grey pictures. None where the first layer that computes
        anything is no convolution.
    """
    first = _first_convolution(network.backbone)
    if first is None:
        return None
    weights = np.moveaxis(first[0].kernel.numpy(), -1, 0)
    if CONTRACTS[network.normalise.contract].order == "bgr":
        weights = weights[..., ::-1]
    return _around_grey(weights if weights.shape[-1] == 3 else weights[..., 0])


def responses(network: Network, image: np.ndarray) -> Responses | None:
    """What the first layer's kernels and the canonical ones answer to a picture.

    Args:
        network: with its weights.
        image: uint8 [H, W, 3], as the network takes it.

    Returns:
        None where `kernels` is.
    """
    first, pictures = _first_convolution(network.backbone), kernels(network)
    if first is None or pictures is None:
        return None
    convolution, read = first
    below = keras.Model(network.backbone.inputs[0], read)
    normal = below(network.normalise(image[None].astype(np.float32)), training=False)
    answers = np.moveaxis(np.asarray(convolution.convolution_op(normal, convolution.kernel))[0], -1, 0)
    channels = _most_varied(answers, MOST_RESPONSES)
    luminance = image.astype(np.float32) @ LUMA
    canonical = {}
    for name, kernel in CANONICAL.items():
        answer = correlate(luminance, kernel, mode="nearest")
        is_picture = abs(kernel.sum() - 1) < 1e-6
        canonical[name] = to_bytes(answer) if is_picture else _around_grey(answer)
    return Responses(
        to_bytes(luminance), canonical, channels, _around_grey(answers[channels]), pictures[channels], len(pictures)
    )


def maps(network: Network, image: np.ndarray) -> list[FeatureMaps]:
    """The feature maps of one picture, from the lowest layer shown to the highest.

    Shown are the ends of the backbone's blocks that still have places, at most MOST_LAYERS of them: the first, the
    last, and evenly between; of each, the MOST_CHANNELS whose values vary most over the picture.

    Args:
        network: with its weights; it is used in inference mode.
        image: uint8 [H, W, 3], as the network takes it.
    """
    backbone = network.backbone
    outputs = {operation.name: operation.output for operation in backbone.operations}
    ends = [name for name in outputs if re.fullmatch(network.block_end, name)]
    placed = [name for name in ends if len(outputs[name].shape) == 4 and min(outputs[name].shape[1:3]) > 1]
    if not placed:
        return []
    shown = [placed[i] for i in sorted(set(np.linspace(0, len(placed) - 1, MOST_LAYERS).round().astype(int)))]
    looked_into = keras.Model(backbone.inputs[0], [outputs[name] for name in shown])
    values = looked_into(network.normalise(image[None].astype(np.float32)), training=False)
    found = []
    for name, value in zip(shown, keras.tree.flatten(values), strict=True):
        all_maps = np.moveaxis(np.asarray(value)[0], -1, 0)
        channels = _most_varied(all_maps, MOST_CHANNELS)
        pictures = np.stack([_stretched(all_maps[channel]) for channel in channels])
        found.append(FeatureMaps(name, (*all_maps.shape[1:], len(all_maps)), channels, pictures))
    return found


# -------------------------------------------------------------------------------------------------------------- charts


def kernel_chart(network: Network) -> Chart | None:
    """The first layer's kernels side by side; the MOST_KERNELS with the greatest norms where there are more."""
    pictures, first = kernels(network), _first_convolution(network.backbone)
    if pictures is None or first is None:
        return None
    weights: np.ndarray = first[0].kernel.numpy()
    norms = np.square(weights).sum(axis=(0, 1, 2))
    chosen = np.sort(np.argsort(-norms, kind="stable")[:MOST_KERNELS])
    columns = min(len(chosen), 16)
    rows = -(-len(chosen) // columns)
    figure = pages.figure(7.5, 0.5 + 7.3 * rows / columns)
    size = "×".join(map(str, pictures.shape[1:3]))
    what = f"The {len(pictures)} kernels of {short(first[0].name)}, {size}"
    if len(chosen) < len(pictures):
        what = f"{len(chosen)} of the {len(pictures)} kernels of {short(first[0].name)}, {size}"
    _show(figure.subplots(), _mosaic([_tile(picture, 64) for picture in pictures[chosen]], columns), what)
    return Chart(
        figure,
        "What the first layer looks for. Grey is a weight of 0; lighter and darker are positive and negative ones, in "
        "colour where the red, green and blue weights differ. A trained network has edges, bars and spots of colour; "
        "kernels that look like noise have hardly been trained.",
        f"{what}, shown as small pictures.",
    )


def response_chart(network: Network, image: np.ndarray) -> Chart | None:
    """A picture, what the canonical kernels answer to it, and the strongest answers of the first layer's kernels."""
    found = responses(network, image)
    if found is None:
        return None
    named = [("luminance", _tile(found.luminance, 192))]
    for name, answer in found.canonical.items():
        kernel = CANONICAL[name]
        named.append((name, _with_kernel(answer, _around_grey(kernel))))
    for channel, answer, kernel in zip(found.channels, found.learned, found.kernels, strict=True):
        named.append((f"kernel {channel}", _with_kernel(answer, kernel)))
    figure = pages.figure(10, 0.25 + 2.2 * -(-len(named) // 5))
    all_axes = figure.subplots(-(-len(named) // 5), 5, squeeze=False).ravel()
    for axes in all_axes[len(named) :]:
        axes.axis("off")
    for axes, (name, tile) in zip(all_axes, named, strict=False):
        _show(axes, tile, name)
    return Chart(
        figure,
        "The first row: the picture without its colours, and what the kernels of image processing answer to it. Below: "
        f"the first layer's kernels whose answers vary most over this picture, {len(found.channels)} of "
        f"{found.count}, before bias and activation. Each has its kernel in the corner; grey is no "
        "answer, lighter a positive and darker a negative one.",
        f"One picture seen through {', '.join(CANONICAL)} and through the first layer's kernels "
        f"{', '.join(map(str, found.channels))}.",
    )


def maps_chart(network: Network, image: np.ndarray) -> Chart | None:
    """A row of feature maps for each layer shown, the lowest first; None where no layer shown has places."""
    found = maps(network, image)
    if not found:
        return None
    figure = pages.figure(10, 1.12 * len(found) + 0.1)
    for axes, layer in zip(figure.subplots(len(found), 1, squeeze=False).ravel(), found, strict=True):
        height, width, count = layer.shape
        blank = [np.zeros((80, 80, 4), np.uint8)] * (MOST_CHANNELS - len(layer.pictures))
        row = [*(_tile(picture, 80) for picture in layer.pictures), *blank]
        what = f"{short(layer.layer, 32)}: {height}×{width}, {len(layer.channels)} of {count:,} maps"
        _show(axes, _mosaic(row, MOST_CHANNELS), what)
    return Chart(
        figure,
        "One picture, layer by layer, the lowest first: in each row, the maps that vary most over it, each from its "
        "own least value, black, to its own greatest, white. Lower layers keep the picture and answer to edges and "
        "surfaces; the further up, the coarser the maps, and the fewer the things that each answers to.",
        f"Feature maps of one picture in {len(found)} layers, from {found[0].layer} with "
        f"{found[0].shape[0]}×{found[0].shape[1]} places to {found[-1].layer} with "
        f"{found[-1].shape[0]}×{found[-1].shape[1]}.",
    )


def _show(axes: Any, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, fontsize=9, fontweight="normal", pad=4)
    axes.axis("off")


def _tile(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h, w] or [h, w, 3] to [side, side, 4]: places stay squares where they are made larger."""
    resampling = Image.Resampling.NEAREST if max(picture.shape[:2]) < side else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize((side, side), resampling).convert("RGBA"))


def _with_kernel(answer: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """An answer with its kernel in the corner, framed: uint8 [h, w] and [h, w] or [h, w, 3] to [S, S, 4]."""
    tile = _tile(answer, 192).copy()
    tile[:54, :54] = 255
    tile[:52, :52] = _tile(kernel, 52)
    return tile


def _mosaic(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Tiles, uint8 [S, S, 4], in rows, with clear gaps between them: uint8 [..., ..., 4]."""
    side = len(tiles[0])
    gap = side // 12
    rows = -(-len(tiles) // columns)
    mosaic = np.zeros((rows * (side + gap) - gap, columns * (side + gap) - gap, 4), np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (side + gap) * (place // columns), (side + gap) * (place % columns)
        mosaic[top : top + side, left : left + side] = tile
    return mosaic


# --------------------------------------------------------------------------------------------------------------- values


def _first_convolution(backbone: keras.Model) -> tuple[keras.layers.Conv2D, Any] | None:
    """The convolution that reads the pixels, and the tensor it reads; None where something else does."""
    before = keras.layers.InputLayer | keras.layers.ZeroPadding2D | keras.layers.Rescaling | keras.layers.Normalization
    for operation in backbone.operations:
        # ConvNeXt's stem is a model in the model.
        first = operation.layers[0] if isinstance(operation, keras.Sequential) else operation
        if isinstance(first, keras.layers.Conv2D):
            return first, operation.input
        if not isinstance(first, before):
            break
    return None


def _most_varied(all_maps: np.ndarray, most: int) -> list[int]:
    """Of [K, h, w], the maps with the greatest standard deviations; the lower number first where they are equal."""
    order = np.argsort(-all_maps.std(axis=(1, 2)), kind="stable")
    return [int(channel) for channel in order[:most]]


def _around_grey(values: np.ndarray) -> np.ndarray:
    """uint8: 0 to 128, and the 99.5th percentile of the magnitudes, or what lies beyond, to 255 or 1."""
    greatest = np.quantile(np.abs(values), 0.995)
    return to_bytes(128 + 127 * np.clip(values / max(greatest, 1e-30), -1, 1))


def _stretched(values: np.ndarray) -> np.ndarray:
    """uint8: the least to 0 and the greatest to 255; 0 where all are the same."""
    low, high = values.min(), values.max()
    return to_bytes(255 * (values - low) / max(high - low, 1e-30))
