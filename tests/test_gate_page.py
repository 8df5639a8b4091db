import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Gate
from pipeline.flips import Flip
from tests.deciding import decided, noise, written


def flip(name, label, old, new, old_score=0.6, new_score=0.7):
    return Flip(name, name, label, old, new, old_score, new_score)


class Page(HTMLParser):
    """The page's pictures and drawings, and that it closes what it opens and fetches nothing."""

    VOID = ("meta", "link", "img", "br", "line", "circle")

    def __init__(self, text):
        super().__init__()
        self.images, self.drawings, self.open, self.said = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs, closed=False):
        attrs = dict(attrs)
        assert tag != "iframe"
        assert all(value.startswith("data:") for key, value in attrs.items() if key in ("src", "href"))
        if tag == "img":
            self.images.append(attrs)
        if tag == "svg":
            self.drawings.append(attrs["aria-label"])
        if tag not in self.VOID and not closed:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs, closed=True)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.said += data + "\n"


def test_the_page_tells_the_decision(tmp_path):
    decision, flips = decided(["ants", "bees"])
    page = Page(written(tmp_path, decision, flips, {"Data digest": "0a1b2c"}))
    assert "version 4 against version 3, on 1,000 pictures" in page.said
    assert "Promoted" in page.said
    assert decision.reason in page.said
    for check in decision.checks:
        assert check.finding[1:] in page.said
        assert check.rule[1:] in page.said
    assert page.said.count("✓ passed") == len(decision.checks)
    assert "0a1b2c" in page.said
    assert "min_gain: 0.0" in page.said
    low, high = (100 * end for end in decision.gain_interval)
    assert page.drawings[0] == (
        f"Gain in accuracy {100 * decision.gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}; "
        "it must lie above 0."
    )
    assert len(page.drawings) == 3  # the gain's and the classes'


def test_a_refusal_names_the_class_and_shows_it_first(tmp_path):
    classes = [f"species {k}" for k in range(40)]
    decision, flips = decided(classes, n=2000, broken=33)
    page = Page(written(tmp_path, decision, flips))
    assert "Refused" in page.said
    assert "class species 33 lost" in page.said
    assert page.said.count("✗ failed") == 1
    table = page.said[page.said.index("Every class") :]
    assert re.search(r"species \d+", table)[0] == "species 33"
    assert "10 more classes" in table
    assert all(f"species {k}" in table for k in range(40))


def test_flips_are_shown_both_ways_with_words(tmp_path):
    decision, _ = decided(["ants", "bees", "wasps"])
    picture = noise(np.random.default_rng(0), 300, 500)
    flips = [
        flip("a.jpg", "ants", "ants", "bees"),
        flip("b.jpg", "ants", "bees", "ants", 0.5, 0.9),
        flip("c.jpg", "ants", "bees", "wasps"),
        flip("d.jpg", "bees", "bees", "ants"),
    ]
    page = Page(written(tmp_path, decision, flips, pictures={f"{name}.jpg": picture for name in "abc"}))
    assert "Lost: 2 pictures" in page.said
    assert "1 more is not shown." in page.said
    assert "Gained: 1 picture" in page.said
    assert "Wrong either way: 1 picture" in page.said
    assert [image["alt"] for image in page.images] == [
        "a.jpg: ants; the champion says ants, the challenger bees",
        "b.jpg: ants; the champion says bees, the challenger ants",
        "c.jpg: ants; the champion says bees, the challenger wasps",
    ]


def test_many_flips_are_counted_and_the_page_stays_small(tmp_path):
    decision, _ = decided(["ants", "bees"])
    picture = noise(np.random.default_rng(0), 640, 640)  # noise makes the largest files
    flips = [flip(f"{i}.jpg", "ants", "ants", "bees") for i in range(210)]
    text = written(tmp_path, decision, flips, pictures={flip.digest: picture for flip in flips})
    assert len(text) < 15_000_000
    page = Page(text)
    assert len(page.images) == 200
    assert "Lost: 210 pictures" in page.said
    assert "10 more are not shown." in page.said


@pytest.mark.parametrize(
    "case",
    [
        {"first": True},
        {"n": 1},
        {"n": 1, "first": True},
        {"old": 1, "new": 1},
        {"old": 0, "new": 0},
        {"old": 0, "new": 1},
        {"old": 1, "new": 0},
        {"rules": Gate(min_gain=-0.02)},
        {"rules": Gate(min_gain=0.3)},
        {"classes": [f"c{k}" for k in range(1000)]},
    ],
    ids=str,
)
def test_any_decision_is_drawn(tmp_path, case):
    decision, flips = decided(**({"classes": ["ants", "bees"]} | case))
    page = Page(written(tmp_path, decision, flips))
    assert ("Promoted" if decision.promote else "Refused") in page.said
    assert not re.search(r"\bnan\b|\binf\b|None", page.said)
    assert ("Pictures whose label flips" in page.said) == (decision.champion is not None)


def test_strange_names_break_nothing(tmp_path):
    names = ["$x$", "<script>alert(1)</script>", "蟻と蜂", 'é & "q"', "%s {} ${name} $$", "w" * 300]
    decision, flips = decided(names, broken=1)
    flips.append(flip("\udcff<b>.jpg", names[0], names[1], names[0]))
    text = written(tmp_path, decision, flips, {"<i>": "$path"})
    page = Page(text)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; lost" in text
    assert "蟻と蜂" in page.said
    assert "$path" in page.said


def test_real_photographs(tmp_path, photographs):
    files = sorted((photographs / "val").glob("*/*.jpg"))[:12]
    decision, _ = decided(["ants", "bees"])
    flips = [flip(file.name, "ants", "ants", "bees") for file in files]
    pictures = {file.name: np.asarray(Image.open(file).convert("RGB")) for file in files}
    assert len(Page(written(tmp_path, decision, flips, pictures=pictures)).images) == 12
    assert Path(tmp_path / "gate.html").stat().st_size < 12 * 75_000
