"""The lines that are drawn between latents: informative, leaking, active."""

from typing import Any

# A latent is informative where its p exceeds this, in the mean over the images. What p is, each
# guide says by its ``p_is``.
INFORMATIVE = 0.5

# Variance of loc above which an uninformative latent leaks; ten times the threshold of an active
# unit, far below the 1 to 12 seen where a factor leaks.
LEAK = 0.1

# Variance of the posterior mean over the data above which a latent is an active unit
# (Burda, Grosse and Salakhutdinov, 2015).
ACTIVE = 0.01


def is_informative(p: Any) -> Any:
    """Whether a latent is informative, by its p: of one number, an array or a tensor of them."""
    return p > INFORMATIVE
