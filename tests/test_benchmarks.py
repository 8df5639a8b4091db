"""The page of the benchmark: what is divided by what."""

import pytest

from benchmarks import bench


def runs(**changes):
    """Each contender five times, with figures that are all different."""
    rival = {
        "frozen_seconds": 10.0, "total_seconds": 30.0, "fine_tune_epoch_seconds": [9.0, 1.0, 1.0],
        "accuracy_frozen": 0.7, "accuracy": 0.8,
    }  # fmt: skip
    own = {"seconds": 2.0, "ingest_seconds": 0.5, "epoch_seconds": [9.0, 0.25, 0.25], "accuracy": 0.9}
    special = {
        "all": {"seconds": 20.5},
        "new": {"seconds": 1.0},
        "pipeline": {"decode": 1000.0, "forward": 3000.0, "both": 700.0},
        "memory": {"peak_memory": 1e9},
        "memory-ten-times": {"peak_memory": 1.1e9},
    }
    names = bench.commands(0, bench.Path("cache"), bench.Path("many"))
    return {
        name: [(rival if name.startswith(("guide", "tutorial")) else own | special.get(name, {})) for _ in range(5)]
        for name in names
    }


@pytest.mark.parametrize(
    "row",
    [
        "| 10 frozen epochs, one view, empty store | 8 | **5.0** (5.0 to 5.0) |",
        "| one epoch of the last two blocks | 5 | **4.0** (4.0 to 4.0) |",
        "| two phases, empty store | 5 | **15.0** (15.0 to 15.0) |",
        "| embedding the new ones, over embedding all | at most 0.03 | **0.025** (0.025 to 0.025) |",
        "| the same, over the slower of the two alone | at least 0.85 | **0.70** (0.70 to 0.70) |",
        "| the most that could be, where each alone takes all cores | | **0.75** (0.75 to 0.75) |",
        "over that | at most 1.2 | **1.10** (1.10 to 1.10) |",
    ],
)
def test_ratios_are_the_rivals_time_over_ours_and_the_new_over_the_whole(row):
    (line,) = [line for line in bench.page(runs()).splitlines() if row in line]
    assert line
