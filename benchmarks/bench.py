"""Graft beside two recipes for transfer learning, on the same photographs: `make bench` writes docs/benchmarks.md.

    KERAS_HOME=../shared/keras python -m benchmarks.bench

Every contender runs in a process of its own, in turns, once for each of five seeds. PyTorch needs the extra `bench`.
Half an hour on two cores.
"""

import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.document import write_part

PHOTOGRAPHS = Path("../shared/data/hymenoptera")
SEEDS = range(5)
PICTURES = 10_000
NEW = PICTURES // 100
LARGE = {"pipeline", "all", "new", "again", "memory", "memory-ten-times"}  # measured for the first seeds only
LARGE_SEEDS = range(3)

HEAD = "[{epochs: 10, learning_rate: 1e-3, unfreeze: head}]"
LAST_TWO = "[{epochs: 4, learning_rate: 1e-5, unfreeze: {blocks: 2}}]"
TWO_PHASES = (
    "[{epochs: 10, learning_rate: 5e-3, unfreeze: head, schedule: cosine},"
    " {epochs: 10, learning_rate: 1e-4, unfreeze: {fraction: 0.3}, schedule: cosine}]"
)
TWO_EPOCHS = "[{epochs: 2, learning_rate: 1e-3, unfreeze: {blocks: 2}}]"

Runs = dict[str, list[dict[str, Any]]]


