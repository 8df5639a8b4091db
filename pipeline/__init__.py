"""Graft's training side: pictures and a pretrained network in, an exported, tracked classifier out."""

import os
import sys

# Read by TensorFlow and Keras when they are first imported, which the stages do lazily.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# "Not installed", to whoever imports it: OpenVINO would report its use to its makers and write to the home directory.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
