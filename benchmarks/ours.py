"""Graft's side of the benchmark, in a process of its own: the last line of standard output is one JSON object.

    python -m benchmarks.ours train --train DIR --validation DIR --cache DIR --phases '[{epochs: 10, ...}]'

train: from the folders to the trained head. Counted is everything on the way: reading, hashing, judging and decoding
the pictures, the frozen layers, training with a validation after each epoch, and all that is compiled. Not counted, as
for the rivals: imports, and building the network and loading its weights.

embed: from the folders to every activation that the first phase reads, likewise.

pipeline: pictures a second of decoding alone, of the frozen layers alone, and of both at once into the store; of
pictures that are known to be good, with the engine started.
"""

import argparse
import csv
import json
import resource
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.quiet import import_tensorflow


@dataclass(frozen=True)
class Pieces:
    """A run's, up to the pictures: see `pipeline.run.run`."""

    config: Any
    network: Any
    spec: Any
    store: Any
    console: Any
    folder: Path

    def ingest(self, scratch: str = "scratch") -> Any:
        from pipeline import ingest
        from pipeline.sources import open_source

        data = self.config.data
        quarantine = self.folder / "quarantine.csv"
        return ingest.ingest(
            data, open_source(data), self.spec, self.folder / scratch, quarantine, self.store, self.console
        )

    def pictures(self, splits: Any) -> Any:
        from pipeline.feed import Pictures

        return Pictures.of(self.config, splits, self.spec, self.store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--count", type=int, help="of the training pictures, the first so many")
    parser.add_argument("--cache", required=True, help="off, or the store's folder")
    parser.add_argument("--phases", default="[{epochs: 1, learning_rate: 1e-3}]", help="as in a config")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    import_tensorflow()
    with prepared(arguments) as pieces:
        result = MEASURES[arguments.what](pieces)
    print(json.dumps(result | {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def train(pieces: Pieces) -> dict[str, Any]:
    from pipeline import finetune

    started = time.perf_counter()
    splits = pieces.ingest()
    ingested = time.perf_counter()
    history = finetune.finetune(
        pieces.network, pieces.config.phases, pieces.pictures(splits), None, pieces.console, lambda epoch: None
    )
    return {
        "seconds": time.perf_counter() - started,
        "ingest_seconds": ingested - started,
        "epoch_seconds": [epoch.seconds for epoch in history],
        "accuracy": history[-1].validation_accuracy,
        "images": len(splits.train),
    }


def embed(pieces: Pieces) -> dict[str, Any]:
    from pipeline.feed import Feed
    from pipeline.model import divide

    started = time.perf_counter()
    splits = pieces.ingest()
    ingested = time.perf_counter()
    division = divide(pieces.network, pieces.config.phases[0])
    with closing(Feed(pieces.pictures(splits), division, 0, 1, pieces.console)) as feed:
        feed.prepare()
    ended = time.perf_counter()
    return {"ingest_seconds": ingested - started, "feed_seconds": ended - ingested, "seconds": ended - started}


def pipeline(pieces: Pieces) -> dict[str, Any]:
    from pipeline.frozen import PLAIN, Frozen, Views
    from pipeline.model import divide

    pieces.ingest("first")  # From here on, all are known to be good.
    decoded = pieces.ingest("second").train
    rows = np.arange(len(decoded))

    started = time.perf_counter()
    for _ in decoded.stream(rows):
        pass
    decoding = time.perf_counter() - started

    sample = decoded.images(rows[:512]).astype(np.float32)
    division = divide(pieces.network, pieces.config.phases[0])
    views = Views(pieces.config.data.augment, decoded.image_shape)
    frozen = Frozen(division, views, "float16", {}, pieces.store, decoded, pieces.console)
    frozen.forward.run(sample)
    started = time.perf_counter()
    for _ in range(4):
        frozen.forward.run(sample)
    forward = (time.perf_counter() - started) / (4 * len(sample))

    fresh = pieces.ingest("third").train
    started = time.perf_counter()
    frozen.keep([(fresh, rows, np.full(len(rows), PLAIN, np.int32))], uses=len(rows), always=True)
    both = time.perf_counter() - started
    assert frozen.computed == len(rows)
    return {"decode": len(rows) / decoding, "forward": 1 / forward, "both": len(rows) / both}


MEASURES = {"train": train, "embed": embed, "pipeline": pipeline}


@contextmanager
def prepared(arguments: argparse.Namespace) -> Iterator[Pieces]:
    import openvino  # noqa: F401  # An import that training would otherwise wait for.

    from pipeline import config_file, model
    from pipeline.activations import opened
    from pipeline.backbones import BACKBONES, weights
    from pipeline.console import Console
    from pipeline.pixels import PixelSpec
    from pipeline.seeding import reproducible

    with TemporaryDirectory() as folder:
        augment = "{flip: horizontal, rotation: 18}" if arguments.views > 1 else "{}"  # The guide's.
        cache = "off" if arguments.cache == "off" else f"{{dir: {arguments.cache}}}"
        settings = [
            f"data.path={table(arguments, Path(folder))}", f"data.augment={augment}", f"data.views={arguments.views}",
            f"phases={arguments.phases}", f"cache={cache}", f"seed={arguments.seed}",
        ]  # fmt: skip
        config = config_file.load(Path("configs/hymenoptera.yaml"), settings)
        console = Console(quiet=not arguments.verbose)
        spec = PixelSpec(config.image_size, config.image_size, config.data.crop, config.data.max_megapixels)
        reproducible(config.seed)
        backbone = weights.load(config.backbone, config.image_size, Path(folder))
        network = model.build(backbone, BACKBONES[config.backbone.name], None, config.head, 2)
        with opened(config.cache, Path(config.cache_dir), console) as store:
            yield Pieces(config, network, spec, store, console, Path(folder))


def table(arguments: argparse.Namespace, folder: Path) -> Path:
    """A CSV file of the rivals' two splits, and two pictures as the test split that Graft asks for."""
    from PIL import Image

    rows = []
    for split, root, count in (("train", arguments.train, arguments.count), ("validation", arguments.validation, None)):
        paths = sorted(root.glob("*/*.jpg"), key=lambda path: (path.name, path.parent.name))[:count]
        rows += [(path.resolve(), path.parent.name, split) for path in paths]
    for number in range(2):
        Image.new("RGB", (256, 256), (number, 0, 0)).save(folder / f"test{number}.png")
        rows.append((folder / f"test{number}.png", rows[0][1], "test"))
    file = folder / "table.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split"))
        writer.writerows(rows)
    return file


if __name__ == "__main__":
    main()
