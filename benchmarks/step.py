"""What a training step costs, beside the same step written by hand and by other libraries.

    python benchmarks/step.py --out runs/step.json
    python benchmarks/step.py --networks mlp --batches 128 --seconds 5

All contenders of a cell train the same networks, from the same weights, on the same images, and
take turns; see ``measuring.py``. They are

- ``networks alone``: encoder, decoder, a squared error, backward, and Adam as it is by default;
- ``networks alone, CUDA graph``: the same without what Python and the launches cost (on CUDA);
- ``hand-written``: the NG-VAE in PyTorch without Pyro, as one writes it with torch.distributions;
- ``hand-written, not validated``: without the checks of torch.distributions;
- ``hand-written, tuned``: also with fused Adam, and convolutions in the channels-last format;
- ``Pyro SVI``: ``SVI.step`` with ``Trace_ELBO`` and ``ClippedAdam`` on this package's pair;
- ``ngvae_pyro.fit``: the step of this package's ``fit``;
- ``NumPyro``: the same model and guide in a compiled program;
- ``Pythae``: its trainer and its VAE, with a Gaussian posterior, on the same networks. Its time has
  that of its data loader, which collates single images.

The last two are optional: ``pip install numpyro pythae`` (tried with NumPyro 0.22.0 on JAX 0.10.2
and Pythae 0.1.2 from the package index, all beside torch 2.15); for a GPU, JAX needs its CUDA
wheels. That the loss written by hand and its gradient are this package's is checked before anything
is timed, and that NumPyro's networks are the same functions is too. Precision is what each library
has by default: on a GPU JAX may take TF32 for matrix products, which PyTorch does not.

The times are medians over the rounds, and the ratios medians of the ratios within a round. Memory
is a peak: on CUDA of what was allocated, on the CPU of what the process grew by after its imports,
with code that is loaded on first use and what a compiler takes. ``OMP_NUM_THREADS`` limits
PyTorch's threads, ``taskset`` those of all.
"""

import argparse
import copy
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch
from measuring import Contender, Unavailable
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import nn
from torch.distributions import Categorical, Gamma, MixtureSameFamily, Normal

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.nn import ResidualLayer
from ngvae_pyro.specs import ConvSpec, FitSpec, MLPSpec, ScheduleSpec
from ngvae_pyro.training.trainer import Trainer

LATENTS, LEARNING_RATE, CLIP = 15, 1e-3, 2000.0
# Network and channels of 64x64 images.
NETWORKS = {"mlp": (MLPSpec(width=256, depth=2), 1), "conv64": (ConvSpec(), 3)}
IMAGES = 2000

# The model of this package's defaults and the posterior with one precision, in numbers.
SLAB_PROBS, SLAB, SPIKE = 0.018315638888734179, (0.1, 1e-5), (100.0, 100.0)
CONCENTRATION, RATE, SHARPNESS = (1000.0, 100.0), (0.1, 100.0), 20.0
PIXEL_SCALE = 0.1


@dataclass(frozen=True)
class Cell:
    """What all contenders of one table are given."""

    network: str
    batch: int
    device: str
    images: torch.Tensor

    def pair(self):
        """Model and guide of this package, with the same first weights every time."""
        torch.manual_seed(0)
        spec, _ = NETWORKS[self.network]
        shape = self.images.shape[1:]
        changes = {"latent_size": LATENTS, "decoder": spec, "likelihood": {"scale": PIXEL_SCALE}}
        model = load_model("normal_gamma", shape, **changes)
        guide = load_guide("fixed", model, encoder=spec)
        return model.to(self.device), guide.to(self.device)

    def networks(self):
        model, guide = self.pair()
        return guide.encoder, model.decoder


def images_of(network):
    """64x64 sprites with the network's channels, as they are stored."""
    return measuring.pictures(IMAGES, (NETWORKS[network][1], 64, 64))


# The networks alone ------------------------------------------------------------------------------


class Loop:
    """Steps in a Python loop, each on images drawn anew."""

    def __init__(self, cell):
        self.cell = cell
        self.images = cell.images.to(cell.device)
        self.last = torch.tensor(0.0)

    def batch(self):
        index = torch.randint(len(self.images), (self.cell.batch,), device=self.images.device)
        # Not self.images[index], which on the CPU goes pixel by pixel.
        return self.images.index_select(0, index).float() / 255

    def step(self):
        raise NotImplementedError(f"{type(self).__name__} does not say what its step is")

    def steps(self, count):
        for _ in range(count):
            self.step()

    def loss(self):
        return torch.as_tensor(self.last).item()


