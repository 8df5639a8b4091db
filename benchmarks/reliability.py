"""What retraining withstands, beside what the endpoint does: part of `make soak`; writes docs/reliability.md.

    python -m benchmarks.reliability [--quick] [kills collisions gate duplicates rollbacks increment drift]

kills: `graft retrain` is killed at random moments, and run once more. collisions: two at once. gate: challengers whose
truth is known. duplicates: copies planted among the photographs. rollbacks: the served version is changed by hand,
under load. increment: a retraining with 1 % new pictures. drift: the endpoint is asked for the same and for other
pictures. About an hour; --quick takes a few of each, and writes nothing.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import document, endpoint
from benchmarks.endpoint import GRAFT, Result, failures, load
from pipeline import publish
from pipeline.artifacts import RunRecord, read_manifest
from pipeline.journal import is_delivered

REPORT = Path("docs/reliability.md")
BUILD = Path("build/reliability")
NAME = "digits"
PICTURES, MORE = 600, 100
CONFIG = f"""name: {NAME}
data: {{source: folder, path: data, crop: 1.0, image_size: 32, batch_size: 32, max_bad_fraction: 0.5}}
backbone: {{name: lenet5, weights: none}}
head: {{dropout: 0.1}}
phases:
  - {{epochs: 6, learning_rate: 2e-3, unfreeze: all, schedule: cosine, ema: 0.9}}
  - {{epochs: 2, learning_rate: 5e-4, unfreeze: head, schedule: {{name: plateau, patience: 1}}}}
checkpoint: {{every: 5}}
retrain: {{near_duplicates: ignore}}
gate: {{min_gain: -1, max_class_drop: 1, max_ece_increase: 1, max_latency_ratio: null}}
"""


@dataclass(frozen=True)
class Counts:
    """How often each is tried."""

    kills: int = 100
    collisions: int = 20
    pairs: int = 200
    rollbacks: int = 50
    crops: int = 10_000
    every: int = 1  # of the photographs that are copied
    drift: int = 20


QUICK = Counts(kills=3, collisions=2, pairs=20, rollbacks=4, crops=400, every=20, drift=2)
AT_ONCE = 2  # Jobs of different workplaces, on as many cores.


# ----------------------------------------------------------------------------------------------------- one workplace


class Place:
    """A folder with digits, a champion that has learned from most of them, and a way back to that state."""

    def __init__(self, number: int) -> None:
        self.folder = BUILD.resolve() / f"place-{number}"
        self._kept = self.folder.with_name(f"{self.folder.name}-kept")

    def prepare(self) -> None:
        """Trains the champion, then adds pictures."""
        for folder in (self.folder, self._kept):
            shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / "config.yaml").write_text(CONFIG)
        _write_digits(self.folder / "data", 0, PICTURES)
        first = self.outcome(self.retrain())
        assert first["outcome"] == "promoted", (first, (self.folder / "log.txt").read_text())
        _write_digits(self.folder / "data", PICTURES, PICTURES + MORE)
        self.folder.rename(self._kept)
        self.restore()

    def restore(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._kept, self.folder)

    def start(self) -> subprocess.Popen[str]:
        """A `graft retrain`, in a session of its own."""
        command = [str(GRAFT), "retrain", "config.yaml", "--json"]
        return subprocess.Popen(
            command, cwd=self.folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=(self.folder / "log.txt").open("a"),
        )  # fmt: skip

    def retrain(self) -> subprocess.CompletedProcess[str]:
        process = self.start()
        text, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, text, "")

    def outcome(self, done: subprocess.CompletedProcess[str]) -> Result:
        """The job's last line. A job that died is an outcome too."""
        try:
            result: Result = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            result = {"outcome": f"died with {done.returncode}", "log": (self.folder / "log.txt").read_text()[-2000:]}
        return result

    def step(self) -> str:
        """What a job that was killed had come to."""
        with suppress(OSError, ValueError):
            return str(json.loads((self.folder / "runs" / NAME / "retrain.json").read_text())["step"])
        return "before or after"

    def state(self) -> Result:
        """All that ought to be as after a job that nobody killed: the registry, the served folder, the weights, the
        runs, and nothing left over."""
        home, runs = self.folder / "export" / NAME, self.folder / "runs" / NAME
        champion = publish.champion(home)
        previous = champion and champion.previous
        records = [RunRecord.read(path) for path in sorted(runs.glob("*/run.json"))]
        # Asked of another process: this one would go on reading a database that was replaced.
        shown = json.loads(endpoint.run([str(GRAFT), "models", NAME, "--output-dir", str(runs.parent), "--json"]))
        known = ("number", "aliases", "data_digest", "accuracy", "export_version")
        left_over = (*home.glob(".incoming-*"), *runs.glob("retrain.json"), *runs.glob("*/scratch"))
        return {
            "served": {number: read_manifest(home / str(number)).weights_digest for number in publish.versions(home)},
            "champion": [champion and champion.registered, previous and previous.registered],
            "registry": [{key: row[key] for key in known} for row in shown["versions"]],
            "runs": sorted(record.status for record in records),
            "delivered": all(is_delivered(Path(record.run_dir)) for record in records),
            "metrics": [record.metrics for record in records],
            "epochs": [len(json.loads((Path(record.run_dir) / "history.json").read_text())) for record in records],
            "test sets": sorted(path.name for path in (runs / "test-sets").iterdir()),
            "left over": [path.name for path in left_over],
        }


