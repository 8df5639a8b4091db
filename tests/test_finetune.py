"""Training: what is frozen stays, what is asked for happens, and a seed decides everything."""

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import finetune
from pipeline.config import SGD, Augment, Blocks, EarlyStopping, From, Head, Plateau, RandAugment
from pipeline.errors import TrainingError
from pipeline.metrics import accuracy, softmax
from tests.networks import QUIET, data, network, phase, pictures, same, split, values


def train(net, *phases, on_epoch=lambda _: None, train_=None, validation=None, data_=None, seed=0):
    return finetune.finetune(net, list(phases), pictures(train_, validation, data_, seed=seed), None, QUIET, on_epoch)


def batch_norms(net):
    return [layer for layer in net.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_it_learns_and_counts_epochs_across_phases():
    history = train(
        net := network("lenet5"),
        phase(epochs=3, learning_rate=0.05),
        phase(epochs=2, learning_rate=1e-3, unfreeze="all", backbone_mode="training"),
    )
    assert [(e.phase, e.epoch) for e in history] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert history[-1].loss < history[0].loss
    assert history[-1].learning_rate == pytest.approx(1e-3)
    assert all(e.images_per_second > 0 and e.seconds > 0 for e in history)
    test = split(30, seed=2)
    logits = finetune.predict(net.model, test, 7)
    assert logits.shape == (30, 3)
    assert logits.dtype == np.float32
    assert accuracy(softmax(logits), test.labels) > 0.5


@pytest.mark.parametrize("unfreeze", ["head", Blocks(blocks=2), From(**{"from": "conv_pw_12"})])
def test_frozen_weights_and_all_batch_norm_statistics_stay(unfreeze):
    net = network()
    layers = [layer.name for layer in net.backbone.layers]
    first = (
        len(layers)
        if unfreeze == "head"
        else layers.index("conv_pw_12" if isinstance(unfreeze, From) else "conv_dw_12")
    )
    frozen = [v for layer in net.backbone.layers[:first] for v in layer.variables]
    moving = [v for layer in batch_norms(net) for v in (layer.moving_mean, layer.moving_variance)]
    trained = [v for layer in net.backbone.layers[first:] for v in layer.trainable_variables]
    before, statistics, above = values(frozen), values(moving), values(trained)
    train(net, phase(unfreeze=unfreeze))
    assert same(before, values(frozen))
    assert same(statistics, values(moving))
    assert not trained or not same(above, values(trained))


def test_training_mode_moves_the_statistics_of_unfrozen_layers_only():
    net = network()
    moving = [layer.moving_mean for layer in batch_norms(net)]
    before = values(moving)
    train(net, phase(unfreeze=Blocks(blocks=1), backbone_mode="training"))
    moved = [not np.array_equal(a, b) for a, b in zip(before, values(moving), strict=True)]
    assert moved[-2:] == [True, True]
    assert not any(moved[:-2])


def test_a_frozen_weight_that_changes_fails_the_run():
    net = network()
    kernel = net.backbone.get_layer("conv1").kernel

    def meddle(_):
        kernel.assign(kernel + 1e-7)

    with pytest.raises(AssertionError, match=r"frozen weights changed in phase 1: .*conv1/kernel"):
        train(net, phase(epochs=1), on_epoch=meddle)


def test_the_head_above_a_backbone_in_inference_mode_drops_out_and_normalises():
    net = network(head=Head(hidden_units=[8], batch_norm=True, dropout=0.9))
    norm = next(layer for layer in net.head.layers if isinstance(layer, keras.layers.BatchNormalization))
    before = values([norm.moving_mean])
    division = finetune.divide(net, phase(unfreeze=Blocks(blocks=1)))
    features = np.random.default_rng(0).normal(size=(4, *division.frozen.output_shape[1:])).astype(np.float32)
    assert not np.array_equal(division.training_logits(features), division.training_logits(features))
    assert not same(before, values([norm.moving_mean]))


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(flip="both", crop_scale=0.5, rotation=10.0, color=0.3, mixup=0.3),
        Augment(rand_augment=RandAugment(operations=1), cutmix=1.0),
    ],
)
def test_the_seed_decides_the_weights_bit_for_bit(augment):
    def weights(seed):
        net = network(head=Head(dropout=0.3), seed=seed)
        train(net, phase(unfreeze=Blocks(blocks=1), epochs=1), data_=data(augment=augment), seed=seed)
        return values(net.model.variables)

    first, second, other = weights(3), weights(3), weights(4)
    assert same(first, second)
    assert not same(first, other)


