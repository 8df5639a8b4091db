"""Labels for pictures on disk."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline import predict
from pipeline.artifacts import read_manifest
from pipeline.errors import DataError
from tests.exporting import exported
from tests.networks import split

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Says which channel is brightest."""
    pixels = keras.Input((16, 16, 3))
    logits = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(0.1)(pixels))
    folder = tmp_path_factory.mktemp("export")
    return exported(keras.Model(pixels, logits), split(6, size=16), folder, CLASSES)[0]


@pytest.fixture
def folder(tmp_path):
    for name, color in (("b", (0, 0, 200)), ("a", (200, 0, 0)), ("sub/c", (0, 200, 0))):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), color).save(path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "notes.txt").write_text("not a picture, and not named like one")
    return tmp_path


def test_pictures_below_folders_are_found_in_order(folder):
    found = predict.pictures([folder, folder / "a.png"])
    assert [path.name for path in found] == ["a.png", "b.png", "broken.jpg", "c.png", "a.png"]


def test_paths_that_hold_nothing_are_named(folder):
    with pytest.raises(DataError, match=r"no file or folder .*nowhere"):
        predict.pictures([folder / "nowhere"])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no picture"):
        predict.pictures([folder / "empty"])


def test_labels_come_in_order_and_a_broken_picture_says_why(folder, model):
    results = list(predict.predict(model, predict.pictures([folder])))
    assert [result.label for result in results] == ["red", "blue", None, "green"]
    assert "damaged or truncated" in results[2].error
    assert results[0].score == pytest.approx(max(results[0].probabilities.values()))
    assert sum(results[0].probabilities.values()) == pytest.approx(1.0, abs=1e-5)


def test_more_than_a_batch(folder, model):
    results = list(predict.predict(model, [folder / "a.png", folder / "b.png"] * 40))
    assert [result.label for result in results] == ["red", "blue"] * 40


def test_csv_and_jsonl_can_be_read_back(folder, model):
    results = list(predict.predict(model, predict.pictures([folder])))
    out = io.StringIO()
    predict.write_csv(results, read_manifest(model).classes, out)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["label"] for row in rows] == ["red", "blue", "", "green"]
    assert float(rows[0]["p(red)"]) == pytest.approx(results[0].score, abs=1e-6)
    out = io.StringIO()
    predict.write_jsonl(results, out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("label") for line in lines] == ["red", "blue", None, "green"]
    assert set(lines[2]) == {"path", "error"}


def test_only_broken_pictures(folder, model):
    assert [r.label for r in predict.predict(model, [folder / "broken.jpg"])] == [None]


def test_another_decoder_version_is_refused(folder, model, monkeypatch):
    monkeypatch.setattr(predict, "VERSION", 99)
    with pytest.raises(DataError, match="version 99"):
        list(predict.predict(model, [folder / "a.png"]))


def test_predictions_do_not_depend_on_their_neighbours(folder, model):
    alone = next(iter(predict.predict(model, [folder / "a.png"])))
    together = next(iter(predict.predict(model, [folder / "a.png", folder / "b.png"])))
    np.testing.assert_allclose(alone.score, together.score, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "csv"])
def test_names_that_the_output_cannot_show(model, tmp_path, kind):
    picture = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "K\u00e4fer.png")
    (tmp_path / "K\u00e4fer.png").rename(picture)
    Image.new("RGB", (20, 30), (0, 200, 0)).save(tmp_path / "K\u00e4fer.png")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", "predict", model, picture, tmp_path / "K\u00e4fer.png", "--format", kind],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "udcff.png" in result.stdout
    assert "fer.png" in result.stdout


@pytest.mark.parametrize("write", [lambda results, out: predict.write_csv(results, ["red"], out), predict.write_jsonl])
def test_a_line_is_written_before_the_next_picture_is_labelled(write):
    out = io.StringIO()

    def results():
        yield predict.Prediction("a.png", "red", 1.0, {"red": 1.0})
        assert "a.png" in out.getvalue()

    write(results(), out)
