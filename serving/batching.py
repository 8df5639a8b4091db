"""From encoded pictures to probabilities: decoded in a pool of threads, computed in batches that form by arrival.

    event loop ── submit ─→ queue ─→ decode threads ─→ a version's Batches ─→ its engine ─┐
        ↑                                                                                 │
        └───────────────────────── the request's future ──────────────────────────────────┘

A picture changes threads once per arrow, and the event loop is woken once per request. A bad picture ends at the decode
threads, so a batch holds sound ones only.

Shape letters: N pictures, H height, W width, C classes.
"""

import asyncio
import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from pipeline.pixels import BadImage, PixelSpec, TooManyPixels, UnsupportedImage, decode
from serving.engines import Model
from serving.errors import BadRequest, Overloaded, Refusal, TooLarge, TooLate, Unsupported
from serving.logs import log
from serving.metrics import Metrics
from serving.samples import Sampling

DECODE_NICENESS = 10
ARRIVAL_SECONDS = 0.2
CLOSE_SECONDS = 5.0
"""That a thread may take to end with the server. One that computes for longer ends with the process."""


@dataclass(frozen=True)
class Timing:
    """Where the slowest picture of a request spent its time, in seconds."""

    decode: float
    queue: float
    inference: float


class Job:
    """The pictures of one request, for one version of a model. Made and awaited in the event loop.

    Attributes:
        results: of each picture, in order: probabilities, float32 [C], or why there are none.
        done: ends when every picture has its result.
        timing: of the slowest picture, known when it is done.
        deadline: by `time.perf_counter`; later, nobody waits for it.
        gone: whether the client has gone away, or been told that it takes too long. What has not begun is left.
    """

    def __init__(self, count: int, deadline: float) -> None:
        self.results: list[np.ndarray | Exception] = [_not_done()] * count
        self.timing = Timing(0, 0, 0)
        self.deadline = deadline
        self.gone = False
        self._left = count
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        if count == 0:
            self.done.set_result(None)

    def settle(self, row: int, result: np.ndarray | Exception, timing: Timing) -> bool:
        """Keeps one picture's result; true for the last one. For any thread."""
        self.results[row] = result
        with self._lock:
            if sum(vars(timing).values()) > sum(vars(self.timing).values()):
                self.timing = timing
            self._left -= 1
            return self._left == 0

    @staticmethod
    def wake(finished: "Sequence[Job]") -> None:
        """Lets go who waits for these jobs, of one event loop. For any thread."""

        def wake() -> None:
            for job in finished:
                if not job.done.done():
                    job.done.set_result(None)

        if finished:
            with contextlib.suppress(RuntimeError):  # The loop is closed: the server has stopped.
                finished[0]._loop.call_soon_threadsafe(wake)


def _not_done() -> TooLate:
    return TooLate("The picture was not computed in time.")


class Waiting:
    """How many pictures are admitted and not yet being computed, with a limit."""

    def __init__(self, limit: int) -> None:
        self.count = 0
        self.arriving = 0  # Requests whose pictures are about to come. Known to the event loop alone.
        self._limit = limit
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        return self.count + self.arriving >= self._limit

    def enter(self, count: int) -> None:
        """Raises Overloaded if there is no room for `count` more. More than the limit are let in where nobody waits."""
        with self._lock:
            if self.count + min(count, self._limit) > self._limit:
                raise Overloaded("The server is busy: its queue is full. Try again in a second.")
            self.count += count

    def leave(self) -> None:
        with self._lock:
            self.count -= 1


