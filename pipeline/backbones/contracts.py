"""How each network wants its pixels. No TensorFlow here; `normalise.py` applies a contract.

Mixing contracts up is silent and costs accuracy, so each network names its own and nothing else chooses.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.backbones.base import ContractName


@dataclass(frozen=True)
class Contract:
    """y = (order(x) / divide − mean) / std, in float32, x an RGB picture in 0..255.

    Attributes:
        order: rgb; bgr, the channels reversed; or grey, one channel of luma (ITU-R BT.601).
        divide: what the 0..255 pixels are divided by first.
        mean: subtracted per channel, in `order`, after the division.
        std: divided by per channel, in `order`.
    """

    order: Literal["rgb", "bgr", "grey"]
    divide: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Channels of a normalised picture."""
        return len(self.mean)


# The first four are `keras.applications.imagenet_utils.preprocess_input`'s caffe, tf and torch modes, and its absence.
CONTRACTS: dict[ContractName, Contract] = {
    "caffe": Contract("bgr", 1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)),
    "tf": Contract("rgb", 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0)),
    "torch": Contract("rgb", 255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "in-model": Contract("rgb", 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    # To [-1, 1], near LeCun et al. (1998), who scale so that a picture's mean is about 0 and its variance about 1.
    "grey": Contract("grey", 127.5, mean=(1.0,), std=(1.0,)),
    # Krizhevsky et al. (2012) subtract the training set's mean from raw RGB; these are ImageNet's, per channel.
    "alexnet": Contract("rgb", 1.0, mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0)),
}