def _write_digits(folder: Path, first: int, last: int) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in range(first, last):
        path = folder / str(digits.target[row]) / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 15).astype(np.uint8)).resize((32, 32)).convert("RGB").save(path)


# ------------------------------------------------------------------------------------------------------------- parts


def kills(counts: Counts) -> Result:
    """Kills at moments spread evenly over the time that a job takes, each in a workplace as it was before."""
    places = [Place(number) for number in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(Place.prepare, places))
        started = time.perf_counter()
        first = [place.outcome(done) for place, done in zip(places, pool.map(Place.retrain, places), strict=True)]
        seconds = time.perf_counter() - started
        assert all(result["outcome"] == "promoted" for result in first), first
        expected = [place.state() for place in places]
        assert expected[0] == expected[1], "two uninterrupted jobs do not agree"
        moments = [seconds * (trial + random.Random(trial).random()) / counts.kills for trial in range(counts.kills)]
        free = list(places)

        def one(moment: float) -> tuple[str, str, Result | None]:
            place = free.pop()
            try:
                while True:
                    place.restore()
                    process = place.start()
                    try:
                        process.wait(moment)
                    except subprocess.TimeoutExpired:
                        break
                    moment *= 0.8  # It was quicker, and had ended.
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                step = place.step()
                ended = place.outcome(place.retrain())
                state = place.state()
                wrong = None if state == expected[0] else {"moment": moment, "outcome": ended, "state": state}
                return step, ended["outcome"], wrong
            finally:
                free.append(place)

        ends = list(pool.map(one, moments))
    wrong = [what for *_, what in ends if what is not None]
    for what in wrong[:3]:
        print(json.dumps(what)[:3000], file=sys.stderr)
    return {
        "trials": counts.kills,
        "complete": counts.kills - len(wrong),
        "seconds": seconds,
        "killed during": dict(Counter(step for step, *_ in ends)),
        "the second job": dict(Counter(outcome for _, outcome, _ in ends)),
    }


def collisions(counts: Counts) -> Result:
    """Two jobs at once in one workplace."""
    place = Place(0)
    place.prepare()
    trained = []
    for _ in range(counts.collisions):
        place.restore()
        both = [place.start(), place.start()]
        texts = [process.communicate()[0] for process in both]
        ends = [place.outcome(subprocess.CompletedProcess("", 0, text)) for text in texts]
        ends.sort(key=lambda end: end["outcome"], reverse=True)
        told = "process" in ends[1].get("reason", "")
        trained.append([end["outcome"] for end in ends] == ["promoted", "nothing to do"] and told)
    return {"trials": counts.collisions, "exactly one": sum(trained)}


