"""Finds the pictures of a data set that show the same: copies of the same bytes, and copies that were re-encoded,
resized or cropped a little. NumPy, SciPy and scikit-learn, no TensorFlow.

    candidates      each picture's nearest neighbours by two descriptors: where in it edges of which direction lie, and
                    the pretrained network's embedding. They cost little and find too many.
    verification    the two pictures are laid over one another, as one may be a crop of the other, and compared. This
                    alone decides.
    clusters        what the confirmed pairs connect. Where pictures are so alike that chains of pairs connect unlike
                    ones, pairs must be closer.

What is compared are the two pictures' gradients, where they overlap. That leaves out what unlike pictures share, such
as a bright sky above dark ground: copies correlate by more than 0.97, other photographs of the same kind by less than
0.75. A thumbnail shows no small details, so that a screenshot with another word in it may pass for a copy. A picture in
which next to nothing is to be seen, such as a black frame, is compared by its bytes alone.

Perceptual hashes serve less well to find candidates: where 8 % are cut off two sides, the signs of the lowest 63
frequencies may differ in as many places as those of unrelated pictures.

Shape letters: N pictures, n some of them, P pairs, S side of a thumbnail, D length of a descriptor.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from pipeline.parallel import WORKERS
from pipeline.pixels import LUMA

SIDE = 32  # S
SAME = 0.96  # the correlation from which two pictures show the same
COLOURS = 0.8  # the same of their colours, which compression coarsens
LARGE = 20  # a cluster of more pictures must be tight: this share of them shows the same as the one with most pairs
TIGHT = 0.5

_NEIGHBOURS = 8  # of each picture, by each descriptor
_LEAST_COSINE = 0.5  # of candidates' descriptors
# The mean of the cosines, below which no candidate is looked at: half of them lie below. Of 1,445 pairs that show the
# same, among 10,000 parts of photographs, none is below 0.37.
_LEAST_MEAN = 0.35
_BLOCK = 1024  # pictures or pairs at once: below 100 MB for each thread

_CELLS, _DIRECTIONS = 4, 8  # of the histograms of oriented gradients
_BLUR = 1.0  # standard deviation in pixels of a thumbnail, so that interpolation between them changes little
_NOISE = 0.25  # grey levels per pixel: gradients that rounding and compression leave in an empty picture

# Where one picture may lie in the other. Coordinates run from -1 to 1 across a thumbnail. 8 % cut off two opposite
# sides enlarge by 1.19; 8 % cut off one side of a picture twice as wide as high move the centre crop by 0.2.
_LARGEST_SCALE, _LARGEST_SHIFT = 1.25, 0.35
_COARSE_SCALES = np.geomspace(1 / 1.19, 1.19, 5)
_COARSE_POINTS, _COARSE_STEP, _COARSE_REACH = 10, 0.14, 2  # a grid of 10 × 10 points, moved by up to 2 steps
_LEAST_COARSE = 0.65  # correlation of luminance, below which no closer look is taken
# The same of gradients after two steps, below which no more are taken. Of 3,000 pairs of planted copies of
# photographs the lowest is 0.73; of unlike photographs that passed the first look, 19 of 20 are below 0.61.
_LEAST_SKETCHED = 0.6
_LEAST_FINE = 0.7  # of gradients, one way, below which the other way is left out
_STEPS = 6  # of Gauss-Newton

_PIXELS = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1).astype(np.float32)  # their centres


class Pair(NamedTuple):
    """Two pictures that show the same, by their rows, first < second, and why this is thought."""

    first: int
    second: int
    why: str


@dataclass(frozen=True)
class Found:
    """What `find` found.

    Attributes:
        pairs: ascending. Of several pictures with the same bytes, the first is paired with each of the others.
        clusters: what the pairs connect: ascending rows, two or more, by ascending first row.
    """

    pairs: tuple[Pair, ...]
    clusters: tuple[tuple[int, ...], ...]


def thumbnail(images: np.ndarray) -> np.ndarray:
    """What `find` compares: uint8 [n, S, S, 3] of pictures as the network sees them, uint8 [n, H, W, 3], RGB."""
    small = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for row, image in enumerate(images):
        small[row] = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return small


def find(digests: Sequence[str], embeddings: np.ndarray | None, thumbnails: np.ndarray) -> Found:
    """The pictures that show the same. The order of the pictures does not matter.

    Args:
        digests: N SHA-256 hex digests of the encoded bytes.
        embeddings: float [N, D], the pretrained network's pooled output; None where there is no such network.
        thumbnails: uint8 [N, S, S, 3], from `thumbnail`.
    """
    shape = (len(digests), SIDE, SIDE, 3)
    assert thumbnails.shape == shape, f"thumbnails {thumbnails.shape}, expected {shape}"
    assert embeddings is None or len(embeddings) == len(digests), f"{len(embeddings)} embeddings of {len(digests)}"
    copies: dict[str, list[int]] = {}
    for row, digest in enumerate(digests):
        copies.setdefault(digest, []).append(row)
    pairs = [Pair(rows[0], row, "identical bytes") for rows in copies.values() for row in rows[1:]]
    # By digest, so that neither rounding nor ties depend on the order of the pictures.
    firsts = np.array([copies[digest][0] for digest in sorted(copies)], np.int64)
    near, correlations = _near(thumbnails[firsts], None if embeddings is None else embeddings[firsts])
    for (first, second), correlation in zip(np.sort(firsts[near], axis=1).tolist(), correlations, strict=True):
        pairs.append(Pair(first, second, f"same picture, correlation {correlation:.3f}"))
    pairs.sort()
    edges = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    clusters = sorted(tuple(rows.tolist()) for rows in _components(edges, len(digests)))
    return Found(tuple(pairs), tuple(clusters))


def _near(thumbnails: np.ndarray, embeddings: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that show the same, int [P, 2], and their correlations, float [P]."""
    if len(thumbnails) < 2:
        return np.empty((0, 2), np.int64), np.empty(0)
    luminance = _in_blocks(lambda block: _blurred(block @ LUMA), thumbnails)
    descriptors = [_in_blocks(_oriented_gradients, luminance)]
    if embeddings is not None:
        descriptors.append(embeddings.astype(np.float32))
    directions = [_directions(values) for values in descriptors]
    rows, rounds = np.arange(len(thumbnails)), []
    while len(rows) > 1:
        pairs = rows[np.unique(np.concatenate([_neighbours(values[rows]) for values in descriptors]), axis=0)]
        pairs = pairs[_in_blocks(partial(_similar, directions), pairs) >= _LEAST_MEAN]
        correlations = _correlations(thumbnails, luminance, pairs)
        rounds.append((pairs, correlations))
        same = pairs[correlations >= SAME]
        # Of a picture all of whose neighbours show the same there may be more: one picture of its cluster goes on.
        full = np.bincount(same.ravel(), minlength=len(thumbnails)) >= _NEIGHBOURS
        rows = np.sort([cluster[0] for cluster in _components(same, len(thumbnails)) if full[cluster].any()])
        rows = rows.astype(np.int64)
    pairs, correlations = (np.concatenate(part) for part in zip(*rounds, strict=True))
    kept = _tight(thumbnails, luminance, pairs, correlations)
    return pairs[kept], correlations[kept]


