"""VGG-16 and VGG-19 (Simonyan & Zisserman, 2015): 3×3 convolutions only."""

from pipeline.backbones.base import Backbone, application

VGG = [
    Backbone(
        name=f"vgg{depth}",
        family="VGG",
        build=application(f"VGG{depth}"),
        default_size=224,
        min_size=32,
        contract="caffe",
        block_end=r"block\d_pool",
        cuts="after every layer; blocks end at block1_pool ... block5_pool",
    )
    for depth in (16, 19)
]
