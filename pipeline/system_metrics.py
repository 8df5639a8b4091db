"""What the machine does while a run is under way, by MLflow's own monitors, for the page that MLflow has for it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

EVERY_S = 10.0


@contextmanager
def watched(log: Callable[[Mapping[str, float]], None], every_s: float = EVERY_S) -> Iterator[None]:
    """Samples the machine until the end, however that comes, and once then, so that a short run has a sample too.

    Args:
        log: gets each sample, in another thread: percentages are 0 to 100, a megabyte is 10^6 bytes, the network's are
            since the beginning, and the memory of this process is its resident set.
        every_s: seconds between samples.
    """
    over = threading.Event()

    def watch() -> None:
        monitors = _monitors()  # The processor's share is of the time since the thread asked last.
        going = True
        with suppress(OSError):  # The disk is full: the run will meet that too, and say so.
            while going:
                going = not over.wait(every_s)
                log(_sample(monitors))

    thread = threading.Thread(target=watch, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _monitors() -> list[Any]:
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # The first answer is always 0.
    found = [CPUMonitor(), DiskMonitor()]
    if psutil.net_io_counters() is not None:  # A container may have no network.
        found.append(NetworkMonitor())
    if find_spec("pynvml") is not None:
        with suppress(RuntimeError):  # There is no NVIDIA driver.
            found.append(GPUMonitor())
    return found


def _sample(monitors: list[Any]) -> dict[str, float]:
    import psutil

    figures = {"process_memory_megabytes": psutil.Process().memory_info().rss / 1e6}
    for monitor in monitors:
        monitor.collect_metrics()
        figures |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return {name: round(value, 1) for name, value in figures.items()}
