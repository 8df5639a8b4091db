"""What arrives in a real store, SQLite in a temporary folder, whatever happens on the way."""

import base64
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.console import Console
from pipeline.delivery import deliver
from pipeline.errors import TrackingError
from pipeline.journal import JOURNAL, STATE, redirect
from pipeline.mlflow_client import connect
from pipeline.tracking import Tracker
from tests.tracked import assert_delivered_once, picture, whole_run


def test_a_second_delivery_does_nothing(run_dir: Path, uri: str, export_dir: Path) -> None:
    whole_run(run_dir, uri, export_dir)
    before = (run_dir / STATE).stat().st_mtime_ns

    assert deliver(run_dir, Console()).records == 0
    assert (run_dir / STATE).stat().st_mtime_ns == before
    assert_delivered_once(run_dir, uri)


def test_nothing_is_doubled_when_the_state_is_lost(run_dir: Path, uri: str, export_dir: Path) -> None:
    tracker = whole_run(run_dir, uri, export_dir)
    run_id = tracker.run_id
    (run_dir / STATE).unlink()

    delivery = deliver(run_dir, Console())

    assert (delivery.run_id, delivery.records) == (run_id, 11)
    assert_delivered_once(run_dir, uri)


@pytest.mark.parametrize("delivered", range(1, 11))
def test_nothing_is_doubled_when_the_state_is_behind(run_dir: Path, uri: str, export_dir: Path, delivered: int) -> None:
    tracker = whole_run(run_dir, uri, export_dir)
    (run_dir / STATE).write_text(json.dumps({"run_id": tracker.run_id, "delivered": delivered}))

    assert deliver(run_dir, Console()).records == 11 - delivered
    assert_delivered_once(run_dir, uri)


@pytest.mark.parametrize(
    "call",
    [
        "create_run",
        "log_inputs",
        "log_artifact",
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "log_outputs",
        "create_registered_model",
        "create_model_version",
        "set_logged_model_tags",
        "set_terminated",
    ],
)
@pytest.mark.parametrize("done", [False, True], ids=["lost", "answer lost"])
def test_each_call_may_fail_once(
    run_dir: Path, uri: str, export_dir: Path, capsys: pytest.CaptureFixture[str], call: str, done: bool
) -> None:
    """The store goes away at one call, which it may have obeyed, until the run has ended."""
    from mlflow import MlflowClient

    really = getattr(MlflowClient, call)

    def fail(*args: Any, **kwargs: Any) -> None:
        if done and not calls:
            calls.append(call)
            really(*args, **kwargs)
        raise ConnectionError("the line went dead")

    calls: list[str] = []
    with mock.patch.object(MlflowClient, call, fail):
        whole_run(run_dir, uri, export_dir)
    assert "the line went dead" in capsys.readouterr().err

    deliver(run_dir, Console())

    assert_delivered_once(run_dir, uri)


def test_deliveries_at_the_same_time_take_turns(run_dir: Path, uri: str, export_dir: Path) -> None:
    from mlflow import MlflowClient

    with mock.patch.object(MlflowClient, "create_run", side_effect=ConnectionError):
        whole_run(run_dir, uri, export_dir)
    with ThreadPoolExecutor(4) as pool:
        deliveries = list(pool.map(lambda _: deliver(run_dir, Console()), range(4)))

    assert sorted(delivery.records for delivery in deliveries) == [0, 0, 0, 11]
    assert_delivered_once(run_dir, uri)


def test_a_run_is_delivered_where_it_was_sent(run_dir: Path, uri: str, export_dir: Path) -> None:
    whole_run(run_dir, "http://127.0.0.1:9", export_dir)
    redirect(run_dir, uri)
    assert (deliver(run_dir, Console()).uri, deliver(run_dir, Console()).uri) == (uri, uri)
    assert_delivered_once(run_dir, uri)


def test_half_a_line_at_the_end_is_left_out(run_dir: Path, uri: str, export_dir: Path) -> None:
    whole_run(run_dir, uri, export_dir)
    with (run_dir / JOURNAL).open("a") as journal:
        journal.write('{"kind": "met')

    assert deliver(run_dir, Console()).records == 0
    assert_delivered_once(run_dir, uri)


