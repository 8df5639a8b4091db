"""How soon the endpoint's drift is noticed, how often it is raised wrongly, and what keeping samples costs.

    python -m benchmarks.drift [--quick]

The model is the one of the other benchmarks, of ants and bees, served by `graft serve --samples`. Other data:
scikit-learn's digits, enlarged, and parts of its two photographs, a temple and a flower. The same data: the model's own
photographs, drawn with replacement. About four minutes; --quick takes one.
"""

import argparse
import io
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from benchmarks import endpoint
from benchmarks.endpoint import CLASSIFY, NAME, PHOTOGRAPHS, load, succeeded
from pipeline.artifacts import read_manifest
from pipeline.drift import REFERENCE, Drift, read_reference, watch
from pipeline.samples import read_samples

PICTURES = 1000  # of each trial
LIMIT = 200
STEP = 10
WITHIN = 60.0  # seconds in which what was asked must have been written
CLIENTS = 4


def raised_within() -> int:
    """After how many pictures of other data the drift is raised, of two kinds of data the later; above 200 if not.

    Before them, the endpoint is asked for all of the model's own photographs.
    """
    return max(_raised_within(pictures) for pictures in (_digits(), _crops()))


def false_alarms(trials: int) -> int:
    """Of so many trials, each of 1000 of the model's own photographs, those in which a drift is raised."""
    version, photographs = _model(), _photographs()
    raised = 0
    with tempfile.TemporaryDirectory() as folder, _served(version, Path(folder)) as server:
        for trial in range(trials):
            drawn = np.random.default_rng(trial).integers(0, len(photographs), PICTURES)
            _ask(server.url, [photographs[number] for number in drawn])
            raised += _watched(version, Path(folder), PICTURES, seed=trial).drifted
            for file in Path(folder).iterdir():  # The next trial begins without samples.
                file.unlink()
    return raised


def throughput(seconds: float, repetitions: int) -> dict[str, float]:
    """Answers a second at concurrency 32 without samples and with the default share of them, medians of turns."""
    version, bodies = _model(), endpoint.pictures()
    endpoint.build_load()
    found: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(repetitions):
        for which, rates in found.items():
            with tempfile.TemporaryDirectory() as folder:
                options = ["--samples", folder] if which == "with" else []
                with endpoint.graft(version.parent.parent, *options) as server:
                    result = succeeded(load(server.url + CLASSIFY, bodies, seconds, warmup=1, concurrency=32))
                    rates.append(result["throughput"])
    return {which: statistics.median(rates) for which, rates in found.items()}


def _raised_within(pictures: Iterator[bytes]) -> int:
    version, photographs = _model(), _photographs()
    with tempfile.TemporaryDirectory() as folder, _served(version, Path(folder)) as server:
        _ask(server.url, photographs)
        assert not _watched(version, Path(folder), len(photographs), seed=0).drifted
        for count in range(STEP, LIMIT + 1, STEP):
            _ask(server.url, list(itertools.islice(pictures, STEP)))
            if _watched(version, Path(folder), len(photographs) + count, seed=0).drifted:
                return count
    return LIMIT + STEP


def _model() -> Path:
    version = endpoint.model()
    if not (version / REFERENCE).is_file():  # Of an older version of graft.
        shutil.rmtree(version)
        version = endpoint.model()
    return version


def _served(version: Path, folder: Path) -> AbstractContextManager[endpoint.Server]:
    return endpoint.graft(version.parent.parent, "--samples", str(folder), "--sample-rate", "1")


def _ask(url: str, pictures: Sequence[bytes]) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        for status, _, body in clients.map(lambda picture: endpoint.ask(url + CLASSIFY, "POST", picture), pictures):
            assert status == 200, body


def _watched(version: Path, folder: Path, count: int, seed: int) -> Drift:
    """What `watch` says when so many samples have been written."""
    reference, created_at = read_reference(version), datetime.fromisoformat(read_manifest(version).created_at)
    end = time.monotonic() + WITHIN
    while len(read_samples(folder, NAME, reference.version, reference.embeddings.shape[1], created_at)) < count:
        assert time.monotonic() < end, f"{count} samples are not written"
        time.sleep(0.1)
    return watch(version, folder, seed)


def _photographs() -> list[bytes]:
    return [path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("*/*/*.jpg"))]


def _digits() -> Iterator[bytes]:
    images = load_digits().images
    for number in np.random.default_rng(0).permutation(len(images)):
        yield _encoded(Image.fromarray((images[number] * 15).astype(np.uint8)).resize((224, 224)).convert("RGB"))


def _crops() -> Iterator[bytes]:
    random, images = np.random.default_rng(0), load_sample_images().images
    while True:
        image = images[random.integers(len(images))]
        top, left = (random.integers(0, size - 200) for size in image.shape[:2])
        yield _encoded(Image.fromarray(image[top : top + 200, left : left + 200]))


def _encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three trials instead of twenty, and short loads")
    quick = parser.parse_args().quick
    trials = 3 if quick else 20
    figures = {
        "raised_within": raised_within(),
        "trials": trials,
        "false_alarms": false_alarms(trials),
        "throughput": throughput(2, 1) if quick else throughput(5, 3),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
