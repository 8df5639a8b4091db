"""Promotions and rollbacks over MLflow's own registry, killed at every moment; exports that nobody loads."""

import os
import shutil
import subprocess
import sys
from unittest import mock

import pytest

from pipeline import promotion, publish
from pipeline.artifacts import read_manifest
from pipeline.errors import ConfigError, TrackingError
from pipeline.mlflow_client import connect
from pipeline.publish import Champion
from pipeline.registry import Registry
from tests.conftest import ROOT
from tests.promoting import World, a_model, killed_everywhere, served
from tests.stores import Heard

AWAY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with mock.patch.dict(os.environ):  # Tracking sets defaults in the environment.
        connect(f"sqlite:///{folder}/mlflow.db")
        yield World(folder, f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def world(shared, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shared.restore(shared.nothing_promoted)
    return shared


def install(world, number, reason="better"):
    version = world.registry.version(number)
    return promotion.install(world.registry, world.home, version, world.models[number], reason, "gate")


def agree(world):
    console = Heard()
    promotion.agree(world.registry, world.home, console)
    return console.said


def aliases(world):
    """The versions that are champion and previous."""
    return [found and found.number for found in (world.registry.champion(), world.registry.previous())]


def roles(world):
    """What the runs of versions say that they are, where they say something."""
    client = connect(world.uri)
    said = {number: client.get_run(v.run_id).data.tags.get("graft.role") for number, v in world.versions.items()}
    return {number: role for number, role in said.items() if role}


# --------------------------------------------------------------------------------------------------- one after another


def test_a_promotion_is_served_and_registered_with_its_reason(world):
    first = install(world, 1, "no champion")
    second = install(world, 2, "gained 3 points")
    assert (second.version, second.registered, second.reason) == (2, 2, "gained 3 points")
    assert second.run_dir == str(world.runs / "run-2")
    assert second.previous == first
    assert publish.champion(world.home) == second
    assert served(world.home) == "run-2"
    assert aliases(world) == [2, 1]
    tags = world.registry.version(2).tags
    assert (tags["graft.reason"], tags["graft.decided_by"]) == ("gained 3 points", "gate")
    assert (tags["graft.export_version"], tags["graft.export_dir"]) == ("2", str(world.home / "2"))
    assert world.registry.history()[-1].endswith(" version 2 promoted by gate: gained 3 points")
    assert roles(world) == {1: "previous", 2: "champion"}
    assert read_manifest(world.models[2]).version == 0, "the run's own manifest is left alone"
    assert agree(world) == []


def test_promoting_the_champion_again_changes_nothing(world):
    install(world, 1)
    champion = install(world, 2)
    before, history = world.state, world.registry.history()
    assert install(world, 2, "once more") == champion
    assert (world.state, world.registry.history()) == (before, history)


def test_versions_of_plain_runs_with_higher_numbers_do_not_hide_a_promoted_one(world, tmp_path):
    for number in range(5):
        publish.publish(a_model(tmp_path / f"plain-{number}"), world.home)
    assert install(world, 1).version == 6
    assert served(world.home) == "run-1"
    publish.publish(a_model(tmp_path / "later"), world.home)
    agree(world)
    assert served(world.home) == "run-1"
    assert install(world, 2).version == 8
    assert world.registry.version(2).tags["graft.export_version"] == "8"
    assert promotion.go_back(world.home, "worse").version == 6
    assert served(world.home) == "run-1"


def test_a_model_that_a_plain_run_published_is_promoted_where_it_is(world):
    publish.publish(world.models[3], world.home)
    assert install(world, 3).version == 1
    assert publish.versions(world.home) == [1]


def test_an_old_version_is_promoted_from_where_it_lies(world):
    for number in (1, 2, 3):
        install(world, number)
    back = promotion.promote_by_hand(world.registry, world.home, 1, "the others see ghosts")
    assert (back.version, back.registered, back.previous.registered) == (1, 1, 3)
    assert (served(world.home), aliases(world)) == ("run-1", [1, 3])
    assert world.registry.version(1).tags["graft.decided_by"] == "hand"
    assert install(world, 4).version == 4
    assert served(world.home) == "run-4"


def test_what_was_gone_back_from_comes_back_only_by_a_promotion(world):
    for number in (1, 2, 3):
        install(world, number)
    back = promotion.go_back(world.home, "let us see")
    assert (back.registered, back.reason, served(world.home)) == (2, "let us see", "run-2")
    assert [(item.registered, item.run, item.reason) for item in back.rejected] == [(3, "run-3", "let us see")]
    with pytest.raises(ConfigError, match=r"The version before, 3, was gone back from: let us see\. Version 2 stays"):
        promotion.go_back(world.home, "once more")
    assert served(world.home) == "run-2"
    assert install(world, 3).rejected == ()
    assert served(world.home) == "run-3"
    agree(world)
    assert aliases(world) == [3, 2]


def test_going_back_needs_no_registry_which_is_told_later(world):
    install(world, 1)
    install(world, 2)
    promotion.go_back(world.home, "worse")
    assert (served(world.home), aliases(world)) == ("run-1", [2, 1])
    assert agree(world) == [
        "MLflow: alias previous set to version 2, as served; it was version 1",
        "MLflow: alias champion set to version 1, as served; it was version 2",
    ]
    assert aliases(world) == [1, 2]
    assert roles(world) == {1: "champion", 2: "previous"}
    assert agree(world) == []


def test_there_may_be_nothing_to_go_back_to(world):
    with pytest.raises(ConfigError, match=r"no version was promoted\. graft models ants lists the versions"):
        promotion.go_back(world.home, "worse")
    install(world, 1)
    with pytest.raises(ConfigError, match="there is none before version 1"):
        promotion.go_back(world.home, "worse")
    install(world, 2)
    shutil.rmtree(world.home / "1")
    with pytest.raises(ConfigError, match="there is none before version 2"):
        promotion.go_back(world.home, "worse")
    assert served(world.home) == "run-2"


def test_a_promotion_is_taken_back_with_all_it_did(world):
    assert promotion.undo(world.home, install(world, 1)) is None
    agree(world)
    assert world.state == (None, [], {})
    install(world, 1)
    install(world, 2)
    before = publish.champion(world.home)
    assert promotion.undo(world.home, install(world, 3)) == before == publish.champion(world.home)
    agree(world)
    assert (served(world.home), aliases(world)) == ("run-2", [2, 1])
    assert install(world, 3).version == 3, "what was taken back can be promoted again"
    assert served(world.home) == "run-3"


def test_what_somebody_did_after_a_promotion_is_not_taken_back(world):
    install(world, 1)
    promoted = install(world, 2)
    promotion.go_back(world.home, "a person was faster")
    assert promotion.undo(world.home, promoted).registered == 1
    assert served(world.home) == "run-1"
    install(world, 3)
    assert promotion.undo(world.home, promoted).registered == 3
    assert served(world.home) == "run-3"


def test_an_alias_moved_in_mlflow_does_not_change_what_is_served(world):
    install(world, 1)
    install(world, 2)
    world.registry.alias("champion", 4)
    world.registry.alias("previous", None)
    assert len(agree(world)) == 2
    assert (served(world.home), aliases(world)) == ("run-2", [2, 1])
    assert world.registry.history()[-1].endswith("alias champion set to version 2, as served; it was version 4")


def test_a_version_removed_by_hand_is_no_reason_to_fail(world):
    install(world, 1)
    install(world, 2)
    shutil.rmtree(world.home / "2")
    agree(world)
    assert served(world.home) == "run-1"
    champion = install(world, 2)
    assert (served(world.home), champion.registered, champion.previous.registered) == ("run-2", 2, 1)


def test_mlflow_is_away(world):
    install(world, 1)
    before = world.state
    away = Registry(AWAY, "ants")
    with pytest.raises(TrackingError, match="did not set the alias previous"):
        promotion.install(away, world.home, world.versions[2], world.models[2], "better", "gate")
    with pytest.raises(TrackingError, match="did not list the versions"):
        promotion.agree(away, world.home, Heard())
    with pytest.raises(TrackingError):
        promotion.promote_by_hand(away, world.home, 2, "better")
    assert world.state == before


def test_a_full_disk_promotes_nothing_and_the_next_attempt_does(world, monkeypatch):
    install(world, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", mock.Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            install(world, 2)
    assert (served(world.home), publish.champion(world.home).registered) == ("run-1", 1)
    agree(world)
    assert aliases(world) == [1, None]
    install(world, 2)
    assert (served(world.home), aliases(world)) == ("run-2", [2, 1])


def test_by_hand_only_what_there_is_can_be_promoted(world):
    with pytest.raises(ConfigError, match=r"ants has no version 9 in MLflow's registry. Promote one of: 4, 3, 2, 1\."):
        promotion.promote_by_hand(world.registry, world.home, 9, "try")
    run_dir = world.runs / "run-4"
    hidden = run_dir.rename(run_dir.with_name("hidden"))
    try:
        world.registry.tag(4, {"graft.export_version": "77"})
        with pytest.raises(ConfigError, match=r"The exported model of version 4 is gone: neither .* holds it"):
            promotion.promote_by_hand(world.registry, world.home, 4, "try")
    finally:
        hidden.rename(run_dir)
    install(world, 4)
    install(world, 1)
    hidden = run_dir.rename(run_dir.with_name("hidden"))
    try:
        promotion.promote_by_hand(world.registry, world.home, 4, "its run is gone, its export is not")
    finally:
        hidden.rename(run_dir)
    assert served(world.home) == "run-4"


def test_only_one_promotion_at_a_time(tmp_path):
    home = tmp_path / "new" / "ants"
    program = (
        "import sys; from pathlib import Path; from pipeline.promotion import alone\nwith alone(Path(sys.argv[1])): "
    )
    with promotion.alone(home):
        other = subprocess.Popen(
            [sys.executable, "-c", f"{program} print('in', flush=True)", str(home)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
    assert other.communicate(timeout=60)[0] == "in\n"


# ------------------------------------------------------------------------------------------------------------- crashes


def nothing(world):
    """Before the first promotion."""


def two(world):
    install(world, 1)
    install(world, 2)


def rolled_back(world):
    two(world)
    promotion.go_back(world.home, "worse")


def plain(world):
    """A version that nobody promoted, with a high number, lies above."""
    two(world)
    publish.publish(world.models[4], world.home, 9)


def third(world):
    two(world)
    install(world, 3)


THIRD = Champion(version=3, registered=3, run_dir="", since="", reason="")
CASES = {
    "the first": (nothing, lambda world: install(world, 1)),
    "a new one": (two, lambda world: install(world, 3)),
    "an old one": (two, lambda world: install(world, 1)),
    "a new one after a rollback": (rolled_back, lambda world: install(world, 3)),
    "one rolled back": (rolled_back, lambda world: install(world, 2)),
    "above plain runs": (plain, lambda world: install(world, 3)),
    "published by a plain run": (plain, lambda world: install(world, 4)),
    "go back": (two, lambda world: promotion.go_back(world.home, "worse")),
    "go back over others": (plain, lambda world: promotion.go_back(world.home, "worse")),
    "undo": (third, lambda world: promotion.undo(world.home, THIRD)),
    "undo the first": (lambda world: install(world, 3), lambda world: promotion.undo(world.home, THIRD)),
    "agree": (rolled_back, lambda world: promotion.agree(world.registry, world.home, Heard())),
    "agree above plain runs": (plain, lambda world: promotion.agree(world.registry, world.home, Heard())),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_moment(world, case):
    """Servers have the old or the new version all the time, and the next call completes or undoes the rest."""
    before, act = CASES[case]
    before(world)
    start = world.snapshot(case)
    had_champion = publish.champion(world.home) is not None
    runs = {served(world.home)}
    agree(world)
    undone = world.state
    world.restore(start)
    act(world)
    runs.add(served(world.home))
    agree(world)
    done = world.state

    for moment in killed_everywhere(lambda: world.restore(start), lambda: act(world)):
        where = f"killed before change {moment}"
        assert served(world.home) in runs, where
        killed = world.snapshot(f"{case}, killed")
        act(world)
        agree(world)
        assert world.state == done, where

        world.restore(killed)
        agree(world)
        if had_champion:
            assert world.state in (undone, done), where
        if world.state != done:
            act(world)
            agree(world)
            assert world.state == done, where
