"""Counts in messages: one thing is not told in the plural."""

from __future__ import annotations

import pytest

from difixcli.wording import counted


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (0, ("photo",), "0 photos"),
        (1, ("photo",), "1 photo"),
        (2, ("photo",), "2 photos"),
        (1, ("photo trains", "photos train"), "1 photo trains"),
        (7, ("photo trains", "photos train"), "7 photos train"),
    ],
)
def test_a_count_and_its_noun(count: int, words: tuple[str, ...], told: str) -> None:
    assert counted(count, *words) == told
