"""The log of samples: what is in it, its bounds, several writers, and that no request ever notices it."""

import asyncio
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prometheus_client.parser import text_string_to_metric_families

from pipeline import samples as files
from pipeline.samples import Sample, read_samples, write_samples
from serving.batching import Batches, Queue
from serving.metrics import Metrics
from serving.samples import Kept, Sampler, Sampling
from serving.settings import Settings
from serving.versions import Versions
from tests import exporting, served
from tests.conftest import ROOT
from tests.served import Means, MeansModel, add, constant, eventually, expected, without_embedding
from tests.serving import CLASSIFY, encoded, form, serving, tiny, wait

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
LONG_AGO = START - timedelta(days=1)


def sample(number, version=1, width=4, **fields):
    values = {"label": "ant", "confidence": 0.75, "embedding": np.full(width, number, np.float32), **fields}
    return Sample.of(time=START + timedelta(seconds=number), version=version, **values)


def read(folder, name="m", version=1, width=4, since=LONG_AGO):
    return read_samples(folder, name, version, width, since)


def numbers(found):
    """Which of those that `sample` made."""
    return [round(row[0]) for row in found.embeddings.tolist()]


# The files


def test_what_was_written_is_read(tmp_path):
    write_samples(tmp_path / "new", "m", [sample(2, label="Käfer", confidence=0.5), sample(1)])
    write_samples(tmp_path / "new", "m", [sample(3)])
    found = read(tmp_path / "new")
    assert found.times == tuple(START + timedelta(seconds=number) for number in (1, 2, 3))
    assert found.labels.tolist() == ["ant", "Käfer", "ant"]
    assert found.confidences.tolist() == [0.75, 0.5, 0.75]
    assert numbers(found) == [1, 2, 3]
    assert found.embeddings.dtype == np.float32


def test_nothing_is_kept_but_these(tmp_path):
    write_samples(tmp_path, "m", [sample(1)])
    [line] = (tmp_path / "m.jsonl").read_text().split()
    assert json.loads(line).keys() == {"time", "version", "label", "confidence", "embedding"}


@given(
    arrays(np.float32, st.integers(1, 9), elements=st.floats(-1e6, 1e6, width=32)),
    st.text(min_size=1),
    st.floats(0, 1.0001),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_any_embedding_label_and_confidence(tmp_path_factory, embedding, label, confidence):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder, "m", [sample(1, embedding=embedding, label=label, confidence=confidence)])
    found = read(folder, width=len(embedding))
    np.testing.assert_allclose(found.embeddings[0], np.clip(embedding, -65504, 65504), rtol=1e-3, atol=1e-7)
    assert found.labels.tolist() == [label.rstrip("\0")]  # NumPy's strings end there.
    assert found.confidences[0] == min(confidence, 1.0)


def test_models_versions_widths_and_times_are_told_apart(tmp_path):
    write_samples(tmp_path, "m", [sample(1), sample(2, version=2), sample(3, width=5), sample(4)])
    write_samples(tmp_path, "m.jsonl.1", [sample(5)])
    write_samples(tmp_path, "..", [sample(6)])
    assert numbers(read(tmp_path)) == [1, 4]
    assert numbers(read(tmp_path, version=2)) == [2]
    assert numbers(read(tmp_path, width=5)) == [3]
    assert numbers(read(tmp_path, since=START + timedelta(seconds=1))) == [4]
    assert numbers(read(tmp_path, name="m.jsonl.1")) == [5]
    assert numbers(read(tmp_path, name="..")) == [6]
    assert len(read(tmp_path, name="nobody")) == 0


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path, cut):
    write_samples(tmp_path, "m", [sample(1), sample(2)])
    file = tmp_path / "m.jsonl"
    os.truncate(file, file.stat().st_size - cut)
    write_samples(tmp_path, "m", [sample(3)])
    assert numbers(read(tmp_path)) == ([1, 2, 3] if cut == 1 else [1, 3])