def _tight(thumbnails: np.ndarray, luminance: np.ndarray, pairs: np.ndarray, correlations: np.ndarray) -> np.ndarray:
    """Which pairs are kept, bool [P]: those above SAME, and fewer where they make a large and loose cluster.

    Frames of a film, or plain shapes, change little by little until they have nothing in common. There the correlation
    that is asked for comes closer to 1, by halves, until what remains connected is small, or shows the same.
    """
    asked, kept = SAME, correlations >= SAME
    while True:
        loose = np.zeros(len(thumbnails), bool)
        for rows in _components(pairs[kept], len(thumbnails)):
            if len(rows) > LARGE:
                inside = kept & np.isin(pairs[:, 0], rows)
                centre = np.bincount(pairs[inside].ravel()).argmax()  # has the most pairs
                others = rows[rows != centre]
                beside = np.stack([np.full_like(others, centre), others], axis=1)
                loose[rows] = (_correlations(thumbnails, luminance, beside) >= SAME).mean() < TIGHT
        if not loose.any():
            return kept
        asked = (1 + asked) / 2
        kept &= ~loose[pairs[:, 0]] | (correlations >= asked)


def _components(edges: np.ndarray, pictures: int) -> list[np.ndarray]:
    """Ascending rows of the pictures that are connected by edges, int [P, 2], for each two or more of them."""
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(pictures, pictures))
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return [part for part in parts if len(part) > 1]


