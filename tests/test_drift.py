"""Drift: figures with known values, false alarms and true ones on simulated networks, and words for what is missing."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline import artifacts, drift
from pipeline.artifacts import Manifest, Parity
from pipeline.drift import FEWEST, FEWEST_HELD_OUT, NEWEST, Drift, Reference, compare, energy, stability, watch
from pipeline.errors import DataError, ExportError
from pipeline.pixels import VERSION, PixelSpec
from pipeline.samples import Sample, Samples, write_samples

CREATED = datetime(2026, 11, 1, tzinfo=UTC)
CLASSES = ("ant", "bee", "Käfer")
WIDTH = 12
CENTRES = np.random.default_rng(0).normal(size=(3, WIDTH)) * 2


def pictures(count, seed, shift=0.0, shares=(0.3, 0.3, 0.4), overfit=1.0):
    """Embeddings around the centre of each class, and what a softmax of the distances to them says.

    Args:
        shift: how far all are moved.
        shares: of the classes.
        overfit: how much better the classes are apart.
    """
    random = np.random.default_rng(seed)
    embeddings = overfit * CENTRES[random.choice(3, count, p=shares)] + random.normal(size=(count, WIDTH)) + shift
    embeddings = embeddings.astype(np.float16).astype(np.float32)
    logits = -np.linalg.norm(embeddings[:, None] - CENTRES, axis=2)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return embeddings, exponentials / exponentials.sum(axis=1, keepdims=True)


def samples(embeddings, probabilities):
    times = tuple(CREATED + timedelta(minutes=1 + row) for row in range(len(embeddings)))
    return Samples(times, np.array(CLASSES)[probabilities.argmax(axis=1)], probabilities.max(axis=1), embeddings)


def reference(training=300, held_out=200, seed=1, overfit=1.0):
    """Of a network that separates the training pictures better by `overfit`."""
    train, test = pictures(training, seed, overfit=overfit), pictures(held_out, seed + 1000)
    embeddings, probabilities = (np.concatenate(each) for each in zip(train, test, strict=True))
    labels = np.array(CLASSES)[probabilities.argmax(axis=1)]
    held = np.arange(training + held_out) >= training
    return Reference("m", 3, embeddings, labels, probabilities.max(axis=1), held)


# The figures


def halves(n, m):
    """That the first n of n + m pictures are chosen; and as a second column, the last n."""
    chosen = np.zeros((n + m, 2), bool)
    chosen[:n, 0] = chosen[m:, 1] = True
    return chosen


def test_stability_of_counts_that_are_known():
    # 30 and 10 beside 20 and 20, each with half a picture more.
    bins = np.repeat([0, 1, 0, 1], [30, 10, 20, 20])
    a, b = np.array([30.5, 10.5]) / 41, np.array([20.5, 20.5]) / 41
    assert stability(bins, halves(40, 40))[0] == pytest.approx(((a - b) * np.log(a / b)).sum(), rel=1e-5)


def test_energy_of_points_that_are_known():
    # 0 and 2 beside 1: between them 1, within 1 and 0, so 1 - 1 / 2.
    points = np.array([[0.0], [2.0], [1.0]], np.float32)
    assert energy(points, halves(2, 1))[0] == pytest.approx(0.5)
    # Two places, far apart: 1 at most.
    points = np.array([[0.0, 0], [0, 0], [3, 4], [3, 4]], np.float32)
    assert energy(points, halves(2, 2))[0] == pytest.approx(1.0)


def test_energy_is_what_the_definition_says():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 5)).astype(np.float32), random.normal(1, 2, size=(30, 5)).astype(np.float32)

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b, axis=2).mean()

    defined = (2 * mean(x, y) - mean(x, x) - mean(y, y)) / (2 * mean(x, y))
    assert energy(np.concatenate([x, y]), halves(20, 30))[0] == pytest.approx(defined, abs=1e-5)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.data())
@hypothesis_settings(max_examples=100, deadline=None)
def test_stability_is_not_negative_and_the_same_from_either_side(bins, data):
    n = data.draw(st.integers(1, len(bins) - 1))
    chosen = halves(n, len(bins) - n)
    found = stability(np.array(bins), np.concatenate([chosen, ~chosen], axis=1))
    assert (found >= -1e-9).all()
    np.testing.assert_allclose(found[:2], found[2:], atol=1e-6)


# Alarms


@pytest.mark.parametrize("overfit", [1.0, 1.4])
def test_pictures_of_the_same_kind_raise_no_alarm(overfit):
    """New ones, training pictures, held-out ones, and all together, of networks that overfit too."""
    for seed in range(2):
        known = reference(seed=10 + seed, overfit=overfit)
        rows = np.random.default_rng(seed).choice(len(known.labels), 1000)
        asked = {
            "new": samples(*pictures(200, 100 + seed)),
            "training": samples(*pictures(200, 200 + seed, overfit=overfit)),
            "known": Samples(
                tuple(CREATED + timedelta(minutes=row) for row in range(1000)),
                known.labels[rows], known.confidences[rows], known.embeddings[rows],
            ),
        }  # fmt: skip
        for what, each in asked.items():
            found = compare(known, each, seed)
            assert not found.drifted, (what, found.sentence)
            assert found.comparisons


def test_training_pictures_would_be_an_alarm_if_they_were_compared_with_held_out_ones_alone():
    found = compare(reference(overfit=1.4), samples(*pictures(200, 5, overfit=1.4)), 0)
    by_part = {each.against: each.differs for each in found.comparisons}
    assert by_part == {"held-out": True, "training": False, "held-out and training": True}
    assert not found.drifted


@pytest.mark.slow
def test_chance_makes_few_alarms():
    """The p-values are as even as those of an exact test: not too small, and not far too large either."""
    values = []
    for seed in range(40):
        [first, *_] = compare(reference(100, 60, seed=500 + seed), samples(*pictures(60, 900 + seed)), seed).comparisons
        values += [first.classes.p, first.confidence.p, first.embeddings.p]
    assert 0.35 < np.mean(values) < 0.65
    assert np.mean(np.array(values) <= 0.1) < 0.2
    assert min(values) > drift.P


@pytest.mark.parametrize("count", [FEWEST, 200])
@pytest.mark.parametrize(
    ("change", "differing"),
    [({"shift": 1.0}, "embeddings"), ({"shares": (0.02, 0.03, 0.95)}, "predicted classes")],
)
def test_other_pictures_raise_it(change, differing, count):
    found = compare(reference(seed=20), samples(*pictures(count, 50, **change)), 0)
    assert found.drifted
    assert differing in found.sentence.partition(" different pictures ")[0]


def test_a_network_that_is_less_sure_raises_it():
    known = reference()
    embeddings, probabilities = pictures(200, 7)
    unsure = samples(embeddings, 0.5 * probabilities + 0.5 / 3)
    found = compare(known, unsure, 0)
    assert [each.confidence.differs for each in found.comparisons] == [True, True, True]
    assert [each.embeddings.differs for each in found.comparisons] == [False, False, False]
    assert "the confidence of 200 different pictures" in found.sentence


def test_the_same_seed_gives_the_same():
    known, asked = reference(), samples(*pictures(100, 3))
    assert compare(known, asked, 1) == compare(known, asked, 1)
    assert compare(known, asked, 1) != compare(known, asked, 2)


def test_a_thousand_classes():
    """Most bins are empty or nearly so, and the index is large by chance alone."""
    random = np.random.default_rng(0)

    def labels(count):
        return np.array([f"class {number}" for number in random.integers(0, 1000, count)])

    known = Reference("m", 1, *(np.random.default_rng(1).normal(size=(400, 3)), labels(400), random.random(400)),
                      np.ones(400, bool))  # fmt: skip
    asked = samples(*pictures(200, 1))
    asked = Samples(asked.times, labels(200), random.random(200), np.random.default_rng(2).normal(size=(200, 3)))
    found = compare(known, asked, 0)
    assert found.comparisons[0].classes.value > drift.LARGE_PSI
    assert not found.drifted


# Which samples count


def test_pictures_that_are_asked_again_count_once():
    embeddings, probabilities = pictures(60, 4)
    rows = np.concatenate([np.repeat(0, 500), np.arange(60)])
    # As another batch may round it.
    nearly = embeddings[rows] * (1 + 1e-4 * np.random.default_rng(0).choice([-1, 1], (len(rows), 1)))
    found = compare(reference(), samples(nearly.astype(np.float32), probabilities[rows]), 0)
    assert (found.samples, found.repeated) == (60, 500)
    assert not found.drifted


def test_one_picture_for_ever_says_nothing():
    embeddings, probabilities = pictures(1, 4, shift=9)
    found = compare(reference(), samples(np.repeat(embeddings, 900, 0), np.repeat(probabilities, 900, 0)), 0)
    assert (found.samples, found.drifted, found.comparisons) == (1, False, [])
    assert "1 different pictures were sampled, and at least 50 are needed" in found.sentence


def test_embeddings_of_zeros_are_one_picture():
    embeddings, probabilities = pictures(100, 4)
    assert compare(reference(), samples(np.zeros_like(embeddings), probabilities), 0).samples == 1


def test_the_newest_are_compared():
    old, new = pictures(NEWEST + 300, 4, shift=3), pictures(NEWEST, 5)
    both = samples(*(np.concatenate(each) for each in zip(old, new, strict=True)))
    found = compare(reference(), both, 0)
    assert found.samples == NEWEST
    assert found.first == (CREATED + timedelta(minutes=1 + NEWEST + 300)).isoformat(timespec="seconds")
    assert found.last == (CREATED + timedelta(minutes=2 * NEWEST + 300)).isoformat(timespec="seconds")
    assert not found.drifted


@pytest.mark.parametrize("seed", range(3))
def test_other_pictures_show_soon_after_many_that_were_as_they_should_be(seed):
    usual, other = pictures(2000, 4 + seed), pictures(200, 50 + seed, shift=1.0)
    found = compare(reference(), samples(*(np.concatenate(each) for each in zip(usual, other, strict=True))), seed)
    assert found.drifted


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
def test_few_samples_say_nothing_yet(count):
    found = compare(reference(), samples(*pictures(count, 4, shift=9)), 0)
    assert (found.samples, found.drifted, found.comparisons) == (count, False, [])
    assert found.sentence == (
        f"It cannot be told yet whether what version 3 of m is asked has drifted: {count} different pictures were "
        "sampled, and at least 50 are needed."
    )


def test_without_held_out_pictures_nothing_is_said():
    found = compare(reference(held_out=FEWEST_HELD_OUT - 1), samples(*pictures(200, 4, shift=9)), 0)
    assert (found.drifted, found.comparisons) == (False, [])
    assert "19 pictures of its data were held out from the training, and at least 20 are needed" in found.sentence
    assert compare(reference(held_out=FEWEST_HELD_OUT), samples(*pictures(200, 4, shift=9)), 0).drifted


def test_a_network_without_training_pictures_in_its_reference():
    known = reference(training=0)
    assert [each.against for each in compare(known, samples(*pictures(200, 4)), 0).comparisons] == [
        "held-out",
        "held-out and training",
    ]
    assert compare(known, samples(*pictures(200, 4, shift=9)), 0).drifted


# Watching an export


@pytest.fixture
def export(tmp_path):
    """export/m/3, without its TensorFlow."""
    path = tmp_path / "export" / "m" / "3"
    (path / "assets.extra").mkdir(parents=True)
    parity = Parity(
        pictures=1, pixels_largest_difference=0, image_bytes_same_label=1, image_bytes_largest_difference=0
    )  # fmt: skip
    Manifest(
        name="m", version=3, created_at=CREATED.isoformat(), classes=list(CLASSES), pixels=PixelSpec(16, 16),
        pixels_version=VERSION, temperature=1.0, config={}, data_digest="", weights_digest="", metrics={},
        parity=parity, code=artifacts.code(), mlflow_run_id=None,
    ).write(path / "manifest.json")  # fmt: skip
    train, test = pictures(300, 1), pictures(200, 1001)
    embeddings, probabilities = (np.concatenate(each) for each in zip(train, test, strict=True))
    np.savez_compressed(
        path / drift.REFERENCE,
        embeddings=embeddings.astype(np.float16),
        probabilities=probabilities.astype(np.float32),
        split=np.repeat([0, 1, 2], [300, 20, 180]).astype(np.uint8),
    )
    return path


def log(folder, asked, version=3, name="m"):
    write_samples(
        folder,
        name,
        [
            Sample.of(time, version, str(label), confidence, embedding)
            for time, label, confidence, embedding in zip(
                asked.times, asked.labels, asked.confidences, asked.embeddings, strict=True
            )
        ],
    )


def test_watch_compares_the_log_with_the_export(export, tmp_path):
    asked = samples(*pictures(200, 4))
    log(tmp_path / "samples", asked)
    found = watch(export, tmp_path / "samples", 0)
    assert found == compare(reference(), asked, 0)
    assert (found.name, found.version, found.samples, found.drifted) == ("m", 3, 200, False)
    assert found.sentence.startswith(
        "What version 3 of m is asked has not drifted: 200 different pictures from 2026-11-01 00:01 to 2026-11-01 "
        "03:20 UTC are like those of its data. Beside 200 held-out pictures, the population stability index of the "
        "predicted classes "
    )
    assert Drift.model_validate(json.loads(found.model_dump_json())) == found
    log(tmp_path / "others", samples(*pictures(200, 4, shift=1)))
    assert watch(export, tmp_path / "others", 0).drifted


def test_samples_of_other_versions_models_and_earlier_ones_of_its_number_are_left_out(export, tmp_path):
    other = samples(*pictures(200, 4, shift=3))
    log(tmp_path, other, version=2)
    log(tmp_path, other, name="other")
    before = tuple(time - timedelta(days=30) for time in other.times)
    log(tmp_path, Samples(before, other.labels, other.confidences, other.embeddings))
    assert watch(export, tmp_path, 0).samples == 0
    log(tmp_path, samples(*pictures(60, 4)))
    assert watch(export, tmp_path, 0).samples == 60


def test_a_folder_without_samples_says_nothing_yet_and_no_folder_is_a_mistake(export, tmp_path):
    (tmp_path / "samples").mkdir()
    assert "0 different pictures were sampled" in watch(export, tmp_path / "samples", 0).sentence
    with pytest.raises(DataError, match=r"There is no folder .*nowhere with samples.*graft serve --samples"):
        watch(export, tmp_path / "nowhere", 0)
    (tmp_path / "samples" / "m.jsonl").mkdir()
    with pytest.raises(DataError, match=r"The samples in .* cannot be read: .*m.jsonl"):
        watch(export, tmp_path / "samples", 0)


def test_an_export_of_an_older_graft_cannot_be_watched(export, tmp_path):
    (export / drift.REFERENCE).unlink()
    with pytest.raises(ExportError, match="exported before graft kept what its data looks like"):
        watch(export, tmp_path, 0)


def test_a_folder_that_is_no_version_cannot_be_watched(export, tmp_path):
    with pytest.raises(ExportError, match="is not a model exported by graft"):
        watch(export.parent, tmp_path, 0)
    with pytest.raises(ExportError, match="is not a version that an endpoint serves"):
        watch(export.rename(export.with_name("model")), tmp_path, 0)


@pytest.mark.parametrize("damage", ["half", "empty", "text", "garbled", "other arrays"])
def test_a_damaged_reference_is_told_in_words(export, tmp_path, damage):
    file = export / drift.REFERENCE
    content = file.read_bytes()
    middle = len(content) // 2
    match damage:
        case "other arrays":
            np.savez(file, embeddings=np.zeros((2, 2)))
        case _:
            file.write_bytes({
                "half": content[:middle], "empty": b"", "text": b"PK or not",
                "garbled": content[: middle - 99] + bytes(99) + content[middle:],
            }[damage])  # fmt: skip
    with pytest.raises(ExportError, match=r"cannot be watched: its assets.extra/reference.npz cannot be read \(.*"):
        watch(export, tmp_path, 0)
