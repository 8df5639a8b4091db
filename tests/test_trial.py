"""Trainings one after another: each ends as a run of its own would, whatever was trained before."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from pipeline import config_file, finetune
from pipeline.artifacts import Epoch, Outputs
from pipeline.backbones import weights
from pipeline.config import BackboneConfig, EarlyStopping
from pipeline.errors import ConfigError, GraftError, TrainingError
from pipeline.run import run
from pipeline.trial import Trainer, kept, preparation
from tests.networks import QUIET, phase

CONFIGS = Path(__file__).parent.parent / "configs"
# The head on frozen layers from random numbers, then the upper layers with it: what is not put back shows.
TWO_PHASES = (
    "phases=[{epochs: 2, learning_rate: 1e-2, unfreeze: head},"
    " {epochs: 1, learning_rate: 1e-3, unfreeze: {from: c5}, schedule: cosine}]"
)

HEAD_ALONE = "phases=[{epochs: 2, learning_rate: 1e-2, unfreeze: head}]"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(*overrides):
    return config_file.load(CONFIGS / "digits-0-4.yaml", [TWO_PHASES, "head.dropout=0.2", *overrides])


def figures(trainer, config):
    epochs = []
    trainer.train(config, QUIET, lambda epoch, score: epochs.append(epoch))
    return losses(epochs)


def of_run(config):
    record = run(config, QUIET)
    return losses(Epoch(**epoch) for epoch in json.loads((Path(record.run_dir) / "history.json").read_text()))


def losses(epochs):
    return [(epoch.loss, epoch.accuracy, epoch.validation_loss, epoch.validation_accuracy) for epoch in epochs]


@pytest.mark.slow
def test_a_training_is_that_of_a_run_whatever_was_trained_before_it(here):
    expected = of_run(digits())
    with Trainer(QUIET) as trainer:
        first = figures(trainer, digits())
        other = figures(trainer, digits("head.hidden_units=[32]", "data.batch_size=16"))
        another_seed = figures(trainer, digits("seed=1"))
        smaller = figures(trainer, digits("data.crop=0.8"))
        again = figures(trainer, digits())
    assert first == expected  # to the last bit
    assert again == expected
    assert len({str(each) for each in (first, other, another_seed, smaller)}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("phases", [TWO_PHASES, HEAD_ALONE])
def test_a_backbone_from_a_file_is_built_once_for_all_seeds(phases, here, monkeypatch):
    weights.load(BackboneConfig(name="lenet5", weights="none"), 32, here).save_weights("lenet5.weights.h5")
    of_file = (phases, "backbone.weights=lenet5.weights.h5", "head.hidden_units=[16]")
    of_runs = [of_run(digits(*of_file, f"seed={seed}")) for seed in (1, 0)]
    loads = []
    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *args: loads.append(args) or load(*args))
    with Trainer(QUIET) as trainer:
        figures(trainer, digits(*of_file, "head.dropout=0.5"))
        assert [figures(trainer, digits(*of_file, f"seed={seed}")) for seed in (1, 0)] == of_runs  # to the last bit
        assert len(loads) == 1
        assert figures(trainer, digits(*of_file, "head.pooling=max")) == of_runs[1]  # LeNet-5 ends in a vector.
    assert of_runs[0] != of_runs[1]


@pytest.mark.slow
def test_a_training_that_is_ended_leaves_the_next_one_as_it_is(here):
    def stop(epoch, score):
        raise GraftError("enough")

    with Trainer(QUIET) as trainer:
        first = figures(trainer, digits())
        with pytest.raises(GraftError, match="enough"):
            trainer.train(digits("phases.0.unfreeze=all"), QUIET, stop)
        assert figures(trainer, digits()) == first


@pytest.mark.slow
def test_the_score_is_that_of_the_best_temperature(here):
    record = run(digits(), QUIET)
    outputs = Outputs.read(Path(record.run_dir) / "outputs.npz")
    labels, logits = outputs.validation_labels, outputs.validation_logits.astype(float)

    def loss(log_t):
        return -log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean()

    # On a grid, with the prior that metrics.fit_temperature has.
    grid = np.linspace(-3, 3, 6001)
    lowest = loss(min(grid, key=lambda log_t: loss(log_t) + log_t**2 / 2 / len(labels)))
    with Trainer(QUIET) as trainer:
        epochs, scores = [], []
        best = trainer.train(digits(), QUIET, lambda epoch, score: (epochs.append(epoch), scores.append(score)))
    assert best == scores[-1]
    assert [score.epoch for score in scores] == [1, 2, 3]
    assert all(score.loss <= epoch.validation_loss for epoch, score in zip(epochs, scores, strict=True))
    assert best.loss == pytest.approx(lowest, rel=1e-4)
    assert best.loss < 0.99 * loss(0)  # The temperature matters here.
    assert best.accuracy == epochs[-1].validation_accuracy


@pytest.mark.slow
def test_other_pictures_to_validate_on_are_refused(here):
    with Trainer(QUIET) as trainer:
        first = figures(trainer, digits())
        with pytest.raises(ConfigError, match="validated on other pictures"):
            trainer.train(digits("data.validation_fraction=0.3"), QUIET, lambda epoch, score: None)
        assert figures(trainer, digits()) == first


@pytest.mark.slow
def test_short_memory_is_told_and_the_next_training_is_as_it_is(here, monkeypatch):
    def short(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\nwith shape [1]")

    with Trainer(QUIET) as trainer:
        first = figures(trainer, digits())
        with monkeypatch.context() as patch:
            patch.setattr(finetune, "finetune", short)
            with pytest.raises(TrainingError, match=r"not enough memory.*OOM when allocating tensor$"):
                trainer.train(digits(), QUIET, lambda epoch, score: None)
        assert figures(trainer, digits()) == first


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("data.batch_size=7", True),
        ("data.augment.flip=horizontal", True),
        ("data.class_weights=balanced", True),
        ("head.pooling=max", True),
        ("seed=5", True),
        ("data.crop=0.5", False),
        ("data.mean_subtraction=image", False),
        ("backbone.name=alexnet", False),
        ("cache.dtype=float32", False),
    ],
)
def test_what_comes_before_a_training_is_shared_where_it_is_the_same(override, shared):
    assert (preparation(digits(override)) == preparation(digits())) is shared


@pytest.mark.parametrize(
    ("losses", "min_delta", "best"),
    [([3, 2, 1], 0, 3), ([3, 1, 2], 0, 2), ([1, 3, 2], 0, 1), ([3, 1, 0.9], 0.2, 2), ([3, 1, 0.9], 0.05, 3)],
)
def test_early_stopping_keeps_the_best_epoch_of_the_last_phase(losses, min_delta, best):
    def epoch(number, of_phase, loss):
        return Epoch(of_phase, number, 1.0, 0.5, loss, 0.5, 1e-3, 1.0, 1.0)

    history = [epoch(1, 1, 0.1), *(epoch(2 + place, 2, loss) for place, loss in enumerate(losses))]
    stopping = phase(epochs=3, early_stopping=EarlyStopping(patience=3, min_delta=min_delta))
    assert kept(history, [phase(), stopping]).epoch == 1 + best
    assert kept(history, [phase(), phase()]).epoch == 4
