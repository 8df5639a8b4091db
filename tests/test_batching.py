"""Pictures decoded, gathered and computed: in order, in batches, within limits, and none for nobody."""

import asyncio
import re
import threading
import traceback
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pipeline.pixels import PixelSpec
from serving.batching import Batches, Queue
from serving.errors import BadRequest, Overloaded, TooLarge, TooLate, Unavailable, Unsupported
from serving.metrics import Metrics
from serving.service import Results
from tests import exporting
from tests.served import SECONDS, SIZE, MeansModel, constant, expected

HOUR = 3600.0
SPEC = PixelSpec(SIZE, SIZE, crop=1.0)
BAD = b"no picture"


def png(value):
    """A picture of one colour, which tells it from others."""
    return exporting.encoded(constant(value))


class Running:
    """A queue and a version's batches, in an event loop.

    Attributes:
        model: what computes, a MeansModel.
    """

    def __init__(self, model=None, at_once=1, max_batch=32, max_wait=HOUR, threads=2, limit=128):
        self.model = model or MeansModel()
        self.metrics = Metrics()
        self.queue = Queue(threads, limit, self.metrics)
        self.batches = Batches("m", self.model, at_once, max_batch, max_wait, self.metrics)

    def close(self):
        self.model.gate.set()
        self.queue.close()
        self.batches.close()

    def submit(self, *pictures, seconds=SECONDS):
        """A job of encoded pictures, each as bytes or, if sound, as its colour."""
        data = [picture if isinstance(picture, bytes) else png(picture) for picture in pictures]
        return self.queue.encoded(data, SPEC, self.batches, perf_counter() + seconds)

    def pixels(self, *values, seconds=SECONDS):
        pictures = np.array([constant(value) for value in values]).reshape(-1, SIZE, SIZE, 3)
        return self.queue.pixels(pictures, self.batches, perf_counter() + seconds)

    async def busy(self):
        """Lets the model compute one picture, 255, until its gate is opened."""
        self.model.gate.clear()
        while self.model.entered.acquire(blocking=False):
            pass
        job = self.submit(255)
        assert await asyncio.to_thread(self.model.entered.acquire, timeout=SECONDS)
        return job

    def sample(self, name):
        families = text_string_to_metric_families(self.metrics.text().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    @property
    def waiting(self):
        return self.sample("graft_waiting_pictures")

    @property
    def computed(self):
        """The colour of every picture that was computed."""
        return sorted(value for batch in self.model.batches for value in batch)


async def ended(*jobs):
    await asyncio.wait_for(asyncio.gather(*(job.done for job in jobs)), SECONDS)


def right(job, *values):
    """Every result is that of a picture of this colour."""
    np.testing.assert_allclose(job.results, expected(np.array([constant(value) for value in values])), atol=1e-6)


def run(test, **options):
    """Runs a test in an event loop, with what it needs; no picture is left waiting."""

    async def main():
        running = Running(**options)
        try:
            await asyncio.wait_for(test(running), 2 * SECONDS)
            assert running.waiting == 0
        finally:
            await asyncio.to_thread(running.close)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _threads_end():
    before = set(threading.enumerate())
    yield
    assert {
        thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio")
    } == set()


# Order, batches, waiting


@pytest.mark.parametrize("submit", [Running.submit, Running.pixels])
@pytest.mark.parametrize(("at_once", "threads"), [(1, 1), (1, 4), (4, 4)])
def test_results_come_in_the_pictures_order(submit, at_once, threads):
    async def test(running):
        jobs = [submit(running, *range(start, start + 7)) for start in range(0, 210, 7)]
        await ended(*jobs)
        for job, start in zip(jobs, range(0, 210, 7), strict=True):
            right(job, *range(start, start + 7))
        assert running.computed == list(range(210))
        assert max(map(len, running.model.batches)) <= 5

    run(test, at_once=at_once, threads=threads, max_batch=5, limit=1000)


@pytest.mark.parametrize(
    ("count", "max_batch", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 1, [1] * 3), (5, 9, [5])]
)
def test_batches_are_as_large_as_allowed_and_no_larger(count, max_batch, sizes):
    async def test(running):
        job = running.submit(*range(count))
        await ended(job)
        right(job, *range(count))
        assert [len(batch) for batch in running.model.batches] == sizes
        assert running.sample("graft_batch_pictures_sum") == count
        assert running.sample("graft_batch_pictures_count") == len(sizes)

    run(test, max_batch=max_batch)


