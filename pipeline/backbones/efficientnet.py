"""EfficientNet (Tan & Le, 2019) and EfficientNetV2 (Tan & Le, 2021). Both normalise their input themselves."""

from pipeline.backbones.base import Backbone, application

# The first block of each stage changes the number of channels, so it has no shortcut and no addition; the exception
# is EfficientNetV2-S, -M and -L's first stage.
_SIZES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}
_CUTS = "after the stem, each block and the top: stem_activation, {} ... top_activation"

EFFICIENTNET = [
    Backbone(
        name=f"efficientnet_{variant}",
        family="EfficientNet",
        build=application(f"EfficientNet{variant.upper()}"),
        default_size=default_size,
        min_size=32,
        contract="in-model",
        block_end=r"stem_activation|block\da_project_bn|block\d[b-z]_add|top_activation",
        cuts=_CUTS.format("block1a_project_bn"),
    )
    for variant, default_size in _SIZES.items()
]

_SIZES_V2 = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "s": 384, "m": 480, "l": 480}

EFFICIENTNET_V2 = [
    Backbone(
        name=f"efficientnet_v2_{variant}",
        family="EfficientNetV2",
        build=application(f"EfficientNetV2{variant.upper()}"),
        default_size=default_size,
        min_size=32,
        contract="in-model",
        block_end=rf"stem_activation|{first}|block[2-7]a_project_bn|block\d[b-z]_add|top_activation",
        cuts=_CUTS.format(first),
    )
    for variant, default_size in _SIZES_V2.items()
    for first in ["block1a_project_activation" if variant.startswith("b") else "block1a_add"]
]
