"""Xception (Chollet, 2017): depthwise-separable convolutions with residual connections."""

from pipeline.backbones.base import Backbone, application

XCEPTION = [
    Backbone(
        name="xception",
        family="Xception",
        build=application("Xception"),
        default_size=299,
        min_size=71,
        contract="tf",
        block_end=r"block1_conv2_act|add(_\d+)?|block14_sepconv2_act",
        cuts="after the stem, each residual block and each layer of block 14: block1_conv2_act, add ... add_11",
    ),
]
