"""Which planted copies of photographs pipeline/duplicates.py finds, and which photographs it takes for copies wrongly.

    KERAS_HOME=... python -m benchmarks.duplicates FOLDER

FOLDER holds photographs of which none shows the same as another. KERAS_HOME holds ImageNet's weights of MobileNet 0.25,
or they are downloaded. Five minutes for 400 photographs on two cores.
"""

import argparse
import hashlib
import io
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import duplicates
from pipeline.pixels import BadImage, PixelSpec, decode

SPEC = PixelSpec(224, 224)
WORKERS, BATCH = 2, 16  # photographs at once
MOST = 0.08  # of the width or height, cut off one side


def encoded(image: Image.Image, format: str, **options: int) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def resized(image: Image.Image, factor: float) -> Image.Image:
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0) -> Image.Image:
    """Without these fractions of its width and height."""
    width, height = image.size
    box = left * width, top * height, width - right * width, height - bottom * height
    return image.crop(tuple(round(edge) for edge in box))


def at_random(image: Image.Image, draw: random.Random) -> Image.Image:
    """2 to 8 % cut off each of one to four sides."""
    sides = draw.sample(("left", "top", "right", "bottom"), draw.randint(1, 4))
    return cropped(image, **{side: draw.uniform(0.02, MOST) for side in sides})


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG", compress_level=1)


def jpeg(image: Image.Image, quality: int) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def webp(image: Image.Image, quality: int) -> bytes:
    return encoded(image, "WEBP", quality=quality)


KINDS: dict[str, Callable[[Image.Image, random.Random], bytes]] = {
    "JPEG, quality 95": lambda image, draw: jpeg(image, 95),
    "JPEG, quality 75": lambda image, draw: jpeg(image, 75),
    "JPEG, quality 50": lambda image, draw: jpeg(image, 50),
    "JPEG, quality 30": lambda image, draw: jpeg(image, 30),
    "WebP, quality 80": lambda image, draw: webp(image, 80),
    "PNG": lambda image, draw: png(image),
    "resized to 50 %": lambda image, draw: png(resized(image, 0.5)),
    "resized to 25 %": lambda image, draw: png(resized(image, 0.25)),
    "resized to 150 %": lambda image, draw: png(resized(image, 1.5)),
    "2 to 8 % cut off random sides": lambda image, draw: png(at_random(image, draw)),
    "8 % cut off the left and the top": lambda image, draw: png(cropped(image, left=MOST, top=MOST)),
    "8 % cut off every side": lambda image, draw: png(cropped(image, MOST, MOST, MOST, MOST)),
    "25 %, JPEG, quality 30": lambda image, draw: jpeg(resized(image, 0.25), 30),
    "50 %, WebP, quality 50": lambda image, draw: webp(resized(image, 0.5), 50),
    "cut at random, 50 %, JPEG, quality 50": lambda image, draw: jpeg(resized(at_random(image, draw), 0.5), 50),
}
EXACT = "exact"
ALL = [EXACT, *KINDS]


def copies(data: bytes) -> list[bytes]:
    """A photograph's copies, one of each kind; the same ones each time."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    draw = random.Random(hashlib.sha256(data).digest())
    return [data, *(make(image, draw) for make in KINDS.values())]


def planted(folder: Path, every: int = 1) -> dict[str, Any]:
    """Plants copies of each kind among the photographs and looks for them, with and without embeddings.

    Args:
        folder: of photographs, looked through recursively. What is no picture is passed over.
        every: 1 for all photographs, 10 for each tenth.

    Returns:
        photographs: how many.
        found: by kind, how many have their copy in their cluster.
        found_without_embeddings: the same.
        false: names of the photographs that were ever in a cluster with another one.
        false_without_embeddings: the same.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and _is_picture(path))[::every]
    digests, thumbnails, embeddings = _described(paths)
    count = len(paths)
    result: dict[str, Any] = {"photographs": count}
    for suffix, with_embeddings in (("", True), ("_without_embeddings", False)):
        found, false = {}, set()
        for kind, name in enumerate(ALL):
            both = [0, kind]
            clusters = duplicates.find(
                digests[both].ravel().tolist(),
                np.concatenate(embeddings[both]) if with_embeddings else None,
                np.concatenate(thumbnails[both]),
            ).clusters
            cluster = {row: rows for rows in clusters for row in rows}
            found[name] = sum(row + count in cluster.get(row, ()) for row in range(count))
            for rows in clusters:
                photographs = {row % count for row in rows}
                false |= photographs if len(photographs) > 1 else set()
        result |= {f"found{suffix}": found, f"false{suffix}": sorted(paths[row].name for row in false)}
    return result


def _is_picture(path: Path) -> bool:
    try:
        decode(path.read_bytes(), SPEC)
    except BadImage:
        return False
    return True


def _described(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `find` asks for, by kind of copy: [K, N] digests, [K, N, S, S, 3] thumbnails and [K, N, D] embeddings."""
    embed = _network()
    digests, thumbnails, embeddings = [], [], []

    def copied(path: Path) -> tuple[list[str], np.ndarray]:
        versions = copies(path.read_bytes())
        pixels = np.stack([decode(data, SPEC) for data in versions])
        return [hashlib.sha256(data).hexdigest() for data in versions], pixels

    with ThreadPoolExecutor(WORKERS) as workers:
        for start in range(0, len(paths), BATCH):
            for names, pixels in workers.map(copied, paths[start : start + BATCH]):
                digests.append(names)
                thumbnails.append(duplicates.thumbnail(pixels))
                embeddings.append(embed(pixels))
    return np.array(digests).T, np.stack(thumbnails, axis=1), np.stack(embeddings, axis=1)


def _network() -> Callable[[np.ndarray], np.ndarray]:
    """From pixels, uint8 [n, 224, 224, 3], to MobileNet 0.25's pooled output, float32 [n, 256]."""
    import keras

    from pipeline.backbones import BACKBONES
    from pipeline.backbones.normalise import Normalise

    row = BACKBONES["mobilenet"]
    features = row.build(input_shape=(SPEC.height, SPEC.width, 3), weights="imagenet", alpha=0.25)
    network = keras.Sequential([Normalise(row.contract), features, keras.layers.GlobalAveragePooling2D()])
    return lambda pixels: np.asarray(network(pixels, training=False))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    result = planted(parser.parse_args().folder)
    count = result["photographs"]
    print(f"{'copies of ' + str(count) + ' photographs':40} found  without embeddings")
    for kind, found in result["found"].items():
        print(f"{kind:40} {found:5} {result['found_without_embeddings'][kind]:11}")
    for words, key in (("taken for a copy wrongly", "false"), ("without embeddings", "false_without_embeddings")):
        print(f"{words}: {len(result[key])} {' '.join(result[key])}")
    missed = any(found < count for key in ("found", "found_without_embeddings") for found in result[key].values())
    return int(missed or max(len(result["false"]), len(result["false_without_embeddings"])) > 0.01 * count)


if __name__ == "__main__":
    sys.exit(main())
