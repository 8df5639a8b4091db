import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.duplicates import ALL, planted
from pipeline.duplicates import LARGE, SAME, SIDE, Found, find, thumbnail
from pipeline.pixels import PixelSpec, decode
from tests.defects import scene


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def thumbnails(images) -> np.ndarray:
    """From the pixels that a network would see."""
    pixels = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        pixels.append(decode(buffer.getvalue(), PixelSpec(96, 96)))
    return thumbnail(np.stack(pixels))


def names(count: int) -> list[str]:
    return [hashlib.sha256(str(row).encode()).hexdigest() for row in range(count)]


def among(images, embeddings=None) -> Found:
    return find(names(len(images)), embeddings, thumbnails(images))


def vectors(seed: int, count: int) -> np.ndarray:
    """As a network's pooled output: float32 [count, 64], no less than 0."""
    return np.maximum(0, np.random.default_rng(seed).normal(size=(count, 64))).astype(np.float32)


SCENES = [scene(seed) for seed in range(30)]
COPIES = {
    "re-encoded": lambda image: jpeg(image, 30),
    "smaller": lambda image: image.resize((32, 32), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((192, 192), Image.Resampling.LANCZOS),
    "left and top cut off": lambda image: image.crop((10, 10, 128, 128)),
    "one side cut off": lambda image: image.crop((0, 0, 128, 118)),
    "every side cut off": lambda image: image.crop((10, 10, 118, 118)),
    "cut, smaller, re-encoded": lambda image: jpeg(image.crop((4, 9, 120, 124)).resize((64, 64)), 50),
    "darker": lambda image: image.point(lambda value: 10 + value * 0.8),
    "grey": lambda image: image.convert("L"),
}


# -------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind):
    copies = [COPIES[kind](image) for image in SCENES]
    assert among(SCENES + copies).clusters == tuple((row, row + 30) for row in range(30))


def test_unlike_pictures_are_not_taken_for_copies():
    found = among(SCENES, vectors(0, 30))
    assert found == Found((), ())


def test_alike_embeddings_do_not_make_copies():
    assert among(SCENES, np.ones((30, 64), np.float32) + vectors(0, 30) * 1e-3).clusters == ()


def test_embeddings_find_what_edges_would_not(monkeypatch):
    copies = [COPIES["every side cut off"](image) for image in SCENES]
    monkeypatch.setattr("pipeline.duplicates._oriented_gradients", lambda thumbnails: vectors(1, len(thumbnails)))
    embeddings = np.concatenate([vectors(0, 30)] * 2)
    assert len(among(SCENES + copies, embeddings).clusters) == 30
    assert len(among(SCENES + copies).clusters) < 10


def test_pairs_say_why():
    found = find(["a", "b", "a", "c"], None, thumbnails([SCENES[0], SCENES[1], SCENES[0], jpeg(SCENES[0], 50)]))
    assert [(pair.first, pair.second) for pair in found.pairs] == [(0, 2), (0, 3)]
    assert found.pairs[0].why == "identical bytes"
    words, _, correlation = found.pairs[1].why.rpartition(" ")
    assert words == "same picture, correlation"
    assert SAME <= float(correlation) <= 1
    assert found.clusters == ((0, 2, 3),)


def test_no_picture_and_a_single_one():
    assert find([], None, np.empty((0, SIDE, SIDE, 3), np.uint8)) == Found((), ())
    assert find(["a"], vectors(0, 1), thumbnails(SCENES[:1])) == Found((), ())


def test_thumbnails_are_taken_of_any_size():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 50, 3), np.uint8)
    assert thumbnail(images).shape == (2, SIDE, SIDE, 3)
    assert thumbnail(images[:0]).shape == (0, SIDE, SIDE, 3)
    flat = np.full((1, 40, 30, 3), (1, 2, 3), np.uint8)
    assert (thumbnail(flat) == (1, 2, 3)).all()


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(AssertionError, match="expected"):
        find(["a"], None, thumbnails(SCENES[:2]))
    with pytest.raises(AssertionError, match="embeddings"):
        find(["a"], vectors(0, 2), thumbnails(SCENES[:1]))


# ------------------------------------------------------------------------------------------------------------ clusters


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_the_order_of_the_pictures_does_not_matter(data):
    pool = [*SCENES[:6], *(copy(image) for image in SCENES[:2] for copy in COPIES.values()), Image.new("RGB", (9, 9))]
    chosen = data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=24))  # some twice: identical bytes
    order = data.draw(st.permutations(range(len(chosen))))
    small, digests, embeddings = thumbnails([*pool]), names(len(pool)), vectors(2, len(pool))

    def clusters(rows):
        return find([digests[row] for row in rows], embeddings[rows], small[rows]).clusters

    rows = np.array(chosen, int)
    permuted = clusters(rows[np.array(order, int)])
    assert {frozenset(order[place] for place in cluster) for cluster in permuted} == set(map(frozenset, clusters(rows)))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 8), max_size=40))
