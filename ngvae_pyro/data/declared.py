"""The data that a run declares: where they are, and how they are loaded again."""

from pathlib import Path

import torch

from ngvae_pyro.data import sources as data
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.specs import DataSpec, RunSpec, SavedRun


def load_data(spec: RunSpec, device: torch.device | str = "cpu") -> tuple[ImageData, ImageData]:
    """The training and the held-out images of a run, on the CPU, as determined by its seeds.

    Args:
        spec: The run's spec. Its device is ignored: a run may be read on another machine.
        device: The device that renders images, if they are rendered.

    Returns:
        (training images, held-out images).

    Raises:
        UserError: If the images do not exist, or were given in Python.
    """
    seed = data_seed(spec)
    found = load_images(located(spec), seed, device)
    if spec.model.likelihood.whole:
        found = found.as_counts()
    return found.split(spec.data.held_out, seed, in_place=True)


def located(spec: RunSpec) -> DataSpec:
    """The data of a run; relative paths of a saved run start from the folder it was trained in.

    If nothing is found there, as on another machine, they start from the working directory.

    Raises:
        UserError: If the images were given in Python, so that no name leads to them.
    """
    if not isinstance(spec, SavedRun):
        return spec.data
    if spec.images is not None:
        raise UserError(
            f"data '{spec.data.name}': the images of this run were given in Python, and the "
            "command line does not know them; evaluate them there: ng.evaluate(fit, images)"
        )
    found = {}
    for key in paths(spec.data) if spec.folder is not None else ():
        text = getattr(spec.data, key)
        path = Path(spec.folder or "", text)
        if path.exists() or not Path(text).exists():
            found[key] = str(path)
    return spec.data.model_copy(update=found)


def paths(spec: DataSpec) -> list[str]:
    """The keys that hold paths: of a file or folder of images, or of torchvision's folder."""
    if rendered(spec):
        return []
    return ["root"] if spec.name in data.TORCHVISION else ["name"]


def rendered(spec: DataSpec) -> bool:
    """Whether the images are rendered rather than read from files."""
    return spec.name.partition(":")[0] == "sprites"


def data_seed(spec: RunSpec) -> int:
    """The seed of the images, by default that of the training."""
    return spec.fit.seed if spec.data.seed is None else spec.data.seed


def load_images(spec: DataSpec, seed: int, device: torch.device | str = "cpu") -> ImageData:
    """All images that a spec names, on the CPU; the spec's own seed is ignored."""
    return data.load(
        spec.name,
        seed=seed,
        n=spec.size,
        resolution=spec.resolution,
        root=spec.root,
        download=spec.download,
        device=device,
        factors=spec.factors or (),
        covariates=spec.covariates or (),
        layout=spec.layout,
        stream=spec.stream,
        missing=spec.missing,
    )
