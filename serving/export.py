"""An exported model as it lies on disk, read without TensorFlow.

Shape letters: N pictures, H height, W width, C classes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from pipeline.artifacts import Manifest, read_manifest
from pipeline.errors import ExportError
from pipeline.pixels import VERSION
from serving.protos import serving_pb2

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"

_DTYPES: dict[serving_pb2.DataType, np.dtype[Any]] = {
    serving_pb2.DT_FLOAT: np.dtype(np.float32),
    serving_pb2.DT_UINT8: np.dtype(np.uint8),
}


@dataclass(frozen=True)
class Export:
    """One version of a model: `NAME/VERSION/`.

    Attributes:
        path: the version's folder.
        name: the model's, as it is served; the manifest has the one it was exported under.
        version: its number, which is the folder's name.
        manifest: what `graft run` wrote beside the SavedModel: classes, pixel specification, digests.
        signatures: by name, e.g. "serving_default" and "pixels".
    """

    path: Path
    name: str
    version: int
    manifest: Manifest
    signatures: dict[str, serving_pb2.SignatureDef]

    def warmup(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, uint8 [N, H, W, 3], and the probabilities that the SavedModel gave for them, float32 [N, C].

        Raises:
            ExportError: they cannot be read, or there are none: it was exported by an older version of graft.
        """
        pairs = []
        try:
            for record in _records(self.path / WARMUP):
                log = serving_pb2.PredictionLog.FromString(record).predict_log
                if log.request.model_spec.signature_name == "pixels" and "probabilities" in log.response.outputs:
                    pairs.append((array(log.request.inputs["pixels"]), array(log.response.outputs["probabilities"])))
        except (OSError, DecodeError, struct.error) as error:
            raise ExportError(
                f"{self.path} is not a whole model: its warm-up records cannot be read ({error})."
            ) from None
        if not pairs:
            raise ExportError(
                f"{self.path} has no warm-up pictures with the probabilities they had at export, so nothing can be "
                "checked before it is served. Export it again with this version of graft."
            )
        pixels, probabilities = zip(*pairs, strict=True)
        return np.concatenate(pixels), np.concatenate(probabilities)


def read(path: Path, name: str | None = None) -> Export:
    """The exported model in a version's folder, served as `name`, by default the one it was exported under.

    Raises:
        ExportError: the folder is not a whole exported model that this version can serve.
    """
    manifest = read_manifest(path)
    if manifest.pixels_version != VERSION:
        raise ExportError(
            f"{path} was made for pictures decoded by version {manifest.pixels_version} of graft's decoder; this is "
            f"version {VERSION}. Serve it with graft {manifest.code.graft}, or train the model again."
        )
    try:
        saved = serving_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} is not a whole model: saved_model.pb cannot be read ({error}).") from None
    signatures = {name: value for graph in saved.meta_graphs for name, value in graph.signature_def.items()}
    missing = {"serving_default", "pixels"} - signatures.keys()
    if missing:
        raise ExportError(f"{path} lacks the signature {', '.join(sorted(missing))}. Export it again with graft run.")
    return Export(path, name or manifest.name, int(path.name), manifest, signatures)


def array(tensor: serving_pb2.TensorProto) -> np.ndarray:
    """A float32 or uint8 tensor as an array, with values in `tensor_content`, or float32 in `float_val`.

    Raises:
        ExportError: it is of another type.
    """
    if tensor.dtype not in _DTYPES:
        raise ExportError(f"A tensor is of type {tensor.dtype}, float32 and uint8 are known.")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, _DTYPES[tensor.dtype]).reshape(shape)
    return np.array(tensor.float_val, np.float32).reshape(shape)


def tensor(values: np.ndarray) -> serving_pb2.TensorProto:
    """The reverse of `array`."""
    dtype = next(number for number, known in _DTYPES.items() if known == values.dtype)
    shape = serving_pb2.TensorShapeProto(dim=[serving_pb2.TensorShapeProto.Dim(size=size) for size in values.shape])
    return serving_pb2.TensorProto(dtype=dtype, tensor_shape=shape, tensor_content=values.tobytes())


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum.

    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    with path.open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack_from("<Q", header)
            yield file.read(length)
            file.read(4)
