"""Whole runs: digits in seconds; photographs where there are any."""

import csv
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import config_file, recording
from pipeline.artifacts import RunRecord, read_manifest
from pipeline.backbones.contracts import CONTRACTS
from pipeline.checkpoint import Checkpoints
from pipeline.console import Console
from pipeline.errors import ConfigError, DataError, ExportError, WeightsError
from pipeline.evaluate import Report
from pipeline.mlflow_client import connect
from pipeline.run import run
from tests.networks import QUIET

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own: runs, exports and MLflow's store go there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(*overrides, name="digits-0-4"):
    return config_file.load(CONFIGS / f"{name}.yaml", ["phases.0.epochs=2", *overrides])


def weights_of(record):
    values = {}
    for part in ("backbone", "head"):
        with h5py.File(Path(record.run_dir) / f"{part}.weights.h5") as file:
            file.visititems(
                lambda path, item, part=part: (
                    values.__setitem__(part + path, item[()]) if isinstance(item, h5py.Dataset) else None
                )
            )
    return values


@pytest.mark.slow
def test_a_learning_rate_that_wrecks_the_network_is_told(here, capsys):
    record = run(digits("phases.0.learning_rate=1000"), Console(quiet=True), title="learning_rate=1000")
    run_dir = Path(record.run_dir)
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "probably diverged" in line)
    assert "where guessing has 1.61" in warning
    assert "Lower phases.*.learning_rate" in warning
    page = (run_dir / "report.html").read_text()
    assert "probably diverged" in page
    assert f"run {run_dir.name} · learning_rate=1000" in page


@pytest.mark.slow
def test_a_run_leaves_everything_behind_and_a_second_one_can_start_from_it(here):
    first = run(digits(), QUIET)
    run_dir = Path(first.run_dir)
    assert {path.name for path in run_dir.iterdir()} >= {
        "config.yaml", "run.json", "report.json", "report.html", "predictions.csv", "splits.csv", "quarantine.csv",
        "history.json", "learning_curves.png", "confusion.png", "per_class.png", "reliability.png",
        "backbone.weights.h5", "head.weights.h5", "tracking.jsonl",
    }  # fmt: skip
    assert not (run_dir / "scratch").exists()
    assert RunRecord.read(run_dir / "run.json") == first
    assert first.status == "finished"
    assert set(first.metrics) >= {"test_accuracy", "test_loss", "test_macro_f1", "test_ece"}
    assert set(first.seconds) == {"ingest", "train", "evaluate", "export", "report"}
    assert Report.read(run_dir / "report.json").metrics["accuracy"] == first.metrics["test_accuracy"]
    manifest = read_manifest(Path(first.export_dir))
    assert manifest.parity.pixels_largest_difference <= 1e-5
    assert manifest.mlflow_run_id == first.mlflow_run_id

    client = connect(first.tracking_uri)
    logged = client.get_run(first.mlflow_run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.params["phases.0.schedule.name"] == "cosine"
    assert logged.data.metrics["test/accuracy"] == pytest.approx(first.metrics["test_accuracy"])
    assert manifest.data_digest.startswith(logged.data.tags["graft.data_digest"])
    assert len(logged.inputs.dataset_inputs) == 3
    steps = [metric.step for metric in client.get_metric_history(first.mlflow_run_id, "train/loss")]
    assert steps == [1, 2]
    assert {item.path for item in client.list_artifacts(first.mlflow_run_id)} >= {"report.html", "charts"}
    assert client.get_model_version("digits-0-4", "1").run_id == first.mlflow_run_id

    second = run(digits("phases.1.epochs=2", name="digits-5-9"), QUIET)
    assert read_manifest(Path(second.export_dir)).classes == ["5", "6", "7", "8", "9"]
    start, end = weights_of(first), weights_of(second)
    kept = {start[key].shape: np.array_equal(start[key], end[key]) for key in start if key.startswith("backbone")}
    c1, c3, c5, f6 = (5, 5, 1, 6), (5, 5, 6, 16), (5, 5, 16, 120), (120, 84)
    assert (kept[c1], kept[c3], kept[c5], kept[f6]) == (True, True, False, False)


@pytest.mark.slow
@pytest.mark.usefixtures("without_charts")
def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_does_not(here):
    first, again, other = (weights_of(run(digits(f"seed={seed}"), QUIET)) for seed in (1, 1, 2))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not all(np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.slow
@pytest.mark.usefixtures("without_charts")
def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(here, monkeypatch):
    config = digits("checkpoint.every=7", "data.augment.rotation=10", "head.dropout=0.2")
    whole = run(config, QUIET)
    calls = []

    def write(self, *arguments, real=Checkpoints.write):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run(config, QUIET)
    (stopped,) = [path.parent for path in Path("runs").glob("*/*/run.json") if RunRecord.read(path).status == "killed"]
    resumed = run(recording.config_of(stopped), QUIET, stopped)
    assert (resumed.run_dir, resumed.status) == (str(stopped.resolve()), "finished")
    expected, found = weights_of(whole), weights_of(resumed)
    assert all(np.array_equal(expected[key], found[key]) for key in expected)
    assert resumed.metrics == whole.metrics
    client = connect(resumed.tracking_uri)
    assert client.get_run(resumed.mlflow_run_id).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(resumed.mlflow_run_id, "train/loss")] == [1, 2]
    assert not (stopped / "checkpoint").exists()
    with pytest.raises(ConfigError, match="has finished: there is nothing to resume"):
        recording.config_of(stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("without_charts")
def test_a_run_whose_data_changed_does_not_go_on(here, monkeypatch):
    config = small(here)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config, QUIET)
    (stopped,) = [path.parent for path in Path("runs").glob("*/*/run.json")]
    next((here / "pictures" / "red").iterdir()).unlink()
    with pytest.raises(DataError, match="cannot go on: the data has changed"):
        run(recording.config_of(stopped), QUIET, stopped)


@pytest.mark.slow
@pytest.mark.usefixtures("without_charts")
@pytest.mark.parametrize("choice", ["channel", "image", "none"])
def test_the_mean_comes_from_training_and_is_in_the_exported_graph(here, choice):
    record = run(digits(f"data.mean_subtraction={choice}"), QUIET)
    run_dir = Path(record.run_dir)
    mean = np.load(run_dir / "mean.npy")
    assert mean.shape == {"channel": (3,), "image": (32, 32, 3), "none": (3,)}[choice]
    assert (mean.max() > 1) == (choice != "none")
    assert (run_dir / "mean.png").exists()
    grey = (mean * [0.299, 0.587, 0.114]).sum(axis=-1, keepdims=True) / CONTRACTS["grey"].divide
    variables = [variable.numpy() for variable in tf.saved_model.load(record.export_dir).variables]
    assert any(value.shape == grey.shape and np.allclose(value, grey, atol=1e-6) for value in variables)


def test_mistakes_are_found_before_anything_is_made(here):
    with pytest.raises(DataError):
        run(config_file.load(CONFIGS / "folder.yaml", ["data.path=nowhere"]), QUIET)
    with pytest.raises(WeightsError, match="no finished run"):
        run(digits(name="digits-5-9"), QUIET)
    with pytest.raises(ConfigError, match=r"no layer of this name.*c9"):
        run(digits("backbone.weights=none", "phases.1.unfreeze={from: c9}", name="digits-5-9"), QUIET)
    assert list(here.iterdir()) == []


def folder_of(here, count=40):
    random = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (here / "pictures" / label).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 100, (40, 50, 3)).astype(np.uint8)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels).save(here / "pictures" / label / f"{i}.png")
    return here / "pictures"


