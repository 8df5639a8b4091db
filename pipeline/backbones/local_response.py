"""Local response normalisation, a layer of AlexNet. Needs Keras and TensorFlow: import it where a network is built."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="graft")
class LocalResponseNormalization(keras.layers.Layer):
    """b = a / (k + α Σ a²)^β, the sum over the n maps around each map at the same position.

    Source: Krizhevsky et al. (2012), section 3.3, with its constants n = 5, k = 2, α = 1e-4, β = 0.75.
    Input and output: float32 [N, H, W, C].
    """

    def call(self, x: Any) -> Any:
        return tf.nn.local_response_normalization(x, depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75)
