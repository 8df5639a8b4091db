"""The endpoint beside a bare loop and beside other servers: `make bench-serve` writes its part of docs/benchmarks.md.

    python -m benchmarks.serve [--quick] [--rivals .venv-rivals/bin]

The model is trained once into build/bench, and everybody gets the same photographs in the same order. Contenders run in
turns, each in processes of its own, started anew for each repetition; the load comes from benchmarks/load.c on the same
cores. What the endpoint withstands is measured by `benchmarks.soak`. About twenty-five minutes on two cores, on which
nothing else should run. --quick takes seconds for each, says nothing about speed, and writes build/bench/quick.md.
"""

import argparse
import base64
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks import endpoint, soak
from benchmarks.bench import machine, spread
from benchmarks.document import write_part
from benchmarks.endpoint import BUILD, CLASSIFY, Result, Server, load, run, succeeded, worst

MEMORY_REQUESTS = 1000
DECODERS = {"pillow": "Pillow", "graph": "TensorFlow"}
CONCURRENCIES = (1, 16, 32)
BOUNDARY = "graft-benchmark"
JSON_HEADER = "Content-Type: application/json"


@dataclass(frozen=True)
class Lengths:
    """Seconds of each measurement, and how often everything is repeated."""

    load: float = 5
    warmup: float = 1
    repetitions: int = 3
    starts: int = 5


QUICK = Lengths(load=1.5, warmup=0.5, repetitions=1, starts=2)


# ------------------------------------------------------------------------------------------------------- the contenders


@dataclass(frozen=True)
class Contender:
    """A server, where it takes pictures, and the form in which it takes them."""

    title: str
    start: Callable[[], AbstractContextManager[Server]]
    path: str
    body: Callable[[bytes], bytes]
    header: str


def raw(picture: bytes) -> bytes:
    return picture


def litserve_json(picture: bytes) -> bytes:
    return json.dumps({"image_data": base64.b64encode(picture).decode()}).encode()


def mlflow_json(picture: bytes) -> bytes:
    data = [[base64.b64encode(picture).decode()]]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": data}}).encode()


def multipart(picture: bytes) -> bytes:
    head = 'Content-Disposition: form-data; name="images"; filename="picture.jpg"\r\nContent-Type: image/jpeg'
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()


def contenders(export: Path, rivals: Path | None) -> dict[str, Contender]:
    """Graft, and each rival with each way to decode; `rivals` is the bin folder of their environment."""
    every = {"graft": Contender("**Graft**", endpoint.graft, CLASSIFY, raw, "Content-Type: image/jpeg")}
    if rivals is None:
        return every
    environment = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "DO_NOT_TRACK": "1"}
    environment |= {"BENTOML_DO_NOT_TRACK": "True", "EXPORT": str(export), "PYTHONPATH": "."}
    environment |= {"PATH": f"{rivals}:{os.environ['PATH']}"}

    @contextmanager
    def litserve(decode: str) -> Iterator[Server]:
        port = endpoint.free_port()
        command = [f"{rivals}/python", "-m", "benchmarks.rivals.litserve_service"]
        command += [f"--export={export}", f"--port={port}", f"--decode={decode}"]
        with endpoint.serving(f"litserve-{decode}", command, port, "/health", environment) as server:
            yield server

    @contextmanager
    def bentoml(decode: str) -> Iterator[Server]:
        port = endpoint.free_port()
        command = [f"{rivals}/bentoml", "serve", "benchmarks.rivals.bentoml_service:ImageClassifier"]
        command += ["--host=127.0.0.1", f"--port={port}"]
        with endpoint.serving(
            f"bentoml-{decode}", command, port, "/readyz", environment | {"DECODE": decode}
        ) as server:  # fmt: skip
            yield server

    @contextmanager
    def mlflow(decode: str) -> Iterator[Server]:
        port, saved = endpoint.free_port(), BUILD / f"mlflow-{decode}"
        if not saved.is_dir():
            command = [f"{rivals}/python", "-m", "benchmarks.rivals.mlflow_model"]
            run([*command, f"--export={export}", f"--model={saved}", f"--decode={decode}"], environment)
        command = [f"{rivals}/mlflow", "models", "serve", f"--model-uri={saved}", "--env-manager=local"]
        with endpoint.serving(
            f"mlflow-{decode}", [*command, "--host=127.0.0.1", f"--port={port}"], port, "/ping", environment
        ) as server:
            yield server

    for decode, words in DECODERS.items():
        every |= {
            f"litserve {decode}": Contender(
                f"LitServe, decoded by {words}", partial(litserve, decode), "/predict", litserve_json, JSON_HEADER
            ),
            f"bentoml {decode}": Contender(
                f"BentoML, decoded by {words}", partial(bentoml, decode), "/classify", multipart,
                f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
            ),
            f"mlflow {decode}": Contender(
                f"`mlflow models serve`, decoded by {words}", partial(mlflow, decode), "/invocations", mlflow_json,
                JSON_HEADER,
            ),
        }  # fmt: skip
    return every


