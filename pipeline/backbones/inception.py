"""Inception v3 (Szegedy et al., 2015) and Inception-ResNet v2 (Szegedy et al., 2016)."""

from pipeline.backbones.base import Backbone, application

INCEPTION = [
    Backbone(
        name="inception_v3",
        family="Inception v3",
        build=application("InceptionV3"),
        default_size=299,
        min_size=75,
        contract="tf",
        block_end=r"max_pooling2d_1|mixed\d+",
        cuts="after every layer of the stem and each mixed block: max_pooling2d_1, mixed0 ... mixed10",
    ),
    Backbone(
        name="inception_resnet_v2",
        family="Inception-ResNet v2",
        build=application("InceptionResNetV2"),
        default_size=299,
        min_size=75,
        contract="tf",
        block_end=r"max_pooling2d_1|mixed_\d[ab]|block\d+_\d+_ac|conv_7b_ac",
        cuts="after every layer of the stem and each block: mixed_5b, block35_1_ac ... block8_9_ac, conv_7b_ac",
    ),
]
