"""Labels for pictures on disk, from an exported model."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pipeline.artifacts import read_manifest
from pipeline.errors import DataError
from pipeline.pixels import EXTENSIONS, VERSION, BadImage, PixelSpec, decode

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """One picture's result.

    Attributes:
        path: as given, or found below a folder that was given.
        label: the most probable class; None where the picture could not be used.
        score: its probability, 0 to 1.
        probabilities: of every class, by name.
        error: why the picture could not be used.
    """

    path: str
    label: str | None = None
    score: float | None = None
    probabilities: dict[str, float] | None = None
    error: str | None = None


def pictures(paths: Iterable[Path]) -> list[Path]:
    """The files given, and those with a picture's extension below the folders given, sorted within each folder.

    Raises:
        DataError: a path does not exist, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not below:
                raise DataError(f"{path} holds no picture: no file below it ends in {', '.join(EXTENSIONS)}.")
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"There is no file or folder {path}. Give pictures, or folders of pictures.")
    return found


def predict(export_dir: Path, paths: Iterable[Path]) -> Iterator[Prediction]:
    """Labels pictures, in order, with the model in `export_dir`. A picture that cannot be used does not end it.

    Raises:
        ExportError: `export_dir` is not an exported model.
        DataError: this version decodes pictures differently from the one that made the model.
    """
    manifest = read_manifest(export_dir)
    if manifest.pixels_version != VERSION:
        raise DataError(
            f"{export_dir} was made for pictures decoded by version {manifest.pixels_version} of graft's decoder; this "
            f"is version {VERSION}. Use graft {manifest.code.graft}, or train the model again."
        )
    import tensorflow as tf

    loaded = tf.saved_model.load(str(export_dir))  # Kept: a signature does not keep its model's variables alive.
    label_pixels = loaded.signatures["pixels"]
    remaining = iter(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(remaining, _BATCH)):
            decoded = list(pool.map(lambda path: _decode(path, manifest.pixels), batch))
            readable = [pixels for pixels in decoded if isinstance(pixels, np.ndarray)]
            outputs = iter(
                label_pixels(pixels=tf.constant(np.stack(readable)))["probabilities"].numpy() if readable else ()
            )
            for path, pixels in zip(batch, decoded, strict=True):
                if isinstance(pixels, str):
                    yield Prediction(str(path), error=pixels)
                    continue
                probabilities = dict(zip(manifest.classes, next(outputs).tolist(), strict=True))
                label = max(probabilities, key=probabilities.__getitem__)
                yield Prediction(str(path), label, probabilities[label], probabilities)


def write_csv(predictions: Iterable[Prediction], classes: list[str], out: TextIO) -> None:
    """One line a picture, as soon as it is known: path, label, score, error, then the probability of each class."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "label", "score", "error", *(f"p({name})" for name in classes)])
    for p in predictions:
        shares = [f"{p.probabilities[name]:.6f}" for name in classes] if p.probabilities else [""] * len(classes)
        writer.writerow([p.path, p.label or "", "" if p.score is None else f"{p.score:.6f}", p.error or "", *shares])


def write_jsonl(predictions: Iterable[Prediction], out: TextIO) -> None:
    """One JSON object a picture, as soon as it is known; keys without a value are left out."""
    for prediction in predictions:
        out.write(json.dumps({key: value for key, value in vars(prediction).items() if value is not None}) + "\n")


def _decode(path: Path, spec: PixelSpec) -> Any:
    """Pixels, or in a few words why there are none."""
    try:
        return decode(path.read_bytes(), spec)
    except BadImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