@pytest.mark.parametrize("submit", [Running.submit, Running.pixels])
def test_a_picture_alone_waits_for_nobody(submit):
    async def test(running):
        for value in range(3):
            job = submit(running, value)
            await ended(job)
            right(job, value)

    run(test, max_wait=HOUR)


def test_pictures_that_come_while_another_is_computed_are_computed_together():
    async def test(running):
        first = await running.busy()
        jobs = [running.submit(0), running.pixels(1, 2), running.submit(3, 4)]
        running.model.gate.set()
        await ended(first, *jobs)
        assert sorted(map(len, running.model.batches)) == [1, 5]
        for job, values in zip(jobs, [(0,), (1, 2), (3, 4)], strict=True):
            right(job, *values)

    run(test)


def test_a_batch_leaves_without_a_picture_that_takes_too_long():
    async def test(running):
        running.batches.expect(1)  # It never comes.
        job = running.submit(5)
        await ended(job)
        right(job, 5)
        running.batches.drop()

    run(test, max_wait=0.001)


def test_several_batches_are_computed_at_once():
    async def test(running):
        running.model.gate.clear()
        jobs = [running.submit(*range(start, start + 2)) for start in range(0, 8, 2)]
        for _ in range(4):
            assert await asyncio.to_thread(running.model.entered.acquire, timeout=SECONDS)
        assert not any(job.done.done() for job in jobs)
        running.model.gate.set()
        await ended(*jobs)
        assert [len(batch) for batch in running.model.batches] == [2] * 4

    run(test, at_once=4, max_batch=2)


def test_the_time_is_told_by_its_parts():
    async def test(running):
        first = await running.busy()
        job = running.submit(1)
        running.model.gate.set()
        started = perf_counter()
        await ended(first, job)
        for each in (first, job):
            assert min(vars(each.timing).values()) >= 0
            assert each.timing.decode > 0
            assert each.timing.inference > 0
        assert sum(vars(job.timing).values()) <= perf_counter() - started + SECONDS
        for name in ("decode", "queue", "inference"):
            assert running.sample(f"graft_{name}_seconds_count") == 2

    run(test)


# Pictures that cannot be used


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", BadRequest, r"The picture cannot be used: empty file\."),
        (BAD, Unsupported, r"The picture cannot be used: not a JPEG, PNG or WebP picture\."),
        (b"GIF89a" + bytes(20), Unsupported, r"not a JPEG, PNG or WebP"),
        (png(3)[:40], BadRequest, r"The picture cannot be used: damaged or truncated"),
    ],
)
def test_a_bad_picture_ends_alone(data, kind, words):
    async def test(running):
        job = running.submit(1, data, 2)
        other = running.submit(3)
        await ended(job, other)
        right(other, 3)
        assert isinstance(job.results[1], kind)
        assert re.search(words, str(job.results[1]))
        np.testing.assert_allclose([job.results[0], job.results[2]], expected(np.stack([constant(1), constant(2)])))
        assert running.computed == [1, 2, 3]

    run(test)


def test_a_picture_of_too_many_pixels():
    async def test(running):
        spec = PixelSpec(SIZE, SIZE, crop=1.0, max_megapixels=0.0001)
        job = running.queue.encoded([png(1)], spec, running.batches, perf_counter() + SECONDS)
        await ended(job)
        assert isinstance(job.results[0], TooLarge)
        assert running.model.batches == []

    run(test)


def test_bad_pictures_alone_are_never_computed():
    async def test(running):
        job = running.submit(BAD, BAD, BAD)
        await ended(job)
        assert [type(result) for result in job.results] == [Unsupported] * 3
        assert running.model.batches == []

    run(test)


