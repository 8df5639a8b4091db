"""The log of samples that an endpoint keeps of what it is asked, for `drift`: no pictures, no names, no addresses.

Each model has two files, `NAME.jsonl` and, older, `NAME.jsonl.1`. A sample is a line of JSON. When the first file is
full it takes the place of the second. Several processes may write at once; a line that a crash cut short is passed
over.

Shape letters: N samples, D features.
"""

import base64
import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

SAMPLES = 5_000
MAX_BYTES = 32 * 2**20
"""Of each of the two files, the smaller of both."""


class Sample(BaseModel):
    """What is kept of one picture.

    Attributes:
        time: when it was answered.
        version: of the model.
        label: the most probable class.
        confidence: its probability, 0 to 1.
        embedding: float16 [D], little-endian, in base64.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    time: AwareDatetime
    version: int
    label: str
    confidence: float = Field(ge=0, le=1)
    embedding: str

    @classmethod
    def of(cls, time: datetime, version: int, label: str, confidence: float, embedding: np.ndarray) -> "Sample":
        """From an embedding of any float type, [D]."""
        # What float16 cannot hold would become infinite.
        limited = np.clip(embedding, -65504, 65504).astype("<f2")
        data = base64.b64encode(limited.tobytes()).decode()
        return cls(time=time, version=version, label=label, confidence=min(confidence, 1.0), embedding=data)


@dataclass(frozen=True)
class Samples:
    """Samples of one version, oldest first.

    Attributes:
        times: UTC, N of them.
        labels: the most probable class, str [N].
        confidences: its probability, float64 [N].
        embeddings: float32 [N, D].
    """

    times: tuple[datetime, ...]
    labels: np.ndarray
    confidences: np.ndarray
    embeddings: np.ndarray

    def __len__(self) -> int:
        return len(self.times)

    def take(self, rows: np.ndarray) -> "Samples":
        """Those at row numbers, int64 [n]."""
        times = tuple(self.times[row] for row in rows)
        return Samples(times, self.labels[rows], self.confidences[rows], self.embeddings[rows])


def write_samples(folder: Path, name: str, samples: Sequence[Sample]) -> None:
    """Appends samples of the model `name`, at least one. Raises OSError."""
    lines = [sample.model_dump_json().encode() + b"\n" for sample in samples]
    path = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        # What was cut short before, by a crash or a full disk, spoils no line after it.
        file.write(b"\n" + b"".join(lines))
        file.flush()
        if file.tell() >= min(SAMPLES * len(lines[0]), MAX_BYTES):
            path.replace(_older(path))


def read_samples(folder: Path, name: str, version: int, width: int, since: datetime) -> Samples:
    """What both files hold of one version of a model. Nothing at all is no error.

    Args:
        folder: that was given to `write_samples`.
        name, version: of the model, as it is served.
        width: D, at least 1. Samples of another width are of another model.
        since: the samples are later than this.

    Raises:
        OSError: the files cannot be read.
    """
    path = folder / f"{name}.jsonl"
    found: list[tuple[datetime, str, float, np.ndarray]] = []
    for line in _lines(path):
        try:
            fields = json.loads(line)
            if fields["version"] != version:  # Before the rest is checked: most may be of others.
                continue
            sample = Sample.model_validate(fields)
            embedding = np.frombuffer(base64.b64decode(sample.embedding, validate=True), "<f2")
        except (ValueError, KeyError, TypeError):  # Cut short; blank; or not ours.
            continue
        if sample.time > since and len(embedding) == width and np.isfinite(embedding).all():
            found.append((sample.time, sample.label, sample.confidence, embedding))
    found.sort(key=lambda sample: sample[0])
    times, labels, confidences, embeddings = zip(*found, strict=True) if found else ((), (), (), ())
    return Samples(
        times,
        np.array(labels, dtype=np.str_),
        np.array(confidences, np.float64),
        np.array(embeddings, np.float32).reshape(len(times), width),
    )


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _locked(path: Path) -> BinaryIO:
    """The file, open at its end, held by nobody else, and still under its name."""
    while True:
        file = path.open("ab", buffering=1 << 20)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # It was full, and another process has renamed it meanwhile.


def _lines(path: Path) -> list[bytes]:
    """The lines of both files, the older first."""
    with ExitStack() as files:
        # The newer is opened first. If it takes the older one's place meanwhile, it is the same file twice.
        opened: list[BinaryIO] = []
        for file in (path, _older(path)):
            try:
                opened.insert(0, files.enter_context(file.open("rb")))
            except FileNotFoundError:
                continue
        if len(opened) == 2 and os.path.samestat(*(os.fstat(file.fileno()) for file in opened)):
            del opened[0]
        return [line for file in opened for line in file]
