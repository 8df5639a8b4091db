"""What a network is made of, in numbers: what it puts out, what it sees, and what it costs. No weights are read.

Three sizes matter: units, weights and connections. They are counted for one picture. Shape letters: H height, W width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import reduce
from math import prod
from operator import add
from typing import Any

import keras
import numpy as np

from pipeline import model
from pipeline.backbones import BACKBONES, cuts, weights
from pipeline.config import SGD, Adam, AdamW, Phase, RMSprop, RunConfig
from pipeline.receptive import Window, padding_before, union

# Each kind of layer, by the name of its class, which Keras's layers share with its operations (a sum written with +).
KINDS = {
    "Conv2D": "convolution",
    "DepthwiseConv2D": "convolution",
    "SeparableConv2D": "convolution",
    "Conv2DTranspose": "convolution",
    "Dense": "dense",
    "MaxPooling2D": "pooling",
    "AveragePooling2D": "pooling",
    "GlobalMaxPooling2D": "pooling",
    "GlobalAveragePooling2D": "pooling",
    "BatchNormalization": "normalisation",
    "LayerNormalization": "normalisation",
    "LocalResponseNormalization": "normalisation",
    "Normalization": "normalisation",
    "Rescaling": "normalisation",
    "LayerScale": "normalisation",
    "Activation": "activation",
    "ReLU": "activation",
    "LeakyReLU": "activation",
    "ELU": "activation",
    "Add": "other",
    "Multiply": "other",
    "Concatenate": "other",
    "CustomScaleLayer": "other",
    "ZeroPadding2D": "other",
    "Cropping2D": "other",
    "Dropout": "other",
    "Flatten": "other",
    "Reshape": "other",
}
# They hand on the numbers they are given, in inference mode.
_NO_UNITS = ("Flatten", "Reshape", "Dropout")

FLOAT = 4
"""Bytes of a number in training."""


@dataclass(frozen=True)
class Sizes:
    """Of a layer, or the sum of several layers'.

    Attributes:
        units: numbers that it puts out. Layers that hand on the numbers they are given have none.
        kept: those of its units that are stored until the gradient comes back: all, where it or anything below trains.
        weights: all of them, biases and moving averages included.
        trainable: those that train.
        connections: each time a weight or bias of a convolution or dense layer is used; padding counts.
        multiply_adds: of the forward pass: one for each connection that is not a bias.
        step_multiply_adds: in a training step: one more for each weight's gradient, where it trains, and one more for
            the input's, where anything below trains.
    """

    units: int = 0
    kept: int = 0
    weights: int = 0
    trainable: int = 0
    connections: int = 0
    multiply_adds: int = 0
    step_multiply_adds: int = 0

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Sizes)))


@dataclass(frozen=True)
class Layer:
    """One layer, or an operation without weights, of a network.

    Attributes:
        name: in the network.
        operation: what of the network it is in: itself, or the model inside the network that it belongs to.
        layer: the name of its class, e.g. Conv2D.
        kind: convolution, dense, pooling, normalisation, activation or other. A dense layer over a map of features is
            a convolution with a 1×1 kernel.
        output: the shape for one picture: (H, W, features) or (features,).
        windows: what a unit sees along H and W by way of kernels and pooling windows; None for units without a place.
        sees_all: whether it sees the whole picture as well: units without a place do, and so does whatever reads them,
            such as maps that squeeze-and-excitation scales.
        sizes: for one picture.
    """

    name: str
    operation: str
    layer: str
    kind: str
    output: tuple[int, ...]
    windows: tuple[Window, Window] | None
    sees_all: bool
    sizes: Sizes

    @property
    def receptive_field(self) -> tuple[int, int] | None:
        """Height and width in pixels, as far as it reaches beyond the picture's border too; None: the whole picture."""
        return None if self.windows is None else (self.windows[0].size, self.windows[1].size)

    @property
    def stride(self) -> tuple[float, float] | None:
        """How far apart the fields of neighbouring units are, in pixels."""
        return None if self.windows is None else (float(self.windows[0].stride), float(self.windows[1].stride))


