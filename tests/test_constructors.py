"""Every constructor: what its attributes give back, and the type of what it is given."""

import copy
import itertools
import pickle

import pytest
import torch

from ngvae_pyro.distributions import (
    GammaMixture,
    GeneralizedGamma,
    IndependentNormalGamma,
    NormalGamma,
    NormalGammaMixture,
    NormalGammaPrior,
    RelaxedNormalGammaMixture,
    SpikeSlabPrior,
)
from ngvae_pyro.distributions.location_scale import Epanechnikov, GaussianMixture
from ngvae_pyro.distributions.poisson import RelaxedPoisson

TWO = {"concentration": (5, 4), "rate": (2, 3)}
# Whole numbers, so that tensors of integers can hold them; a tuple is a pair of parameters, and a
# list one parameter whose last axis is of one event.
CONSTRUCTORS = {
    "NormalGamma": (NormalGamma, {"loc": 1, "concentration": 4, "rate": 2}),
    "GeneralizedGamma": (GeneralizedGamma, {"concentration": 4, "rate": 2}),
    "IndependentNormalGamma": (
        IndependentNormalGamma,
        {"concentration": 4, "rate": 2, "loc": 1, "scale": 2},
    ),
    "GammaMixture, probs": (GammaMixture, {"probs": 0.25, **TWO}),
    "GammaMixture, logits": (GammaMixture, {"logits": 1, **TWO}),
    "NormalGammaMixture, probs": (NormalGammaMixture, {"loc": 1, "probs": 0.25, **TWO}),
    "NormalGammaMixture, logits": (NormalGammaMixture, {"loc": 1, "logits": 1, **TWO}),
    "RelaxedNormalGammaMixture, probs": (
        RelaxedNormalGammaMixture,
        {"loc": 1, "probs": 0.25, **TWO, "sharpness": 3},
    ),
    "RelaxedNormalGammaMixture, logits": (
        RelaxedNormalGammaMixture,
        {"loc": 1, "logits": 1, **TWO, "sharpness": 3},
    ),
    "NormalGammaPrior": (NormalGammaPrior, {"probs": 0.25, "slab": (5, 2), "spike": (4, 3)}),
    "SpikeSlabPrior": (SpikeSlabPrior, {"probs": 0.25, "slab": (5, 2), "spike": (4, 3)}),
    "Epanechnikov": (Epanechnikov, {"loc": 1, "scale": 2}),
    "GaussianMixture": (
        GaussianMixture,
        {"loc": [0, 1, 4], "scale": [1, 3, 2], "logits": [0, 1, 2]},
    ),
    "RelaxedPoisson": (RelaxedPoisson, {"rate": 2, "temperature": 0}),
}
# A temperature is one number and no parameter of the batch.
REBUILT = sorted(set(CONSTRUCTORS) - {"RelaxedPoisson"})
ALL = sorted(CONSTRUCTORS)


