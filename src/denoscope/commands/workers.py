"""Pictures side by side: work that runs in order, in this process or in several.

This module imports no torch, so that a worker process starts with the imports of its work and no others.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ParamSpec, TypeVar

from ..errors import Interrupted

Item = TypeVar("Item")
Done = TypeVar("Done")
Parameters = ParamSpec("Parameters")


def results_in_order(
    work: Callable[[Item], Done],
    items: Iterable[Item],
    counts: Callable[[Done], bool],
    count: int,
    workers: int = 1,
) -> Generator[Done, None, None]:
    """Yield the results of `work` in the order of the items, until `count` of them count.

    No item is begun that may not be needed. Raises `Interrupted` if a worker process is ended from outside.
    """
    ahead = 1 if workers == 1 else 2 * workers
    remaining, futures, counted = iter(items), deque[Future[Done]](), 0
    with _executor(workers) as executor:
        while True:
            room = max(min(count - counted, ahead) - len(futures), 0)
            for item in islice(remaining, room):
                futures.append(executor.submit(work, item))
            if not futures:
                return
            result = futures.popleft().result()
            if counts(result):
                counted += 1
            yield result


class SerialExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(
        self, fn: Callable[Parameters, Done], /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Future[Done]:
        """Return a future that is done already."""
        future: Future[Done] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class RecordingContext(SpawnContext):
    """Starts processes that import everything themselves, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        """Return a process of this context."""
        process = SpawnProcess(*args, **kwargs)
        self.processes.append(process)
        return process


@contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    """Open an executor; if the work stops early, end the processes that the executor started, and no others."""
    if workers == 1:
        yield SerialExecutor()
        return
    context = RecordingContext()
    pool = ProcessPoolExecutor(workers, context, _prepare_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise Interrupted(
            f"One of the {workers} worker processes was ended from outside, as happens when memory is short. The "
            "pictures finished are kept: the same command goes on. If memory is short, give fewer --workers."
        ) from error
    except BaseException:
        for process in context.processes:
            process.kill()  # they ignore Ctrl-C, and a picture takes minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """Give a worker process one thread, as the workers share the CPUs, and leave Ctrl-C to its parent."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def default_workers(device: str | None) -> int:
    """Return one worker per CPU, or one worker if a GPU does the work."""
    import torch

    if device not in (None, "cpu") or torch.cuda.is_available():
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
