"""What tests of sweeps begin with: LeNet-5 on digits."""

from pipeline import sweep_plan
from tests.conftest import ROOT

CONFIG = ROOT / "configs" / "digits-0-4.yaml"
ONE_EPOCH = ["phases.0.epochs=1", "data.batch_size=128"]


def begin(*over, search=None, trials=None, seeds=2, overrides=()):
    """A sweep of one epoch a training, in the working directory."""
    return sweep_plan.begin(CONFIG, [*ONE_EPOCH, *overrides], over, search, trials, seeds, "graft sweep CONFIG")
