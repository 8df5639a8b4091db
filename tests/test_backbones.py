"""The contract test of the table of networks, one row per network, and tests of cutting, normalising and loading.

The smallest member of each family is built with random weights at its smallest size, all networks as outlines, without
their weights.
"""

import gc
import re
import shutil
import subprocess
import sys
import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src.applications import imagenet_utils

from pipeline.artifacts import BackboneIdentity, RunRecord
from pipeline.backbones import BACKBONES, weights
from pipeline.backbones.base import Backbone
from pipeline.backbones.contracts import CONTRACTS
from pipeline.backbones.cuts import blocks, cut_below, cut_points, first_of_share, split, unfrozen
from pipeline.backbones.normalise import Normalise
from pipeline.backbones.weights import outline
from pipeline.config import BackboneConfig, Blocks, From, Share
from pipeline.errors import ConfigError, WeightsError
from tests.networks import SMALLEST

OPTIONS = [
    ("mobilenet", {"alpha": 0.5, "depth_multiplier": 2}),
    ("mobilenet_v2", {"alpha": 0.35}),
    ("mobilenet_v2", {"alpha": 1.4}),
    ("mobilenet_v3_small", {"alpha": 0.75, "minimalistic": True}),
    ("mobilenet_v3_large", {"alpha": 0.75}),
    ("mobilenet_v3_large", {"minimalistic": True}),
]
APPLICATIONS = {name.lower(): name for name in dir(keras.applications) if name[0].isupper()}
SHARED_KERAS = Path(__file__).parents[1].parent / "shared" / "keras"


def application_of(row: Backbone):
    return getattr(keras.applications, APPLICATIONS[row.name.replace("_", "")])


def names_of(backbone: keras.Model) -> list[str]:
    return [layer.name for layer in backbone.layers[1:]]


# ------------------------------------------------------------------------------------------------------------ the table


def test_every_family_has_its_smallest_member_and_every_application_its_row():
    assert set(SMALLEST) == {row.family for row in BACKBONES.values()}
    assert {row.name.replace("_", "") for row in BACKBONES.values() if row.imagenet} == set(APPLICATIONS)


def test_the_table_needs_no_tensorflow():
    code = "import sys, pipeline.backbones.contracts; assert not {'keras', 'tensorflow'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", BACKBONES)
def test_outline(name):
    row = BACKBONES[name]
    backbone = outline(row.name, row.min_size)
    assert all(side >= 1 for op in backbone.operations for side in keras.tree.flatten(op.output)[0].shape[1:])
    check_cuts_and_blocks(row, backbone)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_outline_with_options(name, options):
    row = BACKBONES[name]
    assert set(options) <= set(row.options)
    check_cuts_and_blocks(row, outline(row.name, row.min_size, **options))


