"""Work in a pool of threads, bounded and in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

WORKERS = os.cpu_count() or 1  # Threads that keep all cores busy.

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], window: int
) -> Generator[Result, None, None]:
    """`map` in a pool, in the order of the items.

    Args:
        pool: does the work.
        work: what is done with each item. What it raises is raised here, in place of its result.
        items: are taken one at a time, in the caller's thread.
        window: how many items are taken ahead, at most, so that memory does not grow with their number.

    What has not begun when the generator is closed, or an error passes, is never done.
    """
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) == window:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()
