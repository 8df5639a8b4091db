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
        cuts="after each depthwise-separable block: conv_pw_1_relu ... conv_pw_13_relu",
        options=("alpha", "depth_multiplier"),
    ),
]
