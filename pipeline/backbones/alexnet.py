"""AlexNet (Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012).

One stream, not split over two GPUs, so the 2nd, 4th and 5th convolution read all maps below them.
"""

from typing import TYPE_CHECKING

from pipeline.backbones.base import Backbone

if TYPE_CHECKING:
    import keras


def _build(input_shape: tuple[int, int, int], weights: None, include_top: bool = False) -> "keras.Model":
    """CONV1 to FC7 and its dropout. Initialised as in section 5 of the paper.

    Weights are drawn from N(0, 0.01²). Biases are 1 in the 2nd, 4th and 5th convolution and the dense layers, which
    gives their rectifiers positive inputs to start with, and 0 elsewhere.
    """
    import keras
    from keras import layers

    from pipeline.backbones.local_response import LocalResponseNormalization

    def conv(maps: int, kernel: int, name: str, bias: float, stride: int = 1, padding: str = "same") -> "layers.Layer":
        return layers.Conv2D(
            maps,
            kernel,
            stride,
            padding,
            activation="relu",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            bias_initializer=keras.initializers.Constant(bias),
            name=name,
        )

    def dense(name: str) -> "layers.Layer":
        return layers.Dense(
            4096,
            activation="relu",
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            bias_initializer="ones",
            name=name,
        )

    image = keras.Input(input_shape)  # [N, 227, 227, 3]
    x = conv(96, 11, "conv1", bias=0, stride=4, padding="valid")(image)  # 55 × 55 × 96
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)  # 27 × 27 × 96
    x = LocalResponseNormalization(name="norm1")(x)
    x = conv(256, 5, "conv2", bias=1)(x)  # 27 × 27 × 256
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)  # 13 × 13 × 256
    x = LocalResponseNormalization(name="norm2")(x)
    x = conv(384, 3, "conv3", bias=0)(x)  # 13 × 13 × 384
    x = conv(384, 3, "conv4", bias=1)(x)
    x = conv(256, 3, "conv5", bias=1)(x)  # 13 × 13 × 256
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)  # 6 × 6 × 256
    x = layers.Flatten(name="flatten")(x)  # 9216
    x = layers.Dropout(0.5, name="drop6")(dense("fc6")(x))
    x = layers.Dropout(0.5, name="drop7")(dense("fc7")(x))
    if include_top:
        x = layers.Dense(1000, name="fc8")(x)
    return keras.Model(image, x, name="alexnet")


ALEXNET = [
    Backbone(
        name="alexnet",
        family="AlexNet",
        build=_build,
        default_size=227,
        min_size=227,
        contract="alexnet",
        block_end=r"norm1|norm2|conv3|conv4|pool5|drop6|drop7",
        cuts="after every layer; blocks end at norm1, norm2, conv3, conv4, pool5, drop6, drop7",
        imagenet=False,
        fixed_size=True,
        paper="60,965,224 in the paper, whose 2nd, 4th and 5th convolution are divided between two GPUs",
    ),
]