def check_cuts_and_blocks(row: Backbone, backbone: keras.Model) -> None:
    cuts, grouped, layers = cut_points(backbone), blocks(backbone, row.block_end), names_of(backbone)
    ends = [op.name for op in backbone.operations if re.fullmatch(row.block_end, op.name)]
    assert len(grouped) == len(ends) >= 4
    assert [name for block in grouped for name in block] == layers
    assert cuts[-1] == layers[-1]
    if row.family == "NASNet":
        assert cuts == ["stem_conv1", "stem_bn1", ends[-1], layers[-1]]
    else:
        assert set(ends) <= set(cuts)
    # Data flows the way the layers are listed.
    made: set[int] = set()
    for operation in backbone.operations:
        assert {id(tensor) for tensor in keras.tree.flatten(operation.input)} <= made
        made |= {id(tensor) for tensor in keras.tree.flatten(operation.output)}

    for unfreeze in (
        Blocks(blocks=1),
        Blocks(blocks=2),
        From(**{"from": layers[len(layers) // 2]}),
        Share(fraction=0.3),
    ):
        training = unfrozen(backbone, row.block_end, unfreeze)
        assert training == layers[-len(training) :]
        cut = cut_below(backbone, training)
        order = [op.name for op in backbone.operations]
        assert cut in cuts
        assert order.index(cut) < order.index(training[0])
    assert cut_below(backbone, []) == cuts[-1]
    assert cut_below(backbone, layers) is None
    if row.family != "NASNet":
        above = unfrozen(backbone, row.block_end, Blocks(blocks=2))
        assert cut_below(backbone, above) == ends[-3]


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if row.imagenet])
def test_sizes_and_contract_are_those_of_keras(name, monkeypatch):
    row = BACKBONES[name]
    builder = application_of(row)
    preprocess_input = sys.modules[builder.__module__].preprocess_input
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    expected = np.asarray(preprocess_input(pixels.astype(np.float32)))

    np.testing.assert_array_equal(Normalise(row.contract)(pixels), expected)
    np.testing.assert_array_equal(tf.function(Normalise(row.contract))(pixels), expected)

    with pytest.raises(ValueError, match=r"(?i)input size must be at least"):
        builder(include_top=False, weights=None, input_shape=(row.min_size - 1, row.min_size - 1, 3))
    if row.family == "MobileNet v3":
        return  # Its builder states no default size.

    class AskedError(Exception):
        pass

    def obtain_input_shape(*_, default_size, **__):
        raise AskedError(default_size)

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", obtain_input_shape)
    with pytest.raises(AskedError, match=f"^{row.default_size}$"):
        builder(weights=None)


def test_an_outline_leaves_no_variables_behind():
    vgg = outline("vgg16", 32)
    kernel = weakref.ref(vgg.get_layer("block1_conv1").kernel)
    assert kernel() is not None
    del vgg
    gc.collect()
    assert kernel() is None


def test_unnamed_layers_have_the_same_names_in_every_build():
    row = BACKBONES["inception_v3"]
    keras.layers.Conv2D(1, 1)
    first, second = outline(row.name, 75), outline(row.name, 75)
    assert names_of(first) == names_of(second)
    assert names_of(first)[0] == "conv2d"
    assert keras.layers.Conv2D(1, 1).name != keras.layers.Conv2D(1, 1).name


# --------------------------------------------------------------------------------------------- the smallest of a family


@pytest.fixture(scope="module", params=SMALLEST.values(), ids=SMALLEST)
def built(request):
    name, options = request.param
    row = BACKBONES[name]
    keras.utils.set_random_seed(0)
    config = BackboneConfig(name=name, options=options, weights="none")
    return row, weights.load(config, row.min_size, Path("unused"))


def test_trunk_and_tail_are_the_whole_and_share_its_weights(built):
    row, backbone = built
    x = np.random.default_rng(1).normal(size=(2, *backbone.input_shape[1:])).astype(np.float32)
    whole = backbone(x, training=False).numpy()
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    assert whole.std() > 0

    cuts = cut_points(backbone)
    all_weights = {id(w) for w in backbone.weights}
    for cut in (cuts[0], cut_below(backbone, unfrozen(backbone, row.block_end, Blocks(blocks=2))), cuts[-1]):
        trunk, tail = split(backbone, cut)
        halves = tail(trunk(x, training=False), training=False).numpy()
        np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())
        below, above = {id(w) for w in trunk.weights}, {id(w) for w in tail.weights}
        assert below | above == all_weights
        assert not below & above
    assert split(backbone, None) == (None, backbone)
    assert cut_points(backbone) == cuts


def test_a_tail_that_trains_changes_the_backbone_and_not_the_trunk(built):
    row, backbone = built
    training = unfrozen(backbone, row.block_end, Blocks(blocks=1))
    trunk, tail = split(backbone, cut_below(backbone, training))
    before = weights.digest(trunk), weights.digest(backbone)
    backbone.trainable = True
    kernel = next(w for w in reversed(tail.trainable_weights) if w.shape)
    kernel.assign_add(keras.ops.ones_like(kernel))
    assert weights.digest(trunk) == before[0]
    assert weights.digest(backbone) != before[1]
    kernel.assign_add(-keras.ops.ones_like(kernel))


