"""Thresholds that classify latents as informative, leaking or active."""

from typing import Any

# A latent is informative if the mean of its p over the images exceeds this. Each guide describes
# its p in ``p_is``.
INFORMATIVE = 0.5

# Variance of loc above which an uninformative latent leaks; ten times the threshold of an active
# unit, far below the 1 to 12 seen where a factor leaks.
LEAK = 0.1

# Variance of the posterior mean over the data above which a latent is an active unit
# (Burda, Grosse and Salakhutdinov, 2015).
ACTIVE = 0.01


def is_informative(p: Any) -> Any:
    """Whether a latent is informative, given its p: a number, or an array or tensor of numbers."""
    return p > INFORMATIVE