def test_a_folder_without_a_journal(tmp_path: Path) -> None:
    with pytest.raises(
        TrackingError, match=r"nothing to deliver: .* holds no tracking\.jsonl\. Give the folder of a run"
    ):
        deliver(tmp_path, Console())
    with pytest.raises(TrackingError, match="holds no"):
        deliver(tmp_path / "absent", Console())
    (tmp_path / JOURNAL).touch()
    with pytest.raises(TrackingError, match="is empty"):
        deliver(tmp_path, Console())


def test_a_journal_of_an_earlier_version_can_be_delivered(run_dir: Path, uri: str, export_dir: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "run", "id": "1" * 32, "uri": uri, "experiment": "insects", "name": "ants", "time": 1},
        {"kind": "dataset", "name": "ants", "digest": "d", "source_type": "local", "source": "{}", "profile": "{}",
         "context": "training"},
        {"kind": "model", "export_dir": str(export_dir), "example": base64.b64encode(picture()).decode()},
        {"kind": "version", "name": "ants", "tags": {}},
        {"kind": "status", "status": "FINISHED", "time": 2},
    ]  # fmt: skip
    (run_dir / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert deliver(run_dir, Console()).records == 5
    assert [model.name for model in connect(uri).search_logged_models(["1"])] == ["model"]


def test_a_file_that_is_gone_is_a_warning(run_dir: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    tracker.artifact(run_dir / "gone.png")
    tracker.model("ants", run_dir / "gone", picture())
    tracker.version("ants", {})
    tracker.finish("FAILED")

    assert connect(uri).get_run(tracker.run_id).info.status == "FAILED"
    warnings = capsys.readouterr().err
    assert "gone.png is no longer there" in warnings
    assert "exported model" in warnings


@pytest.mark.slow
def test_the_model_predicts_and_nothing_is_unpickled(
    run_dir: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloudpickle
    import mlflow
    import numpy as np
    import pandas
    import tensorflow as tf

    class Reddest(tf.Module):
        """The label is the strongest channel."""

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
        def __call__(self, image_bytes: Any) -> Any:
            def mean(encoded: Any) -> Any:
                pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
                return tf.reduce_mean(tf.cast(pixels, tf.float32), [0, 1]) / 64

            probabilities = tf.nn.softmax(tf.map_fn(mean, image_bytes, fn_output_signature=tf.float32))
            label = tf.gather(["red", "green", "blue"], tf.argmax(probabilities, -1))
            return {"probabilities": probabilities, "label": label, "score": tf.reduce_max(probabilities, -1)}

    module = Reddest()
    tf.saved_model.save(module, str(tmp_path / "export"), {"serving_default": module.__call__})
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    tracker.model("ants", tmp_path / "export", picture())
    tracker.version("ants", {})
    (version,) = connect(uri).search_model_versions("name = 'ants'")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    for library in (pickle, cloudpickle):
        monkeypatch.setattr(library, "load", refuse)
        monkeypatch.setattr(library, "loads", refuse)
    model = mlflow.pyfunc.load_model(version.source)
    result = model.predict(pandas.DataFrame({"image": [picture(), picture()]}))

    assert result["label"].tolist() == ["red", "red"]
    probabilities = np.array(result["probabilities"].tolist())
    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(result["score"], probabilities[:, 0])
    assert [column.name for column in model.metadata.signature.inputs] == ["image"]
    assert [column.name for column in model.metadata.signature.outputs] == ["label", "score", "probabilities"]

    folder = Path(mlflow.artifacts.download_artifacts(version.source))
    assert f"tensorflow=={tf.__version__}" in (folder / "requirements.txt").read_text().splitlines()

    from mlflow.pyfunc.scoring_server import invocations

    request = (folder / "serving_input_example.json").read_text()
    answer = invocations(request, "application/json", model, model.metadata.get_input_schema())
    (row,) = json.loads(answer.response)["predictions"]
    assert row["label"] == "red"
    assert row["probabilities"] == pytest.approx(probabilities[0])
