"""What a backbone is, as a row of the table. No TensorFlow here: configs and listings are checked without it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import keras

ContractName = Literal["caffe", "tf", "torch", "in-model", "grey", "alexnet"]


@dataclass(frozen=True)
class Backbone:
    """One network, to be used without its classification layer.

    Attributes:
        name: as written in a config.
        family: the heading it is listed under.
        build: makes the network. Called as `build(input_shape=(H, W, C), weights=None | "imagenet", **options)`, C the
            contract's channels. Returns a functional `keras.Model` from normalised pixels to feature maps [N, h, w, c]
            or features [N, d]; with `include_top=True` to the classes that it was published for.
        default_size: side of the input picture it was designed for, in pixels.
        min_size: smallest side it accepts, in pixels.
        contract: how pixels are normalised for it, a row of `contracts.CONTRACTS`.
        block_end: a regular expression that fully matches the names of the layers at which a block ends. One tensor
            carries everything above such a layer, so the network can be cut there (but for NASNet, see `cuts`).
        cuts: where it can be cut, in words, for `graft backbones`.
        options: names of the builder's own options.
        imagenet: whether Keras publishes ImageNet weights for it.
        fixed_size: whether only `default_size` is accepted.
        paper: where its paper counts other weights, how many and why, for `graft inspect`.
    """

    name: str
    family: str
    build: "Callable[..., keras.Model]"
    default_size: int
    min_size: int
    contract: ContractName
    block_end: str
    cuts: str
    options: tuple[str, ...] = ()
    imagenet: bool = True
    fixed_size: bool = False
    paper: str = ""


def application(name: str) -> "Callable[..., keras.Model]":
    """A builder for one of `keras.applications`."""

    def build(
        input_shape: tuple[int, int, int], weights: str | None, include_top: bool = False, **options: Any
    ) -> "keras.Model":
        import keras
        from keras.src.backend.common import global_state

        builder = getattr(keras.applications, name)
        # Keras numbers unnamed layers (conv2d_93) by how many the process has made before. Counting from the start
        # gives a layer the same name in every run, so that a config can refer to it.
        counters = global_state.get_global_attribute("object_name_uids")
        global_state.set_global_attribute("object_name_uids", defaultdict(int))
        try:
            return builder(include_top=include_top, weights=weights, input_shape=input_shape, **options)
        finally:
            global_state.set_global_attribute("object_name_uids", counters)

    return build
