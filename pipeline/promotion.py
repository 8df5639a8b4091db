"""Promoting a version, and going back: the registry's aliases and the folder that servers read, together.

`champion.json` in that folder is the truth. A promotion asks the registry first, so that nothing is served that it does
not know, and writes that file last; going back writes it first, and needs no registry. Each function may be called
again after a crash at any moment, and `agree` brings the rest in line with the file. No TensorFlow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline import publish
from pipeline.artifacts import MODEL, locked_file
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.publish import Champion, Rejected
from pipeline.registry import CHAMPION, PREVIOUS, Registry, Version

MOST_REJECTED = 20


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Keeps other promotions and rollbacks of a name out, for the moment that one takes; a retraining may go on."""
    home.mkdir(parents=True, exist_ok=True)
    with locked_file(home / ".promotion.lock"):
        yield


def install(registry: Registry, home: Path, version: Version, model: Path, reason: str, decided_by: str) -> Champion:
    """Makes a registered version the champion.

    Args:
        registry: of the model's name.
        home: `<export.dir>/<name>`.
        version: from the registry.
        model: its exported model, in its run's folder or in `home`.
        reason: why, in words.
        decided_by: "gate", or "hand".

    Raises:
        TrackingError: MLflow is away. Nothing is served that was not before.
        OSError: the disk is full, or `home` cannot be written to.
    """
    old = publish.champion(home)
    folder = publish.published(model, home)
    # The number is the registry's, unless a higher one was published without it: servers take the highest.
    number = int(folder.name) if folder else max(version.number, publish.next_version(home))
    if folder is not None and old is not None and (old.registered, old.version) == (version.number, number):
        publish.make_highest(home, number)
        return old

    if old is not None and old.registered != version.number:
        registry.alias(PREVIOUS, old.registered)
    registry.alias(CHAMPION, version.number)
    registry.tag(
        version.number,
        {
            "graft.promoted_at": _now(),
            "graft.reason": reason,
            "graft.decided_by": decided_by,
            "graft.export_dir": str(home / str(number)),
            "graft.export_version": str(number),
        },
    )
    registry.mark()
    registry.log(f"version {version.number} promoted by {decided_by}: {reason}")

    if folder is None:
        publish.publish(model, home, number)
    publish.make_highest(home, number)
    run_dir = version.tags.get("graft.run_dir", "")
    # A champion whose folder was lost does not become its own predecessor.
    before = old.previous if old is not None and old.registered == version.number else _last(old)
    rejected = () if old is None else tuple(item for item in old.rejected if item.registered != version.number)
    new = Champion(
        version=number, registered=version.number, run_dir=run_dir, since=_now(), reason=reason, previous=before,
        rejected=rejected,
    )  # fmt: skip
    new.write(home / publish.CHAMPION)
    return new


def go_back(home: Path, reason: str) -> Champion:
    """Has servers serve the version before the champion again.

    Where a promotion or a rollback was cut short, and the champion is not what is served, it is gone back to that.
    MLflow is not asked: a bad version may go while it is away. `agree` tells it.

    Raises:
        ConfigError: there is no champion, or none before it that is still there, or that was itself gone back from.
    """
    now = publish.champion(home)
    if now is not None and publish.folder_of(home, now.version) and publish.versions(home)[-1:] != [now.version]:
        publish.make_highest(home, now.version)
        return now
    if now is None or now.previous is None or publish.folder_of(home, now.previous.version) is None:
        what = "no version was promoted" if now is None else f"there is none before version {now.version}"
        raise ConfigError(
            f"There is nothing to go back to below {home}: {what}. graft models {home.name} lists the versions, and "
            f"graft promote {home.name} VERSION promotes any of them."
        )
    for item in now.rejected:
        if item.registered == now.previous.registered:
            raise ConfigError(
                f"The version before, {item.registered}, was gone back from: {item.reason}. Version {now.registered} "
                f"stays. To serve another one: graft promote {home.name} VERSION"
            )
    rejected = list(now.rejected)
    rejected.append(Rejected(registered=now.registered, run=now.run, reason=reason))
    back = now.previous.model_copy(
        update={"since": _now(), "reason": reason, "previous": _last(now), "rejected": tuple(rejected[-MOST_REJECTED:])}
    )
    back.write(home / publish.CHAMPION)
    publish.make_highest(home, back.version)
    return back


