"""Exported models on the CPU, without TensorFlow.

Shape letters: N pictures, H height, W width, C classes.
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
    """Converts a SavedModel once and keeps the result beside it, `openvino-VERSION/` in the version's folder."""

    at_once = 1  # A batch is spread over all cores.
    tolerance = 1e-3

    def __init__(self) -> None:
        self.name = f"openvino {_VERSION}"
        self._core = ov.Core()

    def load(self, export: Export) -> "OpenVinoModel":
        kept = export.path / f"openvino-{_VERSION}" / "model.xml"
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
            network = self._converted(export)
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

    def _converted(self, export: Export) -> ov.Model:
        """OpenVINO reads the signature "serving_default" alone, and knows none of the operations that decode pictures
        there. So it is shown a model whose only signature goes from pixels to probabilities.
        """
        saved = serving_pb2.SavedModel.FromString((export.path / "saved_model.pb").read_bytes())
        for graph in saved.meta_graphs:
            signature = serving_pb2.SignatureDef()
            signature.CopyFrom(graph.signature_def["pixels"])
            for output in signature.outputs.keys() - {"probabilities"}:
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
        self._requests: list[ov.InferRequest] = []
        self._one_caller = threading.Lock()

    def probabilities(self, pixels: np.ndarray, seconds: float) -> np.ndarray:
        """One picture at a time on each core: faster here than batches, and no picture knows of another."""
        with self._one_caller:
            # As many as pictures, though few run at once: a request takes little, and a callback for each that ends,
            # to start the next, would wait for Python each time.
            while len(self._requests) < len(pixels):
                self._requests.append(self._compiled.create_infer_request())
            started = self._requests[: len(pixels)]
            for row, request in enumerate(started):
                request.start_async({0: pixels[row : row + 1]}, share_inputs=True)
            for request in started:
                request.wait()
            return np.concatenate([request.get_output_tensor().data for request in started])

    def close(self) -> None:
        del self._requests, self._compiled


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
