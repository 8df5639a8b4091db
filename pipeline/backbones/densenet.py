"""DenseNet (Huang et al., 2017): each layer reads the outputs of all before it in its dense block."""

from pipeline.backbones.base import Backbone, application

DENSENET = [
    Backbone(
        name=f"densenet{depth}",
        family="DenseNet",
        build=application(f"DenseNet{depth}"),
        default_size=224,
        min_size=32,
        contract="torch",
        block_end=r"pool1|pool\d_pool|relu",
        cuts="after each concatenation; blocks end at pool1, pool2_pool, pool3_pool, pool4_pool, relu",
    )
    for depth in (121, 169, 201)
]