class Networks(Loop):
    """An autoencoder: what every other contender computes too."""

    def __init__(self, cell, **options):
        super().__init__(cell)
        self.encoder, self.decoder = cell.networks()
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, **options)

    def step(self):
        # One batch for all steps would be learnt by heart, and denormal gradients are slow.
        x = self.batch()
        loc, _ = self.encoder(x)
        self.last = nn.functional.mse_loss(self.decoder(loc), x)
        self.optimizer.zero_grad()
        self.last.backward()
        self.optimizer.step()


class GraphedNetworks(Networks):
    """The same step, recorded once as a CUDA graph and played."""

    def __init__(self, cell):
        super().__init__(cell, capturable=True)
        # As PyTorch asks for: some steps on another stream first, for what is set up lazily.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            super().step()

    def step(self):
        self.graph.replay()


# By hand -----------------------------------------------------------------------------------------


def mixture_prior(device, validate=None, dtype=None):
    """p(precision) of the K latents."""
    slab, spike = torch.tensor(SLAB, dtype=dtype), torch.tensor(SPIKE, dtype=dtype)
    concentration, rate = torch.stack((slab, spike), -1).to(device)
    weights = torch.tensor([SLAB_PROBS, 1 - SLAB_PROBS], dtype=dtype, device=device)
    return MixtureSameFamily(
        Categorical(weights, validate_args=validate),
        Gamma(concentration, rate, validate_args=validate),
        validate_args=validate,
    )


def handwritten_loss(encoder, decoder, prior, x, validate=None):
    """-ELBO per image, nats, from one draw of the relaxed posterior."""
    loc, logits = encoder(x)
    shift = SHARPNESS * (torch.sigmoid(logits) - 0.5)
    gate, rest = torch.sigmoid(shift), torch.sigmoid(-shift)
    (a1, a2), (b1, b2) = CONCENTRATION, RATE
    q_precision = Gamma(a1 * gate + a2 * rest, b1 * gate + b2 * rest, validate_args=validate)
    precision = q_precision.rsample()
    q_z = Normal(loc, precision.rsqrt(), validate_args=validate)
    z = q_z.rsample()
    standard = Normal(torch.zeros_like(z), 1.0, validate_args=validate)
    kl = q_precision.log_prob(precision) - prior.log_prob(precision)
    kl = kl + q_z.log_prob(z) - standard.log_prob(z)
    pixels = Normal(decoder(z), PIXEL_SCALE, validate_args=validate)
    return (kl.sum(-1) - pixels.log_prob(x).sum((1, 2, 3))).mean()


class Handwritten(Loop):
    """The loop that one writes without Pyro.

    Args:
        validate: None is what torch.distributions do of themselves, which is to check.
        tuned: Fused Adam, and the channels-last format for convolutions.
    """

    def __init__(self, cell, validate=None, tuned=False):
        super().__init__(cell)
        self.networks = cell.networks()
        convolutional = isinstance(NETWORKS[cell.network][0], ConvSpec)
        self.format = torch.channels_last if tuned and convolutional else torch.contiguous_format
        if self.format is torch.channels_last:
            for network in self.networks:
                network.to(memory_format=self.format)
        self.validate, self.prior = validate, mixture_prior(cell.device, validate)
        self.parameters = [p for network in self.networks for p in network.parameters()]
        options = {"fused": True} if tuned else {}
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, **options)

    def step(self):
        x = self.batch().contiguous(memory_format=self.format)
        self.last = handwritten_loss(*self.networks, self.prior, x, self.validate)
        self.optimizer.zero_grad()
        self.last.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()


# What formulas that are the same may differ by in float64, relative to the largest entry: half of
# its digits. The other half is for the rounding, of which the terms that cancel take three digits
# here; in float32 these are most of the digits that there are.
HALF_OF_THE_DIGITS = torch.finfo(torch.float64).eps ** 0.5


def assert_same(found, expected):
    """That two float64 tensors are the same number by number, but for rounding."""
    atol = HALF_OF_THE_DIGITS * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def in_float64(model, guide):
    """Copies of a pair with the constants that are declared, and not their float32 rounding."""
    model, guide = (copy.deepcopy(module).double() for module in (model, guide))
    model.likelihood.log_scale.fill_(math.log(model.spec.likelihood.scale))
    for name in guide.annealed:
        getattr(guide, name).fill_(getattr(guide.spec, name))
    return model, guide


