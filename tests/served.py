"""What tests of serving share: a small export, copies of it as other versions, an engine that fails as it is told."""

import json
import shutil
import threading
import time
from concurrent.futures import Future

import keras
import numpy as np
import tensorflow as tf

from pipeline.metrics import softmax
from serving.protos import serving_pb2
from tests import exporting
from tests.networks import split

SECONDS = 60.0  # More than anything here takes.
SIZE = 16
CLASSES = ("ant", "bee", "Käfer")
WARMUP = "assets.extra/tf_serving_warmup_requests"


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self):
        return self.now


def means(folder, count=12):
    """Exports a network that `Means` knows: how bright each channel is says how probable each of three classes is."""
    pixels = keras.Input((SIZE, SIZE, 3))
    brightness = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 50)(pixels))
    logits = keras.layers.Dense(3, kernel_initializer="identity")(brightness)
    path, _ = exporting.exported(keras.Model(pixels, logits), split(count, size=SIZE), folder, CLASSES)
    return path


def expected(pixels):
    """What that network gives for uint8 [N, H, W, 3]."""
    return softmax(pixels.mean(axis=(1, 2)) / 50, 1.0).astype(np.float32)


def add(source, home, version, **manifest):
    """A version's folder as another version, with fields of its manifest changed. It appears at once."""
    home.mkdir(parents=True, exist_ok=True)
    staging = home / f".incoming-{version}"
    shutil.copytree(source, staging, ignore=shutil.ignore_patterns("openvino-*"))
    content = json.loads((staging / "manifest.json").read_text())
    (staging / "manifest.json").write_text(json.dumps(content | {"version": version} | manifest))
    return staging.rename(home / str(version))


def without_embedding(path):
    """Takes a version's signature `embedding` away: it is as one exported by an older version of graft."""
    file = path / "saved_model.pb"
    saved = serving_pb2.SavedModel.FromString(file.read_bytes())
    for graph in saved.meta_graphs:
        graph.signature_def.pop("embedding")
    file.write_bytes(saved.SerializeToString())


def change_warmup(path, change):
    """Has `change` alter each of a version's warm-up records, a PredictionLog."""
    file = path / WARMUP
    logs = [serving_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(file))]
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            change(log)
            writer.write(log.SerializeToString())


def constant(value):
    """uint8 [H, W, 3] of one colour."""
    return np.full((SIZE, SIZE, 3), value, np.uint8)


class Means:
    """An engine, in NumPy, for what `means` exports.

    Attributes:
        raises: by version, what `load` raises.
        alters: by version, what becomes of the probabilities: a function, or an exception to raise.
        attempts: the versions that `load` was asked for.
        models: those it has loaded, in order.
    """

    name = "means"
    tolerance = 1e-5

    def __init__(self, at_once=1):
        self.at_once = at_once
        self.raises, self.alters = {}, {}
        self.attempts, self.models = [], []
        self.closed = False

    def load(self, export):
        self.attempts.append(export.version)
        if export.version in self.raises:
            raise self.raises[export.version]
        self.models.append(MeansModel(export.version, self.alters.get(export.version)))
        return self.models[-1]

    def close(self):
        assert all(model.closed.is_set() for model in self.models)
        self.closed = True


class MeansModel:
    """One version of it.

    Attributes:
        gate: computing waits until it is set.
        entered: released by each batch that begins.
        batches: the first value of each picture, by batch.
        closed: set when it is closed, `closings` times.
    """

    lost = False
    embeds = True

    def __init__(self, version=1, alter=None):
        self.version, self.alter = version, alter
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches = []
        self.closed, self.closings = threading.Event(), 0

    def probabilities(self, pixels, seconds):
        assert not self.closed.is_set()
        assert pixels.dtype == np.uint8
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        self.entered.release()
        assert self.gate.wait(SECONDS)
        alter = self.alter  # Once: a test may change it meanwhile.
        if isinstance(alter, Exception):
            raise alter
        assert not self.closed.is_set()
        found = expected(pixels)
        return found if alter is None else alter(found)

    def embedded(self, pixels, seconds):
        return self.probabilities(pixels, seconds), pixels.mean(axis=(1, 2)).astype(np.float32)

    def close(self):
        self.closings += 1
        self.closed.set()


def eventually(check):
    """Until `check` gives something true, which is returned."""
    end = time.monotonic() + SECONDS
    while not (found := check()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
    return found


def together(work, arguments):
    """What `work` gives for each of the arguments, each in a thread of its own, begun at the same moment."""
    barrier = threading.Barrier(len(arguments))
    futures = [Future() for _ in arguments]

    def begin(argument, future):
        barrier.wait(SECONDS)
        try:
            future.set_result(work(argument))
        except BaseException as error:
            future.set_exception(error)

    for each in zip(arguments, futures, strict=True):
        threading.Thread(target=begin, args=each, daemon=True).start()  # What hangs ends with the tests.
    return [future.result(SECONDS) for future in futures]