def varied(value, shape, seed):
    """A parameter of a batch, each number of it another."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(value, tuple):
        return tuple(varied(v, shape, seed + 1 + n) for n, v in enumerate(value))
    wide = (*shape, len(value)) if isinstance(value, list) else shape
    spread = 0.9 + 0.1 * torch.rand(wide, generator=generator)
    return torch.tensor(value, dtype=torch.float32) * spread


def made(name, shape):
    cls, parameters = CONSTRUCTORS[name]
    return cls(**{k: varied(v, shape, 10 * n) for n, (k, v) in enumerate(parameters.items())})


def rebuilt(d, left_out=None):
    arguments = {name: getattr(d, name) for name in d.arg_constraints if name != left_out}
    return type(d)(**arguments)


def assert_same(a, b):
    assert type(a) is type(b) and a.batch_shape == b.batch_shape and a.event_shape == b.event_shape
    value = a.sample((5,))
    torch.testing.assert_close(b.log_prob(value), a.log_prob(value))
    torch.testing.assert_close(b.mean, a.mean)
    torch.testing.assert_close(b.variance, a.variance)


@pytest.mark.parametrize("shape", [(), (2,), (3, 2)])
@pytest.mark.parametrize("name", REBUILT)
def test_attributes_are_what_the_constructor_takes(name, shape):
    d = made(name, shape)
    # Of probs and logits a constructor takes one.
    for left_out in (
        ("probs", "logits") if {"probs", "logits"} <= set(d.arg_constraints) else (None,)
    ):
        assert_same(d, rebuilt(d, left_out))
        wide = d.expand((4, *shape))
        assert_same(wide, rebuilt(wide, left_out))


@pytest.mark.parametrize("name", ALL)
def test_copies_are_the_same(name):
    d = made(name, (2,)) if name in REBUILT else RelaxedPoisson(torch.tensor([1.0, 2.0]), 0.0)
    d.log_prob(d.sample())
    assert_same(d, copy.deepcopy(d))
    assert_same(d, pickle.loads(pickle.dumps(d)))


@pytest.mark.parametrize("cls", [GammaMixture, NormalGammaMixture])
def test_a_tensor_of_another_size_is_no_pair(cls):
    loc = {} if cls is GammaMixture else {"loc": 0.0}
    with pytest.raises(ValueError, match=r"rate to be a pair on the last axis, got shape \(2, 3\)"):
        cls(**loc, probs=0.5, concentration=(1.0, 2.0), rate=torch.ones(2, 3))


def flattened(parameters):
    """Each parameter on its own, with a function that puts new ones into the same places."""
    flat = [v for p in parameters.values() for v in (p if isinstance(p, tuple) else (p,))]

    def rebuild(values):
        values = iter(values)
        return {
            k: tuple(next(values) for _ in p) if isinstance(p, tuple) else next(values)
            for k, p in parameters.items()
        }

    return flat, rebuild


def of_types(name, types):
    """The distribution with its parameters as tensors of these types, or as numbers for None."""
    cls, parameters = CONSTRUCTORS[name]
    flat, rebuild = flattened(parameters)
    values = []
    for value, dtype in zip(flat, types, strict=True):
        if dtype is None and not isinstance(value, list):
            values.append(value)
        else:
            # No integer is a quarter.
            whole = dtype is not None and not dtype.is_floating_point
            known = torch.float32 if dtype is None or (whole and value == 0.25) else dtype
            values.append(torch.tensor(value, dtype=known))
    return cls(**rebuild(values))


@pytest.mark.parametrize("name", ALL)
def test_parameters_of_integers_and_of_two_precisions_promote(name):
    count = len(flattened(CONSTRUCTORS[name][1])[0])
    exact = of_types(name, [torch.float64] * count)
    kinds = (torch.int64, torch.uint8, torch.float64), (None, torch.float32)
    for n, dtype, others in itertools.product(range(count), *kinds):
        types = [dtype if i == n else others for i in range(count)]
        # A temperature is a number, whatever it comes as.
        wide = torch.float64 in (types[:1] if name == "RelaxedPoisson" else types)
        expected = torch.float64 if wide else torch.get_default_dtype()
        value = exact.sample((4,)).to(expected)
        d = of_types(name, types)
        log_prob = d.log_prob(value)
        assert d.sample().dtype == d.mean.dtype == log_prob.dtype == expected, types
        torch.testing.assert_close(
            log_prob.double(), exact.log_prob(value.double()), rtol=1e-4, atol=1e-4, msg=str(types)
        )


def test_whole_numbers_do_not_truncate_the_others():
    d = NormalGamma(torch.arange(3), 2.5, 3.9)
    assert d.concentration.unique().item() == 2.5 and d.rate.dtype == torch.float32
    assert d.rate.unique().item() == pytest.approx(3.9)
    assert GaussianMixture(torch.arange(3), 2.5, 0.5).scale.unique().item() == 2.5