# --------------------------------------------------------------------------------------------- published layers, counts


def sizes(backbone: keras.Model) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.output.shape[1:] for layer in backbone.layers[1:]}


def counts(backbone: keras.Model) -> dict[str, int]:
    return {layer.name: layer.count_params() for layer in backbone.layers if layer.weights}


def test_lenet5_is_as_published():
    backbone = outline("lenet5", 32)
    assert sizes(backbone) == {
        "c1": (28, 28, 6), "s2": (14, 14, 6), "c3": (10, 10, 16), "s4": (5, 5, 16), "c5": (1, 1, 120),
        "flatten": (120,), "f6": (84,),
    }  # fmt: skip
    units = {name: int(np.prod(shape)) for name, shape in sizes(backbone).items()}
    assert [units[name] for name in ("c1", "s2", "c3", "s4", "c5", "f6")] == [4704, 1176, 1600, 400, 120, 84]
    assert counts(backbone) == {"c1": 156, "c3": 2_416, "c5": 48_120, "f6": 10_164}
    assert backbone.count_params() + 84 * 10 + 10 == 61_706


def test_alexnet_is_as_published():
    backbone = outline("alexnet", 227)
    assert sizes(backbone) == {
        "conv1": (55, 55, 96), "pool1": (27, 27, 96), "norm1": (27, 27, 96),
        "conv2": (27, 27, 256), "pool2": (13, 13, 256), "norm2": (13, 13, 256),
        "conv3": (13, 13, 384), "conv4": (13, 13, 384), "conv5": (13, 13, 256), "pool5": (6, 6, 256),
        "flatten": (9216,), "fc6": (4096,), "drop6": (4096,), "fc7": (4096,), "drop7": (4096,),
    }  # fmt: skip
    assert counts(backbone) == {
        "conv1": 34_944, "conv2": 614_656, "conv3": 885_120, "conv4": 1_327_488, "conv5": 884_992,
        "fc6": 37_752_832, "fc7": 16_781_312,
    }  # fmt: skip
    assert backbone.count_params() + 4096 * 1000 + 1000 == 62_378_344


def test_alexnet_starts_as_in_the_paper():
    backbone = BACKBONES["alexnet"].build(input_shape=(227, 227, 3), weights=None)
    biases = {layer.name: float(layer.bias.numpy().mean()) for layer in backbone.layers if layer.weights}
    assert biases == {"conv1": 0, "conv2": 1, "conv3": 0, "conv4": 1, "conv5": 1, "fc6": 1, "fc7": 1}
    assert np.std(backbone.get_layer("conv3").kernel.numpy()) == pytest.approx(0.01, rel=0.02)
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 12)).astype(np.float32) * 100
    around = [(x[..., max(0, i - 2) : i + 3] ** 2).sum(-1) for i in range(12)]
    normalised = backbone.get_layer("norm1")(x)
    np.testing.assert_allclose(normalised, x / (2 + 1e-4 * np.stack(around, -1)) ** 0.75, rtol=1e-4)


def test_vgg16_is_as_published():
    backbone = outline("vgg16", 224)
    assert backbone.count_params() == 14_714_688
    with keras.StatelessScope(initialize_variables=False):
        x = keras.layers.Flatten()(backbone.output)
        for units in (4096, 4096, 1000):
            x = keras.layers.Dense(units)(x)
        assert keras.Model(backbone.input, x).count_params() == 138_357_544


# ------------------------------------------------------------------------------------------------------- normalisation


def pixels_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_grey_is_luma_in_minus_one_to_one():
    grey = Normalise("grey")
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 256, 1, 3))
    np.testing.assert_allclose(grey(ramp), ramp[..., :1] / 127.5 - 1, atol=1e-6)
    red = np.asarray([[[[255, 0, 0]]]], np.uint8)
    np.testing.assert_allclose(grey(red), 2 * 0.299 - 1, atol=1e-6)


