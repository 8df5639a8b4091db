"""What a run leaves on disk, as frozen types. No TensorFlow."""

import fcntl
import hashlib
import json
import os
import subprocess
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.errors import ExportError, GraftError
from pipeline.pixels import PixelSpec

MODEL = "model"
"""The folder in a run's folder with its own copy of the exported model."""
LOG = "run.log"
"""In a run's folder: what the console said, in UTC."""
CARD = "model-card.md"
"""In a run's folder: what its model is, for whoever uses it."""
CLUSTERS = "near-duplicates.csv"
"""In a run's folder: the pictures that show the same, by cluster."""
LEARNED_FROM = "assets.extra/splits.csv"
"""In an exported model's folder: every picture of the data it was made of, with label, split and digest."""
HISTORY = "history.json"
"""In a run's folder: its epochs so far, a list of `Epoch`."""
OUTPUTS = "outputs.npz"
"""In a run's folder: what its model says of each validation and test picture, `Outputs`."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split.

    Attributes:
        phase: which of the config's phases, counted from 1.
        epoch: counted from 1 and on across phases.
        loss: mean training loss in nats on augmented pictures, with label smoothing, mixup and class weights where
            asked for; L2 penalties left out.
        accuracy: share of training pictures (as augmented) that were right, 0 to 1.
        validation_loss: log loss on the validation split, in nats.
        validation_accuracy: share of validation pictures that were right, 0 to 1.
        learning_rate: when the epoch begins.
        seconds: the epoch took, validation included.
        images_per_second: training pictures per second.
    """

    phase: int
    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class PhaseCost:
    """What one phase of training took, and what the activation store spared it.

    Attributes:
        phase: which of the config's phases, counted from 1.
        trained: weights that train.
        frozen: weights that do not.
        seconds: the phase took, validation included; after an interruption, the part of it that came after.
        prepared: seconds of those before its first epoch, in which frozen layers' activations were computed.
        images_per_second: training pictures per second, the median of the epochs.
        activations: how many of the frozen layers' activations were asked for.
        spared: how many of those were not computed for it, but read from the store.
        spared_seconds: what computing them would have taken.
    """

    phase: int
    trained: int
    frozen: int
    seconds: float
    prepared: float
    images_per_second: float
    activations: int
    spared: int
    spared_seconds: float

    @property
    def from_store(self) -> float:
        """Share of the activations that came from the store, 0 to 1; 0 where no layers are frozen."""
        return self.spared / max(self.activations, 1)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a run's model says of N test and V validation pictures.

    Attributes:
        classes: C names, in the order of the logits.
        names: N names of the test pictures.
        digests: N SHA-256 hex digests of their encoded bytes.
        labels: int32 [N] in 0..C-1.
        logits: float32 [N, C], before temperature and softmax.
        validation_digests, validation_labels, validation_logits: likewise, of the validation pictures.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    digests: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    validation_digests: tuple[str, ...]
    validation_labels: np.ndarray
    validation_logits: np.ndarray

    def write(self, path: Path) -> None:
        # A byte of a file's name that is not UTF-8 is kept as a backslash escape.
        names = [name.encode(errors="backslashreplace").decode() for name in self.names]
        arrays = {key: np.asarray(value) for key, value in (vars(self) | {"names": names}).items()}
        partial = path.with_name(f".{path.name}.part")
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError or ValueError."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in cls.__dataclass_fields__}
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            raise ValueError(f"{path.name} is cut short or of another format: {error}") from error
        words = ("classes", "names", "digests", "validation_digests")
        return cls(**values | {name: tuple(values[name].tolist()) for name in words})


class Record(BaseModel):
    """A JSON file that a run leaves: written whole or not at all, refused where it does not fit.

    Keys it does not know are passed over, and a new field has a default: a file can be read by older and newer versions
    of this project than the one that wrote it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    def write(self, path: Path) -> None:
        write_atomically(path, self.model_dump_json(indent=2) + "\n", durable=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError or pydantic's ValidationError."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


class BackboneIdentity(Record):
    """Which network a run's backbone weights belong to."""

    name: str
    options: dict[str, bool | int | float | str]


class RunRecord(Record):
    """`run.json`: what a run was and what became of it.

    Attributes:
        name: the config's name.
        status: "running" stays where the process had no time to say more; "killed" is a run that was stopped.
        run_dir: the run's folder.
        started_at, finished_at: UTC, ISO 8601.
        started_in: the folder that graft was run in, where the config's relative paths start.
        mlflow_run_id: None while MLflow has not been reached.
        tracking_uri: where MLflow is.
        backbone: whose weights `backbone.weights.h5` beside this file are.
        export_dir: the published model, with its version; None while it is not published. The run's own copy is in
            the folder `model` beside this file.
        data_digest: of the pictures with labels and splits; None until they have been read.
        metrics: the headline figures on the test split.
        seconds: wall-clock time per stage.
        phases: what each phase of training took.
        error: why a failed run failed.
        started_from: the folder of the run whose weights it started from, for `weights: run:...`.
        challenger: whether `graft retrain` made it, to be judged and not published.
        title: what it was called: what differs from its config, else the config's name.
    """

    name: str
    status: Literal["running", "finished", "failed", "killed"]
    run_dir: str
    started_at: str
    tracking_uri: str
    backbone: BackboneIdentity
    started_in: str | None = None
    finished_at: str | None = None
    mlflow_run_id: str | None = None
    export_dir: str | None = None
    data_digest: str | None = None
    metrics: dict[str, float] = {}
    seconds: dict[str, float] = {}
    phases: list[PhaseCost] = []
    error: str | None = None
    started_from: str | None = None
    challenger: bool = False
    title: str | None = None


