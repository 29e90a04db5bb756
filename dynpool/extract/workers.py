"""Work on many items by processes of this machine, or on a Ray cluster; results come as they are done.

Whatever ends a process, one item fails and the others are done.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeAlias, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Task: TypeAlias = Callable[[Item], Result]
Results: TypeAlias = Generator[tuple[Item, Result], None, None]

DIED = "the process that worked on it died: killed, perhaps out of memory"
_CANNOT_START = (
    "worker processes did not start: see what they have said above, or memory ran out; "
    "a script must call this below `if __name__ == '__main__':`, since they import it"
)
_AHEAD = 2  # tasks a processor of a Ray cluster is given
_LEAST_AHEAD = 64  # since it may grow for those that wait
_GRACE = 5.0  # seconds to clean up
_HOLDS_SIGNALS = hasattr(signal, "pthread_sigmask")  # not on Windows
_TO_GROUPS = {signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}  # of a terminal
_has_worked, _leaving = threading.Event(), threading.Event()


class CannotStart(RuntimeError):
    """No process began to work."""


def in_processes(
    work: Task[Item, Result], items: Iterable[Item], count: int, died: Callable[[str], Result]
) -> Results[Item, Result]:
    """(item, work(item)) of all items, by so many processes; `died` makes the result of one that ended its process.

    Raises:
        CannotStart: no process began.
    """
    rest, begun = iter(items), threading.Event()
    while suspects := (yield from _until_broken(work, rest, count, begun)):
        alone = iter(suspects)  # one at a time, which tells which of them it was
        while culprit := (yield from _until_broken(work, alone, 1, begun)):
            yield culprit[0], died(DIED)


def on_ray(
    work: Task[Item, Result], items: Iterable[Item], address: str, died: Callable[[str], Result]
) -> Results[Item, Result]:
    """The same by tasks of a Ray cluster: "auto" is the one that this machine is part of, "local" a new one on it.

    Raises:
        ImportError: Ray is missing.
        ConnectionError: there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"working on Ray needs it ({error}): pip install 'dynpool[scale]'") from error
    began = not ray.is_initialized()
    if began:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield from _by_tasks(ray, work, iter(items), died)
    finally:
        if began:
            ray.shutdown()


# --- processes ------------------------------------------------------------------------------------------------------


def _until_broken(
    work: Task[Item, Result], rest: Iterator[Item], count: int, begun: threading.Event
) -> Generator[tuple[Item, Result], None, list[Item]]:
    """Yields results until all are out, or a process has died; returns the items that may have been the reason. Notes
    that processes can begin to work.
    """
    running: dict[Future[Result], Item] = {}
    with _pool(count, begun) as (pool, listen):
        try:
            with _signals_held():
                for item in itertools.islice(rest, count + 1 if count > 1 else 1):
                    _submit(pool, work, item, running)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    listen()
                    result = future.result()
                    yield running.pop(future), result
                    for item in itertools.islice(rest, 1):
                        _submit(pool, work, item, running)
        except BrokenProcessPool as error:
            listen()
            if not begun.is_set():
                raise CannotStart(_CANNOT_START) from error
    done = {future for future in running if future.done() and future.exception() is None}
    yield from ((running[future], future.result()) for future in done)
    return [item for future, item in running.items() if future not in done]


def _submit(
    pool: ProcessPoolExecutor, work: Task[Item, Result], item: Item, running: dict[Future[Result], Item]
) -> None:
    try:
        running[pool.submit(_leaving_when_told, work, item)] = item
    except BrokenProcessPool:
        refused: Future[Result] = Future()
        refused.set_exception(BrokenProcessPool())
        running[refused] = item
        raise


@contextmanager
def _pool(count: int, begun: threading.Event) -> Iterator[tuple[ProcessPoolExecutor, Callable[[], None]]]:
    """Processes that end when they have nothing to do, when the context is left otherwise, or when this one is gone;
    and what sets `begun` if any has begun to work.
    """
    ours, theirs = multiprocessing.Pipe()

    def listen() -> None:
        """To be called now and then: a few hundred tidings fill the pipe, and who cannot tell does not begin."""
        while ours.poll():
            ours.recv()
            begun.set()

    context = multiprocessing.get_context("spawn")  # a forked process has torch's threads, and they do not run
    with _signals_held():  # also from what counts Python's semaphores, which would complain of its end
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(theirs,))
    try:
        yield pool, listen
        pool.shutdown()
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes begun within it hear of Ctrl-C and the terminal's end when they can leave without a word (`_begin`)."""
    if not _HOLDS_SIGNALS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(told: Connection) -> None:
    """Of a worker: SystemExit where it would be killed, so that it cleans up; and so it is, when `told` is closed."""
    for number in (*_TO_GROUPS, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    atexit.register(_leaving.set)
    try:
        told.send(None)
    except OSError:  # closed already
        os._exit(1)
    threading.Thread(target=_wait_for, args=(told,), daemon=True).start()
    if _HOLDS_SIGNALS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_GROUPS)


def _leave(number: int, frame: Any) -> None:
    if not _has_worked.is_set():
        os._exit(1)  # there is nothing to clean up, and what is raised in an initializer is printed
    if not _leaving.is_set():  # or it is cleaning up already
        _leaving.set()
        sys.unraisablehook = lambda _: None  # Python may swallow what is raised here, as in __del__, and say so
        end = threading.Timer(_GRACE, os._exit, (1,))
        end.daemon = True
        end.start()
        raise SystemExit(128 + number)


def _wait_for(told: Connection) -> None:
    try:
        told.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)


def _leaving_when_told(work: Task[Item, Result], item: Item) -> Result:
    try:
        _has_worked.set()
        return work(item)
    except SystemExit:
        os._exit(1)  # the pool would take it for the result, and go on with the next


# --- Ray ------------------------------------------------------------------------------------------------------------


def _by_tasks(
    ray: Any, work: Task[Item, Result], rest: Iterator[Item], died: Callable[[str], Result]
) -> Iterator[tuple[Item, Result]]:
    task = ray.remote(_worked)
    shared = ray.put(work)
    running: dict[Any, Item] = {}
    while True:
        ahead = max(_LEAST_AHEAD, _AHEAD * int(ray.cluster_resources().get("CPU", 1)))
        for item in itertools.islice(rest, ahead - len(running)):
            running[task.remote(shared, item)] = item
        if not running:
            return
        (ready, *_), _ = ray.wait(list(running))
        try:
            result = ray.get(ready)
        except ray.exceptions.RayError as error:  # after as many tries as Ray makes
            reason = str(error).strip().splitlines() or [type(error).__name__]
            result = died(f"Ray gave it up: {reason[0]}")
        yield running.pop(ready), result


def _worked(work: Task[Item, Result], item: Item) -> Result:
    return work(item)
