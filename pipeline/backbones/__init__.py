"""The table of networks. A new one is a row here, in the file of its family."""

from pipeline.backbones.alexnet import ALEXNET
from pipeline.backbones.base import Backbone
from pipeline.backbones.convnext import CONVNEXT
from pipeline.backbones.densenet import DENSENET
from pipeline.backbones.efficientnet import EFFICIENTNET, EFFICIENTNET_V2
from pipeline.backbones.inception import INCEPTION
from pipeline.backbones.lenet import LENET
from pipeline.backbones.mobilenet import MOBILENET
from pipeline.backbones.nasnet import NASNET
from pipeline.backbones.resnet import RESNET, RESNET_V2
from pipeline.backbones.vgg import VGG
from pipeline.backbones.xception import XCEPTION

# Raised by one whenever a network or layer of this project's own gives other values with the same weights.
VERSION = 1

BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        *LENET,
        *ALEXNET,
        *VGG,
        *RESNET,
        *RESNET_V2,
        *INCEPTION,
        *XCEPTION,
        *MOBILENET,
        *DENSENET,
        *NASNET,
        *EFFICIENTNET,
        *EFFICIENTNET_V2,
        *CONVNEXT,
    )
}