def check_loss(model, guide, x):
    """That the loss by hand is Pyro's of this package's pair, for the same noise.

    Both are computed in float64, where the processor's rounding cannot be taken for a difference.

    Raises:
        RuntimeError: If it is not; then not the same thing would be timed.
    """
    (model, guide), x = in_float64(model, guide), x.double()
    prior = mixture_prior(x.device, dtype=x.dtype)
    torch.manual_seed(1)
    by_hand = handwritten_loss(guide.encoder, model.decoder, prior, x)
    torch.manual_seed(1)
    of_package = Trace_ELBO().differentiable_loss(model, guide, x) / len(x)
    gradients = [
        torch.autograd.grad(loss, [*guide.encoder.parameters(), *model.decoder.parameters()])
        for loss in (by_hand, of_package)
    ]
    try:
        assert_same(by_hand, of_package)
        for one, other in zip(*gradients, strict=True):
            assert_same(one, other)
    except AssertionError as error:
        raise RuntimeError(f"the hand-written loss is not the package's: {error}") from None


# Pyro and this package ---------------------------------------------------------------------------


class PyroSVI(Loop):
    """Pyro as its tutorials have it."""

    def __init__(self, cell):
        super().__init__(cell)
        optimizer = ClippedAdam({"lr": LEARNING_RATE, "clip_norm": CLIP})
        self.svi = SVI(*cell.pair(), optimizer, loss=Trace_ELBO())

    def step(self):
        self.last = self.svi.step(self.batch()) / self.cell.batch


class Fit:
    """The step of ``ngvae_pyro.fit``, without the annealing, so that all minimise the same."""

    def __init__(self, cell):
        spec = FitSpec(
            # More than are ever taken, so that the learning rate does not fall.
            steps=10**9,
            batch_size=cell.batch,
            learning_rate=LEARNING_RATE,
            clip_norm=CLIP,
            device=cell.device,
        )
        data = ImageData("sprites", cell.images)
        self.trainer = Trainer(*cell.pair(), data, spec, ScheduleSpec())

    def steps(self, count):
        for _ in range(count):
            self.trainer.train_step()

    def loss(self):
        return self.trainer.loss()


# Other libraries ---------------------------------------------------------------------------------


def functional(module):
    """A torch network as a function (parameters, input) of JAX arrays, and its parameters."""
    import jax
    from jax import lax

    def array(parameter):
        return jax.numpy.asarray(parameter.detach().cpu().numpy())

    def convolution(h, kernel, stride, padding, dilation):
        return lax.conv_general_dilated(
            h, kernel, (stride, stride), [(padding, padding)] * 2, (dilation, dilation)
        )

    def layer_norm(p, h):
        centred = h - h.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred * lax.rsqrt(variance + 1e-5) * p["weight"] + p["bias"]

    def linear(p, h):
        return h @ p["weight"].T + p["bias"]

    def residual(p, h):
        return h + jax.nn.silu(linear(p["linear"], layer_norm(p["norm"], h)))

    def conv(p, h):
        return convolution(h, p["weight"], 2, 1, 1) + p["bias"][:, None, None]

    def conv_transpose(p, h):
        # The gradient of a convolution of stride 2: zeros between the cells, the kernel turned.
        kernel = p["weight"].swapaxes(0, 1)[:, :, ::-1, ::-1]
        return convolution(h, kernel, 1, 2, 2) + p["bias"][:, None, None]

    def layer(part):
        if isinstance(part, nn.Unflatten):
            size = tuple(part.unflattened_size)
            return lambda p, h: h.reshape(-1, *size)
        return {
            nn.Linear: linear,
            nn.SiLU: lambda p, h: jax.nn.silu(h),
            nn.ReLU: lambda p, h: jax.nn.relu(h),
            nn.Flatten: lambda p, h: h.reshape(len(h), -1),
            nn.Conv2d: conv,
            nn.ConvTranspose2d: conv_transpose,
            ResidualLayer: residual,
        }[type(part)]

    def parameters(part):
        own = {name: array(p) for name, p in part.named_parameters(recurse=False)}
        return own | {name: parameters(child) for name, child in part.named_children()}

    # The linear layer at the latent end comes last in an encoder and first in a decoder.
    head, stem = getattr(module, "head", None), getattr(module, "stem", None)
    parts = [p for p in (stem, *module.trunk, head) if p is not None]
    layers = [layer(part) for part in parts]

    def apply(tree, h):
        for function, own in zip(layers, tree, strict=True):
            h = function(own, h)
        return h.reshape(-1, *module.image_shape) if stem is not None else h

    return apply, [parameters(part) for part in parts]


