import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline import report
from pipeline.errors import ConfigError
from pipeline.report import MOST_EXPLAINED, MOST_PICTURES
from tests.reports import ended, history, seen, small_network

IMAGENET_MEAN = np.array([123.68, 116.78, 103.94])


@pytest.fixture(scope="module")
def lenet():
    return small_network()


def write(run, network, look=seen):
    *_, page = report.write(run, network, look)
    return page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The page's images, drawings and tiles, and the addresses it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.images, self.drawings, self.tiles, self.fetched = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        if tag == "svg":
            self.drawings.append(attrs)
        if tag == "figure" and "data-true" in attrs:
            self.tiles.append((int(attrs["data-true"]), int(attrs["data-predicted"])))
        fetched = [value for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
        self.fetched += [value for value in fetched if not value.startswith(("data:", "#"))]
        assert tag not in ("link", "iframe") or attrs.get("rel") == "icon"


def test_a_run_gets_its_charts_a_card_and_one_page(tmp_path, lenet):
    written = report.write(ended(tmp_path, mean=IMAGENET_MEAN), lenet, seen)
    assert sorted(path.name for path in written) == [
        "confusion.png", "feature_maps.png", "kernels.png", "learning_curves.png", "mean.png", "model-card.md",
        "per_class.png", "reliability.png", "report.html", "responses.png",
    ]  # fmt: skip
    for path in written[:-2]:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert 300 < image.width < 2500
            assert len(image.convert("L").getcolors()) > 3


def test_the_page_stands_alone_and_describes_its_pictures(tmp_path, lenet):
    run = ended(tmp_path, mean=IMAGENET_MEAN)
    page = Page(write(run, lenet))
    assert page.fetched == []
    assert all(image["src"].startswith("data:image/") for image in page.images)
    assert all(image["alt"] for image in page.images)
    words = " ".join(drawing["aria-label"] for drawing in page.drawings)
    assert "5 epochs in 2 phases" in words
    assert "R 123.7   G 116.8   B 103.9" in words


def test_the_page_has_the_figures(tmp_path, lenet):
    run = ended(tmp_path)
    page = write(run, lenet)
    low, high = run.scores.accuracy_interval
    assert f"{100 * run.scores.metrics['accuracy']:.1f} %" in page
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} %" in page
    for value in [*run.scores.metrics.values(), run.scores.temperature, run.scores.calibration_before.ece]:
        assert f"{value:.4f}" in page
    for row in run.scores.per_class:
        assert f"{row.recall:.3f}" in page
    for words in ("3e1645", "da7a", "c0de", run.command, "name: ants", "2,000", "75 %", "ingest 1.0 s"):
        assert words in page, words


def test_the_card_has_the_same_figures(tmp_path, lenet):
    run = ended(tmp_path)
    write(run, lenet)
    card = (tmp_path / "model-card.md").read_text(encoding="utf-8")
    low, high = run.scores.accuracy_interval
    for words in (
        "# ants", f"{100 * run.scores.metrics['accuracy']:.1f} % of 200 test pictures",
        f"{100 * low:.1f} % to {100 * high:.1f} %", "3e1645", "da7a", run.command, "| ants |", "850 of 60,850",
        "620 training pictures",
    ):  # fmt: skip
        assert words in card, words


def test_every_number_of_the_matrix_has_its_pictures(tmp_path, lenet):
    run = ended(tmp_path)
    tiles = Page(write(run, lenet)).tiles
    counts = np.zeros((2, 2), int)
    np.add.at(counts, tuple(np.array(tiles).T), 1)
    assert counts.tolist() == run.scores.confusion


def test_grad_cam_is_drawn_over_the_surest_mistakes_and_the_least_certain_rights(tmp_path, lenet):
    run = ended(tmp_path)
    asked = []

    def look(digests):
        asked.extend(digests)
        return seen(digests)

    page = write(run, lenet, look)
    assert len(asked) == len(set(asked))
    mistakes = sum(map(sum, run.scores.confusion)) - sum(run.scores.confusion[i][i] for i in range(2))
    assert page.count("Grad-CAM of ") == min(mistakes, MOST_EXPLAINED) + MOST_EXPLAINED
    probabilities = run.probabilities
    wrong = probabilities.argmax(1) != run.outputs.labels
    surest = np.argmax(np.where(wrong, probabilities.max(1), 0))
    explained = page[page.index("The most confident mistakes") :]
    assert explained.index(f">{surest}.png<") < 1500 + explained.index("<figcaption>")


def test_of_a_large_test_set_the_mistakes_are_shown(tmp_path, lenet):
    run = ended(tmp_path, n=3 * MOST_PICTURES, skill=3.0)
    page = write(run, lenet)
    assert f"{MOST_PICTURES:,} of the {3 * MOST_PICTURES:,} test pictures" in page
    tiles = Page(page).tiles
    assert len(tiles) == MOST_PICTURES
    wrong = run.scores.confusion[0][1] + run.scores.confusion[1][0]
    assert sum(true != predicted for true, predicted in tiles) == wrong


