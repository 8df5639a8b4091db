"""Pixels to a network's input, as a layer, so that it is part of the exported graph. Needs Keras: import it late.

Shape letters: N pictures, H height, W width, C channels (3, or 1 for grey).
"""

from typing import Any

import keras
import numpy as np

from pipeline.backbones.base import ContractName
from pipeline.backbones.contracts import CONTRACTS
from pipeline.pixels import LUMA


@keras.saving.register_keras_serializable(package="graft")
class Normalise(keras.layers.Layer):
    """y = (order(x) / divide − mean) / std: uint8 or float32 [N, H, W, 3], RGB, 0..255 → float32 [N, H, W, C].

    Attributes:
        mean: the subtracted mean, float32 [C] or [H, W, C]: in the contract's channel order and already divided.
        divide, std: the contract's, float32 [] and [C].

    All three are weights that do not train. TensorFlow turns the division by a constant into a multiplication by its
    reciprocal when it compiles a graph, which rounds differently; by a weight it divides, as Keras's own function does.
    """

    def __init__(self, contract: ContractName, mean: Any = None, **kwargs: Any) -> None:
        """
        Args:
            contract: a row of CONTRACTS.
            mean: subtracted in place of the contract's own mean: [3] or [H, W, 3], RGB, 0..255; zeros subtract
                nothing. None keeps the contract's. Its order and scale stay the contract's either way.
        """
        super().__init__(**kwargs)
        self.contract = contract
        self._mean_shape = None if mean is None else list(np.shape(mean))
        row = CONTRACTS[contract]
        ordered = row.mean if mean is None else _order(np.asarray(mean, np.float32), row.order) / np.float32(row.divide)
        self.divide = self._constant("divide", row.divide)
        self.mean = self._constant("mean", ordered)
        self.std = self._constant("std", row.std)

    def call(self, pixels: Any) -> Any:
        x = _order(keras.ops.cast(pixels, "float32"), CONTRACTS[self.contract].order)
        return (x / self.divide - self.mean) / self.std

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "contract": self.contract, "mean_shape": self._mean_shape}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Normalise":
        """A replaced mean starts as zeros here: its values come with the weights."""
        shape = config.pop("mean_shape")
        return cls(mean=None if shape is None else np.zeros(shape, np.float32), **config)

    def _constant(self, name: str, value: Any) -> keras.Variable:
        array = np.asarray(value, np.float32)
        return self.add_weight(array.shape, lambda *_, **__: array, trainable=False, name=name)


def _order(x: Any, order: str) -> Any:
    """RGB [..., 3] to the contract's channels [..., C]; NumPy in, NumPy out."""
    if order == "bgr":
        return x[..., ::-1]
    if order == "grey":
        return sum(weight * x[..., i : i + 1] for i, weight in enumerate(LUMA.tolist()))
    return x
