"""What tests share: the command line in this process, digits small enough to train in seconds, photographs if any."""

import os
import shutil
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


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Headless Chromium."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("there is no chromium or no chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(chromedriver)) as driver:
        driver.get("about:blank")
        driver.get_log("performance")  # What a new tab asks of the browser itself.
        yield driver


def pytest_collection_modifyitems(items):
    """Fast tests first: most mistakes show in seconds."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
