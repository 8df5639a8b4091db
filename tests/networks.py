"""Small networks and splits for tests that train."""

import hashlib

import numpy as np

from pipeline import model
from pipeline.backbones import BACKBONES, weights
from pipeline.config import BackboneConfig, Cache, Data, Head, Phase
from pipeline.console import Console
from pipeline.feed import Pictures
from pipeline.seeding import reproducible
from pipeline.splits import Split

QUIET = Console(quiet=True)
SIZE = 32
SMALLEST = {
    "LeNet": ("lenet5", {}),
    "AlexNet": ("alexnet", {}),
    "VGG": ("vgg16", {}),
    "ResNet v1": ("resnet50", {}),
    "ResNet v2": ("resnet50_v2", {}),
    "Inception v3": ("inception_v3", {}),
    "Inception-ResNet v2": ("inception_resnet_v2", {}),
    "Xception": ("xception", {}),
    "MobileNet v1": ("mobilenet", {"alpha": 0.25}),
    "MobileNet v2": ("mobilenet_v2", {"alpha": 0.35}),
    "MobileNet v3": ("mobilenet_v3_small", {"alpha": 0.75, "minimalistic": True}),
    "DenseNet": ("densenet121", {}),
    "NASNet": ("nasnet_mobile", {}),
    "EfficientNet": ("efficientnet_b0", {}),
    "EfficientNetV2": ("efficientnet_v2_b0", {}),
    "ConvNeXt": ("convnext_tiny", {}),
}
"""The smallest member of each family of networks, with its options."""


class InMemory:
    """Pixels in memory, uint8 [N, H, W, 3], in place of `Decoded`."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.shape = pixels.shape

    def load(self, positions):
        pass

    def read(self, positions, group):
        return self.pixels[positions]

    def stream(self, positions, batch_size=32):
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            yield batch, self.pixels[batch]


def split(count=24, classes=3, seed=0, size=SIZE, name="train"):
    """Pictures whose class shows in their brightest channel."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.int32)
    pixels = random.integers(0, 120, (count, size, size, 3)).astype(np.uint8)
    pixels[np.arange(count), :, :, labels] += 100
    names = tuple(f"{i}.png" for i in range(count))
    digests = tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels)
    return Split(name, labels, names, digests, np.arange(count), InMemory(pixels))


def pictures(train=None, validation=None, data_=None, cache=None, store=None, seed=0, settings=None):
    """What training reads; activations are computed on the fly unless there is a store."""
    return Pictures(
        train or split(), validation or split(12, seed=1, name="validation"), 3, data_ or data(),
        cache or Cache(use="auto" if store else "off"), store, settings or {}, seed,
    )  # fmt: skip


def network(name="mobilenet", options=None, head=None, classes=3, seed=0, size=SIZE):
    """A network with random weights, the same for the same seed."""
    reproducible(seed)
    return unseeded_network(name, options, head, classes, size)


def unseeded_network(name="mobilenet", options=None, head=None, classes=3, size=SIZE):
    options = {"alpha": 0.25} if options is None and name == "mobilenet" else options or {}
    backbone = weights.load(BackboneConfig(name=name, weights="none", options=options), size, None)
    return model.build(backbone, BACKBONES[name], None, head or Head(), classes)


def phase(**changes):
    return Phase(**{"epochs": 2, "learning_rate": 1e-2, "unfreeze": "head", **changes})


def data(**changes):
    return Data(source="digits", **{"batch_size": 8, **changes})


def values(variables):
    return [variable.numpy().copy() for variable in variables]


def same(before, after):
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