def bodies_of(contender: Contender, pictures: list[Path]) -> list[Path]:
    """The pictures in the form that this contender takes, in files."""
    if contender.body is raw:
        return pictures
    folder = BUILD / "bodies" / contender.body.__name__
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}" for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        file.write_bytes(contender.body(picture.read_bytes()))
    return files


# ------------------------------------------------------------------------------------------------------------ measuring


def measure_contender(contender: Contender, pictures: list[Path], lengths: Lengths) -> Result:
    """Images a second and p50, in ms, by concurrency."""
    bodies, result = bodies_of(contender, pictures), {}
    with contender.start() as server:
        url = server.url + contender.path
        succeeded(load(url, bodies, lengths.warmup, concurrency=4, header=contender.header))
        for concurrency in CONCURRENCIES:
            measured = succeeded(
                load(url, bodies, lengths.load, lengths.warmup, concurrency=concurrency, header=contender.header)
            )
            result[str(concurrency)] = {"throughput": measured["throughput"], "p50": worst(measured, "p50", "200")}
    return result


def measure_bare(export: Path, pictures: list[Path], lengths: Lengths) -> Result:
    command = [sys.executable, "-m", "benchmarks.bare", f"--export={export}", f"--seconds={lengths.load / 2}"]
    result: Result = json.loads(run([*command, *map(str, pictures)]).splitlines()[-1])
    return result


def measure_starts(export: Path, lengths: Lengths) -> Result:
    """Seconds from the start of the process to ready; first of all with a model that was never served."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        fresh = Path(folder) / endpoint.NAME / "1"
        shutil.copytree(export, fresh, ignore=shutil.ignore_patterns("openvino-*"))
        with endpoint.graft(Path(folder)) as server:
            first = server.seconds
    seconds = []
    for _ in range(lengths.starts):
        with endpoint.graft() as server:
            seconds.append(server.seconds)
    return {"first": first, "seconds": seconds}


def measure_memory(pictures: list[Path]) -> Result:
    """MB when it is ready, after a thousand requests, and at most."""
    with endpoint.graft() as server:
        ready, answered = server.memory(), 0
        while answered < MEMORY_REQUESTS:
            answered += succeeded(load(server.url + CLASSIFY, pictures, 1, concurrency=16))["requests"]
        return {"ready": ready, "after": server.memory(), "peak": server.memory("VmHWM")}


def measure(lengths: Lengths, soaking: soak.Lengths, rivals: Path | None) -> Result:
    export, pictures = endpoint.model(), endpoint.pictures()
    results: Result = {"runs": defaultdict(list)}

    def report(name: str, result: Result) -> None:
        print(f"{name}: {json.dumps(result)[:300]}", flush=True)

    results["starts"] = measure_starts(export, lengths)
    report("starts", results["starts"])
    for repetition in range(lengths.repetitions):
        results["runs"]["bare"].append(measure_bare(export, pictures, lengths))
        report(f"{repetition} bare", results["runs"]["bare"][-1])
        for name, contender in contenders(export.absolute(), rivals).items():
            results["runs"][name].append(measure_contender(contender, pictures, lengths))
            report(f"{repetition} {name}", results["runs"][name][-1])
    results["memory"] = measure_memory(pictures)
    report("memory", results["memory"])
    for part, soaked in soak.PARTS.items():
        results[part] = soaked(soaking)
        report(part, results[part])
    return results


# ------------------------------------------------------------------------------------------------------------- the page


def best(rivals: Iterable[list[Result]], concurrency: str) -> list[float]:
    """Images a second of the rival whose median is the highest."""
    each = [[run[concurrency]["throughput"] for run in runs] for runs in rivals]
    return max(each, key=statistics.median)


def page(results: Result, rivals: Path | None) -> str:
    runs, starts, memory = results["runs"], results["starts"], results["memory"]
    overload, swaps, slow, fuzz = (results[part] for part in ("overload", "swaps", "slow", "fuzz"))
    ours, bare = runs["graft"], runs["bare"]
    others = {name: measured for name, measured in runs.items() if name not in ("graft", "bare")}

    def ratios(above: Iterable[float], below: Iterable[float]) -> str:
        return spread((a / b for a, b in zip(above, below, strict=True)), 2)

    loop = [max(run["throughput"].values()) for run in bare]
    rows = [
        ("images/s at concurrency 32, over a bare loop", "at least 0.8",
         ratios((run["32"]["throughput"] for run in ours), loop)),
        ("p50 at concurrency 1, over decoding and computing alone, ms more", "at most 1.5",
         spread((a["1"]["p50"] - b["p50"] for a, b in zip(ours, bare, strict=True)), 2)),
    ]  # fmt: skip
    rows += [
        (f"images/s at concurrency {concurrency}, over the best of the others", "at least 2",
         ratios((run[concurrency]["throughput"] for run in ours), best(others.values(), concurrency)))
        for concurrency in ("16", "32") if others
    ]  # fmt: skip
    rows += [
        ("start to ready, s", "at most 2", spread(starts["seconds"], 2)),
        ("the same, with a model that was never served before, s", "", f"**{starts['first']:.2f}**"),
        (f"resident memory after {MEMORY_REQUESTS:,} requests, MB", "at most 300", f"**{memory['after']:.0f}**"),
        ("the same at most, MB", "", f"**{memory['peak']:.0f}**"),
        (f"{soak.OVERLOAD} times overload: p99 of refusals, ms", "at most 100", f"**{overload['refused_p99']:.0f}**"),
        ("goodput under it, over the peak", "at least 0.9", f"**{overload['over_peak']:.2f}**"),
        (f"a new version every {soak.SWAP_SECONDS} s: failed requests, of {swaps['requests']:,}", "0",
         f"**{swaps['failed']}**"),
        (f"versions that answered, of {swaps['published']} published", "", f"**{swaps['seen']}**"),
        ("answers that do not name the version that made them", "0", f"**{swaps['unnamed'] + swaps['disagree']}**"),
        (f"{fuzz['bodies']:,} mutated bodies and documents: only 2xx and 4xx, memory back, neighbours unaffected",
         "yes", "**yes**" if fuzz["passed"] else "**no**"),
    ]  # fmt: skip
    rows += [
        (f"p99 of others beside {soak.SLOW} connections that send a byte of their {part} a second, over without",
         "at most 2", spread(each, 2))
        for part, each in slow["ratios"].items()
    ]  # fmt: skip

    def contender(name: str, title: str) -> str:
        columns = (("16", "throughput", 0), ("32", "throughput", 0), ("1", "p50", 1))
        cells = [spread((run[at][what] for run in runs[name]), digits) for at, what, digits in columns]
        return f"| {title} | {' | '.join(cells)} |"

    threads = max(bare[0]["throughput"], key=lambda each: statistics.median(run["throughput"][each] for run in bare))
    titles = {name: each.title for name, each in contenders(Path(), rivals).items()}
    versions = {name: version(name) for name in ("openvino", "starlette", "uvicorn", "pillow", "numpy")}
    return f"""## The endpoint

