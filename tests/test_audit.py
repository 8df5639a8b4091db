"""The look at the data, on folders of made-up pictures with and without defects, on the digits and on photographs."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.audit import audit
from pipeline.audit_findings import COLUMNS, KINDS
from pipeline.commands.data import _print_findings
from pipeline.config_file import dump, load
from tests.conftest import ROOT
from tests.defects import CLASSES, config, jpeg, picture, plant, plant_clean
from tests.networks import QUIET


def by_kind(found):
    """Names by kind of finding, as the list has them."""
    names = defaultdict(set)
    with found.findings.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names[row["finding"]].add(row["path"])
    return names


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """What was planted, and what was found."""
    root, out = tmp_path_factory.mktemp("planted"), tmp_path_factory.mktemp("runs")
    return plant(root), audit(config(root, out), QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_planted_defect_is_found(planted, kind):
    defects, found = planted
    assert defects.kinds[kind]
    assert defects.kinds[kind] - by_kind(found)[kind] == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_invented_beside_them(planted, kind):
    defects, found = planted
    assert by_kind(found)[kind] - defects.touched == set()


@pytest.mark.slow
def test_the_list_says_what_to_review(planted):
    _, found = planted
    with found.findings.open(newline="", encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    with found.findings.open(newline="", encoding="utf-8") as file:
        rows = {(row["finding"], row["path"]): row for row in csv.DictReader(file)}
    copy = rows["copy", "train/discs/copy.jpg"]
    assert copy["detail"] == "identical bytes: train/discs/1.jpg"
    assert copy["action"] == "quarantine"
    leak = rows["leak", "train/waves/of test.jpg"]
    assert leak["split"] in ("train", "validation")
    assert leak["detail"].endswith(": test/waves/1000.jpg, which is in test")
    assert leak["action"] == ""
    moved = rows["leak", "train/discs/the same as in test.jpg"]
    assert moved["split"] == "test"
    assert "which the data has in test; a run moves it there" in moved["detail"]
    near = rows["conflicting labels", "train/discs/nearly another.jpg"]
    assert near["detail"].endswith(": train/waves/3.jpg, labelled waves")
    assert rows["damaged", "train/stripes/empty.jpg"]["detail"] == "empty file"
    wrong = rows["likely mislabel", "train/discs/mislabelled.jpg"]["detail"]
    assert wrong.startswith("looks like stripes (0.9")


@pytest.mark.slow
def test_the_page_shows_the_pictures_and_the_augmentation(planted):
    defects, found = planted
    page = found.page.read_text(encoding="utf-8")
    assert found.page.stat().st_size < 15e6
    for names in defects.kinds.values():
        for name in names:
            assert name in page
    assert "view 5" in page
    assert "mixup: 0.4" in page
    assert 'alt="the mean of the training pictures"' in page


@pytest.mark.slow
def test_nothing_is_found_in_clean_pictures(tmp_path):
    plant_clean(tmp_path / "clean", each=100)
    found = audit(config(tmp_path / "clean", tmp_path / "runs", augment={}), QUIET)
    assert found.pictures == 3 * 125
    assert found.refused is None
    assert sum(found.counts.values()) == 0
    assert "Nothing was found that needs a look." in found.page.read_text(encoding="utf-8")
    assert "No augmentation" in found.page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_at_most_one_in_a_hundred_digits_is_found(tmp_path):
    digits = load(ROOT / "configs" / "digits-0-4.yaml", [f"output_dir={tmp_path}"])
    found = audit(digits, QUIET)
    assert found.pictures == 901
    assert max(found.counts.values()) <= 9
    # All of one size, and of much the same sharpness: there are numbers along the axes, and the line is inside.
    page = found.page.read_text(encoding="utf-8")
    for chart, least in (("Dots: width", 4), ("Histogram of sharpness", 3)):
        (svg,) = re.findall(rf'<svg class="chart for-desk"[^>]*aria-label="{chart}.*?</svg>', page, re.DOTALL)
        assert len(re.findall(r"middle[^>]*>[\d,]+</text>", svg)) >= least
    width = float(re.findall(r'<path d="M ([\d.]+) [^"]*"[^>]*stroke-dasharray', page)[0])
    assert 0 < width < 540


@pytest.mark.slow
def test_at_most_one_in_a_hundred_photographs_is_found(tmp_path, photographs, imagenet_weights):
    ants = load(ROOT / "configs" / "hymenoptera.yaml", [f"data.path={photographs}", f"output_dir={tmp_path}"])
    found = audit(ants, QUIET)
    assert found.pictures == 397
    assert max(found.counts.values()) <= 3


@pytest.mark.slow
def test_pictures_of_nothing_are_outliers_among_photographs(tmp_path, photographs, imagenet_weights):
    root = shutil.copytree(photographs, tmp_path / "photographs")
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (375, 500, 3), np.uint8)
    flat = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 400, 3))
    text = Image.new("RGB", (500, 400), "white")
    for line in range(20):
        ImageDraw.Draw(text).text((20, 20 + 18 * line), "nothing but a page of text, line after line", fill="black")
    for name, image in {"noise": Image.fromarray(noise), "flat": Image.fromarray(flat), "text": text}.items():
        image.save(root / "train" / "ants" / f"{name}.png")
    found = audit(
        load(ROOT / "configs" / "hymenoptera.yaml", [f"data.path={root}", f"output_dir={tmp_path / 'runs'}"]), QUIET
    )
    assert by_kind(found)["outlier"] == {f"train/ants/{name}.png" for name in ("noise", "flat", "text")}


@pytest.mark.slow
def test_data_that_a_run_refuses_is_reported(tmp_path):
    plant_clean(tmp_path / "data", each=8)
    for label in CLASSES:
        for number in range(5):
            (tmp_path / "data" / "train" / label / f"bad {number}.jpg").write_bytes(b"nothing")
    found = audit(config(tmp_path / "data", tmp_path / "runs"), QUIET)
    assert found.counts["damaged"] == 15
    assert "more than data.max_bad_fraction = 0.1 allows" in found.refused
    page = found.page.read_text(encoding="utf-8")
    assert "A run would not start." in page
    assert "max_bad_fraction" in page


@pytest.mark.slow
def test_a_handful_of_pictures_is_reported(tmp_path):
    """No test picture, perhaps, and none to judge by."""
    for label in ("discs", "waves"):
        (tmp_path / "few" / label).mkdir(parents=True)
        (tmp_path / "few" / label / "1.jpg").write_bytes(jpeg(picture(label, 1)))
    found = audit(config(tmp_path / "few", tmp_path / "runs"), QUIET)
    assert found.pictures == 2
    assert "split is empty" in found.refused


@pytest.mark.slow
def test_nothing_but_damaged_files_is_reported(tmp_path):
    for label in ("discs", "waves"):
        (tmp_path / "bad" / label).mkdir(parents=True)
        (tmp_path / "bad" / label / "1.jpg").write_bytes(b"nothing")
    found = audit(config(tmp_path / "bad", tmp_path / "runs"), QUIET)
    assert found.counts["damaged"] == 2
    assert found.refused.startswith("None of the 2 pictures can be used")
    assert found.page.is_file()


@pytest.mark.slow
def test_a_second_look_finds_the_same(tmp_path):
    plant(tmp_path / "data", each=30)
    settings = config(tmp_path / "data", tmp_path / "runs", augment={})
    first = audit(settings, QUIET)
    before = first.findings.read_bytes(), first.page.read_bytes()
    again = audit(settings, QUIET)
    assert again == first
    assert (again.findings.read_bytes(), again.page.read_bytes()) == before


def test_missing_weights_leave_out_what_needs_them_alone(tmp_path, monkeypatch, capsys):
    """Keras's folder is empty, and its address leads to a closed port of this machine."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr("keras.src.applications.mobilenet.BASE_WEIGHT_PATH", "http://127.0.0.1:9/")
    defects = plant(tmp_path / "data", each=8)
    settings = config(tmp_path / "data", tmp_path / "runs", augment={})
    imagenet = settings.backbone.model_copy(update={"weights": "imagenet"})
    found = audit(settings.model_copy(update={"backbone": imagenet}), QUIET)
    assert found.not_judged == ("likely mislabel", "outlier")
    assert set(found.counts) == set(KINDS) - set(found.not_judged)
    names = by_kind(found)
    for kind in ("damaged", "copy", "near copy", "conflicting labels", "leak", "constant"):
        assert defects.kinds[kind] <= names[kind]
    page = found.page.read_text(encoding="utf-8")
    assert "<strong>Not judged: likely mislabel, outlier.</strong>" in page
    assert "bright, likely" not in page
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert "cannot be downloaded" in warning
    assert "likely mislabel and outlier are not judged" in warning
    _print_findings(found)
    assert "not judged  likely mislabel, outlier" in capsys.readouterr().out


