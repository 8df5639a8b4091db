"""What a server holds while it runs, and how a request passes through it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from serving.batching import Job, Queue, Timing
from serving.bodies import Held
from serving.engines import ENGINES
from serving.errors import Overloaded, TooLarge, TooLate
from serving.logs import log
from serving.metrics import Metrics
from serving.samples import Sampler
from serving.settings import Settings
from serving.versions import Served, Versions


@dataclass(frozen=True)
class Results:
    """What became of a request's pictures.

    Attributes:
        of: probabilities, float32 [C], or why there are none, in the order of the pictures.
        timing: where the time went.
    """

    of: list[np.ndarray | Exception]
    timing: Timing

    def stacked(self) -> np.ndarray:
        """Probabilities, float32 [N, C]. Raises the first error if there is one."""
        for result in self.of:
            if isinstance(result, Exception):
                raise result
        return np.stack([result for result in self.of if isinstance(result, np.ndarray)])

    def raise_if_none(self) -> None:
        """Raises the first error if there are only errors."""
        if all(isinstance(result, Exception) for result in self.of):
            self.stacked()


class Service:
    """The parts of a running server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.held = Held()
        self.parsing = asyncio.Lock()
        self._refused = 0
        self.engine = ENGINES[settings.engine](settings)
        self.sampler = (
            None if settings.samples is None else Sampler(settings.samples, settings.sample_rate, self.metrics)
        )
        self.versions = Versions(settings, self.engine, self.metrics, sampler=self.sampler)
        self.queue = Queue(settings.decode_threads, settings.max_queue, self.metrics)

    def start(self) -> None:
        """Loads models in the background, and from now on notices new ones."""
        self.versions.start()

    def refused(self) -> None:
        """Notes a request that was refused as soon as its headers were there. So many may come that one line a second
        tells of them."""
        self.metrics.requests.labels("refused", 429).inc()
        self.metrics.refusals.labels(Overloaded.__name__).inc()
        if self._refused == 0:
            asyncio.get_running_loop().call_later(1, self._tell_refused)
        self._refused += 1

    def _tell_refused(self) -> None:
        log.warning("the queue was full", extra={"fields": {"status": 429, "requests": self._refused}})
        self._refused = 0

    def close(self) -> None:
        """Blocks until every thread has ended. No request is in flight any more."""
        self.queue.close()
        self.versions.close()
        if self.sampler is not None:
            self.sampler.close()
        self.engine.close()

    async def classify(self, served: Served, pictures: Sequence[bytes], deadline: float, receive: Receive) -> Results:
        """Probabilities of encoded pictures.

        Args:
            deadline: by `time.perf_counter`.
            receive: tells when the client goes away.

        Raises:
            Overloaded, TooLarge, TooLate: limits.
            ClientDisconnect: nobody waits for the answer any more.
        """
        self._check_count(len(pictures))
        return await self._finished(self.queue.encoded(pictures, served.spec, served.batches, deadline), receive)

    async def compute(self, served: Served, pixels: np.ndarray, deadline: float, receive: Receive) -> Results:
        """Probabilities of pixels, uint8 [N, H, W, 3]. As `classify`."""
        self._check_count(len(pixels))
        return await self._finished(self.queue.pixels(pixels, served.batches, deadline), receive)

    def _check_count(self, count: int) -> None:
        if count > self.settings.max_pictures:
            raise TooLarge(f"A request may hold {self.settings.max_pictures} pictures. Received: {count}.")

    async def _finished(self, job: Job, receive: Receive) -> Results:
        """Waits for the pictures, and no longer than the client does. What has not begun by then is never done."""
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait(
                (job.done, gone), timeout=job.deadline - perf_counter(), return_when=asyncio.FIRST_COMPLETED
            )
            if job.done.done():
                return Results(job.results, job.timing)
            if gone.done():
                raise ClientDisconnect
            raise TooLate(f"There was no answer within {self.settings.request_seconds:g} seconds.")
        finally:
            job.gone = True
            gone.cancel()
