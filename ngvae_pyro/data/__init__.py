"""Images and vectors: where they come from, and how they are kept."""

from ngvae_pyro.data.formats import (
    PICTURES,
    TORCHVISION,
    load_idx,
    load_npy,
    load_npz,
    load_pictures,
    torchvision_data,
)
from ngvae_pyro.data.sources import Images, NoTensor, as_images, load
from ngvae_pyro.data.tables import load_table
