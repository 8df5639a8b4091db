"""ConvNeXt (Liu et al., 2022). It normalises its input itself."""

from pipeline.backbones.base import Backbone, application

CONVNEXT = [
    Backbone(
        name=f"convnext_{size}",
        family="ConvNeXt",
        build=application(f"ConvNeXt{builder}"),
        default_size=224,
        min_size=32,
        contract="in-model",
        block_end=rf"convnext_{size}_stem|add(_\d+)?",
        cuts="after the stem, each downsampling and each block's addition: add, add_1, ...",
    )
    for size, builder in (
        ("tiny", "Tiny"),
        ("small", "Small"),
        ("base", "Base"),
        ("large", "Large"),
        ("xlarge", "XLarge"),
    )
]
