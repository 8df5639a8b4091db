"""The frozen layers of one phase: what is reused from the store is what would have been computed, and nothing else."""

import hashlib
from contextlib import closing
from dataclasses import replace

import keras
import numpy as np
import pytest

from pipeline.backbones import BACKBONES
from pipeline.config import Augment, From, Head, RunConfig
from pipeline.feed import Feed, Pictures
from pipeline.frozen import PLAIN, Frozen, Views
from pipeline.model import Division, build, divide
from pipeline.pixels import PixelSpec
from pipeline.splits import Splits
from tests.networks import QUIET, network, phase, split
from tests.stores import Counting

SPEC = PixelSpec(32, 32, 0.875, 50.0)
ABOVE_C5 = From(**{"from": "flatten"})
ABOVE_S4 = From(**{"from": "c5"})


@pytest.fixture
def store(tmp_path):
    with Counting(tmp_path) as store:
        yield store


# ------------------------------------------------------------------------------------------------------ what is reused


def config(data=(), backbone=(), **changes):
    """Two views of each picture."""
    tree = {
        "name": "x",
        "data": {"source": "digits", "augment": {"flip": "both"}, "views": 2, **dict(data)},
        "backbone": {"name": "mobilenet", "options": {"alpha": 0.25}, **dict(backbone)},
        "cache": {"use": "always"},
        **changes,
    }
    return RunConfig.model_validate(tree, strict=False)


def splits(train=None):
    validation = split(6, seed=1, name="validation")
    return Splits(("a", "b", "c"), train or split(10), validation, validation, (), (), None)


def computed(store, config_=None, spec=SPEC, net=None, unfreeze=ABOVE_C5, train=None, epochs=20):
    """How many activations of training and of validation pictures a phase writes that were not there."""
    before, writes = set(store.written), store.writes
    read = Pictures.of(config_ or config(), splits(train), spec, store)
    division = divide(net or network("lenet5"), phase(unfreeze=unfreeze))
    with closing(Feed(read, division, 0, epochs, QUIET)) as feed:
        feed.prepare()
        for number in range(epochs):
            for _ in feed.epoch(number):
                pass
    validation = {bytes.fromhex(digest) for digest in read.validation.digests}
    new = [picture for _, picture, _ in store.written - before]
    assert new or store.writes == writes, "what is there was computed again"
    return sum(picture not in validation for picture in new), sum(picture in validation for picture in new)


ALL = (20, 6)
"""Ten pictures twice, and six."""


def changed(layer, place=0):
    """A network with one value of one layer changed, by as little as there is."""
    net = network("lenet5")
    owner = net.head if layer == "logits" else net.backbone
    weight = owner.get_layer(layer).weights[place]
    value = weight.numpy()
    value.flat[-1] = np.nextafter(value.flat[-1], np.float32(np.inf))
    weight.assign(value)
    return net


def with_mean(mean):
    return build(network("lenet5").backbone, BACKBONES["lenet5"], np.float32(mean), Head(), 3)