def log_rollback(registry: Registry, home: Path, back: Champion, reason: str, console: Console) -> None:
    """Tells MLflow what `go_back` did.

    Args:
        registry: of the model's name.
        home: `<export.dir>/<name>`.
        back: as `go_back` gave it.
        reason: as given to it.
        console: hears which aliases were moved.

    Raises:
        TrackingError: MLflow is away. The next job, or `agree`, brings the aliases in line.
    """
    with alone(home):
        agree(registry, home, console)
    for left in back.rejected[-1:]:
        when = back.since[:16].replace("T", " ")
        registry.tag(left.registered, {"graft.rolled_back": f"{when}: {left.reason}"})
    registry.log(f"rolled back to version {back.registered}: {reason}")


def undo(home: Path, promoted: Champion) -> Champion | None:
    """Takes back a promotion: what was served before is served again. Gives the champion there is then.

    Where somebody has promoted another version, or gone back, since, that stands. MLflow is not asked: `agree` tells
    it.
    """
    now = publish.champion(home)
    if now is not None and now.version == promoted.version:
        if now.previous is None or publish.folder_of(home, now.previous.version) is None:
            if now.version in publish.versions(home):
                publish.withdraw(home, now.version)
            (home / publish.CHAMPION).unlink()
            return None
        now = now.previous
        now.write(home / publish.CHAMPION)
    if now is not None:
        publish.make_highest(home, now.version)
    return now


def agree(registry: Registry, home: Path, console: Console) -> None:
    """Brings what servers read, and the registry's aliases, in line with `champion.json`.

    They differ after a rollback while MLflow was away, a promotion that was cut short, or an alias moved in MLflow's
    own pages, which does not change what is served.

    Raises:
        TrackingError: MLflow is away.
    """
    champion = publish.champion(home)
    if champion is not None and publish.folder_of(home, champion.version):
        publish.make_highest(home, champion.version)
    previous = champion and champion.previous
    for alias, found, served in (
        (PREVIOUS, registry.previous(), previous),
        (CHAMPION, registry.champion(), champion),
    ):
        number = None if served is None else served.registered
        if number != (found and found.number):
            registry.alias(alias, number)
            was, now = ("none" if n is None else f"version {n}" for n in (found and found.number, number))
            text = f"alias {alias} set to {now}, as served; it was {was}"
            registry.log(text)
            console.say(f"MLflow: {text}")
    registry.mark()


def promote_by_hand(registry: Registry, home: Path, number: int, reason: str) -> Champion:
    """Promotes a registered version without the gate.

    Raises:
        ConfigError: there is no such version, or its model is gone.
        TrackingError: MLflow is away.
    """
    version = registry.version(number)
    if version is None:
        numbers = ", ".join(str(found.number) for found in registry.versions()) or "none"
        raise ConfigError(f"{home.name} has no version {number} in MLflow's registry. Promote one of: {numbers}.")
    model = _model_of(version, home)
    if model is None:
        raise ConfigError(
            f"The exported model of version {number} is gone: neither {home} nor its run's folder "
            f"{version.tags.get('graft.run_dir', '')} holds it. Promote another version, or train again."
        )
    return install(registry, home, version, model, reason, "hand")


def _model_of(version: Version, home: Path) -> Path | None:
    """Where a version's exported model is: in its run's folder, or published."""
    run_dir = version.tags.get("graft.run_dir")
    if run_dir is not None and (Path(run_dir) / MODEL / "manifest.json").is_file():
        return Path(run_dir) / MODEL
    number = version.tags.get("graft.export_version", "")
    return publish.folder_of(home, int(number)) if number.isdecimal() else None


def _last(champion: Champion | None) -> Champion | None:
    """A champion as the predecessor of another: it remembers one more, and not the whole line."""
    if champion is None or champion.previous is None:
        return champion
    return champion.model_copy(update={"previous": champion.previous.model_copy(update={"previous": None})})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