class NumPyro:
    """The same model and guide in NumPyro; a block of steps is one compiled program."""

    def __init__(self, cell):
        # A GPU's memory is otherwise taken as a whole, and the peak would say nothing.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import jax
        import numpyro
        import numpyro.distributions as dist
        from jax import numpy as jnp

        if cell.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        elif jax.default_backend() != "gpu":
            raise Unavailable("jax is installed without CUDA")
        networks = [network.cpu() for network in cell.networks()]
        (encode, encoder), (decode, decoder) = map(functional, networks)
        images = jnp.asarray(cell.images.numpy())
        self.check(networks, (encode, encoder), (decode, decoder), cell.images)
        slab, spike = jnp.array(SLAB), jnp.array(SPIKE)
        weights = jnp.array([SLAB_PROBS, 1 - SLAB_PROBS])
        (a1, a2), (b1, b2) = CONCENTRATION, RATE

        def model(x):
            own = numpyro.param("decoder", decoder)
            gammas = dist.Gamma(*jnp.stack((slab, spike), -1))
            prior = dist.MixtureSameFamily(dist.Categorical(weights), gammas)
            with numpyro.plate("data", len(x)):
                numpyro.sample("precision", prior.expand((LATENTS,)).to_event(1))
                standard = dist.Normal(0.0, 1.0).expand((LATENTS,))
                z = numpyro.sample("z", standard.to_event(1))
                numpyro.sample("x", dist.Normal(decode(own, z), PIXEL_SCALE).to_event(3), obs=x)

        def guide(x):
            own = numpyro.param("encoder", encoder)
            loc, logits = jnp.split(encode(own, x), 2, -1)
            shift = SHARPNESS * (jax.nn.sigmoid(logits) - 0.5)
            gate, rest = jax.nn.sigmoid(shift), jax.nn.sigmoid(-shift)
            gamma = dist.Gamma(a1 * gate + a2 * rest, b1 * gate + b2 * rest)
            with numpyro.plate("data", len(x)):
                precision = numpyro.sample("precision", gamma.to_event(1))
                numpyro.sample("z", dist.Normal(loc, precision**-0.5).to_event(1))

        optimizer = numpyro.optim.ClippedAdam(LEARNING_RATE, clip_norm=CLIP)
        svi = numpyro.infer.SVI(model, guide, optimizer, numpyro.infer.Trace_ELBO())

        def batch(key):
            index = jax.random.randint(key, (cell.batch,), 0, len(images))
            return images[index] / 255.0

        def step(carry):
            state, key, _ = carry
            key, own = jax.random.split(key)
            state, loss = svi.update(state, batch(own))
            return state, key, loss / cell.batch

        def block(carry, count):
            return jax.lax.fori_loop(0, count, lambda _, carry: step(carry), carry)

        # A whole block in one program, except where XLA's CPU compiler takes four times as long for
        # the convolutions of a loop.
        self.in_blocks = cell.device == "cuda" or isinstance(NETWORKS[cell.network][0], MLPSpec)
        self.train = jax.jit(block if self.in_blocks else step, donate_argnums=0)
        key = jax.random.key(0)
        # Copies, because what is donated is gone, and the weights are in the closures too.
        state = jax.tree.map(jnp.copy, svi.init(key, batch(key)))
        self.carry = state, key, jnp.zeros(())

    @staticmethod
    def check(networks, encoder, decoder, images):
        """That the networks are the same functions as torch's."""
        import jax

        x = images[:2].double() / 255
        networks = [copy.deepcopy(network).double() for network in networks]
        with torch.no_grad():
            code = torch.cat(networks[0](x), -1)
            z = code[:, :LATENTS]
            pairs = (encoder, x, code), (decoder, z, networks[1](z))
        with jax.enable_x64(True):
            for (apply, tree), given, expected in pairs:
                doubled = jax.tree.map(lambda array: array.astype("float64"), tree)
                found = apply(doubled, given.numpy()).tolist()
                assert_same(torch.tensor(found, dtype=torch.float64), expected)

    def steps(self, count):
        if self.in_blocks:
            self.carry = self.train(self.carry, count)
        else:
            for _ in range(count):
                self.carry = self.train(self.carry)
        self.carry[-1].block_until_ready()

    def loss(self):
        return float(self.carry[-1])