def gate(counts: Counts) -> Result:
    """Simulated champions and challengers whose truth is known, on 1000 test pictures: benchmarks/gates.py."""
    from benchmarks import gates

    return {
        "pairs": counts.pairs,
        "promoted by mistake": gates.false_promotions(counts.pairs),
        "better by 5 points, promoted": gates.true_promotions(counts.pairs),
        "one class broken, refused by name": gates.broken_class(counts.pairs),
    }


def rollbacks(counts: Counts) -> Result:
    """`graft promote` and `graft rollback` in turn, while the endpoint is under load."""
    place = Place(0)
    place.prepare()
    assert place.outcome(place.retrain())["outcome"] == "promoted"
    home = place.folder / "export" / NAME
    bodies = sorted((place.folder / "data").glob("*/*.png"))[:100]
    delays: list[float] = []
    with endpoint.graft(home.parent) as server:
        url = f"{server.url}/v1/models/{NAME}:classify-image"

        def change() -> None:
            picture = bodies[0].read_bytes()
            for turn in range(counts.rollbacks):
                champion = publish.champion(home)
                assert champion is not None
                words = ["rollback", NAME] if turn % 2 == 0 else ["promote", NAME, "2"]
                process = subprocess.Popen(
                    [str(GRAFT), *words, "--reason", "soak"], cwd=place.folder, stdout=subprocess.DEVNULL
                )
                while publish.champion(home) == champion:
                    time.sleep(0.005)
                switched = time.perf_counter()
                expected = publish.champion(home)
                assert expected is not None
                while endpoint.ask(url, "POST", picture)[1]["X-Model-Version"] != str(expected.version):
                    time.sleep(0.01)
                delays.append(time.perf_counter() - switched)
                assert process.wait() == 0

        thread = threading.Thread(target=change)
        thread.start()
        results = []
        while thread.is_alive():
            results.append(load(url, bodies, 10, concurrency=8))
        thread.join()
    return {
        "changes": len(delays),
        "requests": sum(result["requests"] for result in results),
        "failed": sum(failures(result) for result in results),
        "effect, median s": statistics.median(delays),
        "effect, longest s": max(delays),
    }


