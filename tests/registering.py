"""Runs in MLflow to register, and what a registry is asked, on any backend."""

from datetime import UTC, datetime, timedelta

from pipeline.mlflow_client import connect
from pipeline.registry import Registry, names, table


def a_run(uri: str, **metrics: float) -> str:
    """A run with a logged model, whose metrics are those of the test split."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("insects")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("insects")
    run_id = client.create_run(experiment_id).info.run_id
    model = client.create_logged_model(experiment_id, "model", run_id)
    client.finalize_logged_model(model.model_id, "READY")
    for name, value in metrics.items():
        client.log_metric(run_id, f"test/{name}", value)
    return str(run_id)


def everything(uri: str) -> None:
    """What a registry is asked over its life, on any backend."""
    registry, other = Registry(uri, "ants"), Registry(uri, "bees")
    assert registry.versions() == []
    assert (registry.champion(), registry.previous(), registry.version(1)) == (None, None, None)
    assert registry.history() == []
    registry.alias("champion", None)
    registry.mark()
    registry.delete(1)

    runs = [a_run(uri, accuracy=0.5 + i / 10, accuracy_low=0.4, accuracy_high=0.9) for i in range(3)]
    other.register(runs[0], {})
    assert registry.of_run(runs[0]) is None
    versions = [registry.register(run, {"graft.data_digest": "d" * 64}) for run in runs]
    assert [version.number for version in versions] == [1, 2, 3]
    assert registry.register(runs[1], {"graft.reason": "better"}).number == 2
    assert registry.versions() == [registry.version(3), registry.version(2), registry.version(1)]
    assert registry.of_run(runs[1]) == registry.version(2)
    found = registry.version(2)
    assert found is not None
    assert found.run_id == runs[1]
    assert found.tags == {"graft.data_digest": "d" * 64, "graft.reason": "better"}
    assert timedelta() <= datetime.now(UTC) - found.created_at < timedelta(minutes=10)
    assert registry.metrics(found) == {"test/accuracy": 0.6, "test/accuracy_low": 0.4, "test/accuracy_high": 0.9}

    registry.alias("champion", 1)
    registry.alias("champion", 2)
    registry.alias("previous", 1)
    assert registry.champion() == registry.version(2)
    assert registry.previous() == registry.version(1)
    registry.alias("previous", 2)
    assert registry.champion() == registry.previous()
    assert [version.aliases for version in registry.versions()] == [(), ("champion", "previous"), ()]
    registry.alias("previous", None)
    registry.alias("previous", None)
    assert registry.previous() is None

    registry.tag(2, {"graft.promoted_at": "2030-01-02T03:00:00+00:00", "graft.decided_by": "gate"})
    newest, champion, oldest = table(registry)
    assert (newest.number, champion.number, oldest.number) == (3, 2, 1)
    assert champion.aliases == ("champion",)
    assert (champion.accuracy, champion.accuracy_low, champion.accuracy_high) == (0.6, 0.4, 0.9)
    assert champion.data_digest == "d" * 8
    assert (champion.promoted_at, champion.reason, champion.decided_by) == (
        "2030-01-02T03:00:00+00:00",
        "better",
        "gate",
    )
    assert (newest.promoted_at, newest.reason, newest.export_dir) == (None, None, None)

    registry.delete(3)
    registry.delete(3)
    assert [version.number for version in registry.versions()] == [2, 1]
    assert registry.register(runs[2], {}).number == 4, "no number is given twice"
    registry.delete(2)
    assert registry.champion() is None

    registry.log("promoted version 2")
    registry.log("ü" * 9000)
    first, second = registry.history()
    assert first.endswith(" promoted version 2")
    assert second.endswith(" " + "ü" * 5000)
    assert "2026" <= first[:19] <= f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    assert {"ants", "bees"} <= set(names(uri))
