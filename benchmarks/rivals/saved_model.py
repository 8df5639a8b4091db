"""An exported model in the hands of a user of LitServe, BentoML or MLflow: bytes to label and probabilities.

All three leave decoding to the user. "pillow" decodes as their own examples do, on a thread per core, and computes the
signature "pixels" on the batch; "graph" leaves that to TensorFlow, and computes "serving_default" from bytes.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

SIZE = (224, 224)


def pixels(data: bytes | Image.Image) -> np.ndarray:
    """uint8 [224, 224, 3]: the middle 7/8 of the shorter side, as "resize to 256, crop 224" is."""
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    return np.asarray(ImageOps.fit(image.convert("RGB"), SIZE, Image.Resampling.BILINEAR, bleed=0.0625))


class SavedModel:
    """The SavedModel at `path`, called with pictures: encoded, or for `decode` "pillow" opened by Pillow as well."""

    def __init__(self, path: Path, decode: str) -> None:
        self._loaded: Any = tf.saved_model.load(str(path))
        self._pool = ThreadPoolExecutor(os.cpu_count()) if decode == "pillow" else None

    def __call__(self, pictures: list[Any]) -> list[dict[str, Any]]:
        if self._pool:
            batch = np.stack(list(self._pool.map(pixels, pictures)))
            outputs = self._loaded.signatures["pixels"](pixels=tf.constant(batch))
        else:
            outputs = self._loaded.signatures["serving_default"](image_bytes=tf.constant(pictures))
        labels, probabilities = outputs["label"].numpy(), outputs["probabilities"].numpy()
        return [
            {"label": label.decode(), "probabilities": row.tolist()}
            for label, row in zip(labels, probabilities, strict=True)
        ]
