import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline import report as report_stage
from pipeline.artifacts import Epoch
from pipeline.evaluate import evaluate

IMAGENET_MEAN = np.array([123.68, 116.78, 103.94])


def scored(classes, n=200, skill=2.0):
    """A report on made-up logits; the higher `skill`, the fewer mistakes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += skill
    return evaluate(logits, labels, logits, labels, classes, seed=0)


def history(*epochs_per_phase, rate=1e-3):
    phases = [phase for phase, epochs in enumerate(epochs_per_phase, start=1) for _ in range(epochs)]
    return [
        Epoch(phase, epoch, 1 / epoch, 1 - 0.5 / epoch, 1.2 / epoch, 1 - 0.6 / epoch, rate / phase, 1.5, 160.0)
        for epoch, phase in enumerate(phases, start=1)
    ]


def write(run_dir, report, *, epochs=None, mean=IMAGENET_MEAN, name="ants", config="name: ants\n", facts=None):
    facts = facts or {"Exported model": "export/ants/1"}
    return report_stage.write(run_dir, name, report, epochs or history(3, 2), mean, config, facts, "graft run x")


class Page(HTMLParser):
    """The page's images, and the addresses it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.images, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.fetched += [
            value for key, value in attrs.items() if key in ("src", "href") and not value.startswith("data:")
        ]
        assert tag not in ("script", "link", "iframe")


def test_a_run_gets_its_pictures_and_one_page(tmp_path):
    report = scored([f"class {i}" for i in range(10)])
    write(tmp_path, report)  # once for the imports
    started = time.perf_counter()
    written = write(tmp_path, report)
    assert time.perf_counter() - started < 10  # about one second when nothing else runs
    assert sorted(path.name for path in written) == [
        "confusion.png", "learning_curves.png", "mean.png", "per_class.png", "reliability.png", "report.html",
    ]  # fmt: skip
    for path in written[:-1]:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert 300 < image.width < 2500
            assert len(image.convert("L").getcolors()) > 3


def test_the_page_stands_alone_and_describes_its_pictures(tmp_path):
    report = scored(["ants", "bees"])
    page = write(tmp_path, report)[-1].read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.fetched == []
    assert "http" not in page
    assert len(parsed.images) == 5
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.images)
    alts = " ".join(image["alt"] for image in parsed.images)
    assert "5 epochs in 2 phases" in alts
    assert f"{report.confusion[0][1] + report.confusion[1][0]} of 200 test pictures got a wrong class" in alts
    assert "R 123.7   G 116.8   B 103.9" in alts


def test_the_page_has_the_figures(tmp_path):
    report = scored(["ants", "bees"])
    page = write(tmp_path, report, facts={"Data digest": "0a1b2c"})[-1].read_text(encoding="utf-8")
    low, high = report.accuracy_interval
    assert f"{100 * report.metrics['accuracy']:.1f} %" in page
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" in page
    for value in [*report.metrics.values(), report.temperature, report.calibration_before.ece]:
        assert f"{value:.4f}" in page
    for row in report.per_class:
        assert f"{row.recall:.3f}" in page
    assert "0a1b2c" in page
    assert "graft run x" in page
    assert "name: ants" in page


def test_a_new_metric_needs_no_change_here(tmp_path):
    report = scored(["ants", "bees"])
    report = report.model_copy(update={"metrics": report.metrics | {"kappa": 0.1234}})
    assert re.search(r"kappa.*0\.1234", write(tmp_path, report)[-1].read_text(encoding="utf-8"))


def test_without_a_mean_there_is_no_picture_of_it(tmp_path):
    written = write(tmp_path, scored(["ants", "bees"]), mean=None)
    assert "mean.png" not in [path.name for path in written]


@pytest.mark.parametrize(
    ("mean", "pixel"), [(IMAGENET_MEAN, (124, 117, 104)), (np.full((28, 28, 3), 300.0), (255, 255, 255))]
)
def test_the_mean_is_drawn_in_its_colours(tmp_path, mean, pixel):
    write(tmp_path, scored(["ants", "bees"]), mean=mean)
    with Image.open(tmp_path / "mean.png") as image:
        assert image.convert("RGB").getpixel((image.width // 2, image.height // 2)) == pixel


def test_hundreds_of_classes_stay_legible(tmp_path):
    report = scored([f"class number {i}" for i in range(300)], n=2000)
    page = write(tmp_path, report)[-1].read_text(encoding="utf-8")
    for name in ("confusion.png", "per_class.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width < 1500
            assert image.height < 2500
    assert "most frequent of" in page
    assert page.count("class number") > 300  # the table has them all


@pytest.mark.parametrize("classes", [2, 40])
def test_no_mistakes_and_absent_classes(tmp_path, classes):
    labels = np.zeros(5, int)
    logits = np.eye(classes)[labels] * 9
    write(tmp_path, evaluate(logits, labels, logits, labels, [f"c{i}" for i in range(classes)], seed=0))


@pytest.mark.parametrize(
    "epochs",
    [history(1), history(60, 60), history(2, 2, 2), history(2, rate=0.0), history(3, rate=3e-4)],
    ids=["one epoch", "many", "three phases", "rate zero", "rate between powers of ten"],
)
def test_any_history_is_drawn(tmp_path, epochs):
    write(tmp_path, scored(["ants", "bees"]), epochs=epochs)


def test_strange_names_break_nothing(tmp_path):
    names = [
        "$x$",
        r"$\frac{$",
        "<script>alert(1)</script>",
        "蟻と蜂",
        "a\nb\x00",
        "w" * 200,
        'é & "q"',
        "%s {} ${name} $$",
    ]
    page = write(tmp_path, scored(names), name="<i>", config="a: <b> $name")[-1].read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "蟻と蜂" in page
    assert "a: &lt;b&gt; $name" in page
    assert "<h1>&lt;i&gt;</h1>" in page


def test_matplotlib_is_left_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write(tmp_path, scored(["ants", "bees"]))
    assert dict(matplotlib.rcParams) == before
