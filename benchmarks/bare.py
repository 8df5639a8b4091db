"""Decoding and computing without a server, in a process of its own: its last line is one JSON object.

    python -m benchmarks.bare --export DIR --seconds 5 PICTURE...

DIR is one version of a model that `graft serve` has served before: it has the network that OpenVINO reads. Threads
take one picture after another, decode it as the endpoint does and compute it alone, with the endpoint's settings.

"throughput" is pictures a second, by the number of threads; "p50" the milliseconds of one picture in one thread.
"""

import argparse
import itertools
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import openvino as ov

from pipeline.artifacts import read_manifest
from pipeline.pixels import decode
from serving.engines.openvino import SETTINGS

THREADS = (1, 2, 3, 4)
WARMUP = 20  # pictures


class Bare:
    def __init__(self, export: Path, pictures: list[bytes]) -> None:
        network = ov.Core().read_model(next(export.glob("openvino-*/model.xml")))
        network.reshape([1, *network.input().partial_shape[1:]])
        self._compiled = ov.Core().compile_model(network, "CPU", SETTINGS)
        self._spec = read_manifest(export).pixels
        self._pictures = pictures

    def one(self, request: Any, number: int) -> None:
        picture = self._pictures[number % len(self._pictures)]
        request.infer({0: decode(picture, self._spec)[None]})

    def milliseconds(self, seconds: float) -> list[float]:
        """Of each picture, in one thread."""
        request, taken = self._compiled.create_infer_request(), []
        for number in range(WARMUP):
            self.one(request, number)
        end = time.perf_counter() + seconds
        for number in itertools.count():
            started = time.perf_counter()
            if started >= end:
                break
            self.one(request, number)
            taken.append((time.perf_counter() - started) * 1000)
        return taken

    def throughput(self, threads: int, seconds: float) -> float:
        numbers, done = itertools.count(), [0] * threads
        started = time.perf_counter()

        def work(place: int) -> None:
            request = self._compiled.create_infer_request()
            while time.perf_counter() < started + seconds:
                self.one(request, next(numbers))
                done[place] += 1

        workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("pictures", type=Path, nargs="+")
    options = parser.parse_args()
    bare = Bare(options.export, [path.read_bytes() for path in options.pictures])
    alone = statistics.median(bare.milliseconds(options.seconds))
    throughput = {threads: bare.throughput(threads, options.seconds) for threads in THREADS}
    print(json.dumps({"p50": alone, "throughput": throughput}))


if __name__ == "__main__":
    main()
