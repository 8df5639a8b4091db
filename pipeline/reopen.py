"""A run that has ended, opened again from its folder."""

from pathlib import Path

import numpy as np

from pipeline import model
from pipeline.artifacts import MODEL, Manifest, read_manifest
from pipeline.backbones import BACKBONES, weights
from pipeline.config import RunConfig
from pipeline.model import Network


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
