"""The page of a comparison."""

import re
from pathlib import Path

import pytest

from pipeline import compare, compare_page
from tests.comparing import CLASSES, Page, a_run, compared, pictures, written
from tests.promoting import MANIFEST


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


def test_the_page_tells_all_of_it(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(30))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(28, 40), config={"seed": 7})
    text = written(tmp_path, a, b).read_text()
    page = Page(text)
    found = compared(a, b)
    assert "2 runs on 200 common test pictures" in page.said
    assert found.against[0].differences[0].sentence in page.said
    assert "B against A: 10 lost, 28 gained, 0 wrong either way" in page.said
    assert "seed" in page.said
    assert len(page.images) == 38
    assert "ant/0000.png: ant; A says bee, B says ant" in page.images
    curves, changes = dict.fromkeys(page.drawings)  # each once more for phones
    assert "A: loss from 1.100 to 0.367, accuracy at best 60.0% in epoch 1 of 3" in curves
    assert changes == found.against[0].differences[0].sentence
    assert not re.search(r"\bnan\b|\binf\b|None", page.said)


def test_a_page_is_called_by_its_runs():
    folders = [Path(f"/runs/ants/20261121-15541{n}-cf78") for n in range(5)]
    name = compare_page.file_name
    assert name(folders[:2]) == "20261121-155410-cf78_20261121-155411-cf78.html"
    assert name(folders[:3]) == "20261121-155410-cf78_20261121-155411-cf78_20261121-155412-cf78.html"
    sets = [folders, folders[:4], [*folders[:3], folders[4]], [*folders[:3], folders[4], folders[3]]]
    assert len({name(each) for each in sets}) == len(sets)
    assert name(folders) == name(list(folders))
    assert all(each.startswith("20261121-155410-cf78_") and len(each) < 80 for each in map(name, sets))
    assert len(name([Path("/runs/" + "ant" * 80), *folders])) < 80


def test_more_runs_than_colours(tmp_path, data):
    folders = [a_run(tmp_path / "ants" / f"{n}", data, wrong=range(n)) for n in range(7)]
    page = Page(written(tmp_path, *folders).read_text())
    assert "7 runs on 200" in page.said
    assert compare.NOTE in page.said.replace("\n", " ")
    assert "G against A: 6 lost" in page.said


@pytest.mark.slow
def test_a_page_of_1000_test_pictures_stays_small(tmp_path):
    data = pictures(tmp_path / "data", 1000, side=120)  # of noise, which makes the largest files
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(400))
    for run in (a, b):
        spec = MANIFEST.pixels
        large = MANIFEST.model_copy(update={"classes": list(CLASSES), "pixels": type(spec)(120, 120, 1.0)})
        large.write(run / "model" / "manifest.json")
    path = written(tmp_path, a, b)
    page = Page(path.read_text())
    assert len(page.images) == 200
    assert "200 more are not listed." in page.said
    assert path.stat().st_size < 15_000_000


def test_strange_names_break_nothing(tmp_path):
    classes = ("<script>alert(1)</script>".replace("/", "⁄"), "蟻 $x$", "{{ x }} & é")
    data = pictures(tmp_path / "da<b>ta", 30, classes)
    a = a_run(tmp_path / "ants" / "a", data, classes=classes)
    b = a_run(tmp_path / "ants" / "b", data, classes=classes, wrong=range(9))
    text = written(tmp_path, a, b).read_text()
    page = Page(text)
    assert "<script>alert" not in text
    assert "蟻 $x$" in page.said
    assert "{{ x }} & é" in page.said
    assert len(page.images) == 9
