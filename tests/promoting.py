"""For tests of what is served: exports that nobody loads, a registry over SQLite, and a kill at any moment."""

import itertools
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from unittest import mock

from pipeline import publish
from pipeline.artifacts import MODEL, Code, Manifest, Parity, read_manifest
from pipeline.mlflow_client import connect
from pipeline.pixels import VERSION, PixelSpec
from pipeline.registry import Registry, Version
from tests.registering import a_run

MANIFEST = Manifest(
    name="ants", version=0, created_at="2026-01-01T00:00:00+00:00", classes=["ant", "bee"],
    pixels=PixelSpec(16, 16, crop=1.0), pixels_version=VERSION, temperature=1.0, config={}, data_digest="d" * 64,
    weights_digest="w" * 64, metrics={}, mlflow_run_id=None,
    parity=Parity(
        pictures=0, pixels_largest_difference=0, image_bytes_same_label=1, image_bytes_largest_difference=0
    ),
    code=Code(
        graft="0", python="3", tensorflow="2", keras="3", numpy="2", pillow="12", digest="", commit=None
    ),
)  # fmt: skip


def a_model(run_dir: Path) -> Path:
    """A run's folder with what stands in for its exported model."""
    model = run_dir / MODEL
    (model / "variables").mkdir(parents=True)
    (model / "assets").mkdir()
    (model / "saved_model.pb").write_text(f"graph of {run_dir.name}")
    (model / "variables" / "variables.index").write_text(f"weights of {run_dir.name}")
    MANIFEST.model_copy(update={"run": run_dir.name}).write(model / "manifest.json")
    return model


def served(home: Path) -> str | None:
    """The run whose model servers find, which is the highest version; every version they find must be whole."""
    run = None
    for number in publish.versions(home):
        folder = home / str(number)
        manifest = read_manifest(folder)
        run = manifest.run
        assert manifest.version == number
        assert sorted(path.name for path in folder.iterdir()) == [
            "assets", "manifest.json", "saved_model.pb", "variables",
        ]  # fmt: skip
        assert (folder / "saved_model.pb").read_text() == f"graph of {run}"
        assert (folder / "variables" / "variables.index").read_text() == f"weights of {run}"
    return run


class World:
    """A registry with four versions, of runs whose models are there, and an empty folder for servers.

    Attributes:
        versions: by number.
        models: by number, the exported model in its run's folder.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.uri, self.registry = uri, Registry(uri, "ants")
        self.home, self.runs = folder / "export" / "ants", folder / "runs" / "ants"
        self._database = Path(uri.removeprefix("sqlite:///"))
        self.home.mkdir(parents=True)
        self.models: dict[int, Path] = {}
        self.versions: dict[int, Version] = {}
        for number in range(1, 5):
            run_dir = self.runs / f"run-{number}"
            self.models[number] = a_model(run_dir)
            self.versions[number] = self.registry.register(a_run(uri), {"graft.run_dir": str(run_dir)})

        self.nothing_promoted = self.snapshot("nothing promoted")

    def snapshot(self, name: str) -> Path:
        """Keeps what is served and what MLflow says; `restore` brings it back."""
        kept = self.home.parent.parent / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(self.home, kept)
        _copy_database(self._database, kept / "mlflow.db")
        return kept

    def restore(self, kept: Path) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(kept, self.home, ignore=shutil.ignore_patterns("mlflow.db"))
        _copy_database(kept / "mlflow.db", self._database)

    @property
    def state(self) -> tuple[object, ...]:
        """All that promotions change, but for times."""
        champion = publish.champion(self.home)
        line = []
        while champion is not None:
            line.append((champion.version, champion.registered, champion.run_dir, champion.reason))
            champion = champion.previous
        aliases = dict(connect(self.uri).get_registered_model("ants").aliases)
        return served(self.home), line, aliases


def _copy_database(source: Path, target: Path) -> None:
    """By SQLite itself: MLflow has it open."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


class Killed(BaseException):
    """Stands in for SIGKILL."""


def _calls() -> list[tuple[object, str]]:
    from mlflow import MlflowClient

    here = [(os, name) for name in ("rename", "replace", "link", "mkdir", "unlink", "rmdir", "fsync")]
    there = ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag",
             "set_registered_model_tag", "create_registered_model", "set_tag", "update_registered_model")  # fmt: skip
    return [*here, *((MlflowClient, name) for name in there)]


@contextmanager
def killed_at(moment: int) -> Iterator[None]:
    """Lets what is within make so many changes, on disk or in MLflow, and none after; Killed is raised then."""
    numbers = itertools.count()
    mine = threading.get_ident()

    def counted(really: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            # What other threads do, such as that of another test's lease, is not the work.
            if threading.get_ident() == mine and next(numbers) >= moment:
                raise Killed
            return really(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for owner, name in _calls():
            patches.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
        yield


def killed_everywhere(prepare: Callable[[], object], act: Callable[[], object]) -> Iterator[int]:
    """Prepares, acts and is killed, before each of the changes that `act` makes in turn; yields after each."""
    for moment in itertools.count():
        prepare()
        try:
            with killed_at(moment):
                act()
        except Killed:
            yield moment
        else:
            assert moment > 0, "nothing was changed"
            return
