"""What the endpoint withstands: `make soak` runs it whole, and fails where a figure is missed.

    python -m benchmarks.soak [--quick] [overload swaps slow fuzz]

overload: four times as many requests a second as it can answer. swaps: a new version every two seconds, under load.
slow: 500 connections that send a byte a second, of a body and then of headers, beside a moderate load. fuzz: the suite
of mutated bodies, tests/test_fuzz.py, with many more of them than `make test`. The same figures are in
`make bench-serve`. About ten minutes; --quick takes seconds for each, and judges no latencies.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import endpoint
from benchmarks.endpoint import CLASSIFY, NAME, REFUSED, Result, count, failures, load, succeeded, worst

OVERLOAD = 4  # times what it can answer
CONNECTIONS = 512
SWAP_SECONDS = 2
SLOW = 500
KEPT = 3  # versions on disk
FUZZ = Path("tests/test_fuzz.py")
FUZZ_EXAMPLES = 2_000  # for each of its tests


@dataclass(frozen=True)
class Lengths:
    """Seconds of each part, and how often each comparison is repeated."""

    peak: float = 10
    overload: float = 60
    swaps: float = 60
    slow: float = 20
    repetitions: int = 3


QUICK = Lengths(peak=2, overload=4, swaps=5, slow=3, repetitions=1)


def peak(url: str, bodies: list[Path], lengths: Lengths) -> float:
    """Answers a second at concurrency 32, the median of some repetitions."""
    each = [
        succeeded(load(url, bodies, lengths.peak, warmup=2, concurrency=32))["throughput"]
        for _ in range(lengths.repetitions)
    ]
    return statistics.median(each)


def overload(lengths: Lengths) -> Result:
    bodies = endpoint.pictures()
    with endpoint.graft() as server:
        url = server.url + CLASSIFY
        at_most = peak(url, bodies, lengths)
        result = load(
            url, bodies, lengths.overload, warmup=1, rate=round(OVERLOAD * at_most), connections=CONNECTIONS
        )  # fmt: skip
        time.sleep(1)
        after = succeeded(load(url, bodies, 2, concurrency=4))
    return {
        "peak": at_most,
        "goodput": result["throughput"],
        "over_peak": result["throughput"] / at_most,
        "refused": count(result, *REFUSED),
        "refused_p99": worst(result, "p99", *REFUSED),
        "answered_p99": worst(result, "p99", "200"),
        "requests": result["requests"],
        "unsent": result["unsent"],  # all connections were busy
        "neither": failures(result) - count(result, *REFUSED),
        "p50_after": worst(after, "p50", "200"),
    }


@dataclass
class Publisher:
    """Puts a new version into a folder of models every two seconds, by a rename, and removes the oldest."""

    home: Path
    source: Path
    published: int = 1
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stopped.wait(SWAP_SECONDS):
            number = self.published + 1
            staging = self.home.parent / f".staging-{number}"
            # As `graft run` leaves it: what the engine makes of a version is made anew.
            shutil.copytree(self.source, staging, ignore=shutil.ignore_patterns("openvino-*"))
            staging.rename(self.home / str(number))
            self.published = number
            shutil.rmtree(self.home / str(number - KEPT), ignore_errors=True)


def swaps(lengths: Lengths) -> Result:
    source, bodies = endpoint.model(), endpoint.pictures()
    disagree, order, stop = [], [], threading.Event()

    def check(url: str) -> None:
        """One request after another, each of which ought to name its version in body and header."""
        picture = bodies[0].read_bytes()
        while not stop.wait(0.05):
            _, headers, body = endpoint.ask(url, "POST", picture)
            named = json.loads(body).get("version", "")
            if named and named == headers["X-Model-Version"]:
                order.append(int(named))
            else:
                disagree.append((named, headers["X-Model-Version"]))

    with tempfile.TemporaryDirectory(dir=endpoint.BUILD) as folder:
        home = Path(folder) / "export" / NAME
        home.mkdir(parents=True)
        shutil.copytree(source, home / "1")
        with endpoint.graft(home.parent) as server:
            url = server.url + CLASSIFY
            publisher = Publisher(home, source)
            threads = [threading.Thread(target=publisher.run), threading.Thread(target=check, args=(url,))]
            for thread in threads:
                thread.start()
            try:
                result = load(url, bodies, lengths.swaps, concurrency=16)
            finally:
                publisher.stopped.set()
                stop.set()
                for thread in threads:
                    thread.join()
            memory = server.memory()
    return {
        "requests": result["requests"],
        "failed": failures(result),
        "unnamed": result["unversioned"],
        "published": publisher.published,
        "seen": len(result["versions"]),
        "checked": len(order),
        "disagree": len(disagree),
        "went_back": sum(later < earlier for earlier, later in itertools.pairwise(order)),
        "p99": worst(result, "p99", "200"),
        "throughput": result["throughput"],
        "memory": memory,
    }


def slow(lengths: Lengths) -> Result:
    """p99 of others at half of what the server can answer, in turns without and with slow connections."""
    bodies = endpoint.pictures()
    without: list[float] = []
    beside: dict[str, list[float]] = {"body": [], "headers": []}
    opened, failed = 0, 0
    with endpoint.graft() as server:
        url = server.url + CLASSIFY
        rate = round(peak(url, bodies, lengths) / 2)
        moderate: dict[str, Any] = {"warmup": 2, "rate": rate, "connections": 64}
        for _ in range(lengths.repetitions):
            without.append(worst(succeeded(load(url, bodies, lengths.slow, **moderate)), "p99", "200"))
            for part, p99 in beside.items():
                result = load(url, bodies, lengths.slow, slow=SLOW, slow_headers=part == "headers", **moderate)
                p99.append(worst(result, "p99", "200"))
                opened += result["slow"]["opened"]
                failed += failures(result) + result["unsent"]
                time.sleep(1)  # Until the last are gone.
    ratios = {part: [b / a for a, b in zip(without, p99, strict=True)] for part, p99 in beside.items()}
    return {"rate": rate, "without": without, "beside": beside, "ratios": ratios, "opened": opened, "failed": failed}


def fuzz(lengths: Lengths) -> Result:
    """The suite of mutated bodies; GRAFT_FUZZ_EXAMPLES says how many."""
    if not FUZZ.is_file():
        return {"bodies": 0, "passed": False}
    examples = FUZZ_EXAMPLES if lengths != QUICK else 200
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(FUZZ)],
        env={**os.environ, "GRAFT_FUZZ_EXAMPLES": str(examples)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
    tests = FUZZ.read_text(encoding="utf-8").count("\n@given(")
    return {"bodies": tests * examples, "passed": done.returncode == 0}


PARTS: dict[str, Callable[[Lengths], Result]] = {"overload": overload, "swaps": swaps, "slow": slow, "fuzz": fuzz}


def missed(part: str, result: Result, quick: bool) -> list[str]:
    """What is not as asked, in words. Latencies of a few seconds on a shared machine say nothing."""
    rules: dict[str, list[tuple[str, bool]]] = {}
    if part == "overload":
        rules["always"] = [
            ("every request is answered 200, 429 or 503", result["neither"] == 0),
            ("something is refused", result["refused"] > 0),
        ]
        rules["whole"] = [
            ("p99 of refusals is at most 100 ms", result["refused_p99"] <= 100),
            ("goodput is at least 0.9 of the peak", result["over_peak"] >= 0.9),
        ]
    elif part == "swaps":
        rules["always"] = [
            ("no request fails", result["failed"] == 0),
            ("each answer names its version, in header and body alike", not result["unnamed"] + result["disagree"]),
            ("once a version has answered, no older one does", result["went_back"] == 0 and result["checked"] > 0),
            ("versions are swapped", result["seen"] > 1),
        ]
    elif part == "slow":
        rules["always"] = [("no other request fails", result["failed"] == 0)]
        rules["whole"] = [
            (f"p99 beside slow {kind} is at most doubled", statistics.median(ratios) <= 2)
            for kind, ratios in result["ratios"].items()
        ]
    else:
        rules["always"] = [("the suite of mutated bodies passes", result["passed"])]
    rules = {when: rules.get(when, []) for when in (["always"] if quick else ["always", "whole"])}
    return [what for each in rules.values() for what, holds in each if not holds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="overload, swaps, slow, fuzz; all if none is named")
    parser.add_argument("--quick", action="store_true", help="seconds for each")
    options = parser.parse_args()
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    endpoint.build_load()
    endpoint.model()
    wrong = False
    for part in options.parts or PARTS:
        result = PARTS[part](QUICK if options.quick else Lengths())
        print(f"{part}: {json.dumps(result)}", flush=True)
        for what in missed(part, result, options.quick):
            print(f"{part}: NOT SO: {what}", flush=True)
            wrong = True
    sys.exit(wrong)


if __name__ == "__main__":
    main()