def test_alexnet_subtracts_imagenets_channel_means():
    pixels = pixels_of((2, 5, 4, 3))
    np.testing.assert_allclose(Normalise("alexnet")(pixels), pixels - [123.68, 116.779, 103.939], atol=1e-4)


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("shape", [(3,), (6, 5, 3)])
def test_a_training_mean_replaces_the_contracts_and_keeps_its_order_and_scale(contract, shape):
    pixels, mean = pixels_of((4, 6, 5, 3)), np.random.default_rng(2).uniform(0, 255, shape)
    row = CONTRACTS[contract]
    order = {"rgb": lambda x: x, "bgr": lambda x: x[..., ::-1], "grey": lambda x: x @ [[0.299], [0.587], [0.114]]}
    expected = order[row.order](pixels - mean) / row.divide / row.std
    result = Normalise(contract, mean)(pixels)
    assert result.shape == (4, 6, 5, row.channels)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_a_mean_of_zeros_subtracts_nothing():
    pixels = pixels_of((1, 3, 3, 3))
    np.testing.assert_array_equal(Normalise("tf", np.zeros(3))(pixels), pixels.astype(np.float32) / np.float32(127.5))


@pytest.mark.parametrize("mean", [None, np.full(3, 90.0), np.arange(6 * 5 * 3.0).reshape(6, 5, 3)])
def test_the_mean_survives_saving(tmp_path, mean):
    image = keras.Input((6, 5, 3), dtype="uint8")
    model = keras.Model(image, Normalise("torch", mean)(image))
    assert not model.trainable_weights
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    pixels = pixels_of((2, 6, 5, 3))
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored(pixels), model(pixels))
    other = keras.models.clone_model(model)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(pixels), model(pixels))


# ---------------------------------------------------------------------------------------------------- cuts and freezing


