"""A run that has ended, opened again from its folder: its network, and the pictures it was tested on.

Shape letters: H height, W width.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline import model
from pipeline.artifacts import MODEL, Manifest, read_manifest
from pipeline.backbones import BACKBONES, weights
from pipeline.config import RunConfig
from pipeline.model import Network
from pipeline.pixels import BadImage, decode
from pipeline.sources import open_source


def manifest_of(run_dir: Path) -> Manifest:
    """What the run's own copy of the exported model says of itself. Raises ExportError where the run did not end."""
    return read_manifest(run_dir / MODEL)


def network_of(run_dir: Path, config: RunConfig, classes: int) -> Network:
    """The network as it was when training ended.

    Raises:
        WeightsError: the run's weights are gone or damaged.
    """
    backbone_config = config.backbone.model_copy(update={"weights": str(run_dir / "backbone.weights.h5")})
    backbone = weights.load(backbone_config, config.image_size, run_dir)
    mean = np.load(run_dir / "mean.npy") if (run_dir / "mean.npy").is_file() else None
    network = model.build(backbone, BACKBONES[config.backbone.name], mean, config.head, classes)
    weights.fill(network.head, run_dir / "head.weights.h5", "the head of the run's config")
    return network


def pictures_of(config: RunConfig, manifest: Manifest, digests: Collection[str]) -> dict[str, np.ndarray]:
    """Pictures of a config's data as its network sees them, by the digest of their encoded bytes.

    Args:
        config: whose data is read.
        manifest: how encoded pictures became pixels.
        digests: SHA-256 hex digests of what is wanted.

    Returns:
        uint8 [H, W, 3] in 0..255 of each one that is still in the data, unchanged.

    Raises:
        DataError: there is no such data any more.
    """
    wanted, found = set(digests), {}
    for example in open_source(config.data).examples():
        if wanted <= found.keys():
            break
        try:
            encoded = example.read()
            digest = hashlib.sha256(encoded).hexdigest()
            if digest in wanted and digest not in found:
                found[digest] = decode(encoded, manifest.pixels)
        except (OSError, BadImage):
            continue  # It is not the picture that was tested on.
    return found
