"""Images and vectors: where they come from, and how they are kept."""

from ngvae_pyro.data.sources import (
    PICTURES,
    TORCHVISION,
    Images,
    NoTensor,
    as_images,
    load,
    load_idx,
    load_npy,
    load_npz,
    load_pictures,
    torchvision_data,
)
