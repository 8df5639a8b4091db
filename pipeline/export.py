"""The trained network as a SavedModel that TensorFlow Serving reads, checked against the one in memory.

Shape letters: N pictures, H height, W width, C classes.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from pipeline import graph_pixels
from pipeline.artifacts import Parity
from pipeline.console import Console
from pipeline.errors import ExportError
from pipeline.pixels import PixelSpec
from pipeline.splits import Splits

PIXELS_TOLERANCE = 1e-5
SAME_LABEL_SHARE = 0.99
# Two labels whose probabilities are this close are a tie, which a rounding decides. In a small test split, one would
# otherwise fail the run.
TIE = 0.01
WARMUP_PICTURES = 8
REFERENCE = "assets.extra/reference.npz"
REFERENCE_PICTURES = 2000
_BATCH = 32


@dataclass(frozen=True)
class TestPictures:
    """The pictures the exported model is checked on.

    Attributes:
        pixels: from row numbers, int64 [n], to uint8 [n, H, W, 3].
        encoded: from row numbers to the encoded files' bytes.
        count: N.
    """

    pixels: Callable[[np.ndarray], np.ndarray]
    encoded: Callable[[np.ndarray], Iterator[bytes]]
    count: int

    @classmethod
    def of(cls, splits: Splits) -> "TestPictures":
        """A run's test split."""
        return cls(splits.test.images, lambda rows: splits.encoded(splits.test, rows), len(splits.test.labels))


def export(
    model: keras.Model,
    temperature: float,
    classes: tuple[str, ...],
    spec: PixelSpec,
    test: TestPictures,
    name: str,
    path: Path,
    console: Console,
) -> Parity:
    """Writes a model as a SavedModel and checks it. `publish` is what puts it where servers read.

    Args:
        model: float32 [N, H, W, 3] in 0..255 to features, float32 [N, D], and logits, float32 [N, C].
        temperature: divides the logits.
        classes: C names, in the order of the logits.
        spec: how encoded pictures become pixels.
        test: what the check uses; some of it becomes TensorFlow Serving's warm-up records.
        name: the model's name.
        path: the folder to make. What is there already is replaced.
        console: gets a bar.

    Returns:
        How the model read back agrees with the one in memory.

    Raises:
        ExportError: it does not agree.
    """
    shutil.rmtree(path, ignore_errors=True)
    _write(model, temperature, classes, spec, path)
    loaded = tf.saved_model.load(str(path))
    _write_warmup(loaded.signatures, path, name, test)
    parity = _check(model, temperature, classes, loaded.signatures, test, console)
    (path / "labels.txt").write_text("".join(f"{label}\n" for label in classes), encoding="utf-8")
    return parity