def cut_points_by_removal(backbone: keras.Model) -> list[str]:
    """What a cut point is: without it, nothing that the network puts out can be computed from its input."""

    def reaches_the_input(tensor, removed) -> bool:
        stack, seen = [tensor], set()
        while stack:
            operation = made_by[id(stack.pop())]
            if operation is removed or id(operation) in seen:
                continue
            if operation is backbone.operations[0]:
                return True
            seen.add(id(operation))
            stack += keras.tree.flatten(operation.input)
        return False

    made_by = {id(tensor): op for op in backbone.operations for tensor in keras.tree.flatten(op.output)}
    return [op.name for op in backbone.operations[1:] if not reaches_the_input(backbone.outputs[0], op)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_points_of_random_graphs(data):
    tensors = [keras.Input((2,))]
    for i in range(data.draw(st.integers(1, 12))):
        near = st.integers(max(0, i - 2), i)
        parents = [tensors[j] for j in data.draw(st.lists(near, min_size=1, max_size=2, unique=True))]
        tensors.append(keras.layers.Add()(parents) if len(parents) > 1 else keras.layers.ReLU()(parents[0]))
    backbone = keras.Model(tensors[0], tensors[-1])
    assert cut_points(backbone) == cut_points_by_removal(backbone)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet50_v2", "convnext_tiny", "nasnet_mobile"])
def test_cut_points_of_networks(name):
    backbone = outline(name, 32)
    assert cut_points(backbone) == cut_points_by_removal(backbone)


def test_blocks_of_mobilenet():
    row = BACKBONES["mobilenet"]
    grouped = blocks(outline(row.name, 32), row.block_end)
    assert len(grouped) == 14
    assert grouped[0] == ["conv1", "conv1_bn", "conv1_relu"]
    assert grouped[-1] == [f"conv_{part}_13{kind}" for part in ("dw", "pw") for kind in ("", "_bn", "_relu")]


def test_unfreezing_by_every_means():
    row = BACKBONES["mobilenet"]
    backbone = outline(row.name, 32)
    layers = names_of(backbone)
    means = partial(unfrozen, backbone, row.block_end)
    assert means("head") == []
    assert means("all") == layers
    assert means(Blocks(blocks=14)) == layers
    assert means(Blocks(blocks=1)) == layers[-6:]
    assert means(From(**{"from": "conv_pw_12"}))[0] == "conv_pw_12"
    assert means(Share(fraction=1.0)) == layers  # conv1 is both the first layer and the first with weights
    assert cut_below(backbone, means(From(**{"from": "conv_pw_12"}))) == "conv_dw_12_relu"
    assert cut_below(backbone, means("head")) == "conv_pw_13_relu"
    assert cut_below(backbone, means("all")) is None


@pytest.mark.parametrize(
    ("has_weights", "fraction", "first"),
    [
        ([True] * 10, 0.3, 7),
        ([True] * 10, 1.0, 0),
        ([True] * 10, 0.01, 9),
        ([True, False, True, False, True, False], 0.34, 4),
        ([True, False, True, False, True, False], 0.66, 2),
        ([False, True], 1.0, 1),
    ],
)
def test_a_share_counts_layers_with_weights_from_the_top(has_weights, fraction, first):
    assert first_of_share(has_weights, fraction) == first


def test_unknown_layers_and_too_many_blocks_are_refused_with_help():
    row = BACKBONES["mobilenet"]
    backbone = outline(row.name, 32)
    with pytest.raises(ConfigError, match=r"from: conv_pw12\. Close to it: conv_pw_12.*graft backbones NAME"):
        unfrozen(backbone, row.block_end, From(**{"from": "conv_pw12"}))
    with pytest.raises(ConfigError, match=r"no layer of this name\. Received: from: zzz\. `graft backbones"):
        unfrozen(backbone, row.block_end, From(**{"from": "zzz"}))
    with pytest.raises(ConfigError, match=r"14 blocks\. Received: blocks: 15"):
        unfrozen(backbone, row.block_end, Blocks(blocks=15))


# ------------------------------------------------------------------------------------------------------------- weights

MOBILENET = BackboneConfig(name="mobilenet", options={"alpha": 0.25})
MOBILENET_FILE = "mobilenet_2_5_224_tf_no_top.h5"
LENET = BackboneConfig(name="lenet5", weights="none")


def lenet_from(source: str | Path) -> BackboneConfig:
    return BackboneConfig(name="lenet5", weights=str(source))


@pytest.fixture
def keras_home(tmp_path, monkeypatch) -> Path:
    """An empty KERAS_HOME. Keras reads the variable once, when it is imported."""
    home = tmp_path / "keras"
    home.mkdir()
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(home))
    return home


@pytest.fixture
def no_network(monkeypatch) -> str:
    """Keras's addresses lead to a closed port of this machine."""
    address = "http://127.0.0.1:9/"
    for module in ("mobilenet", "mobilenet_v3"):
        monkeypatch.setattr(f"keras.src.applications.{module}.BASE_WEIGHT_PATH", address)
    return address


