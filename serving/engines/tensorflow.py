"""Exported models by TensorFlow in this process: for what OpenVINO cannot run, at ten times its memory.

Shape letters: N pictures, H height, W width, C classes, D features.
"""

from typing import Any

import numpy as np

from pipeline.quiet import import_tensorflow
from serving.engines import LoadError
from serving.export import Export


class TensorFlow:
    """Runs the SavedModel as it is."""

    at_once = 1  # A batch is spread over all cores.
    tolerance = 1e-2  # GPUs multiply in TF32.

    def __init__(self) -> None:
        import_tensorflow()
        import tensorflow as tf

        self.name = f"tensorflow {tf.__version__}"

    def load(self, export: Export) -> "TensorFlowModel":
        import tensorflow as tf

        try:
            return TensorFlowModel(tf.saved_model.load(str(export.path)), "embedding" in export.signatures)
        except Exception as error:  # IndexError for truncated variables, KeyError for an unknown operation, and others.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise LoadError(f"TensorFlow cannot load {export.path} ({reason}).") from error

    def close(self) -> None:
        pass


class TensorFlowModel:
    """One version, loaded."""

    lost = False

    def __init__(self, loaded: Any, embeds: bool) -> None:
        self.embeds = embeds
        self._loaded = loaded  # A signature alone would not keep its model's variables alive.

    def probabilities(self, pixels: np.ndarray, seconds: float) -> np.ndarray:
        found: np.ndarray = self._outputs("pixels", pixels)["probabilities"].numpy()
        return found

    def embedded(self, pixels: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        outputs = self._outputs("embedding", pixels)
        return outputs["probabilities"].numpy(), outputs["embedding"].numpy()

    def close(self) -> None:
        del self._loaded

    def _outputs(self, signature: str, pixels: np.ndarray) -> Any:
        import tensorflow as tf

        return self._loaded.signatures[signature](pixels=tf.constant(pixels))
