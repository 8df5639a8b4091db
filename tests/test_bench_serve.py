"""The endpoint's benchmark: what is divided by what, what counts as missed, and whose part of the document is whose."""

from pathlib import Path

import pytest

from benchmarks import serve, soak
from benchmarks.document import write_part


def test_each_program_replaces_its_own_part_of_the_document_alone(tmp_path):
    path = tmp_path / "benchmarks.md"
    write_part("make a", "first", path)
    write_part("make b", "second", path)
    write_part("make a", "third", path)
    write_part("make b", "fourth", path)
    text = path.read_text()
    assert [line for line in text.splitlines() if line and not line.startswith("<!--")] == ["third", "fourth"]
    assert text.count("<!--") == 4
    write_part("make a", "third", path)
    assert path.read_text() == text


def contender(factor):
    return {
        at: {"throughput": factor * value, "p50": 10 / factor} for at, value in (("1", 1), ("16", 100), ("32", 200))
    }


@pytest.fixture
def results():
    rivals = {name: [contender(1)] for name in serve.contenders(Path(), Path("bin"))}
    rivals["bentoml pillow"] = [contender(2)]
    return {
        "runs": rivals | {"graft": [contender(5)], "bare": [{"p50": 1.5, "throughput": {"1": 800.0, "2": 1250.0}}]},
        "starts": {"first": 3.0, "seconds": [1.0]},
        "memory": {"ready": 100.0, "after": 200.0, "peak": 210.0},
        "overload": {
            "peak": 400.0, "goodput": 380.0, "over_peak": 0.95, "refused": 10, "refused_p99": 20.0, "neither": 0,
            "requests": 100, "unsent": 7,
        },
        "swaps": {
            "requests": 50, "failed": 0, "unnamed": 0, "published": 3, "seen": 3, "checked": 9, "disagree": 0,
            "went_back": 0,
        },
        "slow": {"rate": 200, "failed": 0, "ratios": {"body": [1.5], "headers": [2.5]}},
        "fuzz": {"bodies": 10_000, "passed": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        "| images/s at concurrency 32, over a bare loop | at least 0.8 | **0.80** (0.80 to 0.80) |",
        "decoding and computing alone, ms more | at most 1.5 | **0.50** (0.50 to 0.50) |",
        "| images/s at concurrency 16, over the best of the others | at least 2 | **2.50** (2.50 to 2.50) |",
        "| start to ready, s | at most 2 | **1.00** (1.00 to 1.00) |",
        "| goodput under it, over the peak | at least 0.9 | **0.95** |",
        "| BentoML, decoded by Pillow | **200** (200 to 200) | **400** (400 to 400) | **5.0** (5.0 to 5.0) |",
        "| a bare loop | | **1250** (1250 to 1250) | **1.5** (1.5 to 1.5) |",
    ],
)
def test_the_page_compares_with_the_best_of_the_others(results, row):
    (line,) = [line for line in serve.page(results, Path("bin")).splitlines() if row in line]
    assert line


@pytest.mark.parametrize(
    ("part", "changes", "quick", "words"),
    [
        ("overload", {}, False, []),
        ("overload", {"over_peak": 0.5, "refused_p99": 200.0}, True, []),
        ("overload", {"over_peak": 0.5}, False, ["goodput is at least 0.9 of the peak"]),
        ("overload", {"neither": 1}, True, ["every request is answered 200, 429 or 503"]),
        ("swaps", {}, False, []),
        ("swaps", {"failed": 1}, True, ["no request fails"]),
        ("swaps", {"disagree": 1}, True, ["each answer names its version, in header and body alike"]),
        ("swaps", {"checked": 0}, True, ["once a version has answered, no older one does"]),
        ("slow", {}, False, ["p99 beside slow headers is at most doubled"]),
        ("slow", {}, True, []),
        ("fuzz", {"passed": False}, True, ["the suite of mutated bodies passes"]),
    ],
)
def test_a_missed_figure_is_named(results, part, changes, quick, words):
    assert soak.missed(part, results[part] | changes, quick) == words


@pytest.mark.parametrize("encode", [serve.litserve_json, serve.mlflow_json, serve.multipart])
def test_a_picture_is_sent_whole(encode):
    assert len(encode(bytes(range(256)) * 40)) > 256 * 40
