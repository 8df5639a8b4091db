"""What computes: one contract for every engine, and what OpenVINO keeps. One row an engine."""

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import model as networks
from pipeline.backbones import BACKBONES, weights
from pipeline.config import BackboneConfig, Head
from pipeline.errors import ExportError
from pipeline.pixels import PixelSpec, decode
from serving import export
from serving.engines import ENGINES, LoadError, NotYet
from serving.engines.openvino import OpenVino
from serving.metrics import Metrics
from serving.settings import Settings
from serving.versions import State, Versions
from tests import exporting
from tests.conftest import ROOT
from tests.networks import InMemory, split
from tests.served import SECONDS, SIZE, add, together, without_embedding
from tests.tfserving_server import Server

VARIABLES = "variables/variables.data-00000-of-00001"
KEPT = f"openvino-{OpenVino().name.split()[-1]}"


def convolutions(size=SIZE, classes=3, seed=0):
    """A network of what classifiers are made of."""
    keras.utils.set_random_seed(seed)
    x = pixels = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(16, 1, activation="swish")(x))
    return keras.Model(pixels, keras.layers.Dense(classes)(x))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """m/1 and m/2, which differ."""
    folder = tmp_path_factory.mktemp("export")
    for seed in (1, 2):
        exporting.exported(convolutions(seed=seed), split(12, size=SIZE), folder)
    return folder


@pytest.fixture(scope="module")
def upstream(folder):
    server = Server(folder)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(params=ENGINES)
def engine(request):
    name = request.param
    settings = Settings(engine=name, upstream=request.getfixturevalue("upstream") if name == "tfserving" else None)
    engine = ENGINES[name](settings)
    yield engine
    engine.close()


@pytest.fixture(params=["openvino", "tensorflow"])
def local(request):
    """An engine that reads the export itself."""
    engine = ENGINES[request.param](Settings(engine=request.param))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def saved(folder):
    """The signatures of the SavedModels, by version."""
    loaded = {version: tf.saved_model.load(str(folder / "m" / str(version))) for version in (1, 2)}
    return lambda version, pixels: loaded[version].signatures["pixels"](pixels=tf.constant(pixels))["probabilities"]


@pytest.fixture(params=ENGINES)
def sampling(request):
    """An engine of a server that keeps samples."""
    name = request.param
    upstream = request.getfixturevalue("upstream") if name == "tfserving" else None
    engine = ENGINES[name](Settings(engine=name, upstream=upstream, samples="samples"))
    yield engine
    engine.close()


def pictures(count, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


# Every engine


@pytest.mark.parametrize("count", [1, 3, 32, 70])
@pytest.mark.parametrize("version", [1, 2])
def test_probabilities_are_those_of_the_saved_model(engine, folder, saved, version, count):
    model = engine.load(export.read(folder / "m" / str(version)))
    found = model.probabilities(pictures(count), SECONDS)
    assert (found.dtype, found.shape) == (np.float32, (count, 3))
    np.testing.assert_allclose(found, saved(version, pictures(count)), atol=engine.tolerance)
    np.testing.assert_allclose(found, saved(version, pictures(count)), atol=1e-5)  # Here is no GPU.
    model.close()


@pytest.mark.parametrize("count", [1, 3, 70])
def test_embeddings_are_those_of_the_saved_model_and_probabilities_as_ever(sampling, folder, saved, count):
    model = sampling.load(export.read(folder / "m" / "2"))
    assert model.embeds
    probabilities, embeddings = model.embedded(pictures(count), SECONDS)
    loaded = tf.saved_model.load(str(folder / "m" / "2"))
    expected = loaded.signatures["embedding"](pixels=tf.constant(pictures(count)))["embedding"]
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (count, 16))
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities, saved(2, pictures(count)), atol=1e-5)
    np.testing.assert_allclose(model.probabilities(pictures(count), SECONDS), probabilities, atol=1e-6)
    kept = embeddings.copy()
    model.embedded(pictures(count, seed=1), SECONDS)
    np.testing.assert_array_equal(embeddings, kept)  # What was given stays.
    model.close()


def test_threads_that_ask_for_embeddings_do_not_mix(sampling, folder, saved):
    model = sampling.load(export.read(folder / "m" / "1"))

    def compute(thread):
        for count in range(1, 6):
            pixels = pictures(count, seed=thread)
            found = model.probabilities(pixels, SECONDS) if thread % 2 else model.embedded(pixels, SECONDS)[0]
            np.testing.assert_allclose(found, saved(1, pixels), atol=1e-5)

    together(compute, range(4))
    model.close()