def test_clusters_are_what_the_pairs_connect(chosen):
    pool = [image for scene in SCENES[:3] for image in (scene, jpeg(scene, 40), scene.crop((5, 5, 128, 128)))]
    found = find([names(9)[row] for row in chosen], None, thumbnails(pool)[np.array(chosen, int)])
    members = [row for cluster in found.clusters for row in cluster]
    assert len(members) == len(set(members))
    assert list(found.clusters) == sorted(found.clusters)
    assert {row for pair in found.pairs for row in pair[:2]} == set(members)
    for cluster in found.clusters:
        assert list(cluster) == sorted(cluster)
        assert len({chosen[row] // 3 for row in cluster}) == 1
        reached = {cluster[0]}
        for _ in cluster:
            reached |= {row for pair in found.pairs for row in pair[:2] if reached & set(pair[:2])}
        assert reached == set(cluster)
    assert list(found.pairs) == sorted(found.pairs)
    assert all(pair.first < pair.second for pair in found.pairs)


def test_more_copies_than_a_picture_has_neighbours_stay_one_cluster():
    # The nearest neighbours of each are its twins alone.
    versions = [SCENES[0], jpeg(SCENES[0], 40), SCENES[1], jpeg(SCENES[1], 40)]
    small = np.repeat(thumbnails(versions), 15, axis=0)
    assert find(names(60), None, small).clusters == (tuple(range(30)), tuple(range(30, 60)))


# -------------------------------------------------------------------------------------------------- what is hardly told


@pytest.mark.parametrize("levels", [1, 2], ids=["black", "nearly black"])
def test_empty_pictures_are_compared_by_their_bytes(levels):
    pixels = np.random.default_rng(0).integers(0, levels, (60, 64, 64, 3)).astype(np.uint8)
    digests = names(60)
    digests[7] = digests[3]
    assert find(digests, None, thumbnail(pixels)).clusters == ((3, 7),)


def test_what_is_too_faint_to_see_is_not_compared():
    faint = [scene.point(lambda value: value // 90) for scene in SCENES for _ in range(2)]
    assert among(faint).clusters == ()


def test_plain_colours_and_noise_are_not_alike():
    random = np.random.default_rng(0)
    plain = np.broadcast_to(random.integers(0, 256, (40, 1, 1, 3), np.uint8), (40, 32, 32, 3))
    noise = random.integers(0, 256, (40, 32, 32, 3), np.uint8)
    assert find(names(80), None, thumbnail(np.concatenate([plain, noise]))).clusters == ()


def test_the_same_shape_in_other_colours_is_another_picture():
    def disc(colour):
        image = Image.new("RGB", (64, 64))
        ImageDraw.Draw(image).ellipse((12, 12, 50, 50), fill=colour)
        return image

    found = among([disc(colour) for colour in ("red", "lime", "blue", "red", "lime", "blue")])
    assert found.clusters == ((0, 3), (1, 4), (2, 5))


def test_chains_of_alike_pictures_do_not_become_one_cluster():
    # A bar turns by about a degree from one picture to the next, so that each is like its neighbours.
    y, x = np.mgrid[:64, :64] - 31.5
    angles = np.linspace(0, np.pi, 150, endpoint=False)
    bars = np.stack([np.abs(x * np.sin(angle) - y * np.cos(angle)) < 5 for angle in angles])
    small = thumbnail(np.repeat(np.uint8(255) * bars[..., None], 3, axis=3))
    clusters = find(names(150), None, small).clusters
    assert max(map(len, clusters)) <= 60
    for cluster in clusters:
        spread = np.abs(np.exp(2j * angles[list(cluster)]).mean())
        assert len(cluster) <= LARGE or spread > 0.8


# --------------------------------------------------------------------------------------------------------- photographs


@pytest.mark.slow
def test_planted_copies_of_photographs_are_found(photographs, imagenet_weights):
    result = planted(photographs, every=12)
    assert result["photographs"] == 34
    assert result["found"] == result["found_without_embeddings"] == dict.fromkeys(ALL, 34)
    assert result["false"] == result["false_without_embeddings"] == []


def test_importing_brings_no_tensorflow():
    code = "import sys, pipeline.duplicates; assert not {'tensorflow', 'keras', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
