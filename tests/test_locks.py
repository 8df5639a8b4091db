"""Locks between real processes, and leases in a real registry. A process under another host name stands in for another
machine: nobody can see from outside whether it lives."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.console import Console
from pipeline.errors import ConfigError, TrackingError
from pipeline.locks import Held, Lease, Pace, locked
from pipeline.mlflow_client import connect
from tests.locking import FAST, PATIENT, Job, assert_one_of

QUIET = Console(quiet=True)


@pytest.fixture
def jobs() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def started(jobs: contextlib.ExitStack, *arguments: object, **keywords: object) -> Job:
    job = Job(*arguments, **keywords)  # type: ignore[arg-type]
    jobs.callback(job.end)
    return job


def claims(uri: str) -> dict[str, dict[str, object]]:
    """The leases of `ants`, by tag."""
    tags = connect(uri).get_registered_model("ants").tags
    return {key: json.loads(text) for key, text in tags.items() if key.startswith("graft.lease.")}


# --------------------------------------------------------------------------------------------------------------- files


def test_a_second_job_is_told_who_holds_it_until_the_first_has_ended(tmp_path: Path, uri: str) -> None:
    for _ in range(2):
        with locked("ants", uri, tmp_path, QUIET) as lock:
            lock.check()
            with (
                pytest.raises(Held, match=rf"process {os.getpid()} on {os.uname().nodename}, since 2\d\d\d-") as held,
                locked("ants", uri, tmp_path, QUIET),
            ):
                pass
            assert held.value.owner is not None
            assert held.value.owner.pid == os.getpid()
            with locked("bees", uri, tmp_path, QUIET):
                lock.check()
    with contextlib.suppress(ZeroDivisionError), locked("ants", uri, tmp_path, QUIET):
        raise ZeroDivisionError
    with locked("ants", uri, tmp_path, QUIET):
        pass


def test_jobs_of_one_tracking_store_with_different_folders(tmp_path: Path, uri: str) -> None:
    with (
        locked("ants", uri, tmp_path / "a", QUIET),
        pytest.raises(Held),
        locked("ants", uri, tmp_path / "b", QUIET),
    ):
        pass
    with locked("ants", uri, tmp_path / "b", QUIET):
        pass


@pytest.mark.slow
def test_a_killed_job_leaves_no_lock_behind_not_even_with_its_children(
    tmp_path: Path, uri: str, jobs: contextlib.ExitStack
) -> None:
    first, second = (started(jobs, "file", uri, tmp_path) for _ in range(2))
    assert first.ask("lock") == "yes"
    *children, _ = first.ask("children").split()
    for child in children:
        jobs.callback(os.kill, int(child), signal.SIGKILL)
    assert second.ask("lock").startswith(f"no Another job is working on ants: process {first.process.pid} on ")

    first.signal(signal.SIGKILL)
    first.process.wait()

    assert second.ask("lock") == "yes"
    assert all(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.slow
def test_of_two_processes_at_once_exactly_one_gets_the_file(
    tmp_path: Path, uri: str, jobs: contextlib.ExitStack
) -> None:
    two = [started(jobs, "file", uri, tmp_path) for _ in range(2)]
    for _ in range(20):
        assert_one_of(two)


def test_a_place_that_cannot_be_written_to(tmp_path: Path, uri: str) -> None:
    (tmp_path / "ants").write_text("a file, not a folder")
    with (
        pytest.raises(
            ConfigError, match=r"output_dir must be on a disk that can be written to.*retrain\.lock cannot be"
        ),
        locked("ants", uri, tmp_path, QUIET),
    ):
        pass


# --------------------------------------------------------------------------------------------------------------- lease


def test_the_owner_and_the_expiry_are_there_to_read_and_go_with_the_lease(uri: str) -> None:
    lease = Lease("ants", uri, QUIET, PATIENT)
    lease.claim()
    (claim,) = claims(uri).values()
    assert claim["owner"]["pid"] == os.getpid()  # type: ignore[index]
    assert str(claim["expires_at"]) > "20"
    lease.check()
    with pytest.raises(Held, match=f"process {os.getpid()} on"):
        Lease("ants", uri, QUIET, PATIENT).claim()
    lease.release()
    assert claims(uri) == {}
    Lease("bees", uri, QUIET, PATIENT).claim()


@pytest.mark.slow
def test_on_its_own_machine_a_killed_owner_is_followed_at_once(
    tmp_path: Path, uri: str, jobs: contextlib.ExitStack
) -> None:
    first, second = (started(jobs, "lease", uri, tmp_path, pace=PATIENT) for _ in range(2))
    assert first.ask("lock") == "yes"
    assert second.ask("lock").startswith("no Another job")
    first.signal(signal.SIGKILL)  # Nobody waits for it yet: it is a zombie.
    time.sleep(0.2)
    assert second.ask("lock") == "yes"
    assert second.ask("check") == "yes"
    assert len(claims(uri)) == 1


@pytest.mark.slow
def test_another_machines_lease_is_left_alone_while_it_is_renewed_and_taken_over_when_it_is_not(
    tmp_path: Path, uri: str, jobs: contextlib.ExitStack
) -> None:
    far = started(jobs, "lease", uri, tmp_path, host="far", pace=FAST)
    near = started(jobs, "lease", uri, tmp_path, pace=FAST)
    assert far.ask("lock") == "yes"
    for _ in range(2):
        assert "on far, since" in near.ask("lock")
    assert far.ask("check") == "yes"

    far.signal(signal.SIGSTOP)
    assert near.ask("lock") == "yes"
    far.signal(signal.SIGCONT)

    assert far.ask("check").startswith("no ")
    assert near.ask("check") == "yes"
    assert far.ask("release") == "yes"
    assert near.ask("check") == "yes"
    assert len(claims(uri)) == 1


@pytest.mark.parametrize("written", ["1990-01-01T00:00:00+00:00", "2090-01-01T00:00:00+00:00"])
def test_no_wall_clock_is_trusted(uri: str, written: str) -> None:
    """An owner whose clock was wrong, on a machine that went away: only the time without a renewal counts."""
    lease = Lease("ants", uri, QUIET, PATIENT)
    lease.claim()
    ((key, claim),) = claims(uri).items()
    owner = claim["owner"] | {"host": "far", "since": written}  # type: ignore[operator]
    ghost = json.dumps(claim | {"owner": owner, "expires_at": written})
    lease.release()
    client = connect(uri)
    client.set_registered_model_tag("ants", key, ghost)

    impatient = Lease("ants", uri, QUIET, PATIENT)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(impatient.claim)
        time.sleep(0.5)
        assert not waiting.done(), "it waits for a renewal, though the expiry may be long past"
        client.set_registered_model_tag("ants", key, ghost.replace('"writes": 2', '"writes": 3'))
        with pytest.raises(Held, match="on far, since"):
            waiting.result()

    successor = Lease("ants", uri, QUIET, Pace(renew=10, expiry=0.5, poll=0.05))
    successor.claim()
    successor.check()
    assert key not in claims(uri)
    successor.release()


def test_a_lease_whose_tag_was_removed_is_lost(uri: str) -> None:
    lease = Lease("ants", uri, QUIET, PATIENT)
    lease.claim()
    for key in claims(uri):
        connect(uri).delete_registered_model_tag("ants", key)
    for _ in range(2):
        with pytest.raises(Held, match="taken over while this process did not answer"):
            lease.check()
    lease.release()


@pytest.mark.slow
def test_of_many_contenders_at_once_exactly_one_gets_the_lease(uri: str) -> None:
    for _ in range(10):
        leases = [Lease("ants", uri, QUIET, PATIENT) for _ in range(4)]
        barrier = threading.Barrier(len(leases))

        def contend(lease: Lease, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                lease.claim()
            except Held:
                return False
            return True

        with ThreadPoolExecutor(len(leases)) as pool:
            won = list(pool.map(contend, leases))
        assert sum(won) == 1
        for lease in leases:
            lease.release()
        assert claims(uri) == {}


def test_where_the_server_is_away_the_machines_own_lock_has_to_do_until_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = "http://127.0.0.1:9"
    with locked("ants", away, tmp_path, QUIET) as lock:
        assert "Other machines are not kept from retraining ants yet" in capsys.readouterr().err
        with pytest.raises(Held), locked("ants", away, tmp_path, QUIET):
            pass
        with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 did not give out the lease"):
            lock.check()
