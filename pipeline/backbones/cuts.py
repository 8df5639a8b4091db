"""Where a network can be cut in two, and which of its layers train. For a functional `keras.Model` as built.

Layers are ordered as data flows, the input at the bottom: each comes after everything that it reads.
"""

import difflib
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipeline.config import Blocks, From, Share, Unfreeze
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import keras


def cut_points(backbone: "keras.Model") -> list[str]:
    """Names of the layers, bottom to top, at which one tensor carries everything above.

    The input is left out, the last layer included. A sum written with `+`, as ConvNeXt's, is an operation without
    weights and not a layer to Keras; the network can be cut there as well.
    """
    operations = backbone.operations
    made_at = {id(tensor): i for i, operation in enumerate(operations) for tensor in _tensors(operation.output)}
    last_read_at = list(range(len(operations)))
    for i, operation in enumerate(operations):
        for tensor in _tensors(operation.input):
            last_read_at[made_at[id(tensor)]] = i
    cuts = []
    furthest = 0  # the last operation that reads anything made below the current one
    for i, operation in enumerate(operations):
        if i > 0 and furthest <= i:
            cuts.append(operation.name)
        furthest = max(furthest, last_read_at[i])
    return cuts


def blocks(backbone: "keras.Model", block_end: str) -> list[list[str]]:
    """Layer names, without the input, grouped bottom to top.

    A block ends at each layer that `block_end` fully matches; layers above the last match join the last block.
    """
    layers = {layer.name for layer in backbone.layers}
    return [[name for name in block if name in layers] for block in block_operations(backbone, block_end)]


def block_operations(backbone: "keras.Model", block_end: str) -> list[list[str]]:
    """As `blocks`, with the names of operations that are no layers to Keras."""
    names = [operation.name for operation in backbone.operations]
    ends = [i + 1 for i, name in enumerate(names) if re.fullmatch(block_end, name)]
    assert ends, f"{block_end} matches no layer of {backbone.name}"
    return [names[a:b] for a, b in pairwise([1, *ends[:-1], len(names)])]


def unfrozen(backbone: "keras.Model", block_end: str, unfreeze: Unfreeze) -> list[str]:
    """Names of the backbone's layers that train, bottom to top: a phase's `unfreeze`, as names.

    Raises:
        ConfigError: there is no such layer, or there are not so many blocks.
    """
    layers = backbone.layers[1:]
    if unfreeze == "head":
        return []
    if unfreeze == "all":
        start = 0
    elif isinstance(unfreeze, Blocks):
        start = _first_of_blocks([len(block) for block in blocks(backbone, block_end)], unfreeze.blocks)
    elif isinstance(unfreeze, From):
        start = _first_named([layer.name for layer in layers], unfreeze.from_)
    else:
        assert isinstance(unfreeze, Share)
        start = first_of_share([bool(layer.weights) for layer in layers], unfreeze.fraction)
    return [layer.name for layer in layers[start:]]


def first_of_share(has_weights: list[bool], fraction: float) -> int:
    """Index of the lowest layer among the topmost `fraction` of those with weights, rounded, at least one."""
    weighted = [i for i, has in enumerate(has_weights) if has]
    return weighted[-max(1, round(fraction * len(weighted)))]


def _first_of_blocks(sizes: list[int], count: int) -> int:
    if count > len(sizes):
        raise ConfigError(
            f"unfreeze: the backbone has {len(sizes)} blocks. Received: blocks: {count}. "
            "Use at most that many, or unfreeze: all. `graft backbones NAME` lists them."
        )
    return sum(sizes[: len(sizes) - count])


def _first_named(names: list[str], name: str) -> int:
    if name in names:
        return names.index(name)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    raise ConfigError(
        f"unfreeze: the backbone has no layer of this name. Received: from: {name}."
        + (f" Close to it: {', '.join(close)}." if close else "")
        + " `graft backbones NAME` lists them."
    )


def cut_below(backbone: "keras.Model", unfrozen_names: list[str]) -> str | None:
    """The topmost cut point with no unfrozen layer at or below it; None where the first layers already train.

    Everything up to it gives the same output for the same picture throughout a phase.
    """
    names = [operation.name for operation in backbone.operations]
    first_unfrozen = min((names.index(name) for name in unfrozen_names), default=len(names))
    frozen = set(names[:first_unfrozen])
    return max((cut for cut in cut_points(backbone) if cut in frozen), key=names.index, default=None)


def split(backbone: "keras.Model", cut: str | None) -> "tuple[keras.Model | None, keras.Model]":
    """The trunk below a cut and the tail above it; both share the backbone's layers and weights.

    Args:
        backbone: the network.
        cut: a cut point; None is the input.

    Returns:
        The trunk, from the backbone's input to the cut tensor; None where the cut is the input.
        The tail, from the cut tensor to the backbone's output; it passes its input through where the cut is the output.
    """
    import keras

    if cut is None:
        return None, backbone
    tensor = next(operation.output for operation in backbone.operations if operation.name == cut)
    trunk = keras.Model(backbone.inputs[0], tensor, name="trunk")
    if tensor is backbone.outputs[0]:
        passed = keras.Input(batch_shape=tensor.shape)
        return trunk, keras.Model(passed, passed, name="tail")
    return trunk, keras.Model(tensor, backbone.outputs[0], name="tail")


def _tensors(structure: Any) -> list[Any]:
    import keras

    return list(keras.tree.flatten(structure))
