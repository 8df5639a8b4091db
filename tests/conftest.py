"""What tests share: the command line in this process, digits small enough to train in seconds, photographs if any."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "hymenoptera"
KERAS_HOME = ROOT.parent / "shared" / "keras"
# Keras reads it when it is first imported.
if KERAS_HOME.is_dir():
    os.environ.setdefault("KERAS_HOME", str(KERAS_HOME))


@pytest.fixture(autouse=True)
def _no_tracking_server_from_outside(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def photographs():
    """The folder of ants and bees."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"the photographs are not at {PHOTOGRAPHS}")
    return PHOTOGRAPHS


@pytest.fixture
def imagenet_weights():
    """KERAS_HOME with MobileNet 0.25's weights."""
    if not (KERAS_HOME / "models" / "mobilenet_2_5_224_tf_no_top.h5").is_file():
        pytest.skip(f"MobileNet's weights are not in {KERAS_HOME}")
    return KERAS_HOME


def pytest_collection_modifyitems(items):
    """Fast tests first: most mistakes show in seconds."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