class Pythae:
    """The loop of Pythae's trainer over its data loader, with its vanilla VAE."""

    def __init__(self, cell):
        # What its trainer tells the terminal.
        logging.disable(logging.INFO)
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import CallbackHandler

        class Encoder(BaseEncoder):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, x):
                loc, log_variance = self.network(x)
                return ModelOutput(embedding=loc, log_covariance=log_variance)

        class Decoder(BaseDecoder):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, z):
                return ModelOutput(reconstruction=self.network(z))

        class Repeated(BaseDataset):
            """The images again and again: an epoch of as many steps as a block has."""

            size = cell.batch

            def __len__(self):
                return self.size

            def __getitem__(self, index):
                return super().__getitem__(index % len(self.data))

        shape = tuple(cell.images.shape[1:])
        encoder, decoder = cell.networks()
        model = VAE(
            VAEConfig(input_dim=shape, latent_dim=LATENTS, reconstruction_loss="mse"),
            encoder=Encoder(encoder),
            decoder=Decoder(decoder),
        )
        config = BaseTrainerConfig(
            per_device_train_batch_size=cell.batch,
            learning_rate=LEARNING_RATE,
            no_cuda=cell.device == "cpu",
        )
        self.data = Repeated(cell.images.float() / 255, torch.zeros(len(cell.images)))
        self.batch, self.last = cell.batch, 0.0
        self.trainer = BaseTrainer(model, self.data, training_config=config)
        self.trainer.set_optimizer()
        # The usual ones print to the terminal.
        self.trainer.callback_handler = CallbackHandler([], model)

    def steps(self, count):
        self.data.size = count * self.batch
        self.last = self.trainer.train_step(epoch=1)

    def loss(self):
        return self.last


# All together ------------------------------------------------------------------------------------

FLOOR, BY_HAND = "networks alone", "hand-written"


def contenders(cell):
    """{name: Contender} of a cell, already built."""
    # Only what is recorded in its first steps has to be warmed up for long.
    few = {"warm_up": 5}
    found = {FLOOR: Contender(Networks, cell, **few)}
    if cell.device == "cuda":
        found[f"{FLOOR}, CUDA graph"] = Contender(GraphedNetworks, cell, **few)
    return found | {
        BY_HAND: Contender(Handwritten, cell, **few),
        f"{BY_HAND}, not validated": Contender(Handwritten, cell, False, **few),
        f"{BY_HAND}, tuned": Contender(Handwritten, cell, False, True, **few),
        "Pyro SVI": Contender(PyroSVI, cell, **few),
        "ngvae_pyro.fit": Contender(Fit, cell),
        "NumPyro": Contender(NumPyro, cell, needs=["numpyro"], **few),
        "Pythae": Contender(Pythae, cell, needs=["pythae.trainers"], **few),
    }


def measure(cell, seconds):
    """{contender: row} of a cell."""
    entered = contenders(cell)
    rows = measuring.race(entered, seconds)
    for name, row in rows.items():
        if "unavailable" not in row:
            row["of_networks"] = measuring.ratio(entered[name], entered[FLOOR])
            row["of_handwritten"] = measuring.ratio(entered[name], entered[BY_HAND])
    return rows


def table(rows):
    lines = [
        f"| contender | ms per step | / {FLOOR} | / {BY_HAND} | processor ms | peak MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        if "unavailable" in row:
            lines.append(f"| {name} | {row['unavailable']} | - | - | - | - |")
        else:
            ratios = f"{row['of_networks']:.2f} | {row['of_handwritten']:.2f}"
            times = f"{row['ms']:.3g} | {ratios} | {row['processor_ms']:.3g}"
            lines.append(f"| {name} | {times} | {row['mib']:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 128, 1024])
    devices = ["cpu", "cuda"]
    parser.add_argument("--device", choices=devices, default=devices[torch.cuda.is_available()])
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, per table")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file")
    words = parser.parse_args()
    found = measuring.machine(words.device, ("numpyro", "jax", "pythae"))
    print(measuring.in_words(found), flush=True)
    result = {"machine": found, "cells": []}
    for network in words.networks:
        images = images_of(network)
        check_loss(*Cell(network, 0, "cpu", images).pair(), ImageData.to_unit(images[:8]))
        for batch in words.batches:
            rows = measure(Cell(network, batch, words.device, images), words.seconds)
            result["cells"].append({"network": network, "batch": batch, "rows": rows})
            shape = "x".join(map(str, images.shape[1:]))
            print(f"\n{network}, images {shape}, batch {batch}:\n\n{table(rows)}", flush=True)
    if words.out:
        words.out.parent.mkdir(parents=True, exist_ok=True)
        words.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