class Parity(Record):
    """How the exported model agrees with the trained one on every test picture.

    Attributes:
        pictures: how many were compared.
        pixels_largest_difference: of any probability, `pixels` signature against the model in memory.
        image_bytes_same_label: share of pictures with the same label through the graph's own decoder. Labels whose
            probabilities are within 0.01 are a tie, and count as the same.
        image_bytes_largest_difference: of any probability, likewise.
    """

    pictures: int
    pixels_largest_difference: float
    image_bytes_same_label: float
    image_bytes_largest_difference: float


class Code(Record):
    """What made a model: the packages' versions, and this project's commit and digest."""

    graft: str
    python: str
    tensorflow: str
    keras: str
    numpy: str
    pillow: str
    digest: str
    commit: str | None


class Manifest(Record):
    """`manifest.json` beside an exported model: what it is and where it comes from.

    Attributes:
        name, version: as in its path; version 0 is a run's own copy.
        run: the folder of the run that made it, without the folders above.
        created_at: UTC, ISO 8601.
        classes: in the order of the probabilities.
        pixels: how bytes become the `pixels` signature's input, for `pipeline.pixels.decode`.
        pixels_version: `pipeline.pixels.VERSION` at export.
        temperature: by which the logits are divided before the softmax.
        config: the complete configuration.
        data_digest, weights_digest: SHA-256 of the pictures with labels and splits, and of the exported weights.
        metrics: on the test split.
        parity: the check that was passed.
        code: versions.
        mlflow_run_id: the run that made it, None where MLflow was away.
        started_from: as in RunRecord.
        test_set: the version and the digest of the frozen test set it was judged on; None without one.
    """

    name: str
    version: int
    created_at: str
    classes: list[str]
    pixels: PixelSpec
    pixels_version: int
    temperature: float
    config: dict[str, Any]
    data_digest: str
    weights_digest: str
    metrics: dict[str, float]
    parity: Parity
    code: Code
    mlflow_run_id: str | None
    started_from: str | None = None
    run: str = ""
    test_set: str | None = None


def new_folder(runs: Path) -> Path:
    """Where a run would be kept that starts now, below `<output_dir>/<name>`: `<time>-<random>`."""
    return runs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def read_history(run_dir: Path) -> list[Epoch]:
    """A run's epochs so far. Raises OSError, and ValueError where the file is damaged."""
    return TypeAdapter(list[Epoch]).validate_json((run_dir / HISTORY).read_text(encoding="utf-8"))


def write_history(run_dir: Path, epochs: Sequence[Epoch]) -> None:
    """Replaces a run's epochs."""
    write_atomically(run_dir / HISTORY, json.dumps([asdict(epoch) for epoch in epochs], indent=2))


def card(run_dir: Path) -> str:
    """A run's model card, in Markdown; nothing where it has none."""
    path = run_dir / CARD
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_manifest(export_dir: Path) -> Manifest:
    """The manifest of an exported model. Raises ExportError where the folder is not one."""
    try:
        return Manifest.read(export_dir / "manifest.json")
    except OSError as error:
        reason = f"its manifest.json cannot be read ({error.strerror})"
    except ValueError:  # pydantic's ValidationError, or not even text.
        reason = "its manifest.json is damaged, or of another version of graft"
    raise ExportError(
        f"{export_dir} is not a model exported by graft: {reason}. Give the folder with the version number, as printed "
        "at the end of graft run, e.g. export/NAME/1, or the folder model of a run."
    )


def code() -> Code:
    """The code that is running."""
    import platform

    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    packages = {name: version(name) for name in ("tensorflow", "keras", "numpy", "pillow")}
    return Code(
        graft=version("graft-pipeline"), python=platform.python_version(), digest=digest.hexdigest(),
        commit=_commit(root), **packages,
    )  # fmt: skip


def write_atomically(path: Path, text: str, durable: bool = False, mode: int = 0o666) -> None:
    """Writes a text file so that a reader sees the old one or the new one, never a part.

    Args:
        path: the file.
        text: all that it shall hold.
        durable: also after a power cut.
        mode: who may read and write it, less what the umask forbids.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(partial, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Keeps other processes out that ask for the same file, which is created where missing; waits for its turn."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes out that ask for the folder of the same run or sweep; does not wait.

    Args:
        folder: of it; must exist.
        what: "run" or "sweep".

    Raises:
        GraftError: another process is working on it.
    """
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GraftError(
                f"The {what} {folder} is being worked on by another process. Wait for it to end."
            ) from None
        yield


def _commit(root: Path) -> str | None:
    """The commit of the checkout the code runs from, marked where it has been changed; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Installed into an environment inside somebody's checkout, the code is not what that checkout's commit says.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