def test_an_export_without_embeddings_is_computed_as_before(sampling, folder, saved, tmp_path):
    path = add(folder / "m" / "1", tmp_path / "m", 1)
    without_embedding(path)
    model = sampling.load(export.read(path))
    assert not model.embeds
    np.testing.assert_allclose(model.probabilities(pictures(3), SECONDS), saved(1, pictures(3)), atol=1e-5)
    model.close()


def test_versions_differ_by_more_than_the_tolerance(engine, saved):
    assert np.abs(saved(1, pictures(3)) - saved(2, pictures(3))).max() > 2 * engine.tolerance


def test_what_was_given_stays_when_more_is_computed(engine, folder, saved):
    model = engine.load(export.read(folder / "m" / "1"))
    kept = [model.probabilities(pictures(3, seed), SECONDS) for seed in range(5)]
    for seed, found in enumerate(kept):
        np.testing.assert_allclose(found, saved(1, pictures(3, seed)), atol=1e-5)
    model.close()


def test_parts_of_a_larger_array_and_arrays_that_cannot_be_written(engine, folder, saved):
    model = engine.load(export.read(folder / "m" / "1"))
    many = pictures(12)
    many.setflags(write=False)
    for part in (many[3:7], many[::3], np.flip(many[:3], axis=1)):
        np.testing.assert_allclose(model.probabilities(part, SECONDS), saved(1, part), atol=1e-5)
    model.close()


def test_threads_that_compute_at_once_do_not_mix(engine, folder, saved):
    models = {version: engine.load(export.read(folder / "m" / str(version))) for version in (1, 2)}

    def compute(thread):
        for count in range(1, 9):
            pixels = pictures(count, seed=thread)
            found = models[1 + thread % 2].probabilities(pixels, SECONDS)
            np.testing.assert_allclose(found, saved(1 + thread % 2, pixels), atol=1e-5)

    together(compute, range(max(2, engine.at_once) * 2))
    for model in models.values():
        model.close()


def test_a_closed_model_can_be_loaded_again_and_others_are_unharmed(engine, folder, saved):
    first, second = (engine.load(export.read(folder / "m" / version)) for version in "12")
    first.close()
    np.testing.assert_allclose(second.probabilities(pictures(2), SECONDS), saved(2, pictures(2)), atol=1e-5)
    again = engine.load(export.read(folder / "m" / "1"))
    np.testing.assert_allclose(again.probabilities(pictures(2), SECONDS), saved(1, pictures(2)), atol=1e-5)
    again.close()
    second.close()


def test_pictures_of_another_size_harm_nobody_after_them(engine, folder, saved):
    model = engine.load(export.read(folder / "m" / "1"))
    with contextlib.suppress(Exception):
        model.probabilities(pictures(2, size=SIZE + 1), SECONDS)
    np.testing.assert_allclose(model.probabilities(pictures(2), SECONDS), saved(1, pictures(2)), atol=1e-5)
    model.close()


def test_the_name_says_which_version_or_where(engine):
    assert any(character.isdecimal() for character in engine.name)
    assert engine.at_once >= 1
    assert 0 < engine.tolerance < 0.05


def test_a_version_passes_its_check_and_is_served(engine, folder):
    versions = Versions(Settings(export=folder), engine, Metrics())
    versions.look()
    [status] = versions.status("m")
    assert (status.version, status.state, status.error) == (2, State.AVAILABLE, "")
    versions.close()


def test_a_version_is_served_under_any_name(folder, tmp_path):
    """models.config gives a model any name, here and upstream."""
    add(folder / "m" / "1", tmp_path / "export" / "other", 1)
    server = Server(tmp_path / "export")
    engine = ENGINES["tfserving"](Settings(engine="tfserving", upstream=f"127.0.0.1:{server.port}"))
    versions = Versions(Settings(export=tmp_path / "export"), engine, Metrics())
    try:
        versions.look()
        [status] = versions.status("other")
        assert (status.state, status.error) == (State.AVAILABLE, "")
    finally:
        versions.close()
        engine.close()
        server.stop()


# Exports that cannot be loaded


def _garble(path):
    """A graph with an operation that nobody knows."""
    content = (path / "saved_model.pb").read_bytes()
    assert b"DepthwiseConv2dNative" in content
    (path / "saved_model.pb").write_bytes(content.replace(b"DepthwiseConv2dNative", b"DepthwiseConv2dMystic"))


