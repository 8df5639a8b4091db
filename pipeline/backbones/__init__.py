"""The table of networks. A new one is a row here, in the file of its family."""

from pipeline.backbones.base import Backbone
from pipeline.backbones.mobilenet import MOBILENET

BACKBONES: dict[str, Backbone] = {backbone.name: backbone for backbone in (*MOBILENET,)}