def write_reference(model: keras.Model, temperature: float, splits: Splits, batch_size: int, path: Path) -> None:
    """Writes what the model makes of the data it comes from: what `drift` compares the endpoint's pictures with.

    Few training pictures are among them, for they are decoded for this alone. Which ones follows from their content.

    Args:
        model, temperature: as in `export`.
        splits: the run's pictures.
        batch_size: of the forward pass.
        path: the exported model's folder. It gets `assets.extra/reference.npz`: `embeddings` float16 [M, D],
            `probabilities` float32 [M, C], and `split` uint8 [M]: 0 for train, 1 for validation, 2 for test; M is at
            most 2000.
    """
    limits = {"train": REFERENCE_PICTURES // 4, "validation": REFERENCE_PICTURES // 4, "test": REFERENCE_PICTURES // 2}
    features, scores, which = [], [], []
    for number, split in enumerate(splits.all):
        rows = np.sort(np.argsort(split.digests, kind="stable")[: limits[split.name]])
        for _, images in split.stream(rows, batch_size):
            embeddings, logits = model(tf.cast(images, tf.float32), training=False)
            features.append(embeddings.numpy().clip(-65504, 65504).astype(np.float16))
            scores.append(probabilities(logits, temperature).numpy())
            which.append(np.full(len(images), number, np.uint8))
    np.savez_compressed(
        path / REFERENCE,
        embeddings=np.concatenate(features), probabilities=np.concatenate(scores), split=np.concatenate(which),
    )  # fmt: skip


def probabilities(logits: Any, temperature: float) -> tf.Tensor:
    """float32 [N, C]: the softmax of logits divided by the temperature."""
    return tf.nn.softmax(tf.cast(logits, tf.float32) / temperature)


def _write(model: keras.Model, temperature: float, classes: tuple[str, ...], spec: PixelSpec, path: Path) -> None:
    labels = tf.constant(classes)

    def embedding(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        features, logits = model(tf.cast(pixels, tf.float32), training=False)
        scores = probabilities(logits, temperature)
        return {
            "probabilities": scores,
            "label": tf.gather(labels, tf.argmax(scores, axis=-1)),
            "score": tf.reduce_max(scores, axis=-1),
            "embedding": features,
        }

    def pixels(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        answer = embedding(pixels)
        del answer["embedding"]
        return answer

    def image_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.device("/cpu:0"):  # String operations and decoders have no GPU kernels.
            decoded = tf.map_fn(
                lambda data: graph_pixels.decode(data, spec),
                image_bytes,
                fn_output_signature=tf.TensorSpec([spec.height, spec.width, 3], tf.uint8),
            )
        return pixels(decoded)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", image_bytes, [tf.TensorSpec([None], tf.string, name="image_bytes")])
    shape = [None, spec.height, spec.width, 3]
    archive.add_endpoint("pixels", pixels, [tf.TensorSpec(shape, tf.uint8, name="pixels")])
    archive.add_endpoint("embedding", embedding, [tf.TensorSpec(shape, tf.uint8, name="pixels")])
    archive.write_out(str(path), verbose=False)


def _write_warmup(signatures: Any, path: Path, name: str, test: TestPictures) -> None:
    """TensorFlow Serving replays these before it serves a version, so that no user waits for the first call.

    Each record has the answer too, which TensorFlow Serving passes over: any other server can compare its own with it.
    Pictures that TensorFlow cannot decode are left out: with such a record the version would never be served.
    """
    rows = np.arange(min(WARMUP_PICTURES, test.count))
    requests = [("serving_default", {"image_bytes": tf.constant([data])}) for data in test.encoded(rows)]
    requests += [("pixels", {"pixels": tf.constant(pixels[None])}) for pixels in test.pixels(rows)]
    extra = path / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for signature, inputs in requests:
            try:
                outputs = signatures[signature](**inputs)
            except tf.errors.InvalidArgumentError:
                continue
            spec = model_pb2.ModelSpec(name=name, signature_name=signature)
            request = predict_pb2.PredictRequest(model_spec=spec, inputs=_protos(inputs))
            response = predict_pb2.PredictResponse(model_spec=spec, outputs=_protos(outputs))
            log = prediction_log_pb2.PredictLog(request=request, response=response)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _protos(tensors: dict[str, tf.Tensor]) -> dict[str, Any]:
    return {name: tf.make_tensor_proto(tensor.numpy()) for name, tensor in tensors.items()}


def _check(
    model: keras.Model,
    temperature: float,
    classes: tuple[str, ...],
    signatures: Any,
    test: TestPictures,
    console: Console,
) -> Parity:
    """Runs every test picture through the model in memory and through both signatures of the one on disk."""
    forward = tf.function(
        lambda images: probabilities(model(images, training=False)[1], temperature),
        input_signature=[tf.TensorSpec(model.input_shape, tf.float32)],
    )
    pixel_difference = byte_difference = 0.0
    same_label = undecoded = 0
    names = np.array([label.encode() for label in classes], dtype=object)
    files = test.encoded(np.arange(test.count))
    with console.bar("checking the export", test.count) as advance:
        for start in range(0, test.count, _BATCH):
            rows = np.arange(start, min(start + _BATCH, test.count))
            images = test.pixels(rows)
            expected = forward(tf.cast(images, tf.float32)).numpy()
            by_pixels = {key: value.numpy() for key, value in signatures["pixels"](pixels=images).items()}
            by_bytes, decoded = _by_bytes(signatures["serving_default"], list(islice(files, len(rows))))
            same_label += int(np.sum(_same_labels(expected[decoded], by_bytes, names)))
            undecoded += int(np.sum(~decoded))
            # NumPy's maximum, unlike Python's, keeps a NaN.
            pixel_difference = np.maximum(pixel_difference, np.abs(by_pixels["probabilities"] - expected).max())
            byte_difference = np.abs(by_bytes["probabilities"] - expected[decoded]).max(initial=byte_difference)
            advance(len(rows))
    parity = Parity(
        pictures=test.count,
        pixels_largest_difference=float(pixel_difference),
        image_bytes_same_label=same_label / test.count,
        image_bytes_largest_difference=float(byte_difference),
    )
    # Written so that a NaN fails.
    if not (pixel_difference <= PIXELS_TOLERANCE and parity.image_bytes_same_label >= SAME_LABEL_SHARE):
        raise ExportError(
            f"The exported model does not agree with the trained one on {test.count} test pictures, so it was not "
            f"published. From pixels the largest difference of a probability is {pixel_difference:.2g} (allowed "
            f"{PIXELS_TOLERANCE:g}); from encoded pictures {parity.image_bytes_same_label:.1%} get the same label "
            f"(at least {SAME_LABEL_SHARE:.0%} must), the largest difference is {byte_difference:.2g}, and TensorFlow "
            f"cannot decode {undecoded} of them. Damaged or unusually encoded pictures can cause that: mend or remove "
            "them, then run again. The trained weights are kept in the run's folder."
        )
    return parity


def _same_labels(expected: np.ndarray, outputs: dict[str, np.ndarray], names: np.ndarray) -> np.ndarray:
    """bool [n]: whether the label given is the one expected, or ties with it, by probabilities float32 [n, C]."""
    given = outputs["probabilities"].argmax(axis=-1)
    behind = expected.max(axis=-1) - expected[np.arange(len(given)), given]
    same: np.ndarray = (behind <= TIE) & (outputs["label"] == names[given])
    return same


def _by_bytes(signature: Any, pictures: list[bytes]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The outputs for those pictures that TensorFlow can decode, and which those are, bool [n]."""
    try:
        outputs = signature(image_bytes=tf.constant(pictures, tf.string))
        return {key: value.numpy() for key, value in outputs.items()}, np.ones(len(pictures), bool)
    except tf.errors.InvalidArgumentError:
        # One such picture fails its whole batch. It must not fail a run that has trained for hours.
        if len(pictures) <= 1:
            empty = signature(image_bytes=tf.zeros([0], tf.string))
            return {key: value.numpy() for key, value in empty.items()}, np.zeros(len(pictures), bool)
        outputs, decoded = zip(*(_by_bytes(signature, [picture]) for picture in pictures), strict=True)
        return {key: np.concatenate([part[key] for part in outputs]) for key in outputs[0]}, np.concatenate(decoded)