def with_one_changed():
    """Ten pictures, of which one has another content."""
    train = split(10)
    train.pixels.pixels[4, 0, 0, 0] ^= 1
    digest = hashlib.sha256(train.pixels.pixels[4].tobytes()).hexdigest()
    return replace(train, digests=(*train.digests[:4], digest, *train.digests[5:]))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store that a first phase has filled. What the tests add to it has keys of its own."""
    with Counting(tmp_path_factory.mktemp("store")) as store:
        assert computed(store) == ALL
        assert [held.entries for held in store.held()] == [26]
        yield store


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda: {"spec": replace(SPEC, crop=1.0)}, id="pixels"),
        pytest.param(lambda: {"config_": config(data={"mean_subtraction": "none"})}, id="mean subtraction"),
        pytest.param(lambda: {"net": with_mean([1.0, 2.0, 3.0])}, id="mean"),
        pytest.param(lambda: {"config_": config(backbone={"options": {"alpha": 0.5}})}, id="option"),
        pytest.param(lambda: {"config_": config(backbone={"name": "mobilenet_v2"})}, id="backbone"),
        pytest.param(lambda: {"net": changed("c1")}, id="kernel"),
        pytest.param(lambda: {"net": changed("c5", 1)}, id="bias"),
        pytest.param(lambda: {"unfreeze": ABOVE_S4}, id="cut"),
        pytest.param(lambda: {"config_": config(cache={"use": "always", "dtype": "float32"})}, id="dtype"),
    ],
)
def test_a_change_in_anything_that_decides_activations_computes_all_again(change, filled):
    assert computed(filled, **change()) == ALL
    assert computed(filled, **change()) == (0, 0)
    assert computed(filled) == (0, 0)


@pytest.mark.parametrize(
    ("where", "new"),
    [
        ("pipeline.decoded.VERSION", ALL),
        ("PIL.__version__", ALL),
        ("pipeline.backbones.VERSION", ALL),
        ("keras.__version__", ALL),
        ("tensorflow.__version__", ALL),
        ("pipeline.augment.VERSION", (10, 0)),  # The plain pictures stay.
    ],
)
def test_another_version_of_what_computes_them_computes_them_again(where, new, filled, monkeypatch):
    monkeypatch.setattr(where, "another")
    assert computed(filled) == new


def test_another_version_of_the_engine_computes_all_again(filled, monkeypatch):
    monkeypatch.setattr("pipeline.trunk.version", lambda package: "another")
    assert computed(filled) == ALL


def test_a_cut_above_another_with_the_same_weights_and_shape_computes_all_again(store):
    """Batch normalisation's output is not its rectifier's."""
    net = network()
    for first_above in ("conv_pw_12_relu", "conv_dw_13"):
        assert computed(store, net=net, unfreeze=From(**{"from": first_above})) == ALL
    assert {held.description["cut"] for held in store.held()} == {"conv_pw_12_bn", "conv_pw_12_relu"}


@pytest.mark.parametrize(
    ("change", "new"),
    [
        pytest.param(dict, (0, 0), id="nothing"),
        pytest.param(lambda: {"net": changed("logits")}, (0, 0), id="head"),
        pytest.param(lambda: {"net": changed("f6")}, (0, 0), id="tail"),
        pytest.param(lambda: {"config_": config(data={"batch_size": 3})}, (0, 0), id="batch size"),
        pytest.param(lambda: {"config_": config(cache={"use": "auto"})}, (0, 0), id="auto"),
        pytest.param(lambda: {"epochs": 3}, (0, 0), id="epochs"),
        pytest.param(lambda: {"train": split(11)}, (2, 0), id="one more picture"),
        pytest.param(lambda: {"train": with_one_changed()}, (2, 0), id="content"),
        pytest.param(lambda: {"config_": config(data={"views": 4}), "epochs": 60}, (20, 0), id="views"),
        # The plain pictures do not follow from these.
        pytest.param(lambda: {"config_": config(data={"augment": {"flip": "vertical"}})}, (10, 0), id="augmentation"),
        pytest.param(lambda: {"config_": config(seed=1)}, (10, 0), id="seed"),
    ],
)
def test_only_what_a_change_concerns_is_computed(change, new, filled):
    assert computed(filled, **change()) == new
    assert computed(filled, **change()) == (0, 0)


# ------------------------------------------------------------------------------------------------------------ rounding


def frozen_of(layers, dtype="float16", store=None):
    """The frozen part of a division that has nothing else."""
    division = Division("there", layers, layers, layers, layers, False, [], [])
    return Frozen(division, Views(Augment(), (32, 32, 3)), dtype, {}, store, split(4), QUIET)


def scaled(factor):
    pixels = keras.Input((32, 32, 3))
    return keras.Model(pixels, keras.layers.Rescaling(factor)(pixels))


VALUES = np.array(
    [0, -0.0, 1, 1.0004, -3.3333333, 6e-8, 2.9e-8, 1e-40, 65504, 65519, 65520, -65520, 1e30, np.inf, -np.inf],
    np.float32,
)


def test_half_precision_saturates_and_rounds():
    frozen = frozen_of(scaled(1.0))
    rounded = frozen.rounded(VALUES)
    assert rounded.dtype == np.float32
    assert np.isfinite(rounded).all()
    assert rounded[8:].tolist() == [65504.0, 65504.0, 65504.0, -65504.0, 65504.0, 65504.0, -65504.0]
    np.testing.assert_array_equal(rounded[:8], VALUES[:8].astype(np.float16).astype(np.float32))
    assert np.isnan(frozen.rounded(np.float32([np.nan]))).all(), "so that divergence is still found"


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_single_precision_is_left_as_it_is(dtype):
    assert frozen_of(scaled(1.0), dtype).rounded(VALUES) is VALUES


def test_activations_too_large_for_half_precision_come_out_of_the_store_as_they_are_computed(store):
    frozen, pictures = frozen_of(scaled(1000.0), store=store), split(5)
    rows, seeds = np.arange(5), np.full(5, PLAIN, np.int32)
    frozen.keep([(pictures, rows, seeds)], uses=5, always=True)
    kept = frozen.read(pictures, rows[::-1], seeds)
    assert kept.max() == 65504.0
    np.testing.assert_array_equal(kept, frozen.compute(pictures.images(rows[::-1]).astype(np.float32)))
    assert (frozen.uses, frozen.computed) == (10, 10)


def test_what_is_asked_for_twice_at_once_and_has_gone_is_computed(store):
    """Rows in any order, some of them twice, as the last batch of several devices has them."""
    frozen, pictures = frozen_of(scaled(1.0), store=store), split(40)
    frozen.keep([(pictures, np.arange(40), np.full(40, PLAIN, np.int32))], uses=40, always=True)
    rows = np.concatenate([np.random.default_rng(0).permutation(40), [4, 0, 4]])
    store.prune(max_bytes=0)
    np.testing.assert_array_equal(
        frozen.read(pictures, rows, np.full(43, PLAIN, np.int32)), pictures.images(rows).astype(np.float32)
    )


@pytest.mark.parametrize(("slower", "told"), [(False, True), (True, False)])
def test_what_is_kept_at_any_cost_is_not_said_to_be_computed_on_the_fly(store, monkeypatch, slower, told):
    seconds = (1.0, 2.0) if slower else (2.0, 1.0)
    try_out = Frozen._try_out
    monkeypatch.setattr(Frozen, "_try_out", lambda *these: try_out(*these) and seconds)
    said = []
    monkeypatch.setattr(QUIET, "say", said.append)
    frozen, pictures = frozen_of(scaled(1.0), store=store), split(20)
    frozen.keep([(pictures, np.arange(20), np.full(20, PLAIN, np.int32))], uses=20, always=True)
    assert frozen.kept
    assert any("Computing 20 and reading 20 takes 60.0 s" in line for line in said) == told
    assert not any("on the fly" in line for line in said)
