"""Long lists in little memory: what is known of a pair is kept as text and made into an object when it is asked for.

A set of 80,000 pairs is read by every process of a training, and by forked workers looked at: as objects it would take
half a gigabyte in each.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


class Sliced(Sequence[T]):
    """A sequence that is indexed from either end and by slices, once `_item` gives what has a number from 0 on."""

    @abstractmethod
    def _item(self, number: int) -> T: ...

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._item(i) for i in range(len(self))[index]]
        return self._item(range(len(self))[index])


class Entries(Sliced[T]):
    """Values that JSON can hold, each made into an object by `make` when it is asked for."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._text = bytearray()
        self._ends = array("q", [0])

    def append(self, value: Any) -> None:
        self._text += json.dumps(value, separators=(",", ":")).encode()
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _item(self, number: int) -> T:
        return self._make(json.loads(self._text[self._ends[number] : self._ends[number + 1]]))


class Joined(Sliced[T]):
    """Several sequences as one, or a choice from them; nothing is copied."""

    def __init__(self, parts: Sequence[Sequence[T]] = (), chosen: np.ndarray | None = None) -> None:
        self._parts: list[Sequence[T]] = []
        self._starts: list[int] = []
        self._length = 0
        self._chosen = chosen
        for part in parts:
            self.add(part)

    def add(self, part: Sequence[T]) -> None:
        self._parts.append(part)
        self._starts.append(self._length)
        self._length += len(part)

    def without(self, numbers: Sequence[int]) -> Joined[T]:
        """All but the items of these numbers."""
        kept = np.delete(np.arange(len(self)), list(numbers))
        return Joined([self], kept)

    def __len__(self) -> int:
        return self._length if self._chosen is None else len(self._chosen)

    def _item(self, number: int) -> T:
        if self._chosen is not None:
            number = int(self._chosen[number])
        part = bisect_right(self._starts, number) - 1
        return self._parts[part][number - self._starts[part]]