@dataclass(frozen=True)
class Memory:
    """What a training step keeps in memory, in bytes, with 32-bit numbers.

    Attributes:
        activations: what is fed to the part that trains, and what its layers keep for the gradient.
        weights: of all layers, frozen ones too.
        gradients: one number for each weight that trains.
        optimizer: its numbers for each weight that trains, such as momentum.
    """

    activations: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.activations + self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Step:
    """How a network trains in one phase.

    Attributes:
        unfreeze: what trains, as in a config.
        optimizer: its name.
        slots: numbers that the optimizer keeps for each weight that trains, an average of it (ema) included.
        layers: all of the network, with what trains in this phase.
        cut: the layer at whose output the network is divided; None where the first layers already train.
        below: how many of `layers` lie below the cut.
        fed: the shape of one picture at the cut: what the part that trains reads.
        stored_bytes: what the activation store keeps for one picture; None without a cut, or with `cache: off`.
    """

    unfreeze: str
    optimizer: str
    slots: int
    layers: tuple[Layer, ...]
    cut: str | None
    below: int
    fed: tuple[int, ...]
    stored_bytes: int | None

    @property
    def frozen(self) -> Sizes:
        """Of the part below the cut."""
        return total(self.layers[: self.below])

    @property
    def trained(self) -> Sizes:
        """Of the part above the cut."""
        return total(self.layers[self.below :])

    def memory(self, batch_size: int) -> Memory:
        """Of a step on so many pictures."""
        sizes = total(self.layers)
        return Memory(
            activations=FLOAT * batch_size * (prod(self.fed) + sizes.kept),
            weights=FLOAT * sizes.weights,
            gradients=FLOAT * sizes.trainable,
            optimizer=FLOAT * sizes.trainable * self.slots,
        )

    def memory_of(self, layers: Iterable[Layer], batch_size: int) -> int:
        """The share of some layers in it, in bytes."""
        sizes = total(layers)
        return FLOAT * (batch_size * sizes.kept + sizes.weights + sizes.trainable * (1 + self.slots))


@dataclass(frozen=True)
class Published:
    """A network as it was published, at its own size.

    Attributes:
        classes: how many it tells apart.
        weights: all of them, its head's included.
        paper: where its paper counts otherwise, how many and why.
    """

    classes: int
    weights: int
    paper: str


@dataclass(frozen=True)
class Inspection:
    """A network and how it trains.

    Attributes:
        name: of the backbone.
        options: of its builder.
        input: the shape of one picture: (H, W, channels).
        classes: how many the head tells apart; None without a head.
        batch_size: pictures in a training step.
        blocks: the name of each block and its layers, bottom to top; with a head it is the last one.
        steps: one for each phase; a backbone by itself trains whole, under Adam.
        published: of a backbone by itself.
    """

    name: str
    options: dict[str, Any]
    input: tuple[int, ...]
    classes: int | None
    batch_size: int
    blocks: tuple[tuple[str, tuple[Layer, ...]], ...]
    steps: tuple[Step, ...]
    published: Published | None = None

    @property
    def title(self) -> str:
        """E.g. "mobilenet alpha=0.25 with a head for 2 classes"."""
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        head = "without a head" if self.classes is None else f"with a head for {self.classes} classes"
        return f"{self.name}{options} {head}"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All of them, bottom to top, the head's last, as they are in the last phase."""
        return self.steps[-1].layers


def total(layers: Iterable[Layer]) -> Sizes:
    """The sum of their sizes."""
    return reduce(add, (layer.sizes for layer in layers), Sizes())


def by_kind(layers: Iterable[Layer]) -> dict[str, Sizes]:
    """The sum of the sizes of each kind of layer that has any units, in the order of KINDS."""
    layers = tuple(layers)
    sums = {kind: total(layer for layer in layers if layer.kind == kind) for kind in dict.fromkeys(KINDS.values())}
    return {kind: sizes for kind, sizes in sums.items() if sizes.units}


# ------------------------------------------------------------------------------------------------------ whole networks


def of_backbone(name: str, image_size: int, batch_size: int) -> Inspection:
    """A row of the table of networks, without a head, all of it training under Adam.

    Args:
        name: of the row.
        image_size: side of the picture in pixels, one that the network accepts.
        batch_size: pictures in a training step.
    """
    backbone = weights.outline(name, image_size)
    layers = inspect(backbone)
    shape = backbone.input_shape[1:]
    step = Step("all", "adam", _slots(Adam()), layers, cut=None, below=0, fed=shape, stored_bytes=None)
    whole = weights.published(name)
    published = Published(whole.output_shape[-1], whole.count_params(), BACKBONES[name].paper)
    return Inspection(name, {}, shape, None, batch_size, _blocks(name, backbone, layers), (step,), published)


