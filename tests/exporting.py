"""Exports for tests, without a whole run."""

import io
import tempfile
from pathlib import Path

import keras
from PIL import Image

from pipeline import artifacts, export, publish
from pipeline.artifacts import Manifest
from pipeline.pixels import VERSION, PixelSpec
from tests.networks import QUIET


def encoded(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def check_pictures(pictures):
    """A split's pictures, encoded without loss."""
    return export.TestPictures(
        pixels=pictures.images,
        encoded=lambda rows: (encoded(pixels) for pixels in pictures.images(rows)),
        count=len(pictures.labels),
    )


def exported(model, pictures, folder, classes=None, temperature=1.0, name="m", test=None):
    """Exports a model; gives the published folder and what its check found."""
    size = pictures.image_shape[0]
    spec = PixelSpec(size, size, crop=1.0)
    classes = classes or tuple(f"class {i}" for i in range(model.output_shape[-1]))
    home = folder / name
    home.mkdir(exist_ok=True)
    with_features = keras.Model(model.input, [model.layers[-2].output, model.output])
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch)
        parity = export.export(
            with_features, temperature, classes, spec, test or check_pictures(pictures), name, written, QUIET
        )
        Manifest(
            name=name, version=0, created_at="2026-01-01T00:00:00+00:00", classes=list(classes), pixels=spec,
            pixels_version=VERSION, temperature=temperature, config={}, data_digest="", weights_digest="", metrics={},
            parity=parity, code=artifacts.code(), mlflow_run_id=None, run=written.name,
        ).write(written / "manifest.json")  # fmt: skip
        return publish.publish(written, home), parity