def test_a_step_is_gradient_descent_on_the_mean_cross_entropy():
    net = network("lenet5")
    train_, kernel, bias = split(), *net.head.trainable_variables
    features = finetune.predict(finetune.divide(net, phase()).frozen, train_, 8)
    weights, offset = kernel.numpy().astype(np.float64), bias.numpy().astype(np.float64)
    targets = np.eye(3)[train_.labels]
    for _ in range(3):
        error = (softmax(features @ weights + offset) - targets) / len(targets)
        weights, offset = weights - 0.1 * features.T @ error, offset - 0.1 * error.sum(axis=0)
    train(
        net, phase(epochs=3, learning_rate=0.1, optimizer=SGD(momentum=0.0)), data_=data(batch_size=24), train_=train_
    )
    np.testing.assert_allclose(kernel.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), offset, atol=1e-5)


def test_averaged_weights_are_what_is_validated_and_kept():
    steps = []
    net = network("lenet5")
    train(
        net,
        phase(epochs=3, optimizer="sgd"),
        data_=data(batch_size=24),
        on_epoch=lambda _: steps.append(values(net.head.variables)),
    )
    net = network("lenet5")
    averaged = train(net, phase(epochs=3, optimizer="sgd", ema=0.25), data_=data(batch_size=24))
    expected = [
        0.25 * (0.25 * first + 0.75 * second) + 0.75 * third for first, second, third in zip(*steps, strict=True)
    ]
    for kept, average in zip(values(net.head.variables), expected, strict=True):
        np.testing.assert_allclose(kept, average, rtol=1e-5, atol=1e-6)
    validation = split(12, seed=1)
    probabilities = softmax(finetune.predict(net.model, validation, 12))
    assert averaged[-1].validation_loss == pytest.approx(
        -np.log(probabilities[range(12), validation.labels]).mean(), 1e-4
    )


def test_early_stopping_keeps_the_best_epoch():
    kept = []
    net = network("lenet5")
    history = train(
        net,
        phase(epochs=30, learning_rate=3.0, optimizer="sgd", early_stopping=EarlyStopping(patience=2)),
        on_epoch=lambda _: kept.append(values(net.head.variables)),
    )
    best = min(range(len(history)), key=lambda i: history[i].validation_loss)
    assert len(history) == best + 3
    assert same(values(net.head.variables), kept[best])


def test_the_learning_rate_falls_on_a_plateau():
    wrong = split(12, seed=1)
    wrong.labels[:] = 0  # Constant accuracy, or close to it, whatever is learned.
    history = train(network(), phase(epochs=5, learning_rate=1e-7, schedule=Plateau(patience=2)), validation=wrong)
    assert [e.learning_rate for e in history] == pytest.approx([1e-7, 1e-7, 1e-7, 1e-8, 1e-8])


def test_class_weights_balance():
    labels = np.array([0, 0, 0, 1], np.int32)
    weights = finetune.class_weights(labels, 2)
    np.testing.assert_allclose(weights, [4 / 6, 2.0])
    assert weights[labels].mean() == pytest.approx(1.0)