def increment(counts: Counts) -> Result:
    """Ten thousand crops of the photographs, and a hundred that come later; the head alone is trained."""
    folder = BUILD.resolve() / "increment"
    shutil.rmtree(folder, ignore_errors=True)
    _write_crops(folder, 0, counts.crops)
    config = Path("configs/hymenoptera.yaml").resolve()
    settings = [
        "data.path=data", "data.augment={}", "data.views=null", "retrain.near_duplicates=ignore", "gate.min_gain=-1",
        "gate.max_class_drop=1", "gate.max_ece_increase=1", "gate.max_latency_ratio=null", "cache=always",
        "phases=[{epochs: 3, learning_rate: 5e-3, unfreeze: head}]",
    ]  # fmt: skip
    command = [str(GRAFT), "retrain", str(config), "--json", *(word for each in settings for word in ("--set", each))]
    environment = os.environ | {"KERAS_HOME": str(Path(os.environ.get("KERAS_HOME", endpoint.KERAS_HOME)).resolve())}
    seconds = []
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        found = re.search(r"phase 1: \S+ s(?: \((\S+) s of it before the first epoch\))?", done.stderr)
        assert found is not None, done.stderr
        seconds.append(float(found[1] or 0))
        _write_crops(folder, counts.crops, counts.crops + counts.crops // 100)
    return {
        "pictures": counts.crops,
        "new": counts.crops // 100,
        "embedding s": seconds,
        "ratio": seconds[1] / seconds[0],
    }


def _write_crops(folder: Path, first: int, last: int) -> None:
    """Crops of the photographs, each another one, by number."""
    photographs = sorted(endpoint.PHOTOGRAPHS.glob("*/*/*.jpg"))
    for number in range(first, last):
        source = photographs[number % len(photographs)]
        rng = np.random.default_rng(number)
        with Image.open(source) as photograph:
            photograph.draft("RGB", (512, 512))
            width, height = photograph.size
            left, top = rng.integers(0, width // 3), rng.integers(0, height // 3)
            crop = photograph.convert("RGB").crop((left, top, left + width * 2 // 3, top + height * 2 // 3))
        path = folder / "data" / source.parent.name / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.resize((256, 256)).save(path, quality=85)


def duplicates(counts: Counts) -> Result:
    """Copies of the photographs, each kind by itself: the same bytes, re-encoded, resized, slightly cropped."""
    from benchmarks import duplicates as planted

    result = planted.planted(endpoint.PHOTOGRAPHS, every=counts.every)
    return {
        "photographs": result["photographs"],
        "kinds of copies": len(result["found"]),
        "found of the worst kind": min(result["found"].values()),
        "the same, by thumbnails alone": min(result["found_without_embeddings"].values()),
        "photographs taken for copies": len({*result["false"], *result["false_without_embeddings"]}),
    }


def drift(counts: Counts) -> Result:
    """The endpoint's samples beside what the model comes from."""
    from benchmarks import drift as drifting

    return {
        "another data set, raised after": drifting.raised_within(),
        "trials of the same": counts.drift,
        "raised": drifting.false_alarms(counts.drift),
    }


PARTS: dict[str, Callable[[Counts], Result]] = {
    "kills": kills, "collisions": collisions, "gate": gate, "duplicates": duplicates,
    "rollbacks": rollbacks, "increment": increment, "drift": drift,
}  # fmt: skip


def missed(part: str, result: Result, quick: bool) -> list[str]:
    """What is not as asked, in words. A few trials say nothing of rates and times."""
    always: list[tuple[str, bool]] = []
    whole: list[tuple[str, bool]] = []
    match part:
        case "kills":
            always.append(("every job is completed", result["complete"] == result["trials"]))
        case "collisions":
            always.append(("exactly one of two trains", result["exactly one"] == result["trials"]))
        case "gate":
            whole += [
                ("at most 5 % are promoted by mistake", result["promoted by mistake"] <= 0.05),
                ("at least 90 % of the better ones are promoted", result["better by 5 points, promoted"] >= 0.9),
                ("a broken class is named", result["one class broken, refused by name"] >= 0.9),
            ]
        case "duplicates":
            count = result["photographs"]
            always += [
                ("every planted copy is found", result["found of the worst kind"] == count),
                ("at most 1 % are taken for copies", result["photographs taken for copies"] <= 0.01 * count),
            ]
        case "rollbacks":
            always.append(("no request fails", result["failed"] == 0 and result["requests"] > 0))
            whole.append(("a change takes effect in 2 s", result["effect, longest s"] <= 2))
        case "increment":
            whole.append(("embedding takes at most 5 % of the first run's", result["ratio"] <= 0.05))
        case "drift":
            whole += [
                ("another data set is noticed in 200 pictures", result["another data set, raised after"] <= 200),
                ("the same data set is not", result["raised"] == 0),
            ]
    return [what for what, holds in (always if quick else always + whole) if not holds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    BUILD.mkdir(parents=True, exist_ok=True)
    endpoint.build_load()
    wrong = False
    for part in options.parts or PARTS:
        started = time.perf_counter()
        result = PARTS[part](QUICK if options.quick else Counts())
        print(f"{part}: {json.dumps(result)}", flush=True)
        complaints = missed(part, result, options.quick)
        for what in complaints:
            print(f"{part}: NOT SO: {what}", flush=True)
        wrong = wrong or bool(complaints)
        if not options.quick:
            document.write_part(f"reliability {part}", _text(part, result, time.perf_counter() - started), REPORT)
    sys.exit(wrong)


def _text(part: str, result: Result, seconds: float) -> str:
    """A part's section of docs/reliability.md."""
    purpose = " ".join((PARTS[part].__doc__ or "").split())
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in result.items())
    today = time.strftime("%Y-%m-%d")
    table = f"| figure | measured |\n|---|---|\n{rows}"
    return f"## {part.capitalize()}\n\n{purpose}\n\n{table}\n\n{today}, in {seconds:.0f} s.\n"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return str(value)


if __name__ == "__main__":
    main()