DAMAGE = {
    "half the variables": lambda path: os.truncate(path / VARIABLES, (path / VARIABLES).stat().st_size // 2),
    "no values": lambda path: os.truncate(path / VARIABLES, 0),
    "no file of values": lambda path: (path / VARIABLES).unlink(),
    "no index": lambda path: (path / "variables" / "variables.index").unlink(),
    "half the index": lambda path: os.truncate(path / "variables" / "variables.index", 100),
    "no variables": lambda path: shutil.rmtree(path / "variables"),
    "an unknown operation": _garble,
    "half the graph": lambda path: os.truncate(path / "saved_model.pb", (path / "saved_model.pb").stat().st_size // 2),
    "no graph": lambda path: (path / "saved_model.pb").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_export_is_refused_in_words_and_served_once_it_is_mended(
    request, local, folder, saved, tmp_path, damage
):
    path = add(folder / "m" / "1", tmp_path / "m", 7)
    damage(path)
    with pytest.raises((LoadError, ExportError), match=str(path)) as error:
        local.load(export.read(path))
    assert not isinstance(error.value, NotYet)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    shutil.copytree(
        folder / "m" / "1", path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("openvino-*", "manifest*")
    )
    model = local.load(export.read(path))
    np.testing.assert_allclose(model.probabilities(pictures(2), SECONDS), saved(1, pictures(2)), atol=1e-5)
    model.close()


# What OpenVINO keeps


@pytest.fixture
def openvino():
    return OpenVino()


@pytest.fixture
def version(folder, tmp_path):
    """A copy of m/1, not converted yet."""
    return add(folder / "m" / "1", tmp_path / "m", 1)


def computes(engine, path, saved, number=1):
    model = engine.load(export.read(path))
    np.testing.assert_allclose(model.probabilities(pictures(3), SECONDS), saved(number, pictures(3)), atol=1e-5)
    model.close()


def test_a_model_is_converted_once_and_kept_beside_the_export(openvino, version, saved):
    before = {path.name for path in version.iterdir()}
    computes(openvino, version, saved)
    assert {path.name for path in version.iterdir()} - before == {KEPT}
    assert {path.name for path in (version / KEPT).iterdir()} == {"model.xml", "model.bin"}
    kept = {path: path.stat().st_mtime_ns for path in (version / KEPT).iterdir()}
    shutil.rmtree(version / "variables")  # It is not read again.
    computes(openvino, version, saved)
    computes(OpenVino(), version, saved)
    assert {path: path.stat().st_mtime_ns for path in (version / KEPT).iterdir()} == kept


def test_what_is_kept_has_the_weights_in_full(openvino, version, saved):
    computes(openvino, version, saved)
    values = sum(np.prod(variable.shape) for variable in convolutions().variables)
    assert (version / KEPT / "model.bin").stat().st_size >= 4 * (values - 2 * 8)  # Normalization is folded.


def test_the_saved_model_is_unharmed(openvino, version, saved):
    before = {path: path.read_bytes() for path in version.rglob("*") if path.is_file()}
    computes(openvino, version, saved)
    assert {path: path.read_bytes() for path in before} == before


def test_where_nothing_can_be_kept_each_load_converts(openvino, version, saved, monkeypatch):
    (version / KEPT).write_text("A file where the folder should be.")
    for _ in range(2):
        computes(openvino, version, saved)
    assert not [path for path in version.iterdir() if path.is_dir() and "openvino" in path.name]


def test_a_conversion_that_was_not_finished_is_not_used(openvino, version, saved):
    staging = version / f".{KEPT}-0123"
    staging.mkdir()
    (staging / "model.xml").write_text("<net")
    (version / KEPT).mkdir()  # As when a copy of the folder has just begun.
    computes(openvino, version, saved)


def test_a_conversion_that_cannot_be_written_whole_leaves_nothing(openvino, version, saved, monkeypatch):
    def full(network, file, **options):
        file.write_text("<net")
        raise RuntimeError("the disk is full")

    before = {path.name for path in version.iterdir()}
    monkeypatch.setattr("openvino.save_model", full)
    computes(openvino, version, saved)
    assert {path.name for path in version.iterdir()} == before
    monkeypatch.undo()
    computes(openvino, version, saved)
    assert (version / KEPT).is_dir()


@pytest.mark.parametrize("file", ["model.xml", "model.bin"])
def test_a_damaged_conversion_is_made_again(openvino, version, saved, file):
    computes(openvino, version, saved)
    size = (version / KEPT / file).stat().st_size
    os.truncate(version / KEPT / file, size // 2)
    computes(openvino, version, saved)
    assert (version / KEPT / file).stat().st_size == size


def test_several_servers_convert_at_once(version, saved):
    together(lambda engine: computes(engine, version, saved), [OpenVino() for _ in range(3)])
    assert [path.name for path in version.iterdir() if "openvino" in path.name] == [KEPT]


def test_a_server_that_keeps_samples_converts_beside_the_other(openvino, version, saved):
    computes(openvino, version, saved)
    kept = {path: path.stat().st_mtime_ns for path in (version / KEPT).iterdir()}
    for _ in range(2):
        computes(OpenVino(embeddings=True), version, saved)
    assert {path.name for path in version.iterdir() if "openvino" in path.name} == {KEPT, f"{KEPT}-embedding"}
    assert {path: path.stat().st_mtime_ns for path in (version / KEPT).iterdir()} == kept
    shutil.rmtree(version / "variables")  # Neither is made again.
    computes(openvino, version, saved)
    model = OpenVino(embeddings=True).load(export.read(version))
    assert model.embedded(pictures(2), SECONDS)[1].shape == (2, 16)
    model.close()


def test_a_damaged_conversion_with_embeddings_is_made_again(version, saved):
    computes(OpenVino(embeddings=True), version, saved)
    weights_file = version / f"{KEPT}-embedding" / "model.bin"
    os.truncate(weights_file, weights_file.stat().st_size // 2)
    computes(OpenVino(embeddings=True), version, saved)
    model = OpenVino(embeddings=True).load(export.read(version))
    assert model.embedded(pictures(2), SECONDS)[1].shape == (2, 16)
    model.close()


def look(version):
    versions = Versions(Settings(export=version.parent.parent), OpenVino(), Metrics())
    versions.look()
    [status] = versions.status("m")
    versions.close()
    return status


def test_variables_changed_under_a_conversion_are_not_passed_over(folder, version):
    assert look(version).state is State.AVAILABLE
    for name in ("variables", "assets.extra"):  # Those of another model.
        shutil.copytree(folder / "m" / "2" / name, version / name, dirs_exist_ok=True)
    assert look(version).state is State.END  # They do not fit the graph, and the conversion does not hide it.


def test_a_version_converted_while_it_was_copied_is_served_in_the_end(folder, version):
    """Some ways of copying give a file its size first and its content later."""
    content = (version / VARIABLES).read_bytes()
    (version / VARIABLES).write_bytes(bytes(len(content)))
    assert look(version).state is State.END
    (version / VARIABLES).write_bytes(content)
    status = look(version)
    assert (status.state, status.error) == (State.AVAILABLE, "")


# A real network on real pictures


@pytest.mark.slow
def test_mobilenet_on_photographs(local, photographs, imagenet_weights, tmp_path):
    files = sorted(photographs.rglob("*.jpg"))[::12][:20]
    pixels = np.stack([decode(file.read_bytes(), PixelSpec(224, 224)) for file in files])
    keras.utils.set_random_seed(0)
    config = BackboneConfig(name="mobilenet", weights="imagenet", options={"alpha": 0.25})
    backbone = weights.load(config, 224, tmp_path)
    net = networks.build(backbone, BACKBONES["mobilenet"], None, Head(), 5)
    test = replace(split(len(files), size=224), pixels=InMemory(pixels))
    path, _ = exporting.exported(net.model, test, tmp_path)
    loaded = tf.saved_model.load(str(path))
    expected = loaded.signatures["pixels"](pixels=tf.constant(pixels))["probabilities"].numpy()
    assert expected.std(axis=0).max() > 0.05  # The pictures differ to it, or nothing would be shown.
    served = local.load(export.read(path))
    np.testing.assert_allclose(served.probabilities(pixels, SECONDS), expected, atol=1e-4)
    served.close()


# What is imported


@pytest.mark.parametrize(
    "program",
    [
        "import serving.app",
        "import serving.app, serving.engines.openvino, serving.engines.tfserving; serving.engines.openvino.OpenVino()",
        "from serving.app import create_app; from serving.settings import Settings; create_app(Settings())",
    ],
)
def test_serving_imports_nothing_of_training(program):
    assert not _imported(program) & {"tensorflow", "keras", "mlflow", "tensorflow_serving", "scipy", "matplotlib"}


def test_grpc_is_imported_where_it_is_used_alone():
    assert "grpc" not in _imported("from serving.app import create_app")


def test_the_help_of_serve_imports_neither_tensorflow_nor_openvino():
    program = "from pipeline.__main__ import main; import sys; sys.argv = ['graft', 'serve', '--help']; main()"
    assert not _imported(program) & {"tensorflow", "keras", "mlflow", "grpc", "openvino"}


def _imported(program):
    """The modules at the top that a program imports."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('MODULES', *{name.split('.')[0] for name in sys.modules}))\n" + program
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())