def of_config(config: RunConfig, classes: int, batch_size: int) -> Inspection:
    """A config's network and its phases. Normalisation, which is arithmetic on pixels, is left out.

    Args:
        config: of a run.
        classes: how many there are in its data.
        batch_size: pictures in a training step.

    Raises:
        ConfigError: the network cannot be built with these options, or a phase unfreezes what it does not have.
    """
    row = BACKBONES[config.backbone.name]
    backbone = weights.outline(row.name, config.image_size, **config.backbone.options)
    network = model.build(backbone, row, None, config.head, classes)
    steps = tuple(_step(network, phase, config) for phase in config.phases)
    layers = steps[-1].layers
    head = len(inspect(network.head)) + 1  # with the pooling
    blocks = (*_blocks(row.name, backbone, layers[:-head]), ("head", layers[-head:]))
    options = dict(config.backbone.options)
    return Inspection(row.name, options, backbone.input_shape[1:], classes, batch_size, blocks, steps)


def _step(network: model.Network, phase: Phase, config: RunConfig) -> Step:
    division = model.divide(network, phase)
    backbone = inspect(network.backbone)
    reached = total(backbone).trainable > 0
    pool = _layer(network.pool, network.pool.name, [_Seen(backbone[-1].windows, backbone[-1].sees_all, reached)])
    layers = (*backbone, pool, *inspect(network.head, reached))
    fed = division.trained.input_shape[1:]
    stored = None
    if division.frozen is None:
        below = 0
    else:
        stored = prod(fed) * np.dtype(config.cache.dtype).itemsize if config.cache.use != "off" else None
        below = len(backbone) + 1
        if phase.unfreeze != "head":
            below = max(i for i, layer in enumerate(backbone) if layer.operation == division.cut) + 1
    slots = _slots(phase.optimizer) + (phase.ema is not None)
    name = phase.optimizer.name
    return Step(phase.trains, name, slots, layers, division.cut, below, fed, stored)


def _blocks(name: str, backbone: keras.Model, layers: tuple[Layer, ...]) -> tuple[tuple[str, tuple[Layer, ...]], ...]:
    """Each is named by the layer that it ends in."""
    grouped = cuts.block_operations(backbone, BACKBONES[name].block_end)
    named = ((operations[-1], set(operations)) for operations in grouped)
    return tuple((end, tuple(layer for layer in layers if layer.operation in inside)) for end, inside in named)


def _slots(optimizer: SGD | Adam | AdamW | RMSprop) -> int:
    match optimizer:
        case SGD(momentum=momentum):
            return int(momentum > 0)
        case RMSprop(momentum=momentum):
            return 1 + (momentum > 0)
        case Adam() | AdamW():
            return 2


# -------------------------------------------------------------------------------------------------------------- layers


def inspect(network: keras.Model, fed_trains: bool = False) -> tuple[Layer, ...]:
    """The layers of a functional network, as data flows, models inside of it taken apart.

    Args:
        network: each of its layers has one place in it. Input: [N, H, W, channels], or features [N, D], whose units
            have no place. Its `trainable` flags say what trains.
        fed_trains: whether anything trains below its input.
    """
    has_places = len(network.inputs[0].shape) == 4
    seen = _Seen((Window(), Window()) if has_places else None, not has_places, fed_trains)
    return tuple(layer for layer, _ in _walk(network, [seen], None))


@dataclass(frozen=True)
class _Seen:
    """What is known of a tensor: its windows, whether it sees everything, whether anything at or below it trains."""

    windows: tuple[Window, Window] | None
    sees_all: bool
    reached: bool


