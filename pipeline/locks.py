"""One job per model at a time.

    same output_dir             flock on <output_dir>/<name>/retrain.lock
    same SQLite tracking store  flock on <store>.<name>.lock beside it
    same tracking server        a lease: tags of the registered model, which other machines see

The kernel takes an flock back when its process dies, however it dies. A lease has an owner and an expiry: it is renewed
every 20 s, and whoever has seen no renewal for 90 s by his own clock, which only moves forward, may take it over. What
the wall clocks say decides nothing. On the machine where the owner ran, a dead owner is seen at once.

MLflow's tags know no compare-and-swap, so the lease follows Lamport's bakery (A New Solution of Dijkstra's Concurrent
Programming Problem, 1974): every contender has a tag of its own, `graft.lease.<token>`, which nobody else writes. He
writes first that he is waiting and then reads what the others wrote; of those that wait at the same time the smallest
token wins. Of any two, the later writer reads the earlier one's tag, so both cannot win, however slow a request is.
Whoever takes a lease over says so in his own tag, and every write is followed by a reading: of an owner that was only
slow and the one that took him for dead, one at least sees the other, and gives up. All this asks of MLflow is that it
reads what was written; a read replica that lags behind does not serve.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import Record
from pipeline.console import Console
from pipeline.errors import ConfigError, GraftError, TrackingError
from pipeline.mlflow_client import asking, connect, shorten_timeout, sqlite_path
from pipeline.registry import ensure_model

_LEASE = "graft.lease."


class Owner(Record):
    """A process, and how another one on the same machine finds out whether it lives.

    Attributes:
        host: the machine's name.
        pid: its number.
        since: UTC, ISO 8601: when it took the lock.
        boot: names the time since the machine's last start, and the container; None where the system does not say.
        born: when the process began, in the kernel's ticks, for numbers are given again; None likewise.
    """

    host: str
    pid: int
    since: str
    boot: str | None
    born: int | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since[:10]} {self.since[11:19]} UTC"


class Held(GraftError):  # noqa: N818
    """Another job works on the same model.

    Attributes:
        owner: which one; None where it had no time to say.
    """

    def __init__(self, text: str, owner: Owner | None) -> None:
        super().__init__(text)
        self.owner = owner


class Claim(Record):
    """What one contender for a lease has written; nobody else changes it.

    Attributes:
        owner: who.
        state: a waiting one may still give way.
        writes: how often its owner has written it.
        expires_at: UTC, ISO 8601, for people to read; no program trusts it.
        over: the tokens of those whom the holder took for dead.
    """

    owner: Owner
    state: Literal["waiting", "holding"]
    writes: int
    expires_at: str
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pace:
    """How a lease is timed, in seconds.

    Attributes:
        renew: between two renewals.
        expiry: without one, and the lease is taken over; several times `renew`, and longer than any request may take.
        poll: between two looks at another's claim.
    """

    renew: float = 20.0
    expiry: float = 90.0
    poll: float = 0.5


@contextmanager
def locked(name: str, uri: str, output_dir: Path, console: Console, pace: Pace = Pace()) -> Iterator["Lock"]:
    """Keeps every other job for the same model out, from here to the end of the block or of the process.

    Where a tracking server is away at the beginning, the locks of this machine have to do until `Lock.check`.

    Args:
        name: of the model.
        uri: as `mlflow_client.resolve_uri` gives it.
        output_dir: of the runs; created where missing.
        console: told what it waits for, and that the lease was lost.
        pace: of the lease.

    Raises:
        Held: another job has it.
        ConfigError: the lock's file cannot be written.
        TrackingError: MLflow refuses.
    """
    with ExitStack() as stack:
        stack.enter_context(_file_lock(output_dir / name / "retrain.lock", name, "output_dir"))
        if uri.startswith("sqlite:///"):
            store = sqlite_path(uri)
            stack.enter_context(_file_lock(store.with_name(f"{store.name}.{name}.lock"), name, "tracking.uri"))
            yield Lock(None)
            return
        lease = Lease(name, uri, console, pace)
        stack.callback(lease.release)
        try:
            lease.claim()
        except TrackingError as error:
            console.warn(f"Other machines are not kept from retraining {name} yet, but before it is promoted. {error}")
        yield Lock(lease)


class Lock:
    """A lock that is held."""

    def __init__(self, lease: "Lease | None") -> None:
        self._lease = lease

    def check(self) -> None:
        """Makes sure that the lock is still held; to be asked before anything that others see.

        Raises:
            Held: the lease was lost.
            TrackingError: MLflow is away, so nobody knows.
        """
        if self._lease is not None:
            self._lease.check()


# --------------------------------------------------------------------------------------------------------------- files

# A child that outlives its parent would keep the parent's lock. Programs started do not get the file, as Python opens
# it; a fork does, and closes it here.
_open_files: set[int] = set()


def _close_in_child() -> None:
    for file in _open_files:
        with contextlib.suppress(OSError):
            os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def _file_lock(path: Path, name: str, key: str) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path, key, error) from error
    _open_files.add(file)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(name, _written_owner(file)) from None
        except OSError as error:
            raise _unwritable(path, key, error) from error
        # Whose it is, is news for the other job. A full disk is no reason to go without the lock.
        with contextlib.suppress(OSError):
            _write(file, _this_process().model_dump_json().encode() + b"\n")
        yield
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
    finally:
        if file in _open_files:  # Not in a fork.
            _open_files.remove(file)
            os.close(file)


def _write(file: int, content: bytes) -> None:
    os.pwrite(file, content, 0)
    os.ftruncate(file, len(content))


def _written_owner(file: int) -> Owner | None:
    """Who has written himself into a lock's file. He that has just got the lock may need a moment."""
    for _ in range(10):
        try:
            return Owner.model_validate_json(os.pread(file, 10_000, 0))
        except ValueError:
            time.sleep(0.02)
    return None


