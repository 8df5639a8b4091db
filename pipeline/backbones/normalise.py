"""Pixels to a network's input, as a layer, so that it is part of the exported graph. Needs Keras: import it late.

Shape letters: N pictures, H height, W width, C channels (3, or 1 for grey).
"""

from typing import Any

import keras
import numpy as np

from pipeline.backbones.base import ContractName
from pipeline.backbones.contracts import CONTRACTS, Contract

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@keras.saving.register_keras_serializable(package="graft")
class Normalise(keras.layers.Layer):  # type: ignore[misc]
    """y = (order(x) / divide − mean) / std: uint8 or float32 [N, H, W, 3], RGB, 0..255 → float32 [N, H, W, C].

    Attributes:
        mean: the subtracted mean, a weight that does not train, float32 [C] or [H, W, C]: in the contract's channel
            order and already divided.
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
        if mean is None:
            value = np.asarray(row.mean, np.float32)
        else:
            value = keras.ops.convert_to_numpy(_order(np.asarray(mean, np.float32), row)) / np.float32(row.divide)
        self.mean = self.add_weight(shape=value.shape, initializer=lambda *_, **__: value, trainable=False, name="mean")

    def call(self, pixels: Any) -> Any:
        row = CONTRACTS[self.contract]
        x = _order(keras.ops.cast(pixels, "float32"), row)
        return (x / row.divide - self.mean) / keras.ops.convert_to_tensor(row.std, "float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "contract": self.contract, "mean_shape": self._mean_shape}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Normalise":
        """A replaced mean starts as zeros here: its values come with the weights."""
        shape = config.pop("mean_shape")
        return cls(mean=None if shape is None else np.zeros(shape, np.float32), **config)


def _order(x: Any, contract: Contract) -> Any:
    """RGB [..., 3] to the contract's channels [..., C]."""
    if contract.order == "bgr":
        return x[..., ::-1]
    if contract.order == "grey":
        return keras.ops.sum(x * keras.ops.convert_to_tensor(_LUMA, "float32"), axis=-1, keepdims=True)
    return x