@pytest.fixture
def file_server(tmp_path, monkeypatch):
    """A folder that Keras's MobileNet address leads to."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            "keras.src.applications.mobilenet.BASE_WEIGHT_PATH", f"http://127.0.0.1:{server.server_port}/"
        )
        yield folder
        server.shutdown()


@pytest.mark.skipif(not SHARED_KERAS.is_dir(), reason=f"no ImageNet weights in {SHARED_KERAS}")
def test_real_imagenet_weights(tmp_path, keras_home, no_network):
    shutil.copytree(SHARED_KERAS / "models", keras_home / "models")
    file = SHARED_KERAS / "models" / MOBILENET_FILE
    expected = keras.applications.MobileNet(alpha=0.25, include_top=False, weights=None, input_shape=(224, 224, 3))
    expected.load_weights(file)
    assert weights.digest(weights.load(MOBILENET, 224, tmp_path)) == weights.digest(expected)
    # Convolutions fit a picture of any size, and that is not worth a warning.
    assert weights.digest(weights.load(MOBILENET, 100, tmp_path)) == weights.digest(expected)


def test_missing_imagenet_weights_say_which_file_to_put_where(tmp_path, keras_home, no_network, capsys):
    with pytest.raises(WeightsError) as caught:
        weights.load(MOBILENET, 32, tmp_path)
    assert f"Put the file {MOBILENET_FILE} into the folder {keras_home / 'models'}" in str(caught.value)
    assert f"from {no_network}{MOBILENET_FILE}. KERAS_HOME moves the folder." in str(caught.value)
    assert capsys.readouterr().out == ""


def test_missing_imagenet_weights_say_the_hash_where_keras_has_one(tmp_path, keras_home, no_network):
    with pytest.raises(WeightsError, match=r"no_top_v2\.h5 \(MD5 [0-9a-f]{32}\)"):
        weights.load(BackboneConfig(name="mobilenet_v3_small"), 32, tmp_path)


def test_download(tmp_path, keras_home, file_server, capsys):
    served = BACKBONES["mobilenet"].build(input_shape=(32, 32, 3), weights=None, alpha=0.25)
    served.save(file_server / MOBILENET_FILE)
    loaded = weights.load(MOBILENET, 32, tmp_path)
    assert weights.digest(loaded) == weights.digest(served)
    assert (keras_home / "models" / MOBILENET_FILE).is_file()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading data from" in captured.err


def test_a_cached_file_is_used_where_the_cache_may_not_be_written(tmp_path, keras_home, no_network, monkeypatch):
    (keras_home / "models").mkdir()
    cached = BACKBONES["mobilenet"].build(input_shape=(32, 32, 3), weights=None, alpha=0.25)
    cached.save(keras_home / "models" / MOBILENET_FILE)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert weights.digest(weights.load(MOBILENET, 32, tmp_path)) == weights.digest(cached)


def test_a_damaged_cached_file_is_named(tmp_path, keras_home, no_network):
    file = keras_home / "models" / MOBILENET_FILE
    file.parent.mkdir()
    file.write_bytes(b"\x89HDF" + b"\0" * 1000)
    with pytest.raises(WeightsError, match=f"in {re.escape(str(file))} cannot be used.*Delete it.*{no_network}"):
        weights.load(MOBILENET, 32, tmp_path)


def test_a_cached_file_of_another_network_is_named(tmp_path, keras_home, no_network):
    (keras_home / "models").mkdir()
    other = BACKBONES["mobilenet"].build(input_shape=(32, 32, 3), weights=None, alpha=0.5)
    other.save(keras_home / "models" / MOBILENET_FILE)
    with pytest.raises(WeightsError, match=r"(?s)cannot be used: the file is damaged or of another network.*conv1"):
        weights.load(MOBILENET, 32, tmp_path)


@pytest.mark.parametrize("options", [{"alpha": 0.3}, {"alpha": "big"}])
def test_an_option_that_the_builder_refuses(tmp_path, options):
    with pytest.raises(ConfigError, match=r"backbone\.options: mobilenet at 224 pixels cannot be built.*Keras says"):
        weights.load(BackboneConfig(name="mobilenet", options=options), 224, tmp_path)


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
def test_weights_from_a_file(tmp_path, suffix):
    saved = weights.load(LENET, 32, tmp_path)
    file = tmp_path / f"lenet.{suffix}"
    saved.save_weights(file) if suffix == "weights.h5" else saved.save(file)
    loaded = weights.load(lenet_from(file), 32, tmp_path)
    assert weights.digest(loaded) == weights.digest(saved)
    assert weights.digest(weights.load(LENET, 32, tmp_path)) != weights.digest(saved)


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
def test_weights_of_other_shapes_name_the_first_layer_that_does_not_fit(tmp_path, suffix):
    image = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(6, 5, name="c1")(image)
    other = keras.Model(image, keras.layers.Conv2D(17, 5, name="c3")(x))
    file = tmp_path / f"other.{suffix}"
    other.save_weights(file) if suffix == "weights.h5" else other.save(file)
    with pytest.raises(WeightsError, match=r"do not fit lenet5.*Conv2D name=c3.*shape"):
        weights.load(lenet_from(file), 32, tmp_path)


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
def test_a_damaged_weights_file(tmp_path, suffix):
    file = tmp_path / f"damaged.{suffix}"
    file.write_bytes(b"not weights")
    with pytest.raises(
        WeightsError, match=f"The weights in {re.escape(str(file))} do not fit .* or the file is damaged"
    ):
        weights.load(lenet_from(file), 32, tmp_path)


def test_weights_that_are_no_file(tmp_path):
    with pytest.raises(WeightsError, match=r"There is no weights file nowhere\.weights\.h5"):
        weights.load(lenet_from("nowhere.weights.h5"), 32, tmp_path)


def write_run(output_dir: Path, name: str, stamp: str, **changes) -> str:
    """A run as another command left it; returns the digest of its weights."""
    folder = output_dir / name / stamp
    folder.mkdir(parents=True)
    fields = {
        "name": name,
        "status": "finished",
        "run_dir": str(folder),
        "started_at": f"{stamp}T10:00:00+00:00",
        "finished_at": f"{stamp}T11:00:00+00:00",
        "tracking_uri": "sqlite:///mlflow.db",
        "backbone": BackboneIdentity(name="lenet5", options={}),
    }
    RunRecord(**{**fields, **changes}).write(folder / "run.json")
    backbone = weights.load(LENET, 32, output_dir)
    backbone.save_weights(folder / "backbone.weights.h5")
    return weights.digest(backbone)


def test_weights_of_an_earlier_run(tmp_path):
    first = write_run(tmp_path, "digits", "2026-01-01", mlflow_run_id="abc")
    second = write_run(tmp_path, "digits", "2026-01-02")
    write_run(tmp_path, "digits", "2026-01-03", status="failed")
    write_run(tmp_path, "abc", "2026-01-04")
    (tmp_path / "digits" / "2026-01-05").mkdir()
    (tmp_path / "digits" / "2026-01-05" / "run.json").write_text('{"name": ')

    def digest_of(reference: str) -> str:
        return weights.digest(weights.load(lenet_from(f"run:{reference}"), 32, tmp_path))

    assert digest_of("digits") == second
    assert digest_of("2026-01-01") == first
    assert digest_of("abc") == first  # an id goes before a name


def test_an_earlier_run_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match=r"Received: run:digits\. Names of finished runs there: none\."):
        weights.load(lenet_from("run:digits"), 32, tmp_path)
    write_run(tmp_path, "ants", "2026-01-01")
    write_run(tmp_path, "bees", "2026-01-02")
    with pytest.raises(WeightsError, match=r"Names of finished runs there: ants, bees\."):
        weights.load(lenet_from("run:digits"), 32, tmp_path)
    with pytest.raises(WeightsError, match=r"Received: run:Ant\. Did you mean ants\?"):
        weights.load(lenet_from("run:Ant"), 32, tmp_path)


def test_an_earlier_run_of_another_network(tmp_path):
    write_run(tmp_path, "ants", "2026-01-01", backbone=BackboneIdentity(name="mobilenet", options={"alpha": 0.5}))
    with pytest.raises(WeightsError, match=r"whose backbone is mobilenet with options \{'alpha': 0\.5\}.*lenet5"):
        weights.load(lenet_from("run:ants"), 32, tmp_path)


def test_an_earlier_run_that_lost_its_weights(tmp_path):
    write_run(tmp_path, "ants", "2026-01-01")
    (tmp_path / "ants" / "2026-01-01" / "backbone.weights.h5").unlink()
    with pytest.raises(WeightsError, match=r"which has lost its backbone\.weights\.h5"):
        weights.load(lenet_from("run:ants"), 32, tmp_path)


def test_digest_depends_on_values_and_not_on_freezing(tmp_path):
    backbone = weights.load(LENET, 32, tmp_path)
    digest = weights.digest(backbone)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    backbone.get_layer("c3").trainable = False
    assert weights.digest(backbone) == digest
    bias = backbone.get_layer("c1").bias
    bias.assign_add(np.eye(1, 6, dtype=np.float32)[0] * 1e-7)
    assert weights.digest(backbone) != digest
