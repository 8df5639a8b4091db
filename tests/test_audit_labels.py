"""Mislabels and outliers, on made-up features."""

import numpy as np
import pytest

from pipeline.audit_labels import LEAST, mislabels, outliers


def blobs(each, classes, seed=0, dimensions=32, apart=6.0):
    """Features like a network's: classes apart from one another, none below zero."""
    random = np.random.default_rng(seed)
    centres = random.exponential(1, (classes, dimensions))
    labels = np.repeat(np.arange(classes), each)
    features = apart / 6 * centres[labels] + random.normal(0, 0.3, (len(labels), dimensions))
    return np.maximum(features, 0).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(("each", "classes"), [(40, 2), (30, 10), (12, 60)])
def test_wrong_labels_are_found_and_no_others(each, classes):
    features, labels = blobs(each, classes, apart=12)
    names = tuple(f"class {number}" for number in range(classes))
    assert mislabels(features, labels, names) == []
    wrong = np.arange(0, len(labels), each)[:5] + 1
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % classes
    found = mislabels(features, given, names)
    assert {mark.row for mark in found} == set(wrong.tolist())
    for mark in found:
        assert mark.why.startswith(f"looks like class {labels[mark.row]} (")
        assert mark.score > 0.9


def test_labels_by_chance_are_not_taken_for_mistakes():
    """Where features say nothing of labels, hardly any label is next to impossible."""
    random = np.random.default_rng(0)
    features = random.normal(size=(600, 64)).astype(np.float32)
    assert len(mislabels(features, random.integers(0, 2, 600), ("a", "b"))) <= 6


def test_classes_of_few_pictures_are_not_judged():
    features, labels = blobs(20, 3)
    labels[:17] = 1  # Three are left of the first class.
    rows = {mark.row for mark in mislabels(features, labels, ("a", "b", "c"))}
    assert not rows & {17, 18, 19}
    assert mislabels(features[:6], labels[:6], ("a", "b", "c")) == []
    assert mislabels(features[:40], np.ones(40, np.int32), ("a", "b", "c")) == []


def test_the_same_labels_are_found_each_time():
    features, labels = blobs(40, 3, apart=2.5)
    assert mislabels(features, labels, ("a", "b", "c")) == mislabels(features, labels, ("a", "b", "c"))


def test_many_features_are_judged():
    features, labels = blobs(120, 3, dimensions=600)
    given = labels.copy()
    given[5] = 2
    assert [mark.row for mark in mislabels(features, given, ("a", "b", "c"))] == [5]


def test_a_picture_like_no_other_is_an_outlier():
    features, _ = blobs(60, 4)
    assert outliers(features) == []
    strange = features.copy()
    strange[7] = 0
    strange[7, :3] = (0, 5, 9)
    assert [mark.row for mark in outliers(strange)] == [7]


def test_of_few_or_equal_pictures_none_is_an_outlier():
    features, _ = blobs(60, 4)
    assert outliers(features[: LEAST - 1]) == []
    assert outliers(np.ones((50, 8), np.float32)) == []
    assert outliers(np.zeros((50, 8), np.float32)) == []
