"""The equations of 3DSR's denoising loop: noise levels, clean estimates, and the two moves between spaced steps.

ᾱ is the share of the signal in x = √ᾱ·x₀ + √(1 − ᾱ)·ε; a move goes from ᾱ to a larger ᾱ', and ᾱ' = 1 is the clean end.
Everything here keeps the tensors' precision; ᾱ are Python's floats.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


def spaced_timesteps(rounds: int, count: int = 1000) -> list[int]:
    """So many steps of a schedule of `count`, evenly from the last to the first: 999, 666, 333, 0 for four of 1000.

    A single one is the last.
    """
    last = count - 1
    return [last] if rounds == 1 else [round(last * (1 - i / (rounds - 1))) for i in range(rounds)]


def noised(clean: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """x = √ᾱ·x₀ + √(1 − ᾱ)·ε."""
    return math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise


def estimates(x: Tensor, output: Tensor, alpha: float, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The clean estimate x̂₀ and the noise ε̂ that a network's output for x means.

    ε-prediction: ε̂ = output, x̂₀ = (x − √(1 − ᾱ)·ε̂) / √ᾱ; undefined where ᾱ = 0.
    v-prediction (Salimans and Ho 2022): x̂₀ = √ᾱ·x − √(1 − ᾱ)·v, ε̂ = √ᾱ·v + √(1 − ᾱ)·x.
    """
    signal, spread = math.sqrt(alpha), math.sqrt(1 - alpha)
    if prediction == "epsilon":
        return (x - spread * output) / signal, output
    return signal * x - spread * output, signal * output + spread * x


def posterior_weights(alpha: float, following: float) -> tuple[float, float, float]:
    """Weights of x₀ and of x, and σ, of DDPM's posterior q(x' | x, x₀) of a move from ᾱ to ᾱ' (Ho et al. 2020, eq. 7).

    √ᾱ'·(1 − ᾱ/ᾱ') / (1 − ᾱ), √(ᾱ/ᾱ')·(1 − ᾱ') / (1 − ᾱ), and σ² = (1 − ᾱ') / (1 − ᾱ)·(1 − ᾱ/ᾱ').
    """
    kept = alpha / following
    of_clean = math.sqrt(following) * (1 - kept) / (1 - alpha)
    of_noisy = math.sqrt(kept) * (1 - following) / (1 - alpha)
    return of_clean, of_noisy, math.sqrt((1 - following) / (1 - alpha) * (1 - kept))


def posterior_move(x: Tensor, clean: Tensor, noise: Tensor, alpha: float, following: float) -> Tensor:
    """The release's move: a sample of the posterior given the render's clean latents ẍ₀; `noise` is standard normal."""
    of_clean, of_noisy, sigma = posterior_weights(alpha, following)
    return of_clean * clean + of_noisy * x + sigma * noise


def paper_move(
    clean: Tensor, predicted: Tensor, noise: Tensor, alpha: float, following: float, eta: float = 1.0
) -> Tensor:
    """The paper's move: √ᾱ'·ẍ₀ + √(1 − ᾱ' − σ²)·ε̂ + σ·ε, σ = η times the posterior's.

    ẍ₀ is of the render, ε̂ the network's own noise (`predicted`), ε standard normal, η in [0, 1]; DDIM's step (Song et
    al. 2021) where ẍ₀ is the network's estimate.
    """
    sigma = eta * posterior_weights(alpha, following)[2]
    along = math.sqrt(max(1 - following - sigma**2, 0.0))  # rounding may take it below
    return math.sqrt(following) * clean + along * predicted + sigma * noise