def commands(seed: int, folder: Path, many: Path) -> dict[str, list[str]]:
    """What runs in one repetition, in this order; `folder` is empty, `many` holds the multiplied photographs."""
    splits = [f"--train={PHOTOGRAPHS}/train", f"--validation={PHOTOGRAPHS}/val", f"--seed={seed}"]
    multiplied = [f"--train={many}", f"--validation={PHOTOGRAPHS}/val", f"--seed={seed}"]
    guide = ["benchmarks.rivals.keras_guide", *splits]
    tutorial = ["benchmarks.rivals.pytorch_tutorial", *splits, "--fine-tune-epochs=0"]
    ours = ["benchmarks.ours", "train", *splits]
    every = {
        "guide": guide,
        "guide, no cache": [*guide, "--no-cache"],
        "tutorial": tutorial,
        "head": [*ours, f"--phases={HEAD}", f"--cache={folder}/head"],
        "head, filled": [*ours, f"--phases={HEAD}", f"--cache={folder}/head"],
        "head, 8 views": [*ours, f"--phases={HEAD}", f"--cache={folder}/views", "--views=8"],
        "last two blocks": [*ours, f"--phases={LAST_TWO}", f"--cache={folder}/blocks"],
        "two phases": [*ours, f"--phases={TWO_PHASES}", f"--cache={folder}/phases"],
        "two phases, filled": [*ours, f"--phases={TWO_PHASES}", f"--cache={folder}/phases"],
        "pipeline": ["benchmarks.ours", "pipeline", *multiplied, f"--count={PICTURES // 4}", f"--cache={folder}/p"],
        "all": ["benchmarks.ours", "embed", *multiplied, f"--count={PICTURES}", f"--cache={folder}/many"],
        "new": ["benchmarks.ours", "embed", *multiplied, f"--count={PICTURES + NEW}", f"--cache={folder}/many"],
        "again": ["benchmarks.ours", "embed", *multiplied, f"--count={PICTURES + NEW}", f"--cache={folder}/many"],
    }
    for name in ("guide", "guide, no cache"):
        every[f"{name}, last two blocks"] = [
            *every[name], "--frozen-epochs=0", "--fine-tune-epochs=4", "--unfreeze=last-two-blocks",
        ]  # fmt: skip
    for name, count in (("memory", PICTURES // 10), ("memory-ten-times", PICTURES)):
        every[name] = [
            "benchmarks.ours", "train", *multiplied, f"--phases={TWO_EPOCHS}", f"--count={count}",
            f"--cache={folder}/{name}",
        ]  # fmt: skip
    torch = importlib.util.find_spec("torch") is not None
    return {name: command for name, command in every.items() if torch or not name.startswith("tutorial")}


def call(command: list[str]) -> dict[str, Any]:
    """A module's last line of standard output."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def multiply(folder: Path, count: int) -> None:
    """JPEGs like the photographs, each nine tenths of one's sides, cut at random, every other one mirrored."""
    photographs = sorted((PHOTOGRAPHS / "train").glob("*/*.jpg"))
    random = np.random.default_rng(0)
    for number in range(count):
        path = photographs[number % len(photographs)]
        target = folder / path.parent.name / f"{number:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = round(image.width * 0.9), round(image.height * 0.9)
        left, top = (int(random.integers(rest + 1)) for rest in (image.width - width, image.height - height))
        image = image.crop((left, top, left + width, top + height))
        (ImageOps.mirror(image) if number % 2 else image).save(target, quality=90)


def measure() -> Runs:
    runs: Runs = defaultdict(list)
    with TemporaryDirectory() as scratch:
        many = Path(scratch) / "many"
        multiply(many, PICTURES + NEW)
        for seed in SEEDS:
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            for name, command in commands(seed, folder, many).items():
                if name in LARGE and seed not in LARGE_SEEDS:
                    continue
                runs[name].append(call(command))
                print(f"{seed} {name}: {json.dumps(runs[name][-1])[:200]}", flush=True)
            shutil.rmtree(folder)
    return runs


# ------------------------------------------------------------------------------------------------------------ the page

Result = dict[str, Any]


def frozen(run: Result) -> float:
    """Seconds of the frozen phase, from the folders on."""
    return float(run["frozen_seconds"])


def whole(run: Result) -> float:
    return float(run["total_seconds"] if "total_seconds" in run else run["seconds"])


def one_epoch(run: Result) -> float:
    """The median fine-tuning epoch after the first, in which everything is compiled."""
    return statistics.median((run.get("fine_tune_epoch_seconds") or run["epoch_seconds"])[1:])


def spread(values: Iterable[float], digits: int = 1) -> str:
    """The median, and from which value to which."""
    values = sorted(values)
    return f"**{statistics.median(values):.{digits}f}** ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def page(runs: Runs) -> str:
    rivals = {"the guide, without its cache": "guide, no cache", "the guide": "guide", "the tutorial": "tutorial"}
    rivals = {title: name for title, name in rivals.items() if name in runs}

    def times(what: str, asked: str, ours: str, its: Callable[[Result], float], our: Callable[[Result], float]) -> str:
        blocks = its is one_epoch
        cells = []
        for name in rivals.values():
            if name == "tutorial" and its is not frozen:  # Measured with frozen layers alone.
                cells.append("")
                continue
            measured = runs[f"{name}, last two blocks" if blocks else name]
            cells.append(spread(its(a) / our(b) for a, b in zip(measured, runs[ours], strict=True)))
        return f"| {what} | {asked} | {' | '.join(cells)} |"

    def contender(what: str, name: str, seconds: Callable[[Result], float]) -> str:
        accuracies = [run.get("accuracy") for run in runs[name]]
        return f"| {what} | {spread(map(seconds, runs[name]))} | {spread(accuracies, 3)} |"

    def embedding(run: Result) -> float:
        return float(run["seconds"]) - hashing

    def after_head(name: str) -> str:
        return f"{spread(map(frozen, runs[name]))} | {spread((run['accuracy_frozen'] for run in runs[name]), 3)} |"

    everything, new = runs["all"], runs["new"]
    hashing = statistics.median(run["ingest_seconds"] for run in runs["again"])
    pipeline, small, large = runs["pipeline"], runs["memory"], runs["memory-ten-times"]
    ideal = [1 / (1 / run["decode"] + 1 / run["forward"]) for run in pipeline]
    versions = {name: version(name) for name in ("tensorflow", "keras", "openvino", "numpy", "pillow")}
    versions |= {"torch": version("torch")} if "tutorial" in runs else {}
    return f"""# Benchmarks

Written by `make bench`. Graft beside two recipes as their own documentation gives them: Keras's guide
[Transfer learning & fine-tuning](https://keras.io/guides/transfer_learning/) and PyTorch's
[Transfer Learning for Computer Vision Tutorial](https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html).
All train MobileNet 0.25 at 224 pixels from Keras's ImageNet weights on the 244 training photographs of ants and bees,
in batches of 32, and validate on the other 153 after each epoch. Counted is everything from the folders to the trained
network: reading, decoding, compiling, training, validating. Not counted are imports, and building the network with its
weights. An epoch of the last two blocks is one of the three after the first. What differs from the recipes is said in
`benchmarks/rivals/`. The guide keeps decoded pictures in memory; without that, it decodes them in each epoch, as
TensorFlow's tutorial does and as data larger than the memory asks for.

{machine()}, Python {platform.python_version()}; {", ".join(f"{name} {number}" for name, number in versions.items())}.
Medians of {len(SEEDS)} repetitions, in turns, each with a seed of its own; from the lowest to the highest in brackets.

## How many times as long the recipes take

| | asked | {" | ".join(rivals)} |
|---|---|{"---|" * len(rivals)}
{times("10 frozen epochs, one view, empty store", "8", "head", frozen, whole)}
{times("the same, 8 views, empty store", "3", "head, 8 views", frozen, whole)}
{times("the same, one view, store filled by an earlier run", "50", "head, filled", frozen, whole)}
{times("one epoch of the last two blocks", "5", "last two blocks", one_epoch, one_epoch)}
{times("two phases, empty store", "5", "two phases", whole, whole)}
{times("two phases, store filled by an earlier run", "", "two phases, filled", whole, whole)}

## Seconds and accuracy

| two phases of 10 epochs | seconds | accuracy |
|---|---|---|
{chr(10).join(contender(title, name, whole) for title, name in rivals.items() if name != "tutorial")}
{contender("Graft: the head, then the top 0.3 of the layers; empty store", "two phases", whole)}
{contender("the same, store filled by an earlier run", "two phases, filled", whole)}

| 10 frozen epochs | seconds | accuracy |
|---|---|---|
{chr(10).join(f"| {title} | {after_head(name)}" for title, name in rivals.items())}
{contender("Graft, one view, empty store", "head", whole)}
{contender("Graft, 8 views, empty store", "head, 8 views", whole)}
{contender("Graft, one view, store filled by an earlier run", "head, filled", whole)}

## Thousands of pictures

{PICTURES:,} pictures cut and mirrored from the photographs, then {NEW} new ones on top. Embedding is all there is to do
for a picture besides reading and hashing its file: decoding, the frozen layers, the store, and the engine's start.
Medians of {len(LARGE_SEEDS)} repetitions.

| | asked | |
|---|---|---|
| embedding all, s | | {spread(map(embedding, everything))} |
| embedding the new ones, s | | {spread(map(embedding, new), 2)} |
| embedding the new ones, over embedding all | at most 0.03 | {
        spread((embedding(b) / embedding(a) for a, b in zip(everything, new, strict=True)), 3)
    } |
| reading and hashing all that are known, s | | {spread((run["ingest_seconds"] for run in runs["again"]), 2)} |
| the whole second pass, reading and hashing included, over the whole first one | | {
        spread((whole(b) / whole(a) for a, b in zip(everything, new, strict=True)), 3)
    } |
| decoding alone, pictures a second | | {spread((run["decode"] for run in pipeline), 0)} |
| frozen layers alone, pictures a second | | {spread((run["forward"] for run in pipeline), 0)} |
| decoding, frozen layers and the store, pictures a second | | {spread((run["both"] for run in pipeline), 0)} |
| the same, over the slower of the two alone | at least 0.85 | {
        spread((run["both"] / min(run["decode"], run["forward"]) for run in pipeline), 2)
    } |
| the most that could be, where each alone takes all cores | | {
        spread((best / min(run["decode"], run["forward"]) for run, best in zip(pipeline, ideal, strict=True)), 2)
    } |
| peak memory training on {PICTURES // 10:,} pictures, MB | | {spread((run["peak_memory"] / 1e6 for run in small), 0)} |
| peak memory on {PICTURES:,}, over that | at most 1.2 | {
        spread((b["peak_memory"] / a["peak_memory"] for a, b in zip(small, large, strict=True)), 2)
    } |
"""


def machine() -> str:
    """The processor and memory, in words."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({names[0] if names else platform.machine()}), {memory:.0f} GiB, {platform.system()}"
    )


def main() -> None:
    write_part("make bench", page(measure()))


if __name__ == "__main__":
    main()
