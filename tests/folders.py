"""Folders of small pictures, made of a mapping of paths to contents."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(*seed: int) -> bytes:
    """A small picture of its own content for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def plant(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def class_folders(count: int, start: int = 0, within: str = "") -> dict[str, bytes]:
    return {
        f"{within}{label}/{i}.png": picture(i, seed)
        for seed, label in enumerate(("ants", "bees"))
        for i in range(start, start + count)
    }
