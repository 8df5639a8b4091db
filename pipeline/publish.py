"""Where servers read: `<export.dir>/<name>/<version>/`. They serve the highest version that is there.

    <version>/      an exported model, complete; it appears, and goes, by one rename
    .withdrawn/     versions that are not to be served, such as one that was rolled back
    champion.json   which version is served and why, once a name's versions are promoted and not merely published

So to promote a version or to go back to one is to see to it that no higher one is there. No TensorFlow.
"""

import contextlib
import errno
import os
import shutil
import time
import uuid
from pathlib import Path

from pipeline.artifacts import Record, read_manifest
from pipeline.errors import ExportError

CHAMPION = "champion.json"
_WITHDRAWN = ".withdrawn"


class Rejected(Record):
    """A version that somebody went back from.

    Attributes:
        registered: the version in MLflow's registry.
        run: the folder of the run that made it, without the folders above.
        reason: why.
    """

    registered: int
    run: str
    reason: str


class Champion(Record):
    """`champion.json`.

    Attributes:
        version: the folder's number.
        registered: the version in MLflow's registry.
        run_dir: the run that made it.
        since: UTC, ISO 8601.
        reason: why it was promoted.
        previous: the champion before, with its own predecessor.
        rejected: the last versions that were gone back from; the same are not promoted again.
    """

    version: int
    registered: int
    run_dir: str
    since: str
    reason: str
    previous: "Champion | None" = None
    rejected: tuple[Rejected, ...] = ()

    @property
    def run(self) -> str:
        """The folder of the run that made it, without the folders above."""
        return Path(self.run_dir).name


def champion(home: Path) -> Champion | None:
    """Which version of a name is the champion; None where none was promoted.

    Raises:
        ExportError: `champion.json` is damaged.
    """
    path = home / CHAMPION
    try:
        return Champion.read(path) if path.is_file() else None
    except ValueError as error:
        raise ExportError(
            f"{path}, which says what is served and why, is damaged. Remove it, then say which version is champion: "
            f"graft promote {home.name} VERSION --reason TEXT. It is the highest one in the folder."
        ) from error


def versions(home: Path) -> list[int]:
    """The versions that servers see, ascending."""
    return sorted(int(path.name) for path in home.glob("*") if path.name.isdecimal())


def next_version(home: Path) -> int:
    """One more than the highest version that is, or was, published; 1 where there is none."""
    return 1 + max([*versions(home), *versions(home / _WITHDRAWN)], default=0)


def publish(model: Path, home: Path, version: int | None = None) -> Path:
    """Publishes an exported model; it keeps its files where they are, too.

    Nobody sees a part of it: it is put together beside the versions, and renamed.

    Args:
        model: the exported model's folder, `manifest.json` included.
        home: `<export.dir>/<name>`.
        version: a version that is not there; None for the next free one.

    Returns:
        The published folder; the one there is, where this model was published before.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    if (found := published(model, home)) is not None:
        return found
    staging = home / f".incoming-{uuid.uuid4().hex}"
    try:
        staging.mkdir(parents=True)
        for path in sorted(model.rglob("*")):  # A folder before what is in it.
            target = staging / path.relative_to(model)
            if path.is_dir():
                target.mkdir()
            else:
                _link(path, target)
        while True:
            number = version or next_version(home)
            read_manifest(model).model_copy(update={"version": number}).write(staging / "manifest.json")
            _flush(staging)
            try:
                return staging.rename(home / str(number))
            except OSError as error:
                # Renaming onto a folder with contents: another run has just taken this version.
                if version or error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def folder_of(home: Path, version: int) -> Path | None:
    """Where a version is, served or withdrawn; None where it is not."""
    places = (home / str(version), home / _WITHDRAWN / str(version))
    return next((path for path in places if path.is_dir()), None)


def published(model: Path, home: Path) -> Path | None:
    """The version, served or withdrawn, that is this exported model; None where there is none."""
    identity = _identity(model)
    if identity is None:
        return None
    folders = [folder_of(home, version) for version in {*versions(home), *versions(home / _WITHDRAWN)}]
    return next((folder for folder in folders if folder is not None and _identity(folder) == identity), None)


def make_highest(home: Path, version: int) -> None:
    """Has servers serve a version: puts it back where it was withdrawn, and withdraws all higher ones.

    The highest goes last, so that none in between is served. May be called again after a crash at any moment.
    """
    found = folder_of(home, version)
    assert found is not None, f"version {version} is not in {home}"
    if found.parent != home:
        found.rename(home / str(version))
    for higher in versions(home):
        if higher > version:
            withdraw(home, higher)


def withdraw(home: Path, version: int) -> None:
    """Takes a version away from servers, and keeps it."""
    (home / _WITHDRAWN).mkdir(exist_ok=True)
    (home / str(version)).rename(home / _WITHDRAWN / str(version))


def remove(home: Path, version: int) -> None:
    """Removes a version, served or withdrawn, for good; nothing happens where there is none."""
    if (found := folder_of(home, version)) is not None:
        # Renamed first: a server shall not find half a version.
        going = found.rename(home / f".incoming-{uuid.uuid4().hex}")
        shutil.rmtree(going)


def clean(home: Path) -> None:
    """Removes what a killed process left half done. What is younger than an hour may be another process's work."""
    for path in home.glob(".incoming-*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(path, ignore_errors=True)


def _identity(model: Path) -> tuple[str, str] | None:
    """The run and its weights; None for a folder that holds no exported model."""
    try:
        manifest = read_manifest(model)
    except ExportError:
        return None
    return manifest.run, manifest.weights_digest


def _flush(folder: Path) -> None:
    """Sees to it that a version that is there is whole after a power cut, too."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes, where the file system can give one; else a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copy2(source, target)