class Arrival:
    """A request that was let in and whose body is on its way; it takes a place, but not for long.

    Without it, all requests that arrive in the moment in which one place is free would be let in, read, and refused
    after all that work. With a place for as long as a body takes, a few slow clients would shut out everybody.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._waiting: Waiting | None = waiting
        waiting.arriving += 1
        asyncio.get_running_loop().call_later(ARRIVAL_SECONDS, self.end)

    def end(self) -> None:
        """Gives the place back, once."""
        if self._waiting is not None:
            self._waiting.arriving -= 1
            self._waiting = None


@dataclass(slots=True)
class Picture:
    """One picture on its way.

    Attributes:
        submitted, decoded: when, by `time.perf_counter`.
        decoding: how many seconds it took.
        pixels: uint8 [H, W, 3], once it is decoded.
    """

    job: Job
    row: int
    submitted: float
    waiting: Waiting
    decoded: float = 0.0
    decoding: float = 0.0
    pixels: np.ndarray | None = None

    def wanted(self, now: float) -> bool:
        """Whether anybody still waits for it."""
        return not self.job.gone and now < self.job.deadline

    def settle(self, result: np.ndarray | Exception, started: float = 0.0, inference: float = 0.0) -> bool:
        waited = max(0.0, (started or perf_counter()) - self.submitted - self.decoding)
        return self.job.settle(self.row, result, Timing(self.decoding, waited, inference))


class Batches:
    """A version's pictures, ready to be computed. Threads of its own take them, as many as the engine has use for.

    A batch leaves when it is full, when no other picture of this version is being decoded or waits for it, or when its
    first picture has waited for `max_wait` seconds; and not before a thread is free, so that batches grow with load.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        at_once: int,
        max_batch: int,
        max_wait: float,
        metrics: Metrics,
        sampling: Sampling | None = None,
    ) -> None:
        self._sampling = sampling
        self._model, self._max_batch, self._max_wait = model, max_batch, max_wait
        self._inference, self._sizes = metrics.inference.labels(name), metrics.batch.labels(name)
        self._queue_seconds = metrics.queue
        self._ready: deque[Picture] = deque()
        self._coming = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"batches of {name}", daemon=True) for _ in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def expect(self, count: int) -> None:
        """So many pictures are on their way here. Each comes by `add` or `drop`."""
        with self._changed:
            self._coming += count

    def add(self, picture: Picture) -> None:
        with self._changed:
            self._coming -= 1
            self._ready.append(picture)
            # The first wakes a thread; the next need not, until it has waited enough.
            if len(self._ready) == 1 or len(self._ready) >= self._max_batch or self._coming == 0:
                self._changed.notify(len(self._threads) if self._closed else 1)

    def drop(self) -> None:
        """One of the pictures expected is not coming."""
        with self._changed:
            self._coming -= 1
            if self._coming == 0:
                self._changed.notify(len(self._threads) if self._closed else 1)

    def close(self) -> None:
        """Returns when everything that is expected has come, and the threads have ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._compute(batch)

    def _next(self) -> list[Picture]:
        """The next batch; empty when closed."""
        with self._changed:
            while True:
                # A picture may come whose client is gone, and with it the reason to keep this version open.
                while not self._ready and (self._coming or not self._closed):
                    self._changed.wait()
                if not self._ready:
                    return []
                until = self._ready[0].decoded + self._max_wait
                while 0 < len(self._ready) < self._max_batch and self._coming and (left := until - perf_counter()) > 0:
                    self._changed.wait(left)
                if self._ready:  # Another thread may have taken them meanwhile.
                    return [self._ready.popleft() for _ in range(min(self._max_batch, len(self._ready)))]

    def _compute(self, batch: list[Picture]) -> None:
        started = perf_counter()
        wanted = [picture for picture in batch if picture.wanted(started)]
        finished = [picture.job for picture in batch if not picture.wanted(started) and picture.settle(_not_done())]
        for picture in batch:
            picture.waiting.leave()
        if wanted:
            results = self._results(wanted, started)
            seconds = perf_counter() - started
            self._inference.observe(seconds)
            self._sizes.observe(len(wanted))
            for picture, result in zip(wanted, results, strict=True):
                self._queue_seconds.observe(started - picture.submitted - picture.decoding)
                if picture.settle(result, started, seconds):
                    finished.append(picture.job)
        Job.wake(finished)

    def _results(self, batch: list[Picture], now: float) -> Sequence[np.ndarray | Exception]:
        try:
            pixels = np.stack([picture.pixels for picture in batch if picture.pixels is not None])
            results = list(self._probabilities(pixels, max(picture.job.deadline for picture in batch) - now))
            assert len(results) == len(batch)
            return results
        except Refusal as error:
            return [error] * len(batch)
        except Exception as error:  # Whatever an engine may raise ends these requests, not this thread.
            log.exception("the engine failed")
            return [error] * len(batch)

    def _probabilities(self, pixels: np.ndarray, seconds: float) -> np.ndarray:
        if self._sampling is None or not (chosen := self._sampling.choose(len(pixels))):
            return self._model.probabilities(pixels, seconds)
        found, embeddings = self._model.embedded(pixels, seconds)
        self._sampling.keep(found[chosen], embeddings[chosen])
        return found


class Queue:
    """The pictures on their way to being computed, of limited number, and the threads that decode them."""

    def __init__(self, threads: int, limit: int, metrics: Metrics) -> None:
        self._seconds = metrics.decode
        self._waiting = Waiting(limit)
        self._one_large = threading.Lock()
        metrics.waiting.set_function(lambda: self._waiting.count)
        self._work: queue.SimpleQueue[tuple[bytes, PixelSpec, Picture, Batches] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._decode_all, name="decoding", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def full(self) -> bool:
        """Whether not one more picture would find room."""
        return self._waiting.full

    def arrive(self) -> Arrival:
        """A place for a request whose headers are there."""
        return Arrival(self._waiting)

    def encoded(self, pictures: Sequence[bytes], spec: PixelSpec, batches: Batches, deadline: float) -> Job:
        """Has encoded pictures decoded and computed. Raises Overloaded if they find no room."""
        job = self._admit(len(pictures), batches, deadline)
        submitted = perf_counter()
        for row, data in enumerate(pictures):
            self._work.put((data, spec, Picture(job, row, submitted, self._waiting), batches))
        return job

    def pixels(self, pictures: np.ndarray, batches: Batches, deadline: float) -> Job:
        """Has pixels, uint8 [N, H, W, 3], computed. Raises Overloaded if they find no room."""
        job = self._admit(len(pictures), batches, deadline)
        now = perf_counter()
        for row, picture in enumerate(pictures):
            batches.add(Picture(job, row, now, self._waiting, decoded=now, pixels=picture))
        return job

    def close(self) -> None:
        """Nobody waits for a picture any more. Returns when the threads have ended, or cannot within a while."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)

    def _admit(self, count: int, batches: Batches, deadline: float) -> Job:
        self._waiting.enter(count)
        batches.expect(count)
        return Job(count, deadline)

    def _decode_all(self) -> None:
        if sys.platform == "linux":  # Elsewhere it is not a thread's own. What answers must not wait for what decodes.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), DECODE_NICENESS)
        while work := self._work.get():
            self._decode(*work)

    def _decode(self, data: bytes, spec: PixelSpec, picture: Picture, batches: Batches) -> None:
        started = perf_counter()
        result: Exception = _not_done()
        if picture.wanted(started):
            try:
                picture.pixels = decode(data, spec, self._one_large)
            except BadImage as error:
                result = refusal(error)
            except Exception as error:
                log.exception("a picture could not be decoded")
                result = error
            picture.decoded = perf_counter()
            picture.decoding = picture.decoded - started
            self._seconds.observe(picture.decoding)
        if picture.pixels is not None:
            batches.add(picture)
            return
        batches.drop()
        self._waiting.leave()
        if picture.settle(result):
            Job.wake([picture.job])


def refusal(error: BadImage) -> Refusal:
    """What a client is told of a picture that cannot be used."""
    text = f"The picture cannot be used: {error}."
    match error:
        case UnsupportedImage():
            return Unsupported(text)
        case TooManyPixels():
            return TooLarge(text)
        case _:
            return BadRequest(text)
