"""MLflow's own registry over SQLite in a temporary folder; tests/test_mlflow_server.py asks servers the same."""

import json
from unittest import mock

import pytest

from pipeline.errors import TrackingError
from pipeline.mlflow_client import connect
from pipeline.registry import Registry, ensure_model, names, register_logged_model, table
from tests.registering import a_run, everything


def test_the_life_of_a_registry(uri: str) -> None:
    everything(uri)


def test_versions_and_their_runs_say_what_part_they_play(uri: str) -> None:
    registry, client = Registry(uri, "ants"), connect(uri)
    runs = [a_run(uri) for _ in range(5)]
    for run in runs[:4]:
        registry.register(run, {"graft.role": "challenger"})
    registry.register(runs[4], {})  # no challenger: somebody has just trained it

    def roles() -> list[str | None]:
        said = [version.tags.get("graft.role") for version in reversed(registry.versions())]
        assert [client.get_run(run).data.tags.get("graft.role") for run in runs] == [
            role if role != "challenger" else None for role in said
        ]  # of a run whose version is a challenger, the run itself says so
        return said

    registry.mark()
    assert roles() == ["challenger"] * 4 + [None]
    for number in (1, 2, 3):
        registry.alias("champion", number)
        registry.alias("previous", number - 1 or None)
        registry.mark()
    assert roles() == ["former", "previous", "champion", "challenger", None]
    registry.alias("champion", 2)
    registry.alias("previous", 1)
    registry.mark()
    assert roles() == ["previous", "champion", "former", "challenger", None]

    client.delete_run(runs[1])
    registry.alias("champion", 4)
    registry.alias("previous", 2)
    registry.mark()
    assert [version.tags.get("graft.role") for version in registry.versions()] == [
        None, "champion", "former", "previous", "former",
    ]  # fmt: skip


def test_the_model_says_who_is_champion_and_why(uri: str) -> None:
    registry, client = Registry(uri, "ants"), connect(uri)
    for run in [a_run(uri) for _ in range(2)]:
        registry.register(run, {})
    assert "No version was promoted yet." in client.get_registered_model("ants").description

    why = {"graft.promoted_at": "2030-01-02T03:04:05+00:00", "graft.decided_by": "gate", "graft.reason": "a|b\nbetter"}
    registry.tag(2, why)
    registry.alias("champion", 2)
    registry.mark()
    text = client.get_registered_model("ants").description
    assert "| champion | [2](#/models/ants/versions/2) | 2030-01-02 03:04 UTC by gate | a\\|b better |" in text
    assert "models:/ants@champion" in text
    assert "previous |" not in text

    client.update_registered_model("ants", "What I think of it.")
    registry.alias("previous", 1)
    registry.mark()
    assert client.get_registered_model("ants").description == "What I think of it."


def test_a_registered_model_and_its_version_know_each_other(uri: str) -> None:
    run = a_run(uri)
    version = Registry(uri, "ants").register(run, {})
    client = connect(uri)
    (model,) = client.search_logged_models([client.get_run(run).info.experiment_id])
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "ants", "version": 1}]
    assert client.get_model_version("ants", str(version.number)).source == model.artifact_location


@pytest.mark.parametrize("call", ["create_registered_model", "create_model_version", "set_logged_model_tags"])
@pytest.mark.parametrize("done", [False, True], ids=["lost", "answer lost"])
def test_registering_may_fail_anywhere_and_be_repeated(uri: str, call: str, done: bool) -> None:
    from mlflow import MlflowClient

    run, registry, really = a_run(uri), Registry(uri, "ants"), getattr(MlflowClient, call)

    def fail(*args: object, **kwargs: object) -> None:
        if done:
            really(*args, **kwargs)
        raise ConnectionError("the line went dead")

    with (
        mock.patch.object(MlflowClient, call, fail),
        pytest.raises(TrackingError, match="did not register a version of the model ants: the line went dead"),
    ):
        registry.register(run, {"graft.reason": "first"})
    registry.register(run, {"graft.reason": "first"})

    (version,) = registry.versions()
    assert (version.number, version.run_id, version.tags) == (1, run, {"graft.reason": "first"})