# ---------------------------------------------------------------------------------------------------------- candidates


def _oriented_gradients(luminance: np.ndarray) -> np.ndarray:
    """Histograms of the gradients' directions in 4 × 4 cells of pictures, float32 [n, S, S]: float32 [n, 128], zeros
    where nothing is to be seen.

    After Dalal and Triggs (2005), over the whole picture. The square root lessens the weight of the strongest edges.
    """
    places = (np.arange(SIDE) + 0.5) / SIDE * _CELLS - 0.5
    cells = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(_CELLS))).astype(np.float32)
    down, across = np.gradient(luminance, axis=(1, 2))
    strength = np.hypot(down, across)
    direction = np.arctan2(down, across) / (2 * np.pi) * _DIRECTIONS
    histograms = []
    for centre in range(_DIRECTIONS):
        away = np.abs((direction - centre + _DIRECTIONS / 2) % _DIRECTIONS - _DIRECTIONS / 2)
        histograms.append(cells.T @ (strength * np.maximum(0, 1 - away)) @ cells)
    return np.asarray(np.sqrt(unit(np.stack(histograms, axis=-1).reshape(len(luminance), -1))), np.float32)


def _directions(descriptors: np.ndarray) -> np.ndarray:
    """Where descriptors, float32 [n, D], lie from their mean: float32 [n, D], of length 1."""
    return unit(descriptors - descriptors.mean(axis=0, dtype=np.float64).astype(np.float32))


def _neighbours(descriptors: np.ndarray) -> np.ndarray:
    """Pairs of pictures with similar descriptors, float32 [n, D]: int [P, 2], ascending in each pair."""
    directions = _directions(descriptors)
    count = min(_NEIGHBOURS, len(directions) - 1)
    distances, neighbours = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(directions).kneighbors()
    rows, places = np.nonzero(distances**2 <= 2 - 2 * _LEAST_COSINE)
    return np.sort(np.stack([rows, neighbours[rows, places]], axis=1), axis=1)


