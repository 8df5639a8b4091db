import base64
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pipeline import charts, gradcam, pages, report
from pipeline.errors import ConfigError
from pipeline.report import MOST_EXPLAINED, MOST_PICTURES
from tests.reports import config, ended, history, seen, small_network

CLASSES = ("ants", "bees")
IMAGENET_MEAN = np.array([123.68, 116.78, 103.94])


@pytest.fixture(scope="module")
def lenet():
    return small_network()


def write(run, network, look=seen):
    *_, page = report.write(run, network, look)
    return page.read_text(encoding="utf-8")


def pixels(src):
    """int [H, W, 3] of an image in a page."""
    with Image.open(BytesIO(base64.b64decode(src.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), int)


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
    for value in [*run.scores.telling.values(), run.scores.temperature, run.scores.calibration_before.ece]:
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


def test_grad_cam_is_of_the_class_that_was_given(tmp_path, lenet):
    run = ended(tmp_path)
    known = seen(run.outputs.digests)
    images = Page(write(run, lenet, lambda digests: {digest: known[digest] for digest in digests})).images
    found = {over["alt"]: image["src"] for over, image in pairwise(images) if image["alt"].startswith("Grad-CAM")}
    given = run.outputs.logits.argmax(1)
    mistakes = 0
    for row, (digest, true) in enumerate(zip(run.outputs.digests, run.outputs.labels, strict=True)):
        alt = f"Test picture {row}.png of {CLASSES[true]}, given {CLASSES[given[row]]}"
        if alt in found:
            mistakes += given[row] != true
            picture = known[digest]
            (heat,) = gradcam.maps(lenet, picture[None], given[[row]])
            expected = pages.tile(gradcam.overlay(picture, heat), pages.TINY * 3).src
            # A picture alone comes out of the network a little different from one among others.
            np.testing.assert_allclose(pixels(found.pop(alt)), pixels(expected), atol=2)
    assert found == {}
    assert mistakes == MOST_EXPLAINED


def test_of_a_large_test_set_the_mistakes_are_shown_and_the_least_certain(tmp_path, lenet):
    run = ended(tmp_path, n=3 * MOST_PICTURES, skill=3.0)
    page = write(run, lenet)
    assert f"{MOST_PICTURES:,} of the {3 * MOST_PICTURES:,} test pictures" in page
    page = Page(page)
    assert len(page.tiles) == MOST_PICTURES
    wrong = run.scores.confusion[0][1] + run.scores.confusion[1][0]
    assert all(true != predicted for true, predicted in page.tiles[:wrong])
    assert all(true == predicted for true, predicted in page.tiles[wrong:])
    score = run.probabilities.max(1)
    right = run.probabilities.argmax(1) == run.outputs.labels
    shown = [int(re.match(r"Test picture (\d+)\.png", image["alt"])[1]) for image in page.images[:MOST_PICTURES]]
    assert score[shown[:wrong]].tolist() == sorted(score[~right], reverse=True)
    assert score[shown[wrong:]].tolist() == sorted(score[right])[: MOST_PICTURES - wrong]


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


def test_what_the_weights_it_started_from_have_learned_is_told(tmp_path, lenet):
    run = replace(ended(tmp_path), leaks=" They were trained on 3 of these.")
    assert "never saw. They were trained on 3 of these." in write(run, lenet)
    assert "never saw. They were trained on 3 of these." in (tmp_path / "model-card.md").read_text()


def test_the_head_tells_it_from_other_runs_of_its_config(tmp_path, lenet):
    run = ended(tmp_path, backbone={"name": "mobilenet", "weights": "none", "options": {"alpha": 0.25}})
    record = run.record.model_copy(update={"started_at": "2026-11-21T22:42:10+02:00", "title": "dropout=0.5"})
    page = write(replace(run, record=record), lenet)
    about = f"mobilenet alpha=0.25 · 21 November 2026, 20:42 UTC · run {tmp_path.name} · dropout=0.5<"
    assert about in page
    plain = replace(run, record=record.model_copy(update={"title": "ants"}))
    assert plain.about.endswith(f"run {tmp_path.name}")


@pytest.mark.parametrize(("classes", "there"), [(5, False), (6, True)])
def test_top_5_accuracy_is_shown_where_it_tells_something(tmp_path, classes, there):
    page = write(ended(tmp_path, [f"c{i}" for i in range(classes)]), small_network(classes))
    assert ("top5" in page) == ("top5" in (tmp_path / "model-card.md").read_text()) == there


def test_a_wrecked_training_is_doubted(tmp_path, lenet):
    assert "probably diverged" not in write(ended(tmp_path), lenet)
    rng = np.random.default_rng(0)
    run = ended(tmp_path, logits=1e4 * rng.normal(size=(200, 2)), labels=rng.integers(0, 2, 200))
    assert run.scores.doubt in unescape(write(run, lenet))
    assert run.scores.doubt in (tmp_path / "model-card.md").read_text()


def test_the_card_says_what_each_phase_trains(tmp_path, lenet):
    phases = [{"epochs": 3, "learning_rate": 0.01, "unfreeze": what} for what in ("head", {"blocks": 2})]
    write(ended(tmp_path, phases=phases), lenet)
    card = (tmp_path / "model-card.md").read_text()
    assert "| 1 | head | 3 | 0.01 | adam |" in card
    assert "| 2 | blocks: 2 | 3 | 0.01 | adam |" in card


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, (), ("augmented", "mixup", "smoothing", "class weights")),
        ({"data": {"source": "digits", "augment": {"mixup": 0.2}}}, ("augmented", "mixup"), ("smoothing",)),
        ({"data": {"source": "digits", "class_weights": "balanced"}}, ("class weights",), ("augmented",)),
        (
            {"phases": [{"epochs": 1, "learning_rate": 1e-3, "unfreeze": "head", "label_smoothing": 0.1}]},
            ("label smoothing", "overfitting"),
            ("augmented", "mixup"),
        ),
    ],
)
def test_the_learning_curves_caption_is_of_the_config(changes, said, unsaid):
    with pages.drawing():
        caption = charts.learning_curves(history(2), config(**changes)).caption
    for word in said:
        assert word in caption
    for word in unsaid:
        assert word not in caption


def test_the_picture_that_the_maps_are_of_is_named(tmp_path, lenet):
    run = ended(tmp_path, n=10)  # All of them are shown.
    right = run.probabilities.argmax(1) == run.outputs.labels
    surest = int(np.argmax(np.where(right, run.probabilities.max(1), 0)))
    which = f"The picture is {surest}.png, {CLASSES[run.outputs.labels[surest]]}:"
    assert write(run, lenet).count(which) == 2


@pytest.mark.parametrize("installed", [True, False])
def test_what_repeats_a_run_is_typed_as_graft_was(tmp_path, monkeypatch, installed):
    here = tmp_path / "graft"
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/graft" if installed else None)
    monkeypatch.setattr("sys.argv", [str(here / ".venv" / "bin" / "graft"), "run"])
    run = ended(here / "runs" / "ants" / "1")
    run = replace(run, record=run.record.model_copy(update={"started_in": str(here)}))
    program = "graft" if installed else ".venv/bin/graft"
    assert run.command == f"cd {here} && {program} run runs/ants/1/config.yaml"
    elsewhere = replace(run, record=run.record.model_copy(update={"started_in": "/home/you"}))
    assert elsewhere.command.startswith("cd /home/you && " + ("graft" if installed else f"{here}/.venv/bin/graft"))


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
