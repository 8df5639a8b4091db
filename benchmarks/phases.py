"""Which phases suit a few hundred photographs: accuracy of several on ants and bees, over seeds.

Measured within the training photographs alone, so that nothing is chosen by the pictures that test the shipped config.

    KERAS_HOME=../shared/keras python -m benchmarks.phases

writes docs/phases.md. Ten minutes on two cores.
"""

import os
import platform
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import config_file
from pipeline.console import Console
from pipeline.quiet import import_tensorflow

SEEDS = range(5)
HEAD = "{epochs: 10, learning_rate: 5e-3, unfreeze: head, schedule: cosine}"
CANDIDATES = {
    "head at 1e-3": "[{epochs: 10, learning_rate: 1e-3, unfreeze: head}]",
    "head at 1e-3, then 2 blocks at 1e-5": "[{epochs: 10, learning_rate: 1e-3, unfreeze: head},"
    " {epochs: 8, learning_rate: 1e-5, unfreeze: {blocks: 2}}]",
    "head at 5e-3, cosine": f"[{HEAD}]",
    "the same, then 2 blocks at 1e-4, cosine": f"[{HEAD},"
    " {epochs: 8, learning_rate: 1e-4, unfreeze: {blocks: 2}, schedule: cosine}]",
    "the same, then the top 0.3 of the layers at 1e-4, cosine (default)": f"[{HEAD},"
    " {epochs: 8, learning_rate: 1e-4, unfreeze: {fraction: 0.3}, schedule: cosine}]",
    "the same, then everything at 1e-4, cosine": f"[{HEAD},"
    " {epochs: 8, learning_rate: 1e-4, unfreeze: all, schedule: cosine}]",
}


def measure(phases: str, folder: Path) -> tuple[list[float], list[float]]:
    """Test accuracies and training seconds over the seeds."""
    from pipeline.run import run

    records = []
    for seed in SEEDS:
        settings = [
            "data.path=../shared/data/hymenoptera/train", "data.test_fraction=0.4", f"phases={phases}", f"seed={seed}",
            f"output_dir={folder}/runs", f"export.dir={folder}/export",
        ]  # fmt: skip
        records.append(run(config_file.load("configs/hymenoptera.yaml", settings), Console(quiet=True)))
    return [r.metrics["test_accuracy"] for r in records], [r.seconds["train"] for r in records]


def main() -> None:
    import_tensorflow()
    rows = []
    for name, phases in CANDIDATES.items():
        with TemporaryDirectory() as folder:
            accuracies, seconds = measure(phases, Path(folder))
        rows.append(
            f"| {name} | {statistics.median(accuracies):.3f} | {min(accuracies):.3f} to {max(accuracies):.3f} "
            f"| {statistics.median(seconds):.0f} s |"
        )
        print(rows[-1], flush=True)
    from pipeline.artifacts import code

    versions = code()
    text = f"""# Which phases

Written by `python -m benchmarks.phases`: {len(SEEDS)} seeds each, MobileNet 0.25 at 224 pixels with ImageNet weights,
on the 244 training photographs of `configs/hymenoptera.yaml` alone: four tenths of them, by content, are what the
accuracy is of, a tenth is validation, the rest is learned from. Nothing was chosen by the 153 photographs that test the
shipped config. With so few, a 95 % interval is about seven points either way, and differences of a few points between
rows say little by themselves.

{os.cpu_count()} cores ({platform.machine()}), TensorFlow {versions.tensorflow}, Keras {versions.keras}.

| phases | median accuracy | over seeds | training |
|---|---|---|---|
""" + "\n".join(rows)
    Path("docs/phases.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
