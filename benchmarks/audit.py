"""How long `graft data` takes beside decoding the pictures alone, and where the time goes.

    KERAS_HOME=... python -m benchmarks.audit FOLDER [--pictures 10000]

FOLDER holds photographs, looked through recursively. Pictures are made from them in a temporary folder: turned and
mirrored in the eight ways there are, a part of each (45 to 75 % of each side) anywhere in it, enlarged to the
photograph's size, and encoded as JPEG again, so that few show the same. KERAS_HOME holds ImageNet's weights of
MobileNet 0.25, or they are downloaded. Decoding is what a run does of it: reading, and `pixels.decode` on all cores.

Both are measured in processes of their own, Python's start and imports included, the first look with an empty store
and the second with what the first one left. Processor time is less disturbed by what else the machine does.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.parallel import WORKERS
from pipeline.pixels import PixelSpec, decode

MOST_TIMES = 3.0
TURNS = (None, *Image.Transpose)
CONFIG = """\
name: audit
data: {{source: folder, path: {path}, augment: {{flip: horizontal}}}}
backbone: {{name: mobilenet, options: {{alpha: 0.25}}}}
output_dir: {out}
"""


def made(photographs: Path, folder: Path, count: int) -> None:
    """Makes `count` JPEGs in the photographs' class folders; the same ones each time."""
    originals = []
    for path in sorted(path for path in photographs.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as image:
                originals.append((path, image.size))
        except UnidentifiedImageError:
            continue

    def make(number: int) -> None:
        draw = random.Random(number)
        path, (width, height) = originals[number % len(originals)]
        share = draw.uniform(0.45, 0.75)
        left, top = draw.uniform(0, 1 - share) * width, draw.uniform(0, 1 - share) * height
        with Image.open(path) as image:
            box = (left, top, left + share * width, top + share * height)
            part = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box)
        turn = TURNS[number // len(originals) % len(TURNS)]
        part = part if turn is None else part.transpose(turn)
        stream = io.BytesIO()
        part.save(stream, "JPEG", quality=draw.randint(80, 92))
        (folder / path.parent.name / f"{number}.jpg").write_bytes(stream.getvalue())

    for path, _ in originals:
        (folder / path.parent.name).mkdir(exist_ok=True, parents=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(make, range(count)):
            pass


def decoded(folder: Path) -> int:
    """Reads and decodes all pictures of a folder on all cores: how many there were."""
    paths = sorted(folder.rglob("*.jpg"))
    spec = PixelSpec(224, 224)

    def one(path: Path) -> int:
        return len(decode(path.read_bytes(), spec))

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(height == spec.height for height in pool.map(one, paths))


def measured(*command: str) -> tuple[float, float, list[tuple[float, str]]]:
    """Runs a command: wall-clock seconds, processor seconds, and each line of its standard error with its time."""
    before, start = os.times(), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [(time.monotonic() - start, line.strip()) for line in process.stderr]
        if process.wait() != 0:
            raise SystemExit("\n".join(line for _, line in lines))
    wall, after = time.monotonic() - start, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, processor, lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.decode:
        return int(decoded(arguments.folder) == 0)
    with tempfile.TemporaryDirectory() as scratch:
        folder, config = Path(scratch) / "pictures", Path(scratch) / "audit.yaml"
        made(arguments.folder, folder, arguments.pictures)
        config.write_text(CONFIG.format(path=json.dumps(str(folder)), out=json.dumps(f"{scratch}/runs")))
        floor = measured(sys.executable, "-m", "benchmarks.audit", str(folder), "--decode")
        print(f"{arguments.pictures} pictures       seconds  processor seconds  times decoding")
        print(f"{'decoding':20}{floor[0]:10.1f}{floor[1]:19.1f}")
        looks = []
        for name in ("first look", "second look"):
            look = measured(sys.executable, "-m", "pipeline", "data", str(config))
            looks.append(look[0] / floor[0])
            print(f"{name:20}{look[0]:10.1f}{look[1]:19.1f}{looks[-1]:12.2f} ({look[1] / floor[1]:.2f} of processor)")
            for seconds, line in look[2]:
                print(f"    {seconds:6.1f} s  {line}")
    return int(looks[0] > MOST_TIMES)


if __name__ == "__main__":
    sys.exit(main())
