"""What tests of sweeps begin with: LeNet-5 on digits, and made-up trainings."""

from pipeline import sweep_plan
from pipeline.sweep_result import Outcome, Training
from tests.conftest import ROOT

CONFIG = ROOT / "configs" / "digits-0-4.yaml"
ONE_EPOCH = ["phases.0.epochs=1", "data.batch_size=128"]


def begin(*over, search=None, trials=None, seeds=2, overrides=()):
    """A sweep of one epoch a training, in the working directory."""
    return sweep_plan.begin(CONFIG, [*ONE_EPOCH, *overrides], over, search, trials, seeds, "graft sweep CONFIG")


KEYS = ("phases.0.learning_rate", "head.pooling")


def training(number, loss=0.5, accuracy=0.8, role="trial", seed=0, **changes):
    """A trial, or the base as number 0."""
    values = {"phases.0.learning_rate": f"{0.001 * (number + 1):g}", "head.pooling": "max" if number % 2 else "avg"}
    fields = {
        "name": f"{number:04d}-{seed}", "role": role, "number": number, "point": values, "seed": seed,
        "differs": ", ".join(f"{key}={value}" for key, value in values.items()) if number else "base",
        "status": "finished", "loss": loss, "accuracy": accuracy, "losses": [loss or 0.0], "epoch": 3,
    }  # fmt: skip
    return Training(**fields | changes)


def base(loss=0.5, accuracy=0.8, **changes):
    return training(0, loss, accuracy, role="base", **changes)


def outcome(tmp_path, *trainings, planned=4, ranged=True):
    keys = frozenset(KEYS[:1]) if ranged else frozenset()
    return Outcome(tmp_path, "digits", KEYS, keys, keys, planned, trainings)


def seeds(losses, accuracies, role, number):
    pairs = zip(losses, accuracies, strict=True)
    return [training(number, loss, accuracy, role, seed) for seed, (loss, accuracy) in enumerate(pairs, start=1)]
