"""ResNet v1 (He et al., 2015) and v2, with activation before convolution (He et al., 2016)."""

from pipeline.backbones.base import Backbone, application

_BLOCK_END = r"pool1_pool|conv\d_block\d+_out"
_CUTS = "after the stem and each residual block: pool1_pool, conv2_block1_out ... conv5_block3_out"

RESNET = [
    Backbone(
        name=f"resnet{depth}",
        family="ResNet v1",
        build=application(f"ResNet{depth}"),
        default_size=224,
        min_size=32,
        contract="caffe",
        block_end=_BLOCK_END,
        cuts=_CUTS,
    )
    for depth in (50, 101, 152)
]

RESNET_V2 = [
    Backbone(
        name=f"resnet{depth}_v2",
        family="ResNet v2",
        build=application(f"ResNet{depth}V2"),
        default_size=224,
        min_size=32,
        contract="tf",
        block_end=_BLOCK_END,
        cuts=_CUTS,
    )
    for depth in (50, 101, 152)
]
