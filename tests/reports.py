"""Runs that have ended, made up: what a report is drawn from."""

import hashlib

import numpy as np

from pipeline.artifacts import BackboneIdentity, Code, Epoch, Manifest, Outputs, Parity, PhaseCost, RunRecord
from pipeline.config import RunConfig
from pipeline.evaluate import evaluate
from pipeline.metrics import softmax
from pipeline.pixels import VERSION, PixelSpec
from pipeline.report import Run
from tests.networks import network

CODE = Code(
    graft="1", python="3.11", tensorflow="2.21", keras="3.15", numpy="2", pillow="13", digest="c0de", commit="abc"
)


def history(*epochs_per_phase, rate=1e-3):
    phases = [phase for phase, epochs in enumerate(epochs_per_phase, start=1) for _ in range(epochs)]
    return [
        Epoch(phase, epoch, 1 / epoch, 1 - 0.5 / epoch, 1.2 / epoch, 1 - 0.6 / epoch, rate / phase, 1.5, 160.0)
        for epoch, phase in enumerate(phases, start=1)
    ]


def digest(number):
    return hashlib.sha256(b"%d" % number).hexdigest()


def config(**changes):
    values = {"name": "ants", "data": {"source": "digits"}, "backbone": {"name": "lenet5", "weights": "none"}}
    return RunConfig.model_validate(values | changes)


def ended(
    run_dir, classes=("ants", "bees"), n=200, skill=2.0, epochs=None, mean=None, logits=None, labels=None, **changes
):
    """A run on made-up logits; the higher `skill`, the fewer mistakes. `changes` are the config's."""
    rng = np.random.default_rng(0)
    if logits is None:
        labels = rng.integers(0, len(classes), n)
        logits = rng.normal(size=(n, len(classes)))
        logits[np.arange(n), labels] += skill
    logits, labels = logits.astype(np.float32), labels.astype(np.int32)
    names, digests = tuple(f"{i}.png" for i in range(len(labels))), tuple(digest(i) for i in range(len(labels)))
    scores = evaluate(logits, labels, logits, labels, list(classes))
    settings = config(**changes)
    record = RunRecord(
        name=settings.name, status="finished", run_dir=str(run_dir), started_at="2026-01-01T00:00:00+00:00",
        tracking_uri="sqlite:///mlflow.db", backbone=BackboneIdentity(name="lenet5", options={}),
        export_dir="export/ants/1", data_digest="da7a", seconds={"ingest": 1.0, "train": 2.5},
        phases=[PhaseCost(1, 850, 60_000, 2.5, 1.0, 1234.0, 2000, 1500, 3.5)],
    )  # fmt: skip
    manifest = Manifest(
        name=settings.name, version=0, created_at="2026-01-01T00:00:00+00:00", classes=list(classes),
        pixels=PixelSpec(32, 32, 0.875, 50.0), pixels_version=VERSION, temperature=scores.temperature,
        config=settings.model_dump(mode="json", by_alias=True), data_digest="da7a", weights_digest="3e1645",
        metrics={}, parity=Parity(pictures=1, pixels_largest_difference=0, image_bytes_same_label=1,
        image_bytes_largest_difference=0), code=CODE, mlflow_run_id=None,
    )  # fmt: skip
    outputs = Outputs(tuple(classes), names, digests, labels, logits, digests, labels, logits)
    return Run(run_dir, record, settings, scores, epochs or history(3, 2), outputs, manifest, mean, 620)


def small_network(classes=2):
    return network("lenet5", classes=classes)


def seen(digests):
    """Pictures of noise, for any digests."""
    rng = np.random.default_rng(0)
    return {digest: rng.integers(0, 256, (32, 32, 3), np.uint8) for digest in digests}


def probabilities(run):
    return softmax(run.outputs.logits, run.scores.temperature)
