"""What tests share: photographs if any, stores of MLflow's, a browser."""

import gc
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "hymenoptera"
KERAS_HOME = ROOT.parent / "shared" / "keras"
# Keras reads it when it is first imported.
if KERAS_HOME.is_dir():
    os.environ.setdefault("KERAS_HOME", str(KERAS_HOME))


# How long an example takes depends on what else the machine does.
settings.register_profile("graft", deadline=None)
settings.load_profile("graft")


@pytest.fixture(autouse=True)
def _own_environment():
    """No tracking server from outside; the defaults that tracking sets in the environment do not outlive a test."""
    with mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _what_is_imported_stays():
    """Python no longer looks for garbage in the half million objects of TensorFlow and MLflow. Each new network has it
    look (Keras, `clear_session`), which took most of the time of a small one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _databases_of_mlflow_are_copied(tmp_path_factory, monkeypatch):
    """MLflow fills a new database by all its migrations since the first: here once, and copied from then on."""
    utils = sys.modules.get("mlflow.store.db.utils")
    if utils is None:
        return  # The first database of all comes about as it does for everyone.
    really, template = utils._initialize_tables, tmp_path_factory.getbasetemp() / "mlflow.db"

    def initialize(engine):
        if engine.dialect.name != "sqlite":
            really(engine)
            return
        if not template.exists():
            first = utils.create_sqlalchemy_engine(f"sqlite:///{template}")
            really(first)
            first.dispose()
        with closing(sqlite3.connect(template)) as old, closing(sqlite3.connect(engine.url.database)) as new:
            old.backup(new)

    monkeypatch.setattr(utils, "_initialize_tables", initialize)


@pytest.fixture
def without_charts(monkeypatch):
    """Charts stay empty, which take as long to draw as digits to learn. For tests of what is made of a run; what its
    pages show has tests of its own."""
    from markupsafe import Markup

    from pipeline.pages import Chart

    monkeypatch.setattr(Chart, "svg", Markup("<svg></svg>"))
    monkeypatch.setattr(Chart, "save", lambda chart, path: path.touch())


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
def empty_database(tmp_path_factory):
    """MLflow's schema in SQLite, made once: its migrations take over a second."""
    from pipeline.mlflow_client import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with mock.patch.dict(os.environ):
        connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(tmp_path, empty_database):
    """Of a store of the test's own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def run_dir(tmp_path):
    """An empty folder of a run."""
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def export_dir(tmp_path):
    """What stands in for a SavedModel where nobody loads it."""
    path = tmp_path / "export" / "ants" / "1"
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    return path


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
