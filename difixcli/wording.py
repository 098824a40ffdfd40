"""Words of messages that depend on numbers."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun, or with the noun and its verb: `1 photo`, `2 photos`; `1 photo trains`, `2 photos train`.

    `many` is the plural, `one` with an s unless it is given.
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"
