"""The folder that servers read, with small exports that nobody loads."""

import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import publish
from pipeline.errors import ExportError
from pipeline.publish import Champion
from tests.promoting import a_model, killed_everywhere, served


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "export" / "ants"


@pytest.fixture
def models(tmp_path):
    return [a_model(tmp_path / "runs" / f"run-{number}") for number in range(4)]


def left_over(home):
    return list(home.glob(".incoming-*"))


def test_versions_are_numbered_upwards_and_a_model_is_published_once(home, models):
    home.mkdir(parents=True)
    assert [publish.publish(model, home).name for model in models[:3]] == ["1", "2", "3"]
    assert publish.publish(models[1], home) == home / "2"
    assert publish.publish(models[3], home, 10) == home / "10"
    assert publish.versions(home) == [1, 2, 3, 10]
    assert served(home) == "run-3"
    assert publish.next_version(home) == 11
    assert left_over(home) == []


def test_a_version_that_is_withdrawn_is_kept_and_its_number_never_given_again(home, models):
    for model in models[:2]:
        publish.publish(model, home)
    publish.withdraw(home, 2)
    assert (publish.versions(home), served(home)) == ([1], "run-0")
    assert publish.folder_of(home, 2) == publish.published(models[1], home) == home / ".withdrawn" / "2"
    assert publish.publish(models[1], home) == home / ".withdrawn" / "2"
    assert publish.publish(models[2], home).name == "3"


def test_any_version_can_be_made_the_one_that_is_served(home, models):
    for model in models:
        publish.publish(model, home)
    for version in (2, 4, 1, 3, 3):
        publish.make_highest(home, version)
        assert served(home) == f"run-{version - 1}"
    assert publish.next_version(home) == 5


def test_on_the_way_to_a_lower_version_none_in_between_is_served(home, models):
    def prepare():
        shutil.rmtree(home, ignore_errors=True)
        for model in models:
            publish.publish(model, home)

    for moment in killed_everywhere(prepare, lambda: publish.make_highest(home, 1)):
        assert served(home) in ("run-0", "run-3"), moment
        publish.make_highest(home, 1)
        assert served(home) == "run-0"


def test_publishing_that_is_killed_shows_nothing_and_may_be_repeated(home, models):
    def prepare():
        shutil.rmtree(home, ignore_errors=True)
        publish.publish(models[0], home)

    for moment in killed_everywhere(prepare, lambda: publish.publish(models[1], home)):
        assert (served(home), publish.versions(home)) == ("run-0", [1]), moment
        assert publish.publish(models[1], home).name == "2"


def test_a_version_is_on_the_disk_before_it_appears(home, models, monkeypatch):
    def flush(descriptor):
        assert publish.versions(home) == []
        flushed.add(os.fstat(descriptor).st_ino)

    flushed = set()
    monkeypatch.setattr(os, "fsync", flush)
    path = publish.publish(models[0], home)
    assert flushed >= {item.stat().st_ino for item in (path, *path.rglob("*"))}


def test_runs_that_end_at_the_same_time_get_versions_of_their_own(home, tmp_path):
    models = [a_model(tmp_path / "runs" / f"many-{number}") for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda model: publish.publish(model, home), models))
    assert sorted(int(path.name) for path in paths) == list(range(1, 17)) == publish.versions(home)
    served(home)
    assert left_over(home) == []


def test_the_files_are_shared_with_the_run_and_the_manifest_is_not(home, models):
    path = publish.publish(models[0], home)
    assert (path / "saved_model.pb").samefile(models[0] / "saved_model.pb")
    assert publish.read_manifest(models[0]).version == 0
    publish.read_manifest(path).model_copy(update={"name": "changed"}).write(path / "manifest.json")
    assert publish.read_manifest(models[0]).name == "ants"
    shutil.rmtree(models[0])
    (path / "manifest.json").unlink()
    assert (path / "saved_model.pb").read_text() == "graph of run-0"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK], ids=errno.errorcode.get)
def test_where_files_cannot_be_shared_they_are_copied(home, models, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    path = publish.publish(models[0], home)
    assert served(home) == "run-0"
    assert not (path / "saved_model.pb").samefile(models[0] / "saved_model.pb")


@pytest.mark.parametrize("full", ["link", "copy"])
def test_a_full_disk_leaves_nothing_behind_and_is_told_as_such(home, models, monkeypatch, full):
    def fail(source, *_, **__):
        if os.fspath(source).endswith("variables.index") or full == "copy":
            raise OSError(errno.ENOSPC if full == "link" else errno.EXDEV, "No space left on device", source)

    def disk_full(source, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", source)

    publish.publish(models[0], home)
    monkeypatch.setattr(os, "link", fail)
    if full == "copy":
        monkeypatch.setattr(shutil, "copy2", disk_full)
    with pytest.raises(OSError, match="No space left") as error:
        publish.publish(models[1], home)
    assert error.value.errno == errno.ENOSPC
    assert (served(home), left_over(home)) == ("run-0", [])
    monkeypatch.undo()
    publish.publish(models[1], home)
    assert served(home) == "run-1"


def test_what_is_no_export_is_neither_published_nor_taken_for_one(home, models, tmp_path):
    (home / "3").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert publish.published(tmp_path / "empty", home) is None
    with pytest.raises(ExportError, match="is not a model exported by graft"):
        publish.publish(tmp_path / "empty", home)
    assert publish.publish(models[0], home).name == "4"
    assert left_over(home) == []


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_removed_version_is_gone_at_once(home, models, withdrawn):
    for model in models[:2]:
        publish.publish(model, home)
    if withdrawn:
        publish.withdraw(home, 2)
    publish.remove(home, 2)
    publish.remove(home, 2)
    assert publish.folder_of(home, 2) is None
    assert (served(home), left_over(home)) == ("run-0", [])


def test_removing_never_leaves_half_a_version(home, models):
    def prepare():
        shutil.rmtree(home, ignore_errors=True)
        for model in models[:2]:
            publish.publish(model, home)

    for _ in killed_everywhere(prepare, lambda: publish.remove(home, 1)):
        assert served(home) == "run-1"


def test_cleaning_removes_what_is_old_and_half_done_and_nothing_else(home, models):
    publish.publish(models[0], home)
    for age, name in ((7200, ".incoming-old"), (60, ".incoming-young")):
        (home / name).mkdir()
        (home / name / "saved_model.pb").touch()
        os.utime(home / name, (time.time() - age,) * 2)
    os.utime(home / "1", (0, 0))
    publish.clean(home)
    assert served(home) == "run-0"
    assert [path.name for path in left_over(home)] == [".incoming-young"]
    publish.clean(home / "nowhere")


def test_the_champion_is_what_its_file_says(home, models):
    assert publish.champion(home) is None
    publish.publish(models[0], home)
    assert publish.champion(home) is None, "published, not promoted"
    first = Champion(version=1, registered=7, run_dir="runs/a", since="2026-01-01T00:00:00+00:00", reason="Käfer")
    second = first.model_copy(update={"version": 2, "previous": first})
    second.write(home / publish.CHAMPION)
    assert publish.champion(home) == second