def _unwritable(path: Path, key: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{key} must be on a disk that can be written to and knows locks, so that two jobs do not work on the same "
        f"model: {path} cannot be locked ({error.strerror}). Choose another {key}."
    )


def _held(name: str, owner: Owner | None) -> Held:
    who = str(owner) if owner else "a process that has not said which"
    return Held(
        f"Another job is working on {name}: {who}. Only one at a time may train and promote a model. Wait for its end, "
        "or end it; what it holds goes with it, at once on its machine and after 90 seconds on another.",
        owner,
    )


# --------------------------------------------------------------------------------------------------------------- lease


@dataclass
class _Seen:
    """A claim of somebody else, since when it says what it says, by `time.monotonic`, and whether it ever changed."""

    claim: Claim
    at: float
    changed: bool = False


class Lease:
    """The lock that other machines see. After `claim` a thread renews it until `release`."""

    def __init__(self, name: str, uri: str, console: Console, pace: Pace) -> None:
        """Arguments as for `locked`. Nothing is asked of MLflow yet."""
        shorten_timeout()
        self._name, self._uri, self._console, self._pace = name, uri, console, pace
        self._token = secrets.token_hex(16)
        self._owner = _this_process()
        self._writes = 0
        self._over: tuple[str, ...] = ()
        self._seen: dict[str, _Seen] = {}
        self._holds = False
        self._lost: Held | None = None
        self._turn = threading.Lock()
        self._released = threading.Event()

    def claim(self) -> None:
        """Takes the lease.

        Raises:
            Held: somebody else has it.
            TrackingError: MLflow is away or refuses. Nothing is held; `claim` may be called again.
        """
        with self._asking("give out the lease"):
            ensure_model(self._client, self._name)
            self._wait_for_the_dead()
            try:
                self._contend()
            except BaseException:
                with contextlib.suppress(Exception):
                    self._withdraw(self._token)
                raise
            self._holds = True
            for token in self._over:
                self._withdraw(token)
        threading.Thread(target=self._keep, name=f"lease of {self._name}", daemon=True).start()

    def check(self) -> None:
        """Renews the lease now. Raises as `Lock.check`."""
        with self._turn:
            if self._holds:
                self._renew()
            else:
                self.claim()

    def release(self) -> None:
        """Gives the lease back, if that can be done; otherwise it expires."""
        self._released.set()
        with self._turn:
            if not self._holds or self._lost is not None:
                return
            try:
                with self._asking("take back the lease"):
                    self._withdraw(self._token)
            except TrackingError as error:
                self._console.warn(f"The lease ends by itself, in {self._pace.expiry:g} seconds. {error}")

    def _keep(self) -> None:
        """Renews the lease until it is given back or lost. MLflow may be away for a while; `check` will know."""
        while not self._released.wait(self._pace.renew):
            with self._turn, contextlib.suppress(TrackingError):
                if self._released.is_set():
                    return
                try:
                    self._renew()
                except Held as error:
                    self._console.warn(str(error))
                    return

    def _wait_for_the_dead(self) -> None:
        """Waits until all others are known to be dead; raises Held where one of them lives."""
        told = False
        while rivals := [*self._rivals().values()]:
            for seen in rivals:
                if seen.changed or _alive(seen.claim.owner):
                    raise self._held_by(seen.claim)
            if not told:
                told = True
                self._console.say(
                    f"{self._name} is locked by {rivals[0].claim.owner}; waiting up to {self._pace.expiry:g} seconds "
                    "for a sign of life"
                )
            time.sleep(self._pace.poll)

    def _contend(self) -> None:
        """The bakery: gives way to those that hold or have a smaller token, and waits for the others to give way."""
        self._write("waiting")
        written_at = time.monotonic()
        while rivals := self._rivals():
            for token, seen in rivals.items():
                if seen.claim.state == "holding" or token < self._token:
                    raise self._held_by(seen.claim)
            time.sleep(self._pace.poll)
            if time.monotonic() - written_at > self._pace.renew:
                self._write("waiting")
                written_at = time.monotonic()
        dead = {token: seen.claim for token, seen in self._seen.items()}
        self._over = tuple(sorted(dead))
        self._write("holding")
        claims = self._read()
        self._make_sure(claims)
        for token, claim in dead.items():
            if claims.get(token, claim) != claim:
                raise self._held_by(claims[token])

    def _renew(self) -> None:
        """Raises Held where the lease was lost, now or earlier, and TrackingError."""
        if self._lost is not None:
            raise self._lost
        try:
            with self._asking("renew the lease"):
                self._make_sure(self._read())
                self._write("holding")
                self._make_sure(self._read())
        except Held as error:
            self._lost = error
            with contextlib.suppress(Exception):
                self._withdraw(self._token)
            raise

    def _make_sure(self, claims: dict[str, Claim]) -> None:
        """Raises Held where, by what everyone has written, somebody else may hold the lease."""
        for token, claim in claims.items():
            if token not in (self._token, *self._over) and claim.state == "holding":
                raise self._held_by(claim)
        if self._token not in claims:
            raise Held(
                f"The lease of {self._name} was taken over while this process did not answer for "
                f"{self._pace.expiry:g} seconds, or its tag was removed from the registered model. Another job may "
                "have promoted a model since. Start again.",
                None,
            )

    def _rivals(self) -> dict[str, _Seen]:
        """The others that are not known to be dead, by token."""
        claims = self._read()
        claims.pop(self._token, None)
        now = time.monotonic()
        for token, claim in claims.items():
            seen = self._seen.get(token)
            if seen is None:
                self._seen[token] = _Seen(claim, now)
            elif claim != seen.claim:
                self._seen[token] = _Seen(claim, now, changed=True)
        self._seen = {token: seen for token, seen in self._seen.items() if token in claims}
        taken_over = {token for claim in claims.values() for token in claim.over}
        return {
            token: seen
            for token, seen in self._seen.items()
            if token not in taken_over and _alive(seen.claim.owner) is not False and now - seen.at < self._pace.expiry
        }

    def _read(self) -> dict[str, Claim]:
        """Everyone's claims, by token."""
        tags = self._client.get_registered_model(self._name).tags
        return {
            key.removeprefix(_LEASE): Claim.model_validate_json(text)
            for key, text in tags.items()
            if key.startswith(_LEASE)
        }

    def _write(self, state: Literal["waiting", "holding"]) -> None:
        self._writes += 1
        expires_at = (datetime.now(UTC) + timedelta(seconds=self._pace.expiry)).isoformat(timespec="seconds")
        over = self._over if state == "holding" else ()
        claim = Claim(owner=self._owner, state=state, writes=self._writes, expires_at=expires_at, over=over)
        self._client.set_registered_model_tag(self._name, _LEASE + self._token, claim.model_dump_json())

    def _withdraw(self, token: str) -> None:
        self._client.delete_registered_model_tag(self._name, _LEASE + token)

    def _held_by(self, claim: Claim) -> Held:
        return _held(self._name, claim.owner)

    @cached_property
    def _client(self) -> Any:
        return connect(self._uri)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        with asking(self._uri, f"{what} of the model {self._name}"):
            yield


# ----------------------------------------------------------------------------------------------------------- processes


def _this_process() -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        boot=_boot(),
        born=_born(os.getpid()),
    )


def _alive(owner: Owner) -> bool | None:
    """Whether a process lives; None where that cannot be known from here."""
    if owner.boot is None or owner.born is None or (owner.host, owner.boot) != (socket.gethostname(), _boot()):
        return None
    return _born(owner.pid) == owner.born


def _boot() -> str | None:
    """Names this start of this machine, and the container, whose processes have numbers of their own."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the machine's start; None where there is none, or it is dead already."""
    try:
        # proc(5): pid (name) state ..., the start being the 22nd field. The name may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