def test_whatever_decoding_raises_ends_the_picture(monkeypatch):
    def broken(data, spec, large):
        raise ZeroDivisionError("by zero")

    async def test(running):
        monkeypatch.setattr("serving.batching.decode", broken)
        job = running.submit(1)
        await ended(job)
        assert isinstance(job.results[0], ZeroDivisionError)
        monkeypatch.undo()
        job = running.submit(1)
        await ended(job)
        right(job, 1)

    run(test)


# Nobody waits any more


@pytest.mark.parametrize("submit", [Running.submit, Running.pixels])
def test_what_a_client_that_has_gone_has_waiting_is_never_computed(submit):
    async def test(running):
        first = await running.busy()
        gone, stays = submit(running, 1, 2), submit(running, 3)
        gone.gone = True
        running.model.gate.set()
        await ended(first, gone, stays)
        right(stays, 3)
        assert running.computed == [3, 255]
        assert not any(isinstance(result, np.ndarray) for result in gone.results)

    run(test)


@pytest.mark.parametrize("submit", [Running.submit, Running.pixels])
def test_what_is_too_late_is_never_computed(submit):
    async def test(running):
        first = await running.busy()
        late, stays = submit(running, 1, 2, seconds=0.001), submit(running, 3)
        while perf_counter() <= late.deadline:
            await asyncio.sleep(0.001)
        running.model.gate.set()
        await ended(first, late, stays)
        right(stays, 3)
        assert running.computed == [3, 255]
        assert all(isinstance(result, Exception) for result in late.results)

    run(test)


def test_the_result_of_what_is_too_late_says_so():
    async def test(running):
        job = running.submit(1, seconds=-1)
        await ended(job)
        assert isinstance(job.results[0], TooLate)

    run(test)


def test_what_is_raised_for_a_late_picture_does_not_hold_what_was_raised_for_others():
    async def test(running):
        lengths = set()
        for _ in range(5):
            job = running.submit(1, seconds=-1)
            await ended(job)
            with pytest.raises(TooLate) as error:
                Results(job.results, job.timing).stacked()
            lengths.add(len(list(traceback.walk_tb(error.value.__traceback__))))
        assert len(lengths) == 1

    run(test)


def test_a_picture_that_is_too_late_at_once_is_not_even_decoded():
    async def test(running):
        job = running.submit(1, seconds=-1)
        await ended(job)
        assert running.sample("graft_decode_seconds_count") == 0
        assert running.model.batches == []

    run(test)


def test_a_job_without_pictures_is_done():
    async def test(running):
        for job in (running.submit(), running.pixels()):
            assert job.done.done()
            assert job.results == []

    run(test)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_picture_of_a_version_closed_meanwhile_gives_its_place_back(monkeypatch, at_once):
    """Its client has gone away while it was decoded, so nothing keeps its version open."""
    decoding, go_on = threading.Event(), threading.Event()

    def slow(data, spec, large):
        decoding.set()
        assert go_on.wait(SECONDS)
        return constant(1)

    async def test(running):
        monkeypatch.setattr("serving.batching.decode", slow)
        job = running.submit(1)
        assert await asyncio.to_thread(decoding.wait, SECONDS)
        job.gone = True
        closing = asyncio.create_task(asyncio.to_thread(running.batches.close))
        while not running.batches._closed:
            await asyncio.sleep(0.001)
        go_on.set()
        await ended(job)
        await closing
        assert running.waiting == 0
        assert running.model.batches == []

    run(test, at_once=at_once, max_wait=HOUR)


# What computes fails


@pytest.mark.parametrize(
    "error", [Unavailable("upstream is away"), Overloaded("it is full"), ZeroDivisionError("by zero")]
)
def test_an_engine_that_fails_ends_the_requests_of_that_batch_alone(error):
    async def test(running):
        running.model.alter = error
        jobs = [running.submit(1, 2), running.submit(3)]
        await ended(*jobs)
        assert [result for job in jobs for result in job.results] == [error] * 3
        running.model.alter = None
        job = running.submit(4)
        await ended(job)
        right(job, 4)

    run(test)


