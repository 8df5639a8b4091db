"""LeNet-5 (LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998)."""

from typing import TYPE_CHECKING

from pipeline.backbones.base import Backbone

if TYPE_CHECKING:
    import keras


def _build(input_shape: tuple[int, int, int], weights: None, include_top: bool = False) -> "keras.Model":
    """C1 to F6, section II.B of the paper: its hyperbolic tangent, and subsampling by averaging.

    As everywhere since, the subsampling has no trainable coefficients, the tangent is not stretched, and each map of
    C3 reads all maps of S2.
    """
    import keras
    from keras import layers

    image = keras.Input(input_shape)  # [N, 32, 32, 1]
    x = layers.Conv2D(6, 5, activation="tanh", name="c1")(image)  # 28 · 28 · 6 = 4704 units
    x = layers.AveragePooling2D(2, name="s2")(x)  # 14 · 14 · 6 = 1176
    x = layers.Conv2D(16, 5, activation="tanh", name="c3")(x)  # 10 · 10 · 16 = 1600
    x = layers.AveragePooling2D(2, name="s4")(x)  # 5 · 5 · 16 = 400
    x = layers.Conv2D(120, 5, activation="tanh", name="c5")(x)  # 1 · 1 · 120
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(84, activation="tanh", name="f6")(x)
    if include_top:
        x = layers.Dense(10, name="output")(x)
    return keras.Model(image, x, name="lenet5")


LENET = [
    Backbone(
        name="lenet5",
        family="LeNet",
        build=_build,
        default_size=32,
        min_size=32,
        contract="grey",
        block_end=r"s2|s4|c5|f6",
        cuts="after every layer: c1, s2, c3, s4, c5, flatten, f6",
        imagenet=False,
        fixed_size=True,
        paper="60,000 in the paper: 900 fewer in C3, 44 more in S2 and S4, and none that train in the head",
    ),
]