@given(st.lists(st.binary(max_size=80), max_size=5))
@hypothesis_settings(max_examples=100, deadline=None)
def test_what_is_not_ours_is_passed_over(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder, "m", [sample(1)])
    with (folder / "m.jsonl").open("ab") as file:
        file.write(b"\n".join([*lines, b"[]", b"3", b'{"version": 1}', b'{"version": 1, "time": null}', b"\xff"]))
    write_samples(folder, "m", [sample(2)])
    assert numbers(read(folder)) == [1, 2]


def test_values_that_are_no_numbers_are_passed_over(tmp_path):
    write_samples(tmp_path, "m", [sample(1), sample(2, embedding=np.full(4, np.nan))])
    assert numbers(read(tmp_path)) == [1]
    with pytest.raises(ValueError, match="confidence"):
        sample(3, confidence=float("nan"))


@pytest.mark.parametrize("bound", ["samples", "bytes"])
def test_the_newest_are_kept_and_the_disk_is_not_filled(tmp_path, monkeypatch, bound):
    size = len(sample(100).model_dump_json()) + 1
    monkeypatch.setattr(files, "SAMPLES", 10 if bound == "samples" else 10_000)
    monkeypatch.setattr(files, "MAX_BYTES", 10 * size if bound == "bytes" else 10**9)
    for number in range(100, 200):
        write_samples(tmp_path, "m", [sample(number)])
        kept = numbers(read(tmp_path))
        assert kept == list(range(number + 1 - len(kept), number + 1))
        assert min(number - 99, 10) <= len(kept) <= 20
    assert {path.name for path in tmp_path.iterdir()} <= {"m.jsonl", "m.jsonl.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 22 * (size + 1)


def test_several_processes_write_at_once(tmp_path):
    program = f"""
import sys
from datetime import UTC, datetime
from pathlib import Path
import numpy as np
from pipeline import samples
samples.SAMPLES = 100
for number in range(60):
    embedding = np.full(4, int(sys.argv[1]) * 100 + number)
    sample = samples.Sample.of(datetime.now(UTC), 1, "ant", 0.5, embedding)
    samples.write_samples(Path({str(tmp_path)!r}), "m", [sample] * 2)
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, str(i)], cwd=ROOT) for i in range(3)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        read(tmp_path)
        reads += 1
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert reads > 0
    found = numbers(read(tmp_path))
    # 360 in all, of which files that became full have gone; nothing is torn, and nobody's are missing.
    assert 100 <= len(found) <= 220
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().split()]
    assert len(lines) == len(found)
    assert all(found.count(number) == 2 for number in set(found) - {found[0]})


def test_who_waited_for_a_file_that_became_full_writes_into_the_next(tmp_path):
    write_samples(tmp_path, "m", [sample(1)])
    file = tmp_path / "m.jsonl"
    with file.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=write_samples, args=(tmp_path, "m", [sample(2)]))
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
        file.rename(tmp_path / "m.jsonl.1")
    writer.join(served.SECONDS)
    assert '"time":"2026-11-20T12:00:02Z"' in file.read_text()
    assert numbers(read(tmp_path)) == [1, 2]


# The thread that writes


class Server:
    """Batches of a small model, pictures of which are sampled.

    Attributes:
        model: what computes, a MeansModel.
    """

    def __init__(self, folder, rate=1.0):
        self.metrics, self.model = Metrics(), MeansModel()
        self.sampler = Sampler(folder, rate, self.metrics)
        sampling = Sampling(self.sampler, "m", 1, served.CLASSES)
        self.queue = Queue(1, 128, self.metrics)
        self.batches = Batches("m", self.model, 1, 8, 0.001, self.metrics, sampling)

    def ask(self, *values):
        """Has pictures of one colour each answered, and rightly."""
        pixels = np.array([constant(value) for value in values])

        async def asked():
            job = self.queue.pixels(pixels, self.batches, time.perf_counter() + served.SECONDS)
            await job.done
            return job.results

        np.testing.assert_allclose(asyncio.run(asked()), expected(pixels), atol=1e-5)

    def counted(self, result):
        return counted(self.metrics, result)

    def close(self):
        self.queue.close()
        self.batches.close()
        self.sampler.close()


def counted(metrics, result):
    families = text_string_to_metric_families(metrics.text().decode())
    return sum(
        each.value
        for family in families
        for each in family.samples
        if each.name == "graft_samples_total" and each.labels["result"] == result
    )


def test_each_picture_is_kept_with_its_own_embedding_and_answer(tmp_path):
    server = Server(tmp_path)
    for first in (10, 20, 30):
        server.ask(*range(first, first + 5))
    server.close()
    found = read(tmp_path, width=3, since=LONG_AGO)
    assert sorted(numbers(found)) == [*range(10, 15), *range(20, 25), *range(30, 35)]
    assert set(found.labels) == {"ant"}  # A tie.
    np.testing.assert_allclose(found.confidences, 1 / 3, atol=1e-5)
    assert datetime.now(UTC) - found.times[-1] < timedelta(minutes=2)
    assert server.counted("written") == 15


def test_of_a_batch_the_chosen_pictures_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Sampling, "choose", lambda self, count: [count - 1])
    server = Server(tmp_path)
    server.ask(*range(10, 18))
    server.close()
    assert sorted(numbers(read(tmp_path, width=3))) == sorted(batch[-1] for batch in server.model.batches)


def test_the_rate_is_kept_to(tmp_path):
    server = Server(tmp_path, rate=0.2)
    for _ in range(50):
        server.ask(*range(8))
    server.close()
    assert 40 < server.counted("written") < 130  # Of 400; five standard deviations.


def test_batches_of_which_nothing_is_kept_are_computed_without_embeddings(tmp_path):
    server = Server(tmp_path, rate=1e-12)
    server.model.embedded = None
    server.ask(1, 2, 3)
    server.close()
    assert not list(tmp_path.iterdir())


def kept(name="m"):
    return Kept(name, START, 1, "ant", 0.5, np.ones(4, np.float32))


def test_what_comes_faster_than_it_is_written_is_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.samples.QUEUED", 5)
    entered, gate = threading.Event(), threading.Event()

    def slow(folder, name, samples):
        entered.set()
        gate.wait(served.SECONDS)
        write_samples(folder, name, samples)

    monkeypatch.setattr("serving.samples.write_samples", slow)
    monkeypatch.setattr("serving.samples.GATHER_SECONDS", 0.01)
    metrics = Metrics()
    sampler = Sampler(tmp_path, 1.0, metrics)
    sampler.put(kept())
    assert entered.wait(served.SECONDS)
    for _ in range(8):
        sampler.put(kept())
    assert counted(metrics, "dropped") == 3
    gate.set()
    sampler.close()
    assert counted(metrics, "written") == 6


def test_where_nothing_can_be_written_there_is_one_warning_and_pictures_are_answered(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("serving.samples.GATHER_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "graft.serving")
    folder = tmp_path / "samples"
    folder.write_text("A file where the folder should be.")
    server = Server(folder)
    for number in range(1, 5):
        server.ask(number)
        eventually(lambda number=number: server.counted("failed") == number)
    assert [record.message for record in caplog.records] == ["samples cannot be written; requests go on without them"]
    folder.unlink()
    server.ask(7)
    eventually(lambda: server.counted("written") == 1)
    server.close()
    assert [record.message for record in caplog.records[1:]] == ["samples are written again"]
    assert numbers(read(folder, width=3)) == [7]


def test_a_full_disk_is_a_failure_as_any_other(tmp_path, caplog):
    (tmp_path / "m.jsonl").symlink_to("/dev/full")
    metrics = Metrics()
    sampler = Sampler(tmp_path, 1.0, metrics)
    sampler.put(kept())
    sampler.put(kept("other"))
    sampler.close()
    assert (counted(metrics, "failed"), counted(metrics, "written")) == (1, 1)
    assert [record.message for record in caplog.records] == ["samples cannot be written; requests go on without them"]
    assert "No space left" in caplog.records[0].fields["error"]


# Versions


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return served.means(tmp_path_factory.mktemp("source"))


def look(folder, sampler, engine=None):
    versions = Versions(Settings(export=folder), engine or Means(), Metrics(), sampler=sampler)
    versions.look()
    [status] = versions.status("m")
    versions.close()
    return status.state.value


class CannotEmbed(Means):
    """Its models fail when they are asked for embeddings, or have none."""

    def __init__(self, embeds):
        super().__init__()
        self._embeds = embeds

    def load(self, export):
        model = super().load(export)
        model.embeds = self._embeds

        def fails(pixels, seconds):
            raise RuntimeError("no such output")

        model.embedded = fails
        return model


@pytest.mark.parametrize(("embeds", "reason"), [(False, "before graft kept embeddings"), (True, "no such output")])
def test_a_version_that_gives_no_embeddings_is_served_without_samples(source, tmp_path, caplog, embeds, reason):
    add(source, tmp_path / "export" / "m", 1)
    sampler = Sampler(tmp_path / "samples", 1.0, Metrics())
    assert look(tmp_path / "export", sampler, CannotEmbed(embeds)) == "AVAILABLE"
    sampler.close()
    [record] = [record for record in caplog.records if record.message == "version served without samples"]
    assert reason in record.fields["reason"]


# A whole server


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    tiny(folder)
    return folder


PICTURES = [encoded(seed=seed) for seed in range(12)]


def answers(running):
    return [running.post(CLASSIFY, picture).body for picture in PICTURES]


def test_a_server_keeps_samples_and_answers_as_without(model, tmp_path):
    with serving(model) as running:
        without = answers(running.ready())
    with serving(model, "--samples", tmp_path / "samples", "--sample-rate", "1") as running:
        assert answers(running.ready()) == without
        body, headers = form(("a", PICTURES[0]), ("b", b"no picture"))
        assert running.post(CLASSIFY, body, headers).status == 200
        wait(lambda: b'graft_samples_total{model="m",result="written"} 13.0' in running.get("/metrics").body)
    found = read(tmp_path / "samples", width=3, since=LONG_AGO)
    assert len(found) == 13
    labels = [json.loads(answer)["predictions"][0]["classes"][0] for answer in without]
    assert found.labels[:12].tolist() == [label["label"] for label in labels]
    np.testing.assert_allclose(found.confidences[:12], [label["probability"] for label in labels], atol=1e-5)
    np.testing.assert_array_equal(found.embeddings[0], found.embeddings[12])


def test_two_servers_write_into_one_folder_and_stop_with_everything_written(model, tmp_path):
    options = (model, "--samples", tmp_path / "samples", "--sample-rate", "1")
    with serving(*options) as first, serving(*options) as second:
        for running in (first.ready(), second.ready()):
            answers(running)
    assert len(read(tmp_path / "samples", width=3)) == 24


def test_a_server_whose_samples_cannot_be_written_answers_and_says_so_once(model, tmp_path):
    (tmp_path / "samples").write_text("A file where the folder should be.")
    with serving(model, "--samples", tmp_path / "samples", "--sample-rate", "1") as running:
        answers(running.ready())
        wait(lambda: b'result="failed"} 12.0' in running.get("/metrics").body)
        assert [line["message"] for line in running.log() if line["level"] == "warning"] == [
            "samples cannot be written; requests go on without them"
        ]


def test_an_older_export_is_served_without_samples(model, tmp_path):
    path = add(model / "m" / "1", tmp_path / "export" / "m", 1)
    without_embedding(path)
    with serving(tmp_path / "export", "--samples", tmp_path / "samples", "--sample-rate", "1") as running:
        assert answers(running.ready())
        [line] = [line for line in running.log() if line["level"] == "warning"]
    assert line["message"] == "version served without samples"
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("rate", [0, 1.5, float("nan"), -1])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match="sample_rate"):
        Settings(samples="samples", sample_rate=rate)


def test_the_picture_itself_is_in_no_file(model, tmp_path):
    picture = exporting.encoded(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    with serving(model, "--samples", tmp_path, "--sample-rate", "1") as running:
        running.ready().post(CLASSIFY, picture, {"X-Request-Id": "secret-id", "Content-Type": "image/png"})
        wait(lambda: (tmp_path / "m.jsonl").exists())
    text = (tmp_path / "m.jsonl").read_text()
    assert "secret-id" not in text
    assert "127.0.0.1" not in text
    assert len(text) < 300
