"""What is measured of each picture, and which are out of the ordinary."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pipeline.audit_pictures import FIGURES, Measures, figures, judged
from tests.defects import scene

SIDE = 96
SCENES = np.stack([np.asarray(scene(seed, SIDE)) for seed in range(40)])
USUAL = (400, 300)


def measured(images, sizes=None, image_size=SIDE):
    sizes = np.array(sizes or [USUAL] * len(images))
    return Measures.of(figures(np.stack(images)), sizes, image_size, crop=1.0)


def found(extra, size=USUAL):
    """The kinds that one more picture among the scenes is found to be, and that only it is found."""
    marks = judged(measured([*SCENES, extra], [USUAL] * len(SCENES) + [size]))
    assert {mark.row for mark in marks} <= {len(SCENES)}
    return {mark.kind for mark in marks}


def changed(change):
    return np.asarray(change(Image.fromarray(SCENES[0])))


def test_the_figures_are_those_of_their_definition():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = (200, 100, 50)
    pixels[:1] = 255
    luminance = np.asarray(Image.fromarray(pixels).convert("L"), float)
    row = figures(pixels[None])[0]
    assert row.shape == (FIGURES,)
    assert row[:2] == pytest.approx([luminance.mean(), luminance.std()], rel=1e-5)
    assert row[2:4] == pytest.approx([0, np.sort(luminance.ravel())[int(0.95 * 1024)]])
    assert row[4:7] == pytest.approx(pixels.mean(axis=(0, 1)), rel=1e-5)


def test_sharpness_is_the_variance_after_the_edge_kernel_in_the_sharpest_cell():
    random = np.random.default_rng(0)
    grey = np.full((34, 34), 100, np.uint8)
    grey[1:9, 17:25] = random.integers(0, 256, (8, 8))
    luminance = grey.astype(float)
    edges = np.zeros((32, 32))
    for dy, dx, weight in ((0, 0, 4), (-1, 0, -1), (1, 0, -1), (0, -1, -1), (0, 1, -1)):
        edges += weight * luminance[1 + dy : 33 + dy, 1 + dx : 33 + dx]
    cells = [edges[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].var() for y in range(4) for x in range(4)]
    assert figures(np.stack([grey] * 3, axis=-1)[None])[0, 7] == pytest.approx(max(cells), rel=1e-4)


def test_usual_pictures_are_not_found():
    assert judged(measured(list(SCENES))) == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("blurred", lambda image: image.filter(ImageFilter.GaussianBlur(3))),
        ("dark", lambda image: image.point(lambda value: value * 0.2)),
        ("bright", lambda image: image.point(lambda value: 200 + value * 0.2)),
        ("constant", lambda image: image.point(lambda value: 128)),
        ("constant", lambda image: image.point(lambda value: 0)),
    ],
)
def test_one_odd_picture_among_usual_ones_is_found(kind, change):
    assert found(changed(change)) == {kind}


def test_a_blurred_ground_with_a_sharp_part_is_not_blurred():
    pixels = changed(lambda image: image.filter(ImageFilter.GaussianBlur(3))).copy()
    pixels[24:48, 24:48] = SCENES[1, 24:48, 24:48]
    assert found(pixels) == set()


@pytest.mark.parametrize(
    ("size", "kinds"),
    [
        ((80, 60), {"odd size"}),
        ((110, 90), set()),
        ((2000, 1500), {"odd size"}),
        ((1200, 900), set()),
        ((900, 100), {"odd shape"}),
        ((100, 900), {"odd shape"}),
        ((300, 400), set()),
    ],
)
def test_sizes_and_shapes(size, kinds):
    assert found(SCENES[0], size) == kinds


def test_a_picture_that_was_enlarged_is_as_sharp_as_it_is_at_its_own_size():
    small = Image.fromarray(SCENES[0]).resize((24, 24), Image.Resampling.LANCZOS)
    enlarged = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    own, as_if_large = (measured([enlarged], [(side, side)]).sharpness[0] for side in (24, 400))
    assert own > 5 * as_if_large


@pytest.mark.parametrize("change", [lambda value: value * 0.2, lambda value: 200 + value * 0.2])
def test_where_all_pictures_are_alike_none_is_odd(change):
    images = [np.asarray(Image.fromarray(pixels).point(change)) for pixels in SCENES]
    assert [mark.kind for mark in judged(measured(images)) if mark.kind in ("dark", "bright")] == []


@given(st.integers(0, 12), st.integers(8, 40), st.data())
def test_any_pictures_are_judged(count, side, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    images = random.integers(0, random.integers(1, 257), (count, side, side, 3)).astype(np.uint8)
    sizes = random.integers(1, 5000, (count, 2))
    measures = Measures.of(figures(images), sizes, side, crop=0.875)
    assert np.isfinite(measures.sharpness).all()
    assert all(0 <= mark.row < count for mark in judged(measures))
