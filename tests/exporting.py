"""Exports for tests, without a whole run."""

import io

from PIL import Image

from pipeline import artifacts, export
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
    checks = []

    def describe(version, parity):
        checks.append(parity)
        return Manifest(
            name=name, version=version, created_at="2026-01-01T00:00:00+00:00", classes=list(classes), pixels=spec,
            pixels_version=VERSION, temperature=temperature, config={}, data_digest="", weights_digest="", metrics={},
            parity=parity, code=artifacts.code(), mlflow_run_id=None,
        )  # fmt: skip

    path = export.export(
        model, temperature, classes, spec, test or check_pictures(pictures), name, folder, describe, QUIET
    )
    return path, checks[-1]
