"""What the machine does."""

import errno
import math
import threading
from collections.abc import Mapping

import pytest

from pipeline.system_metrics import watched


def is_watched() -> bool:
    return any(thread.name == "system metrics" for thread in threading.enumerate())


def test_a_short_time_has_a_sample() -> None:
    samples: list[Mapping[str, float]] = []
    with watched(samples.append, every_s=3600):
        assert is_watched()
    assert not is_watched()
    (sample,) = samples
    assert {"cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"} < sample.keys()
    assert sample["process_memory_megabytes"] > 10
    assert all(0 <= value <= 100 for name, value in sample.items() if name.endswith("percentage"))
    assert all(math.isfinite(value) for value in sample.values())


def test_a_long_time_has_many() -> None:
    samples: list[Mapping[str, float]] = []
    enough = threading.Event()

    def log(sample: Mapping[str, float]) -> None:
        samples.append(sample)
        if len(samples) == 3:
            enough.set()

    with watched(log, every_s=0.01):
        assert enough.wait(60)
        sum(i * i for i in range(300_000))
    assert len(samples) >= 4
    assert max(sample["cpu_utilization_percentage"] for sample in samples) > 0


def test_a_failure_ends_it_too_and_is_not_covered() -> None:
    samples: list[Mapping[str, float]] = []
    with pytest.raises(ValueError, match="the run failed"), watched(samples.append, every_s=3600):
        raise ValueError("the run failed")
    assert not is_watched()
    assert len(samples) == 1


def test_a_full_disk_is_the_business_of_the_run() -> None:
    def log(sample: Mapping[str, float]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with watched(log, every_s=0.01):
        pass
    assert not is_watched()