def test_balanced_weights_make_rare_classes_weigh_as_much_as_common_ones():
    """With logits of zero, a class's bias moves by its weighted share of the batch: balanced, all shares are equal."""
    rare = split(20)
    rare.labels[:] = [0] * 18 + [1, 2]
    for choice, expected in (("balanced", [1 / 3, 1 / 3, 1 / 3]), ("none", [0.9, 0.05, 0.05])):
        net = network("lenet5")
        kernel, bias = net.head.trainable_variables
        kernel.assign(np.zeros(kernel.shape))
        train(
            net,
            phase(epochs=1, learning_rate=1.0, optimizer=SGD(momentum=0.0)),
            train_=rare,
            data_=data(batch_size=20, class_weights=choice),
        )
        np.testing.assert_allclose(bias.numpy(), np.array(expected) - 1 / 3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [24, 240])
def test_a_batch_larger_than_the_split_is_the_whole_split(batch_size):
    moved = []
    for size in (24, batch_size):
        net = network("lenet5")
        before = values(net.head.variables)
        train(net, phase(epochs=1, optimizer="sgd"), data_=data(batch_size=size))
        moved.append([after - start for after, start in zip(values(net.head.variables), before, strict=True)])
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_clipping_bounds_the_gradient_of_the_whole_batch():
    net = network("lenet5")
    before = values(net.head.variables)
    train(
        net,
        phase(epochs=1, learning_rate=1.0, optimizer=SGD(momentum=0.0), clip_norm=0.01),
        data_=data(batch_size=24),
    )
    moved = [after - start for after, start in zip(values(net.head.variables), before, strict=True)]
    assert np.sqrt(sum((part**2).sum() for part in moved)) == pytest.approx(0.01, rel=1e-3)


def test_divergence_ends_in_words():
    with pytest.raises(TrainingError, match=r"diverged in epoch \d of a phase with learning rate 1e\+38.*clip_norm"):
        train(network("lenet5"), phase(epochs=5, learning_rate=1e38, optimizer="sgd"))


def test_the_learning_rate_of_an_epoch_is_the_one_it_begins_with():
    history = train(network("lenet5"), phase(epochs=4, schedule={"name": "step", "every_epochs": 2}))
    assert [e.learning_rate for e in history] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unfreeze", "engine"), [("Blocks(blocks=1)", "openvino"), ("Blocks(blocks=1)", "tensorflow"), ("'all'", "none")]
)
def test_two_devices_train_as_one_with_a_store_and_without(unfreeze, engine, tmp_path):
    """In a process of its own: TensorFlow divides the processor before its first use or never."""
    program = textwrap.dedent(
        """
        import numpy as np, sys, tensorflow as tf
        from pathlib import Path
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from tests.networks import *
        from tests.stores import Counting
        from pipeline import finetune, trunk
        from pipeline.config import Blocks, Cache, Head
        _, folder, unfreeze, engine = sys.argv
        if engine == "tensorflow":
            trunk.TOLERANCE = -1.0
        losses = []
        one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        store = Counting(Path(folder))
        for strategy, kept in ((one, None), (two, None), (two, store)):
            reproducible(0)
            with strategy.scope():
                net = unseeded_network("lenet5", head=Head(l2=0.01))
                history = finetune.finetune(
                    net,
                    [
                        phase(
                            unfreeze=eval(unfreeze), optimizer="sgd", layer_decay=0.5, weight_decay=0.1, ema=0.9,
                            clip_norm=0.1, label_smoothing=0.1,
                        )
                    ],
                    pictures(
                        split(25), split(12, seed=1, name="validation"), data(class_weights="balanced"),
                        Cache(use="always", dtype="float32"), kept,
                    ),
                    None, QUIET, lambda _: None,
                )
            losses.append([(e.loss, e.validation_loss) for e in history])
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        assert losses[2] == losses[1]
        assert [held.description["engine"].split()[0] for held in store.held()] == [engine] * (engine != "none")
        print("the same")
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path, unfreeze, engine], cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.endswith("the same\n"), result.stderr[-2000:]