def test_an_engine_that_gives_too_few_rows_ends_the_requests_of_that_batch_alone():
    async def test(running):
        running.model.alter = lambda found: found[:-1]
        job = running.submit(1, 2)
        await ended(job)
        assert all(isinstance(result, Exception) for result in job.results)
        running.model.alter = None
        job = running.submit(4)
        await ended(job)
        right(job, 4)

    run(test)


# Room


def test_a_full_queue_refuses_and_has_room_again():
    async def test(running):
        first = await running.busy()
        assert running.waiting == 0  # What is being computed does not wait.
        jobs = [running.submit(1, 2), running.submit(3)]
        assert not running.queue.full
        with pytest.raises(Overloaded, match=r"queue is full\. Try again"):
            running.submit(4, 5)
        assert running.waiting == 3
        jobs.append(running.pixels(4))
        for submit in (running.submit, running.pixels):
            with pytest.raises(Overloaded):
                submit(5)
        assert running.queue.full
        assert running.waiting == 4
        running.model.gate.set()
        await ended(first, *jobs)
        assert running.waiting == 0
        assert not running.queue.full
        job = running.submit(1, 2, 3, 4)
        await ended(job)
        right(job, 1, 2, 3, 4)

    run(test, limit=4)


def test_a_request_of_more_than_fits_is_let_through_alone():
    async def test(running):
        first = await running.busy()
        large = running.submit(*range(6))
        assert running.waiting == 6
        with pytest.raises(Overloaded):
            running.submit(1)
        running.model.gate.set()
        await ended(first, large)
        right(large, *range(6))
        await running.busy()
        small = running.submit(1)
        with pytest.raises(Overloaded):
            running.submit(*range(6))
        running.model.gate.set()
        await ended(small)

    run(test, limit=4)


def test_bad_gone_late_and_failing_pictures_give_their_places_back():
    async def test(running):
        for _ in range(5):
            first = await running.busy()
            jobs = [running.submit(BAD), running.submit(1), running.submit(2, seconds=-1), running.pixels(3)]
            jobs[1].gone = True
            running.model.alter = Unavailable("away")
            running.model.gate.set()
            await ended(first, *jobs)
            assert running.waiting == 0
            running.model.alter = None

    run(test, limit=4)


# Anything

PICTURE = st.one_of(st.integers(0, 255), st.just(BAD))
JOB = st.tuples(st.lists(PICTURE, max_size=7), st.sampled_from(["stays", "stays", "gone", "late", "fails"]))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(JOB, max_size=12),
    at_once=st.sampled_from([1, 4]),
    max_batch=st.integers(1, 5),
    max_wait=st.sampled_from([0.0, HOUR]),
    threads=st.integers(1, 3),
)
def test_every_job_ends(jobs, at_once, max_batch, max_wait, threads):
    away = Unavailable("away")

    async def test(running):
        submitted = []
        for pictures, fate in jobs:
            running.model.alter = away if fate == "fails" else running.model.alter
            job = running.submit(*pictures, seconds=-1 if fate == "late" else SECONDS)
            job.gone = fate == "gone"
            submitted.append(job)
        await ended(*submitted)
        for (pictures, fate), job in zip(jobs, submitted, strict=True):
            for picture, result in zip(pictures, job.results, strict=True):
                if fate == "late":
                    assert isinstance(result, Exception)
                elif fate == "stays" and picture == BAD:
                    assert isinstance(result, Unsupported)
                elif fate == "stays" and not isinstance(result, Unavailable):
                    np.testing.assert_allclose(result, expected(constant(picture)[None])[0], atol=1e-6)
                elif fate == "stays":
                    assert result is away
        assert all(1 <= len(batch) <= max_batch for batch in running.model.batches)

    run(test, at_once=at_once, max_batch=max_batch, max_wait=max_wait, threads=threads, limit=1000)


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    running = Running(at_once=4, threads=3)
    assert len(set(threading.enumerate()) - before) == 7
    running.close()
    assert set(threading.enumerate()) == before


def test_close_when_the_event_loop_has_ended():
    running = Running()

    async def leave():
        running.model.gate.clear()
        running.submit(1)
        assert await asyncio.to_thread(running.model.entered.acquire, timeout=SECONDS)

    asyncio.run(leave())
    running.close()
    assert running.waiting == 0