def test_somebody_else_creates_the_model_at_the_same_time(uri: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    client = connect(uri)
    client.create_registered_model("ants")
    missing = MlflowException("not found", RESOURCE_DOES_NOT_EXIST)
    with mock.patch.object(MlflowClient, "get_registered_model", side_effect=missing):
        ensure_model(client, "ants")
    assert names(uri) == ["ants"]


def test_a_run_without_a_model_cannot_be_registered(uri: str) -> None:
    client = connect(uri)
    run = client.create_run(client.create_experiment("insects")).info.run_id
    with pytest.raises(TrackingError, match=f"The MLflow run {run} has no logged model"):
        Registry(uri, "ants").register(run, {})
    with pytest.raises(TrackingError, match="did not tag version 7 of the model ants"):
        Registry(uri, "ants").tag(7, {"a": "b"})
    with pytest.raises(TrackingError, match="did not set the alias champion of the model ants"):
        Registry(uri, "ants").alias("champion", 7)


def test_a_run_that_was_removed_has_no_metrics(uri: str) -> None:
    registry = Registry(uri, "ants")
    client = connect(uri)
    client.create_registered_model("ants")
    client.create_model_version("ants", "somewhere", "0" * 32)
    (row,) = table(registry)
    assert (row.accuracy, row.data_digest, row.run_id) == (None, None, "0" * 32)


def test_the_history_keeps_the_newest_hundred_lines_and_always_the_last_one(uri: str) -> None:
    registry, client = Registry(uri, "ants"), connect(uri)
    client.create_registered_model("ants", tags={"owner": "nobody"})
    for i in range(105):
        client.set_registered_model_tag("ants", f"graft.history.2090-01-01T00:00:00.{i:06}Z", f"line {i}")
    registry.log("the clock was set back")
    lines = registry.history()
    assert len(lines) == 100
    assert lines[0].endswith("the clock was set back")
    assert (lines[1], lines[-1]) == ("2090-01-01 00:00:00 line 6", "2090-01-01 00:00:00 line 104")
    assert client.get_registered_model("ants").tags["owner"] == "nobody"


def test_more_models_and_versions_than_one_page(uri: str) -> None:
    client = connect(uri)
    for i in range(105):
        client.create_registered_model(f"m{i:03}")
    assert names(uri) == [f"m{i:03}" for i in range(105)]


def test_mlflow_is_away() -> None:
    registry = Registry("http://user:secret@127.0.0.1:9", "ants")
    with pytest.raises(TrackingError, match="did not list the versions of the model ants") as error:
        registry.champion()
    assert "http://user:***@127.0.0.1:9" in str(error.value)
    assert "secret" not in str(error.value)
    with pytest.raises(TrackingError, match="did not list the registered models"):
        names("http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="did not add to the history of the model ants"):
        registry.log("nobody hears it")
    with pytest.raises(TrackingError):
        registry.delete(1)
    with pytest.raises(TrackingError):
        registry.metrics(mock.Mock(number=1, run_id="0" * 32))


def test_a_logged_model_becomes_a_version_once(uri: str) -> None:
    client, run = connect(uri), a_run(uri)
    (model,) = client.search_logged_models([client.get_run(run).info.experiment_id])
    assert [register_logged_model(client, "ants", run, model, {"a": str(i)}) for i in range(2)] == [1, 1]
    assert Registry(uri, "ants").versions()[0].tags == {"a": "1"}


def test_the_description_of_a_version_is_written_once(uri: str) -> None:
    client, run = connect(uri), a_run(uri)
    (model,) = client.search_logged_models([client.get_run(run).info.experiment_id])

    def describe(text: str) -> str:
        register_logged_model(client, "ants", run, model, {}, text)
        return str(client.get_model_version("ants", "1").description or "")

    assert [describe(text) for text in ("", "its card", "another")] == ["", "its card", "its card"]