def test_what_a_list_proposes_is_safe():
    """Without a look, only what tells a network nothing is taken out."""
    assert {kind for kind, row in KINDS.items() if row.proposal} == {"damaged", "copy", "constant"}


@pytest.mark.slow
def test_the_command_prints_what_was_found(tmp_path):
    """In a process of its own."""
    plant(tmp_path / "data", each=24)
    (tmp_path / "look.yaml").write_text(dump(config("data", "runs", augment={})), encoding="utf-8")
    look = subprocess.run(
        [sys.executable, "-m", "pipeline", "data", "look.yaml", "--json", "--quiet"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert look.returncode == 0, look.stderr
    assert look.stderr == ""
    *lines, last = look.stdout.splitlines()
    figures = json.loads(last)
    assert figures["findings"]["damaged"] == 3
    assert figures["refused"] is None
    assert figures["not_judged"] == []
    assert all(line == line.rstrip() for line in lines)
    assert lines[0] == f"{figures['pictures']} pictures of 3 classes"
    assert any(line.startswith("damaged ") and line.split()[1] == "3" for line in lines)
    assert f"page        {Path('runs/made-up/data/data.html')}" in lines
    assert "data look.yaml --fix runs/made-up/data/findings.csv" in lines[-1]
    assert f'<pre class="command">{lines[-1].strip()}</pre>' in (tmp_path / figures["page"]).read_text(encoding="utf-8")
