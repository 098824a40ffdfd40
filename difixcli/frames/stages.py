"""Work on many things in three stages: what is read ahead, what is done here, what is written behind.

The first and the last run in threads, the second in the caller's, so that a GPU (or the other core) need not wait for
files. Queues are bounded; things come out in the order in which they went in; what goes wrong in a thread is raised
here, when it is that thing's turn.
"""

from __future__ import annotations

import os
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
) -> Iterator[tuple[Item, Result]]:
    """Each item and what came of writing it, in order.

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
        for item, prepared in _ahead(items, prepare, pace, ended):
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


def _ahead(
    items: Iterable[Item], prepare: Callable[[Item], Prepared], pace: Pace, ended: list[InputError]
) -> Iterator[tuple[Item, Prepared | InputError]]:
    """Items in order, each with what `prepare` made of it, or its InputError; one that ends `items` goes to `ended`."""
    source = iter(items)
    pending: deque[tuple[Item, Future[Prepared]]] = deque()
    readers = ThreadPoolExecutor(pace.readers, "read")

    def begin() -> None:
        try:
            for item in source:
                pending.append((item, readers.submit(prepare, item)))
                return
        except InputError as error:  # those before it are whole
            ended.append(error)

    try:
        for _ in range(pace.readers + pace.batch - 1):
            begin()
        while pending:
            item, future = pending.popleft()
            try:
                done: Prepared | InputError = future.result()
            except InputError as error:
                done = error
            del future
            begin()
            yield item, done
            del done
    finally:
        readers.shutdown(cancel_futures=True)


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
