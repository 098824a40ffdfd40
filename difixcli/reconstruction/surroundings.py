"""nerfstudio draws from the process's random generators; here each reconstruction has a state of them for itself."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class RandomState:
    """The state of every global random generator, kept by one reconstruction for itself.

    Of the GPUs' generators it is the current device's: a run may go on where there are more or fewer of them.
    """

    def __init__(self, seed: int) -> None:
        with self._outside():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            self._state = self.capture()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Random numbers inside the block go on where the last such block ended; outside nothing is disturbed."""
        with self._outside():
            self.restore(self._state)
            try:
                yield
            finally:
                self._state = self.capture()

    def state_dict(self) -> dict[str, Any]:
        """Plain Python values and tensors."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state

    @staticmethod
    def capture() -> dict[str, Any]:
        version, words, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        return {
            "python": [version, list(words), gauss],
            "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }

    @staticmethod
    def restore(state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"][0].cpu())

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        before = self.capture()
        try:
            yield
        finally:
            self.restore(before)
