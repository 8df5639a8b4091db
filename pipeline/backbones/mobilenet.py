"""MobileNet v1 (Howard et al., 2017), v2 (Sandler et al., 2018) and v3 (Howard et al., 2019)."""

from pipeline.backbones.base import Backbone, application

MOBILENET = [
    Backbone(
        name="mobilenet",
        family="MobileNet v1",
        build=application("MobileNet"),
        default_size=224,
        min_size=32,
        contract="tf",
        block_end=r"conv1_relu|conv_pw_\d+_relu",
        cuts="after every layer; blocks end at conv1_relu, conv_pw_1_relu ... conv_pw_13_relu",
        options=("alpha", "depth_multiplier"),
    ),
    Backbone(
        name="mobilenet_v2",
        family="MobileNet v2",
        build=application("MobileNetV2"),
        default_size=224,
        min_size=32,
        contract="tf",
        # The blocks that change the number of channels or the resolution have no shortcut, and so no addition.
        block_end=r"Conv1_relu|(expanded_conv|block_(1|3|6|10|13|16))_project_BN|block_\d+_add|out_relu",
        cuts="after each inverted residual block: expanded_conv_project_BN, block_1_project_BN ... out_relu",
        options=("alpha",),
    ),
    Backbone(
        name="mobilenet_v3_small",
        family="MobileNet v3",
        build=application("MobileNetV3Small"),
        default_size=224,
        min_size=32,
        contract="in-model",
        block_end=r"expanded_conv(_[1368])?_project_bn|expanded_conv_\d+_add",
        cuts="after each inverted residual block: expanded_conv_project_bn ... expanded_conv_10_add",
        options=("alpha", "minimalistic"),
    ),
    Backbone(
        name="mobilenet_v3_large",
        family="MobileNet v3",
        build=application("MobileNetV3Large"),
        default_size=224,
        min_size=32,
        contract="in-model",
        block_end=r"expanded_conv_(1|3|6|10|12)_project_bn|expanded_conv(_\d+)?_add",
        cuts="after each inverted residual block: expanded_conv_add ... expanded_conv_14_add",
        options=("alpha", "minimalistic"),
    ),
]