def _similar(directions: list[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """The mean of the cosines between two pictures' descriptors, for pairs int [P, 2]: float32 [P]."""
    cosines = [np.einsum("pd,pd->p", values[pairs[:, 0]], values[pairs[:, 1]]) for values in directions]
    return np.asarray(np.mean(cosines, axis=0))


def unit(vectors: np.ndarray) -> np.ndarray:
    """float [..., D]: the same vectors at length 1, but for those of next to no length, which stay as short."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6))


# -------------------------------------------------------------------------------------------------------- verification


def _correlations(thumbnails: np.ndarray, luminance: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """How alike two pictures are, for pairs int [P, 2]: float [P], -1 to 1, and 0 where a first look says no.

    Args:
        thumbnails: uint8 [N, S, S, 3].
        luminance: of them, blurred: float32 [N, S, S].
        pairs: of their rows.
    """

    def of_block(block: np.ndarray) -> np.ndarray:
        result = np.zeros(len(block))
        still, moved = luminance[block[:, 0]], luminance[block[:, 1]]
        places, similar = _coarse(still, moved)
        rows = np.flatnonzero(similar >= _LEAST_COARSE)
        rows = rows[_sketched(still[rows], moved[rows], places[rows]) >= _LEAST_SKETCHED]
        if not len(rows):
            return result
        first, second = (_with_luminance(thumbnails[block[rows, side]]) for side in (0, 1))
        there = _correlation(first, second, places[rows])
        # The better of the two directions: a picture that has to be enlarged becomes less like its original.
        near = np.flatnonzero(there >= _LEAST_FINE)
        if len(near):
            scale, shift = places[rows[near], :1], places[rows[near], 1:]
            back = np.concatenate([1 / scale, -shift / scale], axis=1)
            there[near] = np.maximum(there[near], _correlation(second[near], first[near], back))
        result[rows] = there
        return result

    return _in_blocks(of_block, pairs)


def _in_blocks(compute: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """What `compute` gives for rows [n, ...]: [n, ...], computed for a block of them on each core; [0] for none."""
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    # The threads are ours: BLAS's own would fight with them.
    with ThreadPoolExecutor(WORKERS) as pool, threadpool_limits(1):
        return np.concatenate(list(pool.map(compute, blocks)) or [np.zeros(0)])


def _blurred(images: np.ndarray) -> np.ndarray:
    """float32 [..., S, S]."""
    return np.asarray(gaussian_filter(images.astype(np.float32), _BLUR, axes=(-2, -1)))


def _with_luminance(thumbnails: np.ndarray) -> np.ndarray:
    """Red, green, blue and luminance, blurred: float32 [n, 4, S, S]."""
    images = np.concatenate([thumbnails, (thumbnails @ LUMA)[..., None]], axis=-1)
    return _blurred(images.transpose(0, 3, 1, 2))


def _sketched(still: np.ndarray, moved: np.ndarray, places: np.ndarray) -> np.ndarray:
    """About what `_correlation` will be, float [P], for luminances float32 [P, S, S]: after two steps, in grey."""
    if not len(places):
        return np.zeros(0)
    down, across = _grids(_refined(still, moved, places, steps=2))
    laid = _weights(down) @ moved @ _weights(across).swapaxes(1, 2)
    inside = _inside(down, across, margin=3 / SIDE)
    ours, theirs = (np.stack(np.gradient(images, axis=(1, 2)), axis=1) for images in (still, laid))
    product, energy, other = (
        np.einsum("pgyx,pgyx,pyx->p", a, b, inside, optimize=True)
        for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))
    )
    noise = _NOISE**2 * np.maximum(inside.sum(axis=(1, 2)), 1)
    return np.asarray(product / np.sqrt((energy + noise) * (other + noise)))


def _correlation(still: np.ndarray, moved: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The correlation of gradients, float [P], once the moved picture is laid on the still one.

    It is that of luminance; where the colours, with the same gain for all, correlate less than COLOURS, it is theirs.

    Args:
        still: float32 [P, 4, S, S], from `_with_luminance`.
        moved: the same.
        places: float32 [P, 3], about where the still picture lies in the moved one; see `_coarse`.
    """
    down, across = _grids(_refined(still[:, 3], moved[:, 3], places, _STEPS))
    laid = _weights(down)[:, None] @ moved @ _weights(across)[:, None].swapaxes(2, 3)
    inside = _inside(down, across, margin=3 / SIDE)[:, None]  # as a gradient reaches to the next pixels
    ours, theirs = (np.stack(np.gradient(images, axis=(2, 3)), axis=2) for images in (still, laid))
    noise = _NOISE**2 * np.maximum(inside.sum(axis=(2, 3)), 1)
    product, energy, other = (
        np.einsum("pcgyx,pcgyx,pyx->pc", a, b, inside[:, 0], optimize=True)
        for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))
    )
    energy, other = energy + noise, other + noise
    luminance = product[:, 3] / np.sqrt(energy[:, 3] * other[:, 3])
    colours = product[:, :3].sum(axis=1) / np.sqrt(energy[:, :3].sum(axis=1) * other[:, :3].sum(axis=1))
    return np.asarray(np.where(colours < COLOURS, np.minimum(luminance, colours), luminance))


