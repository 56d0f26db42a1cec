"""Whether a model and a guide fit into memory, from the shapes of what is trained."""

from collections.abc import Sequence

import pyro
import torch

from ngvae_pyro.guide import GUIDES
from ngvae_pyro.machine import DRAWS, FLOAT_BYTES, check, seeded
from ngvae_pyro.model import MODELS
from ngvae_pyro.objectives import with_adversary
from ngvae_pyro.specs import RunSpec

# A weight, its gradient, and Adam's two moments.
COPIES_IN_TRAINING = 4


def check_pair(
    spec: RunSpec, image_shape: Sequence[int], images: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Refuse a model and a guide that do not fit into memory, or not while they are trained.

    Args:
        spec: Spec of the run.
        image_shape: (C, H, W).
        images: Number of training images; 0 if the pair is only read.
        device: Device that it is trained on.

    Raises:
        UserError: If they do not fit into memory, or the networks do not take such images.
    """
    model, guide, fit = spec.model, spec.guide, spec.fit
    latents = model.latent_size
    # A network of one's own is made for it, with random numbers that nobody asked for.
    with seeded(fit.seed, torch.device("cpu")), torch.device("meta"):
        # Only the shapes, of the same classes that are trained.
        own_model = MODELS[type(model.prior)](model, image_shape)
        own_guide = GUIDES[type(guide)](guide, own_model)
    weights = sum(p.numel() for part in (own_model, own_guide) for p in part.parameters())
    if not images:
        # Once in memory, and once as the contents of the file.
        check("the networks", 2 * FLOAT_BYTES * weights)
        return
    # Validation would check numbers, and meta tensors have none.
    with torch.device("meta"), pyro.validation_enabled(False):
        objective = with_adversary(
            own_guide.objective(guide, fit, own_model, images), fit, own_model
        )
        groups = objective.parameter_groups(torch.device("meta"))
    weights += sum(p.numel() for group in groups for p in group["params"])
    outputs = own_guide.encoder.outputs
    encoding, decoding = own_guide.encoder.kept, own_model.decoder.kept
    rows = min(fit.batch_size, images)
    kept = rows * fit.particles * (encoding + outputs * latents + objective.draws * decoding)
    kept += objective.numbers_kept(rows, latents)
    needed = FLOAT_BYTES * max(COPIES_IN_TRAINING * weights + kept, DRAWS * latents)
    check("training (latent_size, networks, fit.batch_size, fit.particles)", needed, device)
