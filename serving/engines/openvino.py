"""Exported models on the CPU, without TensorFlow.

Shape letters: N pictures, H height, W width, C classes, D features.
"""

import contextlib
import shutil
import tempfile
import threading
import uuid
from pathlib import Path

import numpy as np
import openvino as ov

from serving.engines import LoadError, difference
from serving.export import Export
from serving.logs import log
from serving.protos import serving_pb2

_VERSION = ov.__version__.split("-")[0]
# Left to itself, OpenVINO computes in bfloat16 where the processor can, which rounds by up to one part in 256.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
_WARMUP_BATCH = 8


class OpenVino:
    """Converts a SavedModel once and keeps the result beside it, `openvino-VERSION/` in the version's folder, or
    `openvino-VERSION-embedding/`.

    Args:
        embeddings: whether models are to give them too, as far as exports have them.
    """

    at_once = 1  # A batch is spread over all cores.
    tolerance = 1e-3

    def __init__(self, embeddings: bool = False) -> None:
        self.name = f"openvino {_VERSION}"
        self._embeddings = embeddings
        self._core = ov.Core()

    def load(self, export: Export) -> "OpenVinoModel":
        embeds = self._embeddings and "embedding" in export.signatures
        kept = export.path / (f"openvino-{_VERSION}" + "-embedding" * embeds) / "model.xml"
        try:
            if kept.is_file():
                with contextlib.suppress(RuntimeError, LoadError):
                    model = self._compiled(self._core.read_model(kept))
                    if difference(model, export, _WARMUP_BATCH) <= self.tolerance:
                        return model
                log.warning(
                    "conversion damaged, or of other weights: made again", extra={"fields": {"file": str(kept)}}
                )
                shutil.rmtree(kept.parent, ignore_errors=True)
            network = self._converted(export, embeds)
            model = self._compiled(network)
            # Not what was converted while the export was still being copied: that would stay wrong.
            if difference(model, export, _WARMUP_BATCH) <= self.tolerance:
                _keep(network, kept)
            return model
        except (RuntimeError, OSError) as error:  # RuntimeError is what OpenVINO raises for everything.
            raise LoadError(
                f"OpenVINO {_VERSION} cannot run {export.path} ({_line(error)}). Serve it with --engine tensorflow."
            ) from error

    def close(self) -> None:
        pass

    def _compiled(self, network: ov.Model) -> "OpenVinoModel":
        network.reshape([1, *network.input().partial_shape[1:]])
        return OpenVinoModel(self._core.compile_model(network, "CPU", SETTINGS))

    def _converted(self, export: Export, embeds: bool) -> ov.Model:
        """OpenVINO reads the signature "serving_default" alone, and knows none of the operations that decode pictures
        there. So it is shown a model whose only signature goes from pixels to probabilities, and embeddings.
        """
        saved = serving_pb2.SavedModel.FromString((export.path / "saved_model.pb").read_bytes())
        for graph in saved.meta_graphs:
            signature = serving_pb2.SignatureDef()
            signature.CopyFrom(graph.signature_def["embedding" if embeds else "pixels"])
            for output in signature.outputs.keys() - {"probabilities", "embedding"}:
                del signature.outputs[output]
            graph.signature_def.clear()
            graph.signature_def["serving_default"].CopyFrom(signature)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "saved_model.pb").write_bytes(saved.SerializeToString())
            (Path(folder) / "variables").symlink_to((export.path / "variables").resolve())
            return self._core.read_model(folder)


class OpenVinoModel:
    """One version, compiled."""

    lost = False

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled = compiled
        self.embeds = any("embedding" in output.names for output in compiled.outputs)
        self._requests: list[ov.InferRequest] = []
        self._one_caller = threading.Lock()

    def probabilities(self, pixels: np.ndarray, seconds: float) -> np.ndarray:
        with self._one_caller:
            return _gathered(self._computed(pixels), "probabilities")

    def embedded(self, pixels: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        with self._one_caller:
            requests = self._computed(pixels)
            return _gathered(requests, "probabilities"), _gathered(requests, "embedding")

    def close(self) -> None:
        del self._requests, self._compiled

    def _computed(self, pixels: np.ndarray) -> list[ov.InferRequest]:
        """One picture at a time on each core: faster here than batches, and no picture knows of another."""
        # As many as pictures, though few run at once: a request takes little, and a callback for each that ends,
        # to start the next, would wait for Python each time.
        while len(self._requests) < len(pixels):
            self._requests.append(self._compiled.create_infer_request())
        started = self._requests[: len(pixels)]
        for row, request in enumerate(started):
            request.start_async({0: pixels[row : row + 1]}, share_inputs=True)
        for request in started:
            request.wait()
        return started


def _gathered(requests: list[ov.InferRequest], output: str) -> np.ndarray:
    """A copy of what they found."""
    return np.concatenate([request.get_tensor(output).data for request in requests])


def _keep(network: ov.Model, path: Path) -> None:
    """Writes the converted model for the next start; where the models cannot be written to, each start converts."""
    staging = path.parent.with_name(f".{path.parent.name}-{uuid.uuid4().hex}")
    try:
        staging.mkdir()
        ov.save_model(network, staging / path.name, compress_to_fp16=False)
        staging.rename(path.parent)
    except (OSError, RuntimeError):  # Also: another server has just written it.
        shutil.rmtree(staging, ignore_errors=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
