"""What is computed of each picture's pixels, kept in a real store."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline import kept
from pipeline.activations import Store
from pipeline.console import Console
from pipeline.pixels import PixelSpec
from tests.networks import InMemory, split

SPEC = PixelSpec(16, 16)
PICTURES = split(150, size=16)  # more than are computed at once


class Means:
    """Each picture's mean colour and the number of pictures it was asked for."""

    def __init__(self):
        self.pictures = 0

    def __call__(self, images):
        self.pictures += len(images)
        return images.mean(axis=(1, 2)).astype(np.float32)


def of(store, pictures=PICTURES, name="means", settings=None, spec=SPEC, console=None):
    """The values, and for how many pictures they were computed."""
    means = Means()
    like = np.empty(3, np.float32)
    values = kept.of_pixels(pictures, name, settings or {"version": 1}, means, like, spec, store, console or Console())
    np.testing.assert_array_equal(values, pictures.pixels.pixels[pictures.positions].mean(axis=(1, 2)), strict=False)
    assert (values.shape, values.dtype) == ((len(pictures), 3), np.float32)
    return means.pictures


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path, 100_000_000, pytest.fail) as store:
        yield store


def test_without_a_store_values_are_computed_each_time():
    assert (of(None), of(None)) == (150, 150)


def test_what_was_computed_once_is_computed_no_more(store, tmp_path):
    assert (of(store), of(store)) == (150, 0)
    with Store(tmp_path, 100_000_000, pytest.fail) as again:
        assert of(again) == 0


def test_only_what_is_new_is_computed(store):
    some = replace_rows(PICTURES, [3, 70, 149])
    assert (of(store, some), of(store), of(store, some)) == (3, 147, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "medians"},
        {"settings": {"version": 2}},
        {"settings": {"version": 1, "side": 2}},
        {"spec": replace(SPEC, crop=0.5)},
        {"spec": replace(SPEC, height=17)},
        {"spec": replace(SPEC, max_megapixels=1.0)},
    ],
    ids=["name", "setting", "more settings", "crop", "height", "size"],
)
def test_whatever_values_follow_from_makes_new_ones(store, change):
    assert of(store) == 150
    assert (of(store, **change), of(store, **change)) == (150, 0)
    assert of(store) == 0


def test_another_picture_in_its_place_has_another_value(store):
    assert of(store) == 150
    assert of(store, split(150, seed=1, size=16)) == 150


def test_a_store_without_room_is_told_of_once_and_does_no_harm(tmp_path, capsys):
    with Store(tmp_path, 1, lambda words: None) as store:
        assert of(store) == 150
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "Means are made again next time." in said


def test_no_pictures_have_no_values(store):
    assert of(store, replace_rows(PICTURES, [])) == 0


def replace_rows(pictures, rows):
    """Some of the pictures, by ascending row."""
    digests, names = (tuple(values[row] for row in rows) for values in (pictures.digests, pictures.names))
    return replace(
        pictures, labels=pictures.labels[rows], names=names, digests=digests, positions=pictures.positions[rows],
        pixels=InMemory(pictures.pixels.pixels),
    )  # fmt: skip
