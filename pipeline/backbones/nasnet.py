"""NASNet-A (Zoph et al., 2018)."""

from pipeline.backbones.base import Backbone, application

NASNET = [
    Backbone(
        name=f"nasnet_{size}",
        family="NASNet",
        build=application(f"NASNet{size.capitalize()}"),
        default_size=default_size,
        min_size=32,
        contract="tf",
        # A block is a cell. Each cell reads the two before it, so no single tensor carries everything between cells.
        block_end=r"stem_bn1|(reduction|normal)_concat_\w+",
        cuts="after the stem (stem_bn1) and the last cell only: each cell reads the two before it",
    )
    for size, default_size in (("mobile", 224), ("large", 331))
]
