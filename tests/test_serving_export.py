"""An export read without TensorFlow gives what TensorFlow reads from it."""

import os
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from pipeline.errors import ExportError
from pipeline.export import WARMUP_PICTURES
from serving import export
from serving.protos import serving_pb2
from tests import served
from tests.served import CLASSES, SIZE, WARMUP, add, change_warmup


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return served.means(tmp_path_factory.mktemp("export"))


@pytest.fixture
def copy(path, tmp_path):
    """Version 7, to be damaged."""
    return add(path, tmp_path / "other", 7)


def logs(path):
    """The warm-up records, as TensorFlow reads them."""
    records = tf.data.TFRecordDataset(str(path / WARMUP))
    return [prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log for record in records]


# read


def test_the_parts_of_an_export(path):
    found = export.read(path)
    assert (found.path, found.name, found.version) == (path, "m", 1)
    assert tuple(found.manifest.classes) == CLASSES
    assert (found.manifest.pixels.height, found.manifest.pixels.width) == (SIZE, SIZE)


def test_name_and_version_are_those_it_is_served_by(copy):
    assert export.read(copy).name == "m"
    found = export.read(copy, "mine")
    assert (found.name, found.version, found.manifest.name) == ("mine", 7, "m")


def test_signatures_are_those_that_tensorflow_reads(path):
    original = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    expected = original.meta_graphs[0].signature_def
    found = export.read(path).signatures
    assert found.keys() == set(expected)
    assert {"serving_default", "pixels"} <= found.keys()
    for name, signature in found.items():
        assert signature.SerializeToString(deterministic=True) == expected[name].SerializeToString(deterministic=True)
    assert [dim.size for dim in found["pixels"].inputs["pixels"].tensor_shape.dim] == [-1, SIZE, SIZE, 3]
    assert found["serving_default"].inputs["image_bytes"].dtype == serving_pb2.DT_STRING


def _without(signature):
    def change(path):
        saved = serving_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        for graph in saved.meta_graphs:
            del graph.signature_def[signature]
        (path / "saved_model.pb").write_bytes(saved.SerializeToString())

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, r"not a model exported by graft: its manifest\.json cannot be read"),
        (lambda path: (path / "manifest.json").unlink(), r"manifest\.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("{}"), r"manifest\.json is damaged"),
        (lambda path: (path / "saved_model.pb").unlink(), r"not a whole model: saved_model\.pb cannot be read"),
        (lambda path: os.truncate(path / "saved_model.pb", 5000), r"not a whole model: saved_model\.pb cannot be read"),
        (lambda path: (path / "saved_model.pb").write_bytes(b"\xff"), r"saved_model\.pb cannot be read"),
        (lambda path: (path / "saved_model.pb").write_bytes(b""), r"lacks the signature pixels, serving_default\."),
        (_without("pixels"), r"lacks the signature pixels\. Export it again with graft run"),
        (_without("serving_default"), r"lacks the signature serving_default\."),
    ],
)
def test_what_is_no_whole_export_is_refused_in_words(copy, damage, words):
    damage(copy)
    with pytest.raises(ExportError, match=words) as error:
        export.read(copy)
    assert str(copy) in str(error.value)


def test_a_manifest_that_is_no_text(copy):
    (copy / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match=r"manifest\.json"):
        export.read(copy)


def test_other_pixels_than_this_servers_are_refused(path, tmp_path):
    other = add(path, tmp_path / "m", 1, pixels_version=0)
    with pytest.raises(
        ExportError, match=r"decoded by version 0 of graft's decoder; this is version 1\. Serve it with"
    ):
        export.read(other)


# warmup


def test_warm_up_is_what_tensorflow_reads(path):
    pixels, probabilities = export.read(path).warmup()
    expected = [log for log in logs(path) if log.request.model_spec.signature_name == "pixels"]
    assert len(expected) == WARMUP_PICTURES
    np.testing.assert_array_equal(pixels, [tf.make_ndarray(log.request.inputs["pixels"])[0] for log in expected])
    np.testing.assert_array_equal(
        probabilities, [tf.make_ndarray(log.response.outputs["probabilities"])[0] for log in expected]
    )
    assert (pixels.dtype, pixels.shape) == (np.uint8, (WARMUP_PICTURES, SIZE, SIZE, 3))
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (WARMUP_PICTURES, 3))
    np.testing.assert_allclose(probabilities, served.expected(pixels), atol=1e-5)


def test_a_single_warm_up_picture(tmp_path):
    pixels, probabilities = export.read(served.means(tmp_path, count=1)).warmup()
    assert (pixels.shape, probabilities.shape) == ((1, SIZE, SIZE, 3), (1, 3))


def test_records_without_an_answer_are_passed_over(copy):
    left = iter([True, False] * 100)

    def forget(log):
        if next(left):
            log.predict_log.ClearField("response")

    before = export.read(copy).warmup()[0]
    change_warmup(copy, forget)
    after = export.read(copy).warmup()[0]
    assert 0 < len(after) < len(before)
    change_warmup(copy, lambda log: log.predict_log.ClearField("response"))
    with pytest.raises(ExportError, match=r"no warm-up pictures with the probabilities they had at export.*Export it"):
        export.read(copy).warmup()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: os.truncate(file, file.stat().st_size // 2),
        lambda file: os.truncate(file, 5),
        lambda file: file.write_bytes(struct.pack("<QI", 4, 0) + b"\xff\xff\xff\xff" + bytes(4)),
    ],
    ids=["missing", "half", "half a header", "no messages"],
)
def test_warm_up_records_that_cannot_be_read_are_refused_in_words(copy, damage):
    damage(copy / WARMUP)
    with pytest.raises(ExportError, match=r"other/7 is not a whole model: its warm-up records cannot be read"):
        export.read(copy).warmup()


def test_no_warm_up_records_at_all(copy):
    (copy / WARMUP).write_bytes(b"")
    with pytest.raises(ExportError, match="no warm-up pictures"):
        export.read(copy).warmup()


# Tensors

ARRAYS = st.sampled_from([np.float32, np.uint8]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(max_dims=4, max_side=5, min_side=1))
)


@given(ARRAYS)
def test_a_tensor_is_read_back_here_and_by_tensorflow(values):
    tensor = export.tensor(values)
    np.testing.assert_array_equal(export.array(tensor), values)
    theirs = tf.make_ndarray(tensor_pb2.TensorProto.FromString(tensor.SerializeToString()))
    assert theirs.dtype == export.array(tensor).dtype == values.dtype
    np.testing.assert_array_equal(theirs, values)


@given(arrays(np.float32, array_shapes(max_dims=4, max_side=5)))
def test_tensorflows_tensors_are_read(values):
    for theirs in (tf.make_tensor_proto(values), tf.make_tensor_proto(values.tolist(), np.float32, values.shape)):
        ours = export.array(serving_pb2.TensorProto.FromString(theirs.SerializeToString()))
        assert (ours.dtype, ours.shape) == (np.float32, values.shape)
        np.testing.assert_array_equal(ours, values)


def test_empty_arrays():
    for shape in [(0, 3), (2, 0)]:
        assert export.array(export.tensor(np.zeros(shape, np.float32))).shape == shape


def test_parts_of_an_array_are_sent_as_they_look():
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)[::2, ::-1].T
    np.testing.assert_array_equal(export.array(export.tensor(values)), values)