def test_pictures_that_are_gone_are_left_out(tmp_path, lenet):
    run = ended(tmp_path)
    page = write(run, lenet, lambda digests: {})
    assert "no longer where the run read them" in page
    assert Page(page).images == []
    half = write(run, lenet, lambda digests: seen(list(digests)[::2]))
    assert len(Page(half).tiles) == 100


def test_a_new_metric_needs_no_change_here(tmp_path, lenet):
    run = ended(tmp_path)
    run.scores.metrics["kappa"] = 0.1234
    assert re.search(r"kappa.*0\.1234", write(run, lenet))


@pytest.mark.parametrize(
    ("mean", "pixel"), [(IMAGENET_MEAN, (124, 117, 104)), (np.full((28, 28, 3), 300.0), (255, 255, 255))]
)
def test_the_mean_is_drawn_in_its_colours(tmp_path, lenet, mean, pixel):
    write(ended(tmp_path, mean=mean), lenet)
    with Image.open(tmp_path / "mean.png") as image:
        assert image.convert("RGB").getpixel((image.width // 2, image.height // 2)) == pixel


def test_hundreds_of_classes_stay_legible(tmp_path):
    run = ended(tmp_path, [f"class number {i}" for i in range(300)], n=2000)
    page = write(run, small_network(300))
    for name in ("confusion.png", "per_class.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width < 1500
            assert image.height < 2500
    assert 'class="matrix"' not in page
    assert "Most frequent" in page
    assert page.count("class number") > 300  # the table has them all


@pytest.mark.parametrize("classes", [2, 40])
def test_no_mistakes_and_absent_classes(tmp_path, classes):
    labels = np.zeros(5, int)
    run = ended(tmp_path, [f"c{i}" for i in range(classes)], logits=np.eye(classes)[labels] * 9, labels=labels)
    assert "No test picture was given a wrong class" in write(run, small_network(classes))


@pytest.mark.parametrize(
    "epochs",
    [history(1), history(60, 60), history(2, 2, 2), history(2, rate=0.0), history(3, rate=3e-4)],
    ids=["one epoch", "many", "three phases", "rate zero", "rate between powers of ten"],
)
def test_any_history_is_drawn(tmp_path, lenet, epochs):
    write(ended(tmp_path, epochs=epochs), lenet)


def test_strange_names_break_nothing(tmp_path):
    names = [
        "$x$",
        r"$\frac{$",
        "<script>alert(1)</script>",
        "蟻と蜂",
        "a\nb\x00",
        "w" * 200,
        'é & "q"',
        "%s {} ${name} $$ {{ 7 * 7 }}",
        "a|b\n# c",
    ]
    page = write(ended(tmp_path, names), small_network(len(names)))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "蟻と蜂" in page
    assert "{{ 7 * 7 }}" in page
    assert r"| a\|b \# c |" in (tmp_path / "model-card.md").read_text(encoding="utf-8")


def test_what_repeats_a_run_works_from_anywhere(tmp_path, lenet):
    here = tmp_path / "a folder"
    run_dir = here / "runs" / "ants" / "1"
    run_dir.mkdir(parents=True)
    run = ended(run_dir)
    run = replace(run, record=run.record.model_copy(update={"started_in": str(here)}))
    assert run.command == f"cd '{here}' && graft run runs/ants/1/config.yaml"
    assert run.command in unescape(write(run, lenet))
    assert run.command in (run_dir / "model-card.md").read_text(encoding="utf-8")
    elsewhere = replace(run, record=run.record.model_copy(update={"started_in": "/home/you"}))
    assert elsewhere.command == f"cd /home/you && graft run '{run_dir}/config.yaml'"
    assert ended(tmp_path).command == f"graft run {tmp_path}/config.yaml"  # of a run before this was recorded


def test_what_repeats_a_run_does_not_depend_on_later_ones(tmp_path):
    run = ended(tmp_path, backbone={"name": "lenet5", "weights": "run:earlier"})
    started = run.record.model_copy(update={"started_from": "/runs/earlier/20260101-000000-abcd"})
    assert replace(run, record=started).command.endswith("--set backbone.weights=run:20260101-000000-abcd")
    challenger = run.record.model_copy(update={"challenger": True})
    assert replace(run, record=challenger).command.startswith("graft retrain ")


def test_a_run_that_started_from_another_says_what_that_may_have_learned(tmp_path, lenet):
    run = ended(tmp_path)
    started = run.record.model_copy(update={"started_from": "/runs/earlier/20260101-000000-abcd"})
    page = write(replace(run, record=started), lenet)
    assert "20260101-000000-abcd, may have learned from some of them" in page
    assert "may have learned" in (tmp_path / "model-card.md").read_text()


def test_matplotlib_is_left_as_it_was(tmp_path, lenet):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write(ended(tmp_path), lenet)
    assert dict(matplotlib.rcParams) == before


def test_a_folder_that_is_not_a_runs_is_told_what_it_lacks(tmp_path):
    with pytest.raises(ConfigError, match=r"it has no run\.json.*Give such a folder"):
        report.read(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="a file in it cannot be read"):
        report.read(tmp_path)