def _walk(network: keras.Model, inputs: list[_Seen], operation: str | None) -> Iterator[tuple[Layer, _Seen]]:
    """Its layers, and what is known of their outputs; the last one's is the network's."""
    seen = dict(zip(map(id, network.inputs), inputs, strict=True))
    for part in network.layers if isinstance(network, keras.Sequential) else network.operations:
        if isinstance(part, keras.layers.InputLayer):
            continue
        below = [seen[id(tensor)] for tensor in keras.tree.flatten(part.input)]
        if isinstance(part, keras.Model):
            for layer, above in _walk(part, below, operation or part.name):
                yield layer, above
        else:
            layer = _layer(part, operation or part.name, below)
            above = _Seen(layer.windows, layer.sees_all, _reached(part, below))
            yield layer, above
        seen[id(part.output)] = above


def _layer(part: Any, operation: str, below: list[_Seen]) -> Layer:
    kind = KINDS.get(type(part).__name__)
    assert kind, f"inspection knows no layer of kind {type(part).__name__}: say in KINDS and `_windows` what it does"
    output = tuple(part.output.shape[1:])
    if kind == "dense" and len(output) > 1:
        kind = "convolution"
    windows = _windows(part, below)
    sees_all = windows is None or any(seen.sees_all for seen in below)
    return Layer(part.name, operation, type(part).__name__, kind, output, windows, sees_all, _sizes(part, kind, below))


def _reached(part: Any, below: list[_Seen]) -> bool:
    return any(seen.reached for seen in below) or bool(getattr(part, "trainable_weights", ()))


def _windows(part: Any, below: list[_Seen]) -> tuple[Window, Window] | None:
    """What a unit of its output sees; None where units have no place, or see everything."""
    # What has no place is spread over all places.
    placed = [
        (tensor.shape[1:3], seen.windows)
        for tensor, seen in zip(keras.tree.flatten(part.input), below, strict=True)
        if seen.windows is not None
    ]
    if len(part.output.shape) != 4 or not placed or type(part).__name__.startswith("Global"):
        return None
    size = placed[0][0]
    height, width = (union([windows[axis] for _, windows in placed]) for axis in (0, 1))
    return _through(part, 0, height, size[0]), _through(part, 1, width, size[1])


def _through(part: Any, axis: int, window: Window, size: int) -> Window:
    """The window above a layer along an axis of so many units."""
    match type(part).__name__:
        case "Conv2D" | "DepthwiseConv2D" | "SeparableConv2D":
            kernel, stride, dilation = part.kernel_size[axis], part.strides[axis], part.dilation_rate[axis]
        case "MaxPooling2D" | "AveragePooling2D":
            kernel, stride, dilation = part.pool_size[axis], part.strides[axis], 1
        case "Conv2DTranspose":
            kernel, stride, dilation = part.kernel_size[axis], part.strides[axis], part.dilation_rate[axis]
            cropped = max(dilation * (kernel - 1) + 1 - stride, 0) // 2 if part.padding == "same" else 0
            return window.through_transposed(kernel, stride, dilation, cropped)
        case "ZeroPadding2D":
            return window.through(1, padding=part.padding[axis][0])
        case "Cropping2D":
            return window.through(1, padding=-part.cropping[axis][0])
        case _:
            return window
    return window.through(kernel, stride, dilation, padding_before(part.padding, size, kernel, stride, dilation))


def _sizes(part: Any, kind: str, below: list[_Seen]) -> Sizes:
    """For one picture."""
    name = type(part).__name__
    handed_on = name in _NO_UNITS or (name == "Activation" and part.activation is keras.activations.linear)
    units = 0 if handed_on else prod(part.output.shape[1:])
    if not isinstance(part, keras.Layer):
        return Sizes(units, kept=units * any(seen.reached for seen in below))
    trainable = sum(prod(weight.shape) for weight in part.trainable_weights)
    connections = multiply_adds = 0
    if kind in ("convolution", "dense"):
        bias = 0 if part.bias is None else prod(part.bias.shape)
        # Every weight is used once at each place of the output; a transposed convolution's at each place of the input.
        places = prod(part.output.shape[1:-1])
        multiply_adds = (part.count_params() - bias) * (
            prod(part.input.shape[1:-1]) if name == "Conv2DTranspose" else places
        )
        connections = multiply_adds + bias * places
    return Sizes(
        units,
        kept=units * _reached(part, below),
        weights=part.count_params(),
        trainable=trainable,
        connections=connections,
        multiply_adds=multiply_adds,
        step_multiply_adds=multiply_adds * (1 + (trainable > 0) + any(seen.reached for seen in below)),
    )
