"""The whole network: pixels, normalisation, backbone, head, logits; and its division into a frozen and a trained part.

Shape letters: N pictures, H height, W width, D features, C classes.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from pipeline.backbones.base import Backbone
from pipeline.backbones.cuts import blocks, cut_below, split, unfrozen
from pipeline.backbones.normalise import Normalise
from pipeline.config import Head, Phase

_ACTIVATIONS: dict[str, Any] = {
    "relu": keras.layers.ReLU,
    "leaky_relu": lambda: keras.layers.LeakyReLU(negative_slope=0.01),
    "elu": keras.layers.ELU,
    "tanh": lambda: keras.layers.Activation("tanh"),
    "sigmoid": lambda: keras.layers.Activation("sigmoid"),
}
_POOLINGS: dict[str, Any] = {
    "avg": keras.layers.GlobalAveragePooling2D,
    "max": keras.layers.GlobalMaxPooling2D,
    "flatten": keras.layers.Flatten,
}


@dataclass(frozen=True)
class Network:
    """A network and its parts, which share their layers.

    Attributes:
        normalise: pixels to what the backbone expects.
        backbone: normalised pixels to feature maps or features.
        pool: feature maps to features [N, D]; it has no weights.
        head: features to logits.
        model: all four: float32 [N, H, W, 3] in 0..255 to float32 [N, C].
        embedding: the same, giving the features [N, D] that the head takes, and the logits.
        block_end: where the backbone's blocks end, from its row of the table.
        trunks: what `divide` has frozen so far, by the cut below which it lies. Networks under other heads share them.
    """

    normalise: Normalise
    backbone: keras.Model
    pool: keras.Layer
    head: keras.Model
    model: keras.Model
    embedding: keras.Model
    block_end: str
    trunks: dict[str, keras.Model] = field(default_factory=dict)


@dataclass(frozen=True)
class Division:
    """A network divided for one phase. `trained(frozen(pixels))` are the logits.

    Attributes:
        cut: the layer of the backbone, and the pooling where that is frozen too, whose output is the frozen part's;
            None where the first layers already train.
        frozen: normalisation and the layers below the cut; always in inference mode, so that what it gives for a
            picture does not depend on the pictures beside it. None without a cut: the features are the pixels.
        tail: what lies between the cut and the head.
        head: as the network's.
        trained: tail and head in one.
        tail_trains_as_from_scratch: whether the tail's batch normalisation and dropout are in training mode.
        unchanging: every variable that must be bit-identical after the phase.
        learning_rate_scales: the multiple of the learning rate for each of `trained.trainable_variables`, in order:
            1 for the head, `layer_decay` once more for each block below it.
    """

    cut: str | None
    frozen: keras.Model | None
    tail: keras.Model
    head: keras.Model
    trained: keras.Model
    tail_trains_as_from_scratch: bool
    unchanging: list[keras.Variable]
    learning_rate_scales: list[float]

    def training_logits(self, features: Any) -> Any:
        """Features at the cut to logits, float32 [N, C], the head in training mode, the tail in the mode it is to have.

        `trained(features, training=True)` would put both into training mode: Keras hands a call's mode down to every
        layer, whatever the layers were called with when the model was put together.
        """
        return self.head(self.tail(features, training=self.tail_trains_as_from_scratch), training=True)


def build(backbone: keras.Model, row: Backbone, mean: np.ndarray | None, head: Head, classes: int) -> Network:
    """Puts normalisation below a backbone and a new head on top of it.

    Args:
        backbone: built and loaded, from `weights.load`.
        row: the backbone's row of the table.
        mean: what to subtract, in 0..255: float32 [3] or [H, W, 3]; None for the network's own contract.
        head: the layers on top.
        classes: C.
    """
    height, width = backbone.input_shape[1:3]
    pixels = keras.Input((height, width, 3), name="pixels")
    normalise = Normalise(row.contract, mean)
    # Flattening leaves features that are a vector already as they are.
    pooling = head.pooling if len(backbone.output_shape) > 2 else "flatten"
    pool = _POOLINGS[pooling](name=f"{pooling}_pool")
    features = pool(backbone(normalise(pixels)))
    top, model, embedding = _with_head(pixels, features, head, classes)
    return Network(normalise, backbone, pool, top, model, embedding, row.block_end)


def with_head(network: Network, head: Head, classes: int) -> Network:
    """The same network, all its layers but the head's, under a new head of C = `classes` logits.

    The head's own `pooling` is not looked at.
    """
    pixels, features = network.embedding.inputs[0], network.embedding.outputs[0]
    top, model, embedding = _with_head(pixels, features, head, classes)
    return replace(network, head=top, model=model, embedding=embedding)


def check_phases(backbone: keras.Model, row: Backbone, phases: list[Phase]) -> None:
    """Raises ConfigError where a phase names a layer or a number of blocks that the backbone does not have."""
    for phase in phases:
        unfrozen(backbone, row.block_end, phase.unfreeze)


def divide(network: Network, phase: Phase) -> Division:
    """Freezes what a phase freezes, and divides the network at the highest cut below everything that trains.

    Raises:
        ConfigError: `phase.unfreeze` names a layer or a number of blocks that the backbone does not have.
    """
    names = unfrozen(network.backbone, network.block_end, phase.unfreeze)
    for layer in network.backbone.layers:
        layer.trainable = layer.name in set(names)
    cut = cut_below(network.backbone, names)
    frozen = None if cut is None else _trunk(network, cut, pooled=not names)
    if frozen is not None and not names:  # Pooling has nothing to learn: with the whole backbone frozen, it is too.
        cut = f"{cut}, {network.pool.name}"

    features = keras.Input(
        network.model.input_shape[1:] if frozen is None else frozen.output_shape[1:], name="features"
    )
    above = features
    if names:
        _, upper = split(network.backbone, cut)
        above = network.pool(upper(network.normalise(features) if frozen is None else features))
    tail = keras.Model(features, above, name="tail")
    trained = keras.Model(features, network.head(tail(features)), name="trained")

    may_change = {id(variable) for variable in network.backbone.trainable_variables}
    if phase.backbone_mode == "training":
        may_change |= {id(v) for name in names for v in network.backbone.get_layer(name).variables}
    return Division(
        cut=cut,
        frozen=frozen,
        tail=tail,
        head=network.head,
        trained=trained,
        tail_trains_as_from_scratch=phase.backbone_mode == "training",
        unchanging=[v for v in network.normalise.variables + network.backbone.variables if id(v) not in may_change],
        learning_rate_scales=_learning_rate_scales(network, trained, phase.layer_decay or 1.0),
    )


def _trunk(network: Network, cut: str, pooled: bool) -> keras.Model:
    """Pixels, float32 [N, H, W, 3] in 0..255, to the activations at a cut, or to what pooling makes of them."""
    key = f"{cut}, {network.pool.name}" if pooled else cut
    if key not in network.trunks:
        trunk, _ = split(network.backbone, cut)
        assert trunk is not None
        pixels = keras.Input(network.model.input_shape[1:], name="pixels")
        below = trunk(network.normalise(pixels))
        network.trunks[key] = keras.Model(pixels, network.pool(below) if pooled else below, name="frozen")
    return network.trunks[key]


def _with_head(pixels: Any, features: Any, head: Head, classes: int) -> tuple[keras.Model, keras.Model, keras.Model]:
    """A new head on features, and the models to its logits, and to features and logits."""
    top = _head(features.shape[-1], head, classes)
    logits = top(features)
    return top, keras.Model(pixels, logits, name="graft"), keras.Model(pixels, [features, logits])


def _head(width: int, head: Head, classes: int) -> keras.Model:
    features = x = keras.Input((width,), name="features")

    def dense(units: int, name: str) -> keras.layers.Dense:
        return keras.layers.Dense(
            units,
            name=name,
            kernel_initializer=head.initializer,
            kernel_regularizer=keras.regularizers.L2(head.l2) if head.l2 else None,
        )

    for number, units in enumerate(head.hidden_units, start=1):
        if head.dropout:
            x = keras.layers.Dropout(head.dropout)(x)
        x = dense(units, f"hidden_{number}")(x)
        if head.batch_norm:
            x = keras.layers.BatchNormalization()(x)
        x = _ACTIVATIONS[head.activation]()(x)
    if head.dropout:
        x = keras.layers.Dropout(head.dropout)(x)
    return keras.Model(features, dense(classes, "logits")(x), name="head")


def _learning_rate_scales(network: Network, trained: keras.Model, layer_decay: float) -> list[float]:
    depths = {id(variable): 0 for variable in network.head.trainable_variables}
    for depth, block in enumerate(reversed(blocks(network.backbone, network.block_end)), start=1):
        for name in block:
            depths |= {id(variable): depth for variable in network.backbone.get_layer(name).trainable_variables}
    return [layer_decay ** depths[id(variable)] for variable in trained.trainable_variables]
