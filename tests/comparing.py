"""For tests of what compares runs: made-up runs in folders of their own, over real pictures."""

import csv
import hashlib
import json
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import compare, compare_page, compare_pictures, compare_runs
from pipeline.artifacts import CLUSTERS, OUTPUTS, Epoch, Outputs, RunRecord
from pipeline.config_file import dump, parse
from pipeline.evaluate import evaluate
from tests.promoting import MANIFEST

CLASSES = ("ant", "bee", "fly")


@dataclass(frozen=True)
class Data:
    """Pictures in class folders: their names, labels and digests."""

    folder: Path
    names: list[str]
    labels: list[str]
    digests: list[str]


def pictures(folder, count, classes=CLASSES, side=24):
    """Pictures of noise, labelled in turn."""
    rng = np.random.default_rng(0)
    names, labels, digests = [], [], []
    for number in range(count):
        label = classes[number % len(classes)]
        path = folder / label / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
        names.append(f"{label}/{path.name}")
        labels.append(label)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return Data(folder, names, labels, digests)


def a_run(
    folder, data, wrong=(), places=None, labels=None, classes=CLASSES, confidence=2.0, config=None, mlflow_run_id=None,
    clusters=None, **record,
):  # fmt: skip
    """A finished run's folder.

    Args:
        folder: to make, e.g. runs/ants/1.
        data: its pictures.
        wrong: numbers of test pictures that get the class after theirs.
        places: each picture's split; every picture a test picture if not given.
        labels: other ones than the data's, by number.
        classes: in the order of the logits.
        confidence: how far the logit of what it says is above the others.
        config: keys that differ.
        clusters: lists of numbers of pictures that show the same; None for a run that did not look for any.
        record: of run.json.
    """
    folder.mkdir(parents=True)
    places = places or ["test"] * len(data.names)
    labels = [(labels or {}).get(number, label) for number, label in enumerate(data.labels)]
    with (folder / "splits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "sha256", "reason"])
        writer.writerows(zip(data.names, labels, places, data.digests, [""] * len(places), strict=True))
        writer.writerow(["left-out.png", classes[0], "", "0" * 64, "damaged"])
    if clusters is not None:
        with (folder / CLUSTERS).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cluster", "path", "label", "split", "sha256", "conflict"])
            for cluster, numbers in enumerate(clusters, start=1):
                writer.writerows((cluster, data.names[n], labels[n], places[n], data.digests[n], "") for n in numbers)
    test = [number for number, place in enumerate(places) if place == "test"]
    truth = np.array([classes.index(labels[number]) for number in test], np.int32)
    said = np.where(np.isin(test, wrong), (truth + 1) % len(classes), truth)
    logits = np.zeros((len(test), len(classes)), np.float32)
    # No two pictures are as sure.
    logits[np.arange(len(test)), said] = confidence + np.linspace(0, 0.5, len(test))
    outputs = Outputs(
        classes, tuple(data.names[n] for n in test), tuple(data.digests[n] for n in test), truth, logits,
        (), np.zeros(0, np.int32), np.zeros((0, len(classes)), np.float32),
    )  # fmt: skip
    outputs.write(folder / OUTPUTS)
    scores = evaluate(logits, truth, outputs.validation_logits, outputs.validation_labels, list(classes))
    scores.write(folder / "report.json")
    tree = {
        "name": folder.parent.name,
        "data": {"source": "folder", "path": str(data.folder)},
        "backbone": {"name": "lenet5", "weights": "none"},
        "phases": [{"epochs": 3, "learning_rate": 1e-3}],
    }
    (folder / "config.yaml").write_text(dump(parse(tree | (config or {}))))
    history = [Epoch(1, epoch, 1 / epoch, 0.5, 1.1 / epoch, 0.6, 1e-3, 1.0, 100.0) for epoch in (1, 2, 3)]
    (folder / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history]))
    (folder / "model").mkdir()
    (folder / "model" / "saved_model.pb").write_bytes(bytes(1_000_000))
    MANIFEST.model_copy(update={"classes": list(classes)}).write(folder / "model" / "manifest.json")
    RunRecord(
        **{
            "name": folder.parent.name, "status": "finished", "run_dir": str(folder), "mlflow_run_id": mlflow_run_id,
            "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:00+00:00",
            "tracking_uri": "sqlite:///mlflow.db", "backbone": {"name": "lenet5", "options": {}},
            "seconds": {"ingest": 1.0, "train": 2.0}, **record,
        }
    ).write(folder / "run.json")  # fmt: skip
    return folder


def compared(*folders):
    """The comparison of runs by their folders."""
    runs = compare_runs.read([str(folder) for folder in folders], folders)
    return compare.compare(runs, compare_pictures.common(runs))


def of(comparison, metric, other=0):
    (found,) = [each for each in comparison.against[other].differences if each.metric == metric]
    return found


def written(tmp_path, *folders):
    """The comparison of runs as a page."""
    runs = compare_runs.read([str(folder) for folder in folders], folders)
    shared = compare_pictures.common(runs)
    flips = compare_pictures.flips(runs, shared, compare_page.MOST_FLIPS // (len(runs) - 1))
    pictures = compare_pictures.thumbnails(runs, {flip.digest for rows in flips for flip in rows})
    path = tmp_path / "compare.html"
    compare_page.write(path, compare.compare(runs, shared), runs, flips, pictures)
    return path


class Page(HTMLParser):
    """The page's pictures and drawings, and that it closes what it opens and fetches nothing."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.images, self.drawings, self.open, self.said = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag != "iframe"
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "#").startswith(("data:", "#"))
        if tag == "img":
            self.images.append(attrs["alt"])
        if tag == "svg":
            self.drawings.append(attrs["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.said += data + "\n"
