"""Work on many things in three stages: what is read ahead, what is done here, what is written behind.

The first and the last run in threads, the second in the caller's, so that a GPU (or the other core) need not wait for
files. Queues are bounded; things come out in the order in which they went in; what goes wrong in a thread is raised
here, when it is that thing's turn.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from difixcli.errors import InputError

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Made = TypeVar("Made")
Result = TypeVar("Result")

_BATCH = 4  # images of one size that a GPU fixes at once; a CPU gains nothing from more than one
_MOST_THREADS = 8


@dataclass(frozen=True)
class Pace:
    """How many things are worked on at once, and how many threads read ahead and write behind."""

    batch: int = 1
    readers: int = 1
    writers: int = 1

    @classmethod
    def on(cls, device: str, batch: int | None = None) -> Pace:
        """What keeps a device busy: a CPU works itself, so one thread before it and one behind are enough."""
        if device != "cuda":
            return cls(batch or 1)
        threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 2) // 2))
        return cls(batch or _BATCH, threads, threads)


def carried(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    work: Callable[[list[tuple[Item, Prepared]]], Sequence[Made]],
    write: Callable[[Item, Prepared, Made], Result],
    pace: Pace,
    alike: Callable[[Prepared, Prepared], bool] = lambda a, b: True,
    unreadable: dict[Item, InputError] | None = None,
    skip: Callable[[Item], bool] = lambda item: False,
) -> Iterator[tuple[Item, Result]]:
    """Each item and what came of writing it, in order, but for those to `skip`, which is asked once of each, in order.

    `work` gets neighbours that are `alike`, at most `pace.batch` of them. An InputError of `prepare` goes to
    `unreadable`, and the item is left out; without that it is raised, once all items before it are written, as one of
    `items` themselves is.
    """
    behind: deque[tuple[Item, Future[Result]]] = deque()
    batch: list[tuple[Item, Prepared]] = []
    with ThreadPoolExecutor(pace.writers, "write") as writers:

        def flushed() -> Iterator[tuple[Item, Result]]:
            if batch:
                for (item, prepared), made in zip(batch, work(batch), strict=True):
                    behind.append((item, writers.submit(write, item, prepared, made)))
                batch.clear()
            while len(behind) > pace.writers + pace.batch - 1:
                item, future = behind.popleft()
                yield item, future.result()

        ended: list[InputError] = []
        for item, prepared in _ahead(items, prepare, pace, ended, skip):
            if isinstance(prepared, InputError):
                if unreadable is None:
                    yield from flushed()
                    yield from _waited(behind)
                    raise prepared
                unreadable[item] = prepared
                continue
            if batch and not alike(batch[0][1], prepared):
                yield from flushed()
            batch.append((item, prepared))
            del prepared  # or it would be held while the next is waited for
            if len(batch) == pace.batch:
                yield from flushed()
        yield from flushed()
        yield from _waited(behind)
        if ended:
            raise ended[0]


def _waited(behind: deque[tuple[Item, Future[Result]]]) -> Iterator[tuple[Item, Result]]:
    while behind:
        item, future = behind.popleft()
        yield item, future.result()


def read_ahead(items: Iterable[Item], read: Callable[[Item], Prepared]) -> Iterator[tuple[Item, Prepared]]:
    """Each item, in order, with what was read of it in a thread, one ahead of the caller.

    An InputError of `read` or of `items` themselves is raised when it is that item's turn.
    """
    ended: list[InputError] = []
    for item, found in _ahead(items, read, Pace(), ended):
        if isinstance(found, InputError):
            raise found
        yield item, found
        del item, found  # or they would be held while the next are waited for
    if ended:
        raise ended[0]


def _ahead(
    items: Iterable[Item],
    prepare: Callable[[Item], Prepared],
    pace: Pace,
    ended: list[InputError],
    skip: Callable[[Item], bool] = lambda item: False,
) -> Iterator[tuple[Item, Prepared | InputError]]:
    """Items in order, each with what `prepare` made of it, or its InputError; one that ends `items` goes to `ended`.

    Items are drawn in a thread, too, one after another: to draw the next frame of a video is to decode it.
    """
    source = iter(items)
    pending: deque[Future[tuple[Item, Prepared | InputError] | None]] = deque()
    leaving = threading.Event()  # else whoever interrupts would wait for all that is skipped
    drawing, readers = ThreadPoolExecutor(1, "read-next"), ThreadPoolExecutor(pace.readers, "read")

    def drawn() -> list[Item]:
        """The next item; none at the end."""
        try:
            for item in source:
                if leaving.is_set():
                    return []
                if not skip(item):
                    return [item]
        except InputError as error:  # those before it are whole
            ended.append(error)
        return []

    def prepared(turn: Future[list[Item]]) -> tuple[Item, Prepared | InputError] | None:
        for item in turn.result():
            try:
                return item, prepare(item)
            except InputError as error:
                return item, error
        return None

    def begin() -> None:
        pending.append(readers.submit(prepared, drawing.submit(drawn)))

    try:
        for _ in range(pace.readers + pace.batch - 1):
            begin()
        while (found := pending.popleft().result()) is not None:
            begin()
            yield found
            del found  # or it would be held while the next is waited for
    finally:
        leaving.set()
        drawing.shutdown(wait=False, cancel_futures=True)
        readers.shutdown(cancel_futures=True)
        drawing.shutdown()  # a source that is still in use cannot be closed


class Behind(Generic[Result]):
    """`with Behind() as behind: behind.do(function, …)`: done in order in a thread, whose error is raised at a later
    call or at the end; all of it is done when the block is left.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._pending: deque[Future[Result]] = deque()
        self._pool = ThreadPoolExecutor(1, "write")

    def __enter__(self) -> Behind[Result]:
        return self

    def do(self, function: Callable[..., Result], *arguments: object) -> None:
        while len(self._pending) >= self._most:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for future in self._pending:
                future.result()
