"""What is published: signatures, records, versions; and what is not published."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import export, publish
from pipeline.artifacts import read_manifest
from pipeline.errors import ExportError
from pipeline.metrics import softmax
from tests import exporting
from tests.networks import split

PICTURES = split(12, classes=3, size=16)
CLASSES = ("ant", "bee", "Käfer")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 50)(pixels))
    return keras.Model(pixels, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def published(model, tmp_path_factory):
    return exporting.exported(model, PICTURES, tmp_path_factory.mktemp("export"), CLASSES, temperature=2.0)


def test_signatures_have_the_promised_shapes_and_types(published):
    signatures = tf.saved_model.load(str(published[0])).signatures
    assert signatures["serving_default"].structured_input_signature[1] == {
        "image_bytes": tf.TensorSpec([None], tf.string, "image_bytes")
    }
    assert signatures["pixels"].structured_input_signature[1] == {
        "pixels": tf.TensorSpec([None, 16, 16, 3], tf.uint8, "pixels")
    }
    answer = {"probabilities": (tf.float32, 2), "label": (tf.string, 1), "score": (tf.float32, 1)}
    for name, expected in (
        ("serving_default", answer),
        ("pixels", answer),
        ("embedding", answer | {"embedding": (tf.float32, 2)}),
    ):
        outputs = {key: (spec.dtype, spec.shape.rank) for key, spec in signatures[name].structured_outputs.items()}
        assert outputs == expected


def test_outputs_are_the_models_with_temperature_and_names(model, published):
    signatures = tf.saved_model.load(str(published[0])).signatures
    images = PICTURES.images(np.arange(12))
    expected = softmax(model(np.float32(images)).numpy(), 2.0)
    for given in (
        signatures["pixels"](pixels=tf.constant(images)),
        signatures["serving_default"](image_bytes=tf.constant([exporting.encoded(image) for image in images])),
    ):
        np.testing.assert_allclose(given["probabilities"], expected, atol=1e-5)
        np.testing.assert_allclose(given["score"], expected.max(axis=1), atol=1e-5)
        assert [label.decode() for label in given["label"].numpy()] == [CLASSES[i] for i in expected.argmax(axis=1)]


def test_decoding_is_pinned_to_the_processor(published):
    loaded = tf.saved_model.load(str(published[0]))
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    decoders = [
        node for function in graph.library.function for node in function.node_def if node.op.startswith("Decode")
    ]
    assert decoders
    assert all(node.device.upper().endswith("CPU:0") for node in decoders)


def test_records_lie_beside_the_model(published):
    path, parity = published
    assert (path / "labels.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)
    manifest = read_manifest(path)
    assert (manifest.name, manifest.version, manifest.temperature) == ("m", 1, 2.0)
    assert manifest.parity == parity
    assert parity.pictures == 12
    assert json.loads((path / "manifest.json").read_text())["pixels"]["height"] == 16
    warmup = path / "assets.extra" / "tf_serving_warmup_requests"
    assert sum(1 for _ in tf.data.TFRecordDataset(str(warmup))) == 2 * export.WARMUP_PICTURES


def test_versions_count_up_beside_strangers(model, tmp_path):
    (tmp_path / "m" / "7").mkdir(parents=True)
    (tmp_path / "m" / "notes").mkdir()
    path, _ = exporting.exported(model, PICTURES, tmp_path)
    assert path == tmp_path / "m" / "8"
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["7", "8", "notes"]


def test_a_version_taken_meanwhile_is_left_alone(model, tmp_path, monkeypatch):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "theirs").touch()
    seen = iter([1, 2])
    monkeypatch.setattr(publish, "next_version", lambda home: next(seen))
    path, _ = exporting.exported(model, PICTURES, tmp_path)
    assert path.name == "2"
    assert read_manifest(path).version == 2
    assert (tmp_path / "m" / "1" / "theirs").exists()


def test_a_model_that_does_not_agree_is_not_published(model, tmp_path):
    honest = exporting.check_pictures(PICTURES)
    other = dataclasses.replace(honest, encoded=lambda rows: honest.encoded((rows + 1) % honest.count))
    with pytest.raises(ExportError, match=r"not\s+published.*at least 99% must"):
        exporting.exported(model, PICTURES, tmp_path, test=other)
    assert list((tmp_path / "m").iterdir()) == []


def test_pixels_that_disagree_fail_the_check(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PIXELS_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="largest difference of a probability"):
        exporting.exported(model, PICTURES, tmp_path)
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize("at", [0, 10])
def test_a_picture_that_tensorflow_cannot_decode_counts_as_another_label(model, tmp_path, monkeypatch, at):
    honest = exporting.check_pictures(PICTURES)
    encoded = list(honest.encoded(np.arange(12)))
    encoded[at] = encoded[at][:-20]
    test = dataclasses.replace(honest, encoded=lambda rows: (encoded[row] for row in rows))
    with pytest.raises(ExportError, match=r"91\.7% get the same label.*cannot decode 1 of them"):
        exporting.exported(model, PICTURES, tmp_path, test=test)
    monkeypatch.setattr(export, "SAME_LABEL_SHARE", 0.9)
    path, parity = exporting.exported(model, PICTURES, tmp_path, test=test)
    assert parity.image_bytes_same_label == pytest.approx(11 / 12)
    assert parity.image_bytes_largest_difference < 1e-5
    warmup = path / "assets.extra" / "tf_serving_warmup_requests"
    assert sum(1 for _ in tf.data.TFRecordDataset(str(warmup))) == 2 * export.WARMUP_PICTURES - (at == 0)


def test_no_picture_that_tensorflow_can_decode(model, tmp_path):
    test = dataclasses.replace(exporting.check_pictures(PICTURES), encoded=lambda rows: (b"nothing" for _ in rows))
    with pytest.raises(ExportError, match="cannot decode 12 of them"):
        exporting.exported(model, PICTURES, tmp_path, test=test)


def test_a_nan_fails_the_check(tmp_path):
    pixels = keras.Input((16, 16, 3))
    nothing = keras.layers.Rescaling(float("nan"))(keras.layers.GlobalAveragePooling2D()(pixels))
    with pytest.raises(ExportError, match="largest difference of a probability is nan"):
        exporting.exported(keras.Model(pixels, nothing), PICTURES, tmp_path)


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_folder_that_is_no_export_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ExportError, match=r"not a model exported by graft.*export/NAME/1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(("gap", "same"), [(0.0099, True), (0.0101, False)])
def test_a_label_that_ties_with_the_expected_one_is_the_same(gap, same):
    expected = np.array([[0.5 + gap / 2, 0.5 - gap / 2]])
    given = {"probabilities": np.array([[0.49, 0.51]]), "label": np.array([b"bee"], object)}
    assert export._same_labels(expected, given, np.array([b"ant", b"bee"], object)).tolist() == [same]