def _coarse(still: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best of some places, float32 [P, 3], and its correlation, float32 [P], for luminances float32 [P, S, S].

    A place (scale, x, y) says that what is at u in the first picture is at scale · u + (x, y) in the second.
    """
    pairs, points, reach = len(still), _COARSE_POINTS, _COARSE_REACH
    grid = ((np.arange(points + 2 * reach) - (points + 2 * reach - 1) / 2) * _COARSE_STEP).astype(np.float32)
    middle = _weights(grid[reach:-reach])
    template = (middle @ still @ middle.T).reshape(pairs, -1)
    template = unit(template - template.mean(axis=1, keepdims=True))
    best, places = np.full(pairs, -1, np.float32), np.zeros((pairs, 3), np.float32)
    for scale in _COARSE_SCALES:
        weights = _weights((scale * grid).astype(np.float32))
        windows = np.lib.stride_tricks.sliding_window_view(weights @ moved @ weights.T, (points, points), axis=(1, 2))
        for y, x in np.ndindex(windows.shape[1:3]):
            window = windows[:, y, x].reshape(pairs, -1)
            spread = np.sqrt(points**2 * np.maximum(window.var(axis=1), 1e-2))
            similar = np.einsum("pi,pi->p", window, template) / spread
            better = similar > best
            best[better] = similar[better]
            places[better] = scale, scale * (x - reach) * _COARSE_STEP, scale * (y - reach) * _COARSE_STEP
    return places, best


def _refined(still: np.ndarray, moved: np.ndarray, places: np.ndarray, steps: int) -> np.ndarray:
    """Places at which the luminances differ least, after any gain and offset: Lucas and Kanade (1981)."""
    pairs = len(still)
    for _ in range(steps):
        down, across = _grids(places)
        laid = _weights(down) @ moved @ _weights(across).swapaxes(1, 2)
        inside = _inside(down, across, margin=1 / SIDE).reshape(pairs, 1, -1)
        # The gradient of what is laid there, by the place's x and y.
        by_y, by_x = (slope * (SIDE / 2 / places[:, 0, None, None]) for slope in np.gradient(laid, axis=(1, 2)))
        by_scale = by_x * _PIXELS + by_y * _PIXELS[:, None]
        rows = np.stack([by_scale, by_x, by_y, laid, np.ones_like(laid)], axis=1).reshape(pairs, 5, -1)
        weighted = rows * inside
        normal = weighted @ rows.swapaxes(1, 2) + np.eye(5, dtype=np.float32)  # the identity: flat pictures stay put
        solution = np.linalg.solve(normal.astype(np.float64), weighted @ still.reshape(pairs, -1, 1))[:, :, 0]
        step = solution[:, :3] / np.maximum(solution[:, 3:4], 0.2)  # the gain was in the gradients too
        places = (places + np.clip(step, -0.06, 0.06)).astype(np.float32)
        places[:, 0] = places[:, 0].clip(1 / _LARGEST_SCALE, _LARGEST_SCALE)
        places[:, 1:] = places[:, 1:].clip(-_LARGEST_SHIFT, _LARGEST_SHIFT)
    return places


def _grids(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rows and columns of the first picture lie in the second: float32 [P, S] each."""
    scale, x, y = places.T[:, :, None]
    return scale * _PIXELS + y, scale * _PIXELS + x


def _weights(points: np.ndarray) -> np.ndarray:
    """Of a thumbnail's pixels, for linear interpolation at points float32 [..., p]: float32 [..., p, S]."""
    pixels = ((points + 1) / 2 * SIDE - 0.5).clip(0, SIDE - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(pixels[..., None] - np.arange(SIDE, dtype=np.float32))))


def _inside(down: np.ndarray, across: np.ndarray, margin: float) -> np.ndarray:
    """1 where the second picture lies under the first, else 0: float32 [P, S, S]."""
    rows, columns = ((np.abs(points) <= 1 - margin + 1e-4).astype(np.float32) for points in (down, across))
    return np.asarray(rows[:, :, None] * columns[:, None, :])
