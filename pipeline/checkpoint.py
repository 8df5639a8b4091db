"""Checkpoints: all that the rest of a training follows from, in one file that is replaced as training goes.

A process that is killed at any moment leaves the checkpoint before or the one after, never a part. The file is a line
of JSON (version, progress, and each array's name, dtype and shape), the arrays' bytes, and a CRC-32 of it all.
"""

import json
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from pipeline.artifacts import Epoch

FILE = "training.checkpoint"
VERSION = 1  # Another number is another layout, or another way to train from the same settings.


@dataclass
class Progress:
    """How far training has come, and what it remembers besides the variables.

    Attributes:
        decides: digest of all that training follows from.
        phase: the one in progress, counted from 0.
        epoch: the one in progress, counted from 0 within the phase.
        batch: how many of the epoch's batches have been trained on.
        steps: training steps through all epochs and phases.
        totals: sums over the epoch's pictures so far: of the loss, of right answers, of pictures.
        learning_rate: when the epoch began.
        seconds: the epoch has taken so far.
        engine: what computes the phase's frozen layers, since engines round differently; None without such layers.
        frozen: fingerprints, when the phase began, of what does not change in it.
        history: all complete epochs.
        finished: whether the last phase is complete.
    """

    decides: str
    phase: int = 0
    epoch: int = 0
    batch: int = 0
    steps: int = 0
    totals: tuple[float, float, float] = (0.0, 0.0, 0.0)
    learning_rate: float = 0.0
    seconds: float = 0.0
    engine: str | None = None
    frozen: dict[str, str] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True)
class Checkpoints:
    """Where a training's checkpoint is kept.

    Attributes:
        folder: holds the file, and is made for it.
        every: training steps between two checkpoints.
    """

    folder: Path
    every: int

    @property
    def path(self) -> Path:
        return self.folder / FILE

    def write(self, progress: Progress, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the checkpoint.

        Raises:
            OSError: it cannot be written. The one before is still there.
        """
        table = [[name, value.dtype.str, value.shape] for name, value in arrays.items()]
        header = json.dumps({"version": VERSION, "progress": asdict(progress), "arrays": table}).encode() + b"\n"
        parts: list[bytes | memoryview] = [header, *(value.ravel().view(np.uint8).data for value in arrays.values())]
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{FILE}.part"
        try:
            with partial.open("wb", buffering=0) as file:
                checksum = 0
                for part in parts:
                    checksum = zlib.crc32(part, checksum)
                    _write_all(file.fileno(), part)
                _write_all(file.fileno(), checksum.to_bytes(4, "big"))
                os.fsync(file.fileno())
            partial.replace(self.path)  # Should the machine die before this is on the disk, the one before is.
        except OSError:
            with suppress(OSError):  # A part would only take room, of which there may be none.
                partial.unlink()
            raise

    def read(self, decides: str, warn: Callable[[str], None]) -> tuple[Progress, dict[str, np.ndarray]] | None:
        """The progress and the arrays, read-only, in the order they were written; None where there is no checkpoint.

        Args:
            decides: as `Progress.decides` must be.
            warn: called with one sentence where there is a checkpoint that cannot be continued from.

        Raises:
            OSError: it cannot be read, though it is there.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if len(content) <= 4 or zlib.crc32(memoryview(content)[:-4]) != int.from_bytes(content[-4:], "big"):
            warn(self._useless("is damaged"))
            return None
        start = content.index(b"\n") + 1
        header = json.loads(content[:start])
        if header["version"] != VERSION:
            warn(self._useless("is of another version of graft"))
            return None
        progress = TypeAdapter(Progress).validate_python(header["progress"])
        if progress.decides != decides:
            warn(self._useless("was made with other pictures, settings, weights, packages or devices"))
            return None
        arrays = {}
        for name, dtype, shape in header["arrays"]:
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
            start += arrays[name].nbytes
        return progress, arrays

    def _useless(self, why: str) -> str:
        return f"The checkpoint {self.path} {why}, and cannot be continued from: training starts from its beginning."


def _write_all(file: int, part: bytes | memoryview) -> None:
    """A write to a disk that becomes full may be cut short; the next one says why."""
    rest = memoryview(part)
    while len(rest):
        rest = rest[os.write(file, rest) :]
