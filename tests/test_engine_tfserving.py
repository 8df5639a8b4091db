"""TensorFlow Serving as the engine: its answers, its refusals, its absence and its return."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf

from serving import export
from serving.engines import LoadError, NotYet
from serving.engines.tfserving import Circuit, TensorFlowServing
from serving.errors import Overloaded, TooLate, Unavailable
from tests import exporting
from tests.conftest import ROOT
from tests.networks import split
from tests.tfserving_server import AVAILABLE, END, LOADING, START, UNLOADING, Fault, Server

SECONDS = 60.0  # More than any call here takes.
FULL = "The batch scheduling queue to which this task was submitted is full; task size is 32"


def _classifier(size, seed):
    keras.utils.set_random_seed(seed)
    pixels = keras.Input((size, size, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 50)(pixels))
    return keras.Model(pixels, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """m/1, m/2 of 16 pixels and large/1 of 299."""
    folder = tmp_path_factory.mktemp("export")
    for name, size, seed in (("m", 16, 1), ("m", 16, 2), ("large", 299, 3)):
        exporting.exported(_classifier(size, seed), split(3, size=size), folder, name=name)
    return folder


@pytest.fixture
def upstream(folder):
    server = Server(folder)
    yield server
    server.stop()


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def engine(upstream, clock):
    engine = TensorFlowServing(f"127.0.0.1:{upstream.port}", clock)
    yield engine
    engine.close()


@pytest.fixture
def model(engine, folder):
    return engine.load(export.read(folder / "m" / "1"))


def _pictures(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def _expected(path, pixels):
    loaded = tf.saved_model.load(str(path))
    return loaded.signatures["pixels"](pixels=tf.constant(pixels))["probabilities"].numpy()


def _fails(model, error, times=1, seconds=SECONDS):
    for _ in range(times):
        with pytest.raises(error):
            model.probabilities(_pictures(1), seconds)


def _arrives(upstream, calls=1):
    for _ in range(calls):
        assert upstream.arrived.acquire(timeout=SECONDS)


@pytest.mark.parametrize("count", [1, 5, 32])
@pytest.mark.parametrize("version", [1, 2])
def test_answers_are_the_saved_models_of_that_version(upstream, engine, folder, version, count):
    path = folder / "m" / str(version)
    pixels = _pictures(count)
    found = engine.load(export.read(path)).probabilities(pixels, SECONDS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, _expected(path, pixels), atol=1e-6)
    asked = upstream.last
    assert (asked.model_spec.name, asked.model_spec.version.value) == ("m", version)
    assert (asked.model_spec.signature_name, list(asked.output_filter)) == ("pixels", ["probabilities"])
    assert asked.inputs["pixels"].tensor_content == pixels.tobytes()


def test_warm_up_pictures_have_the_probabilities_they_had_at_export(engine, folder):
    version = export.read(folder / "m" / "2")
    pixels, probabilities = version.warmup()
    np.testing.assert_allclose(engine.load(version).probabilities(pixels, SECONDS), probabilities, atol=1e-6)


def test_a_batch_of_more_than_four_megabytes_is_answered_and_retried(upstream, engine, folder):
    path = folder / "large" / "1"
    pixels = _pictures(32, size=299)
    upstream.fault = Fault("UNAVAILABLE", calls=2)
    found = engine.load(export.read(path)).probabilities(pixels, SECONDS)
    np.testing.assert_allclose(found, _expected(path, pixels), atol=1e-6)
    assert upstream.calls == 3


def test_batches_travel_beside_one_another(upstream, engine, model, folder):
    upstream.fault = Fault(seconds=SECONDS)
    batches = [_pictures(count, seed=count) for count in range(1, engine.at_once + 1)]
    with ThreadPoolExecutor(engine.at_once) as pool:
        found = [pool.submit(model.probabilities, batch, SECONDS) for batch in batches]
        _arrives(upstream, engine.at_once)
        upstream.release()
        for batch, probabilities in zip(batches, found, strict=True):
            np.testing.assert_allclose(probabilities.result(), _expected(folder / "m" / "1", batch), atol=1e-6)


def test_nobody_waits_past_the_deadline(upstream, model):
    upstream.fault = Fault(seconds=SECONDS)
    with pytest.raises(TooLate, match="did not answer in time"):
        model.probabilities(_pictures(1), 0.05)


def test_upstream_knows_the_deadline(upstream, model):
    model.probabilities(_pictures(1), 7.0)
    assert 0 < upstream.seconds < 8  # gRPC rounds up.


@pytest.mark.parametrize(
    ("fault", "error", "words", "calls"),
    [
        (Fault("RESOURCE_EXHAUSTED"), Overloaded, "more to compute than it takes", 1),
        (Fault("UNAVAILABLE", FULL), Overloaded, "more to compute than it takes", 3),
        (Fault("UNAVAILABLE"), Unavailable, "is away", 3),
        (Fault("DEADLINE_EXCEEDED"), TooLate, "did not answer in time", 1),
        (Fault("NOT_FOUND"), Unavailable, "no longer has version 1 of m", 1),
        (Fault("INVALID_ARGUMENT"), RuntimeError, "version 1 of m: INVALID_ARGUMENT: as the test wants it", 1),
        (Fault("FAILED_PRECONDITION"), RuntimeError, "FAILED_PRECONDITION", 1),
        (Fault("INTERNAL", "much\n" * 1000), RuntimeError, r"INTERNAL: (much ?){60}$", 1),
    ],
)
def test_what_upstream_refuses(upstream, model, fault, error, words, calls):
    upstream.fault = fault
    with pytest.raises(error, match=words):
        model.probabilities(_pictures(1), SECONDS)
    assert upstream.calls == calls


def test_what_is_unavailable_for_a_moment_is_asked_again(upstream, model):
    upstream.fault = Fault("UNAVAILABLE", calls=1)
    assert model.probabilities(_pictures(2), SECONDS).shape == (2, 3)
    assert upstream.calls == 2


def test_a_version_that_upstream_unloads_is_unavailable(upstream, model):
    upstream.states["m", 1] = END, 0, ""
    with pytest.raises(Unavailable, match="no longer has version 1 of m"):
        model.probabilities(_pictures(1), SECONDS)


def test_while_upstream_is_away_nobody_waits_for_it(upstream, engine, model, folder, clock):
    other = engine.load(export.read(folder / "large" / "1"))
    upstream.fault = Fault("UNAVAILABLE")
    _fails(model, Unavailable, times=5)
    calls = upstream.calls
    upstream.fault = Fault(seconds=SECONDS)  # Whoever asked would wait.
    _fails(model, Unavailable, times=3)
    _fails(other, Unavailable)
    assert upstream.calls == calls

    clock.now += 1
    upstream.arrived = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(model.probabilities, _pictures(1), SECONDS)
        _arrives(upstream)
        _fails(model, Unavailable, times=3)
        assert upstream.calls == calls + 1
        upstream.release()
        assert probe.result().shape == (1, 3)
    assert model.probabilities(_pictures(1), SECONDS).shape == (1, 3)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("RESOURCE_EXHAUSTED"), Overloaded),
        (Fault("UNAVAILABLE", FULL), Overloaded),
        (Fault("INVALID_ARGUMENT"), RuntimeError),
        (Fault("NOT_FOUND"), Unavailable),
    ],
)
def test_a_server_that_refuses_is_not_away(upstream, model, fault, error):
    upstream.fault = fault
    _fails(model, error, times=7)
    upstream.fault = Fault()
    assert model.probabilities(_pictures(1), SECONDS).shape == (1, 3)


def test_a_server_that_never_answers_is_away(upstream, model):
    upstream.fault = Fault(seconds=SECONDS)
    _fails(model, TooLate, times=7, seconds=0.01)  # So little time says nothing of upstream.
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: _fails(model, TooLate, seconds=1.0), range(5)))
    calls = upstream.calls
    _fails(model, Unavailable)
    assert upstream.calls == calls


@pytest.mark.slow
def test_upstream_dies_and_returns(folder, tmp_path, clock):
    fault = tmp_path / "fault.json"
    command = [sys.executable, "-m", "tests.tfserving_server", folder, "--port", "0", "--fault", fault]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        port = int(process.stdout.readline())
        engine = TensorFlowServing(f"127.0.0.1:{port}", clock)
        version = export.read(folder / "m" / "1")
        model = engine.load(version)
        before = model.probabilities(_pictures(4), SECONDS)
        fault.write_text(json.dumps({"seconds": SECONDS}))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(model.probabilities, _pictures(1), SECONDS)
            with pytest.raises(TooLate):  # It is there, and works on both.
                model.probabilities(_pictures(1), 0.5)
            process.send_signal(signal.SIGKILL)
            with pytest.raises(Unavailable, match="is away"):
                waiting.result(SECONDS)
    with pytest.raises(NotYet, match=r"cannot be asked for version 1 of m .*UNAVAILABLE"):
        engine.load(version)
    _fails(model, Unavailable, times=10)

    returned = Server(folder, port)
    try:
        _fails(model, Unavailable)  # It is not asked before its time.
        assert returned.calls == 0
        end = time.monotonic() + SECONDS
        after = None
        while after is None and time.monotonic() < end:
            clock.now += 1
            try:
                after = model.probabilities(_pictures(4), SECONDS)
            except Unavailable:
                time.sleep(0.05)  # Until gRPC's next try to connect.
        np.testing.assert_allclose(after, before, atol=1e-6)
    finally:
        engine.close()
        returned.stop()


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ((START, 0, ""), NotYet, "says START of version 1 of m, which is served here as soon as it is AVAILABLE there"),
        ((LOADING, 0, ""), NotYet, "says LOADING"),
        ((UNLOADING, 0, ""), NotYet, "says UNLOADING"),
        ((END, 0, ""), NotYet, "says END"),
        (None, NotYet, r"has no version 1 of m.*models\.config"),
        ((END, 5, "Op type not\nregistered"), LoadError, "could not load version 1 of m: Op type not registered$"),
    ],
)
def test_a_version_waits_until_upstream_has_it(upstream, engine, folder, state, error, words):
    version = export.read(folder / "m" / "1")
    upstream.states.pop(("m", 1))
    if state:
        upstream.states["m", 1] = state
    with pytest.raises(error, match=words) as raised:
        engine.load(version)
    assert type(raised.value) is error
    upstream.states["m", 1] = AVAILABLE, 0, ""
    assert engine.load(version).probabilities(_pictures(1), SECONDS).shape == (1, 3)


def test_an_upstream_that_is_not_there_is_waited_for(engine, upstream, folder):
    upstream.stop()
    with pytest.raises(NotYet, match=f"127.0.0.1:{upstream.port} cannot be asked .*UNAVAILABLE"):
        engine.load(export.read(folder / "m" / "1"))


def test_an_upstream_that_is_something_else_is_named(folder):
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    engine = TensorFlowServing(f"127.0.0.1:{port}")
    try:
        with pytest.raises(LoadError, match=r"UNIMPLEMENTED.*--upstream must be the host and the gRPC port") as raised:
            engine.load(export.read(folder / "m" / "1"))
        assert not isinstance(raised.value, NotYet)
    finally:
        engine.close()
        server.stop(None)


def test_it_says_what_computes(engine, upstream):
    assert engine.name == f"tensorflow serving at 127.0.0.1:{upstream.port}"


class TestCircuit:
    def _call(self, circuit, answered):
        circuit.settle(circuit.admit(), answered)

    def _open(self, clock):
        circuit = Circuit(clock)
        for _ in range(5):
            self._call(circuit, False)
        return circuit

    def _refuses(self, circuit):
        with pytest.raises(Unavailable):
            circuit.admit()

    def test_five_failures_in_a_row_open_it(self, clock):
        circuit = Circuit(clock)
        for answered in (False, False, False, False, True, False, False, None, False, False, False):
            self._call(circuit, answered)
        self._refuses(circuit)

    def test_a_second_later_there_is_one_probe(self, clock):
        circuit = self._open(clock)
        clock.now += 0.9
        self._refuses(circuit)
        clock.now += 0.1
        assert circuit.admit()
        clock.now += 10
        self._refuses(circuit)

    @pytest.mark.parametrize("answered", [False, None])
    def test_a_probe_without_an_answer_is_followed_by_another(self, clock, answered):
        circuit = self._open(clock)
        clock.now += 5
        self._call(circuit, answered)
        if answered is False:
            self._refuses(circuit)
            clock.now += 1
        assert circuit.admit()

    def test_an_answered_probe_closes_it(self, clock):
        circuit = self._open(clock)
        clock.now += 1
        self._call(circuit, True)
        assert [circuit.admit() for _ in range(3)] == [False, False, False]
        for _ in range(4):
            self._call(circuit, False)
        assert not circuit.admit()

    def test_calls_from_before_neither_end_the_probe_nor_make_another(self, clock):
        circuit = Circuit(clock)
        early = [circuit.admit() for _ in range(7)]
        for probe in early[:5]:
            circuit.settle(probe, False)
        clock.now += 1
        assert circuit.admit()
        circuit.settle(early[5], False)
        clock.now += 1
        self._refuses(circuit)
        circuit.settle(early[6], True)
        assert not circuit.admit()

    def test_opening_and_closing_are_logged_once(self, clock, caplog):
        with caplog.at_level("INFO", "graft.serving"):
            circuit = self._open(clock)
            clock.now += 1
            self._call(circuit, False)
            clock.now += 1
            self._call(circuit, True)
            self._call(circuit, True)
        assert [record.message for record in caplog.records] == [
            "upstream is away; requests are refused until it answers",
            "upstream answers again",
        ]
