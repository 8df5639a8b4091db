"""What a sweep on the photographs costs: fifty trials of the head alone, and of the head and then the upper layers.

    KERAS_HOME=../shared/keras python -m benchmarks.sweep [--quick]

The config is configs/hymenoptera.yaml, of which the first takes the head's phase alone. Each sweep is a process of its
own with an empty activation store, MLflow and the page included; the time is that of the whole command. About five
minutes on two cores; --quick leaves the second out, and takes one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.document import write_part

COMMAND = "python -m benchmarks.sweep"
CONFIG = "configs/hymenoptera.yaml"
PHOTOGRAPHS = Path("../shared/data/hymenoptera")
HEAD = "phases=[{epochs: 10, learning_rate: 5e-3, unfreeze: head, schedule: cosine}]"
TRIALS = 50
OVER = (
    "phases.0.learning_rate=[1e-3, 2e-3, 5e-3, 1e-2, 2e-2]",
    "head.dropout=[0.0, 0.2, 0.4, 0.5, 0.6]",
    "head.hidden_units=[[], [64]]",
)


def sweep(overrides: list[str]) -> dict[str, float]:
    """Runs the grid of fifty points: seconds of the command, and medians and counts of its trials."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"--set={override}" for override in (f"data.path={PHOTOGRAPHS}", f"output_dir={folder}", *overrides)]
        over = [f"--over={axis}" for axis in OVER]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "sweep", CONFIG, *sets, *over, "--json", "--quiet"],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        found = json.loads(done.stdout.splitlines()[-1])
    trained = [row for row in found["trainings"] if row["same_as"] is None]
    trials = sorted(row["seconds"] for row in trained if row["role"] == "trial")
    assert sum(row["role"] == "trial" for row in found["trainings"]) == TRIALS
    return {"seconds": seconds, "trainings": len(trained), "median": trials[len(trials) // 2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the head's trials alone")
    quick = parser.parse_args().quick
    rows = {"the head, 10 epochs": [HEAD]} | ({} if quick else {"the whole config: head, then four blocks": []})
    lines = ["| fifty trials of | the command | trainings | median trial |", "|---|---|---|---|"]
    for name, overrides in rows.items():
        figures = sweep(overrides)
        lines.append(
            f"| {name} | {figures['seconds']:.0f} s | {figures['trainings']:.0f} | {figures['median']:.2f} s |"
        )
        print(lines[-1], flush=True)
    if not quick:
        write_part(COMMAND, "## Sweeps\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