Written by `make bench-serve`. The same MobileNet 0.25 at 224 pixels, trained by `configs/hymenoptera.yaml`, and the 244
training photographs of ants and bees as they are, in the same order for all. Every server runs in processes of its own,
and the load comes over HTTP from `benchmarks/load.c`, which shares the cores with it. A bare loop is one process that
decodes and computes one picture after another in the best number of threads, here {threads}, without any server
(`benchmarks/bare.py`).

{machine()}, Python {platform.python_version()}; {", ".join(f"{name} {number}" for name, number in versions.items())}.
Medians of {len(ours)} repetitions, in turns; from the lowest to the highest in brackets.

| | asked | |
|---|---|---|
{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}

A refused request is answered 429 or 503. Of {overload["requests"]:,} requests under overload
{overload["refused"]:,} were refused, and {overload["unsent"]:,} more could not be sent, for all
{soak.CONNECTIONS} connections were busy; at its peak it answered {overload["peak"]:.0f} a second, then
{overload["goodput"]:.0f}. Slow connections were beside {slow["rate"]} requests a second.

The others serve the same SavedModel as their own documentation has it; what that is, is said in `benchmarks/rivals/`:
LitServe in batches of 16, BentoML with adaptive batching, MLflow without batches. They leave decoding to their users:
with Pillow, as their examples do, or in the model's graph.

| | images/s at concurrency 16 | at 32 | p50 at 1, ms |
|---|---|---|---|
{chr(10).join(contender(name, title) for name, title in titles.items())}
| a bare loop | | {spread(loop, 0)} | {spread((run["p50"] for run in bare), 1)} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds for each, and no part of docs/benchmarks.md")
    parser.add_argument("--rivals", type=Path, default=Path(".venv-rivals/bin"), help="where the others are installed")
    options = parser.parse_args()
    rivals = options.rivals.absolute() if (options.rivals / "bentoml").is_file() else None
    if rivals is None:
        print(f"The other servers are left out: they are not installed in {options.rivals}.", file=sys.stderr)
        if not options.quick:
            sys.exit("Run make bench-serve, which installs them, or name their folder with --rivals.")
    endpoint.build_load()
    if options.quick:
        results = measure(QUICK, soak.QUICK, rivals)
        (BUILD / "quick.md").write_text(page(results, rivals), encoding="utf-8")
        print(f"{BUILD / 'quick.md'} is written")
    else:
        results = measure(Lengths(), soak.Lengths(), rivals)
        write_part("make bench-serve", page(results, rivals))
    (BUILD / "serve.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