def small(here, *overrides):
    settings = [
        f"data.path={folder_of(here)}", "data.image_size=32", "backbone.weights=none", "backbone.name=lenet5",
        "backbone.options={}", "phases=[{epochs: 1, learning_rate: 0.01, unfreeze: all}]",
    ]  # fmt: skip
    return config_file.load(CONFIGS / "folder.yaml", [*settings, *overrides])


@pytest.mark.slow
def test_a_run_that_fails_says_so_everywhere_and_publishes_nothing(here, monkeypatch):
    asked = small(here)

    def fail(*_args, **_kwargs):
        raise ExportError("it does not agree")

    monkeypatch.setattr("pipeline.export._check", fail)
    with pytest.raises(ExportError):
        run(asked, QUIET)
    (run_dir,) = (here / "runs" / asked.name).iterdir()
    record = RunRecord.read(run_dir / "run.json")
    assert (record.status, record.error) == ("failed", "it does not agree")
    assert not (run_dir / "scratch").exists()
    assert connect(record.tracking_uri).get_run(record.mlflow_run_id).info.status == "FAILED"
    assert list((here / "export" / asked.name).iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("without_charts")
def test_bad_files_are_quarantined_and_mlflow_may_be_away(here):
    asked = small(here, "tracking.uri=http://127.0.0.1:9")
    (here / "pictures" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    record = run(asked, QUIET)
    assert record.status == "finished"
    assert record.mlflow_run_id is None
    rows = list(csv.reader((Path(record.run_dir) / "quarantine.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == ["red/broken.png"]
    assert Path(record.export_dir).is_dir()


@pytest.mark.slow
def test_a_test_picture_that_changes_during_the_run_ends_it(here, monkeypatch):
    asked = small(here)
    original = recording.Recording.data

    def meddle(self, splits, mean):
        original(self, splits, mean)
        shutil.copy(here / "pictures" / splits.train.names[0], here / "pictures" / splits.test.names[0])

    monkeypatch.setattr(recording.Recording, "data", meddle)
    with pytest.raises(DataError, match=r"changed|no longer"):
        run(asked, QUIET)


@pytest.mark.slow
def test_ants_and_bees(here, photographs, imagenet_weights):
    """Real photographs with real weights, and one of the three seeds that the config promises an accuracy for. The time
    and the other seeds are a benchmark's business."""
    asked = config_file.load(CONFIGS / "hymenoptera.yaml", [f"data.path={photographs}"])
    assert run(asked, QUIET).metrics["test_accuracy"] >= 0.88
