"""Contracts of the distributions: scipy, integrals, goodness of fit, finite differences."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions.testing.gof import density_goodness_of_fit
from pyro.infer import TraceMeanField_ELBO
from scipy import special, stats
from torch.distributions import biject_to, kl_divergence

from ngvae_pyro.distributions import (
    GammaMixture,
    IndependentNormalGamma,
    NormalGamma,
    NormalGammaMixture,
    NormalGammaPrior,
    RelaxedNormalGammaMixture,
    SpikeSlabPrior,
    conditional_kl,
)

TWO = {"concentration": (5.0, 4.0), "rate": (0.5, 4.0)}
TWO_GAMMAS = [(0.3, 5.0, 0.5), (0.7, 4.0, 4.0)]
LOGIT = math.log(0.3 / 0.7)
GATE = 1 / (1 + math.exp(-4.0 * (0.3 - 0.5)))
SLID = [(1.0, 4.0 + GATE, 4.0 - 3.5 * GATE)]

# class, parameters, and what scipy is told: (weight, a, b) of each Gamma, then loc and scale of z,
# where a scale of None is precision^-1/2 and no scale at all means that there is no z.
CASES = {
    "normal_gamma": (
        NormalGamma,
        {"loc": 0.5, "concentration": 4.0, "rate": 2.0},
        [(1.0, 4.0, 2.0)],
        (0.5, None),
    ),
    "mixture_probs": (
        NormalGammaMixture,
        {"loc": 0.5, "probs": 0.3, **TWO},
        TWO_GAMMAS,
        (0.5, None),
    ),
    "mixture_logits": (
        NormalGammaMixture,
        {"loc": 0.5, "logits": LOGIT, **TWO},
        TWO_GAMMAS,
        (0.5, None),
    ),
    "mixture_first": (
        NormalGammaMixture,
        {"loc": 0.5, "probs": 1.0, **TWO},
        [(1.0, 5.0, 0.5)],
        (0.5, None),
    ),
    "mixture_second": (
        NormalGammaMixture,
        {"loc": 0.5, "probs": 0.0, **TWO},
        [(1.0, 4.0, 4.0)],
        (0.5, None),
    ),
    "relaxed_probs": (
        RelaxedNormalGammaMixture,
        {"loc": 0.5, "probs": 0.3, **TWO, "sharpness": 4.0},
        SLID,
        (0.5, None),
    ),
    "relaxed_logits": (
        RelaxedNormalGammaMixture,
        {"loc": 0.5, "logits": LOGIT, **TWO, "sharpness": 4.0},
        SLID,
        (0.5, None),
    ),
    "normal_gamma_prior": (
        NormalGammaPrior,
        {"probs": 0.3, "slab": (5.0, 0.5), "spike": (4.0, 4.0)},
        TWO_GAMMAS,
        (0.0, None),
    ),
    "independent": (
        IndependentNormalGamma,
        {"concentration": 4.0, "rate": 2.0, "loc": 0.5, "scale": 2.0},
        [(1.0, 4.0, 2.0)],
        (0.5, 2.0),
    ),
    "spike_slab": (
        SpikeSlabPrior,
        {"probs": 0.3, "slab": (5.0, 0.5), "spike": (4.0, 4.0)},
        TWO_GAMMAS,
        (0.0, 1.0),
    ),
    "gamma_mixture_probs": (GammaMixture, {"probs": 0.3, **TWO}, TWO_GAMMAS, None),
    "gamma_mixture_logits": (GammaMixture, {"logits": LOGIT, **TWO}, TWO_GAMMAS, None),
    "gamma_mixture_first": (GammaMixture, {"probs": 1.0, **TWO}, [(1.0, 5.0, 0.5)], None),
}
ALL = sorted(CASES)
INTERIOR = [name for name in ALL if not name.endswith(("first", "second"))]
REPARAMETERISED = [name for name in ALL if CASES[name][0].has_rsample]
MIXTURES = [name for name in ALL if hasattr(CASES[name][0], "responsibilities")]
PAIRS = [name for name in ALL if CASES[name][3] is not None]
DTYPES = [torch.float32, torch.float64]
P_VALUE = 1e-3
Z_SCORE = 4.5


def flatten(parameters):
    """Each number on its own, with a function that puts new values into the same places."""
    sizes = {k: len(v) if isinstance(v, tuple) else 0 for k, v in parameters.items()}
    flat = [x for v in parameters.values() for x in (v if isinstance(v, tuple) else (v,))]

    def rebuild(values):
        values = iter(values)
        return {
            k: tuple(next(values) for _ in range(n)) if n else next(values)
            for k, n in sizes.items()
        }

    return flat, rebuild


def make(name, dtype=torch.float64, shape=(), **options):
    cls, parameters, _, _ = CASES[name]
    flat, rebuild = flatten(parameters)
    return cls(**rebuild(torch.full(shape, x, dtype=dtype) for x in flat), **options)


def scipy_log_prob(name, value):
    _, _, gammas, z_law = CASES[name]
    value = value.double().numpy()
    precision = value if z_law is None else value[..., 1]
    parts = [np.log(w) + stats.gamma(a, scale=1 / b).logpdf(precision) for w, a, b in gammas]
    result = special.logsumexp(parts, axis=0)
    if z_law is not None:
        loc, scale = z_law
        scale = precision**-0.5 if scale is None else scale
        result = result + stats.norm(loc, scale).logpdf(value[..., 0])
    return torch.from_numpy(result)


def assert_mean(draws, expected):
    """The mean of draws along axis 0 is the expected one, up to sampling error."""
    error = draws.std(0) / len(draws) ** 0.5
    score = ((draws.mean(0) - expected) / error).abs()
    assert (score < Z_SCORE).all(), f"z-scores {score}"


# Density


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_log_prob_agrees_with_scipy(name, dtype):
    torch.manual_seed(0)
    d = make(name, dtype)
    value = d.sample((1000,))
    actual = d.log_prob(value)
    assert actual.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(
        actual.double(), scipy_log_prob(name, value), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("name", ALL)
def test_density_integrates_to_one(name):
    d = make(name)
    log_precision = torch.linspace(-14, 6, 801, dtype=torch.float64).unsqueeze(-1)
    precision = log_precision.exp()
    if CASES[name][3] is None:
        density = (d.log_prob(precision) + log_precision).exp().squeeze(-1)
    else:
        # z in units of its spread at that precision: the Student tails need no wide grid.
        loc, scale = CASES[name][3]
        scale = precision**-0.5 if scale is None else torch.tensor(scale).double()
        s = torch.linspace(-9, 9, 121, dtype=torch.float64)
        z, broadcast = torch.broadcast_tensors(loc + s * scale, precision)
        density = d.log_prob(torch.stack((z, broadcast), -1)).exp() * scale * precision
        density = torch.trapezoid(density, s, dim=-1)
    total = torch.trapezoid(density, log_precision.squeeze(-1))
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", INTERIOR)
def test_gradients_of_log_prob_agree_with_finite_differences(name):
    cls, parameters, _, z_law = CASES[name]
    flat, rebuild = flatten(parameters)
    value = torch.tensor([0.7, 2.0, 8.0] if z_law is None else [[-1.0, 0.8], [0.9, 9.0]]).double()

    def log_prob(value, *parameters):
        return cls(**rebuild(parameters)).log_prob(value)

    inputs = [value, *torch.tensor(flat, dtype=torch.float64).unbind()]
    assert torch.autograd.gradcheck(log_prob, [x.clone().requires_grad_() for x in inputs])


def test_marginal_of_z_is_student_t():
    d = make("normal_gamma")
    z = torch.tensor([-2.0, 0.5, 3.0]).double()
    log_precision = torch.linspace(-14, 6, 2001, dtype=torch.float64).unsqueeze(-1)
    pairs = torch.stack(torch.broadcast_tensors(z, log_precision.exp()), -1)
    density = torch.trapezoid((d.log_prob(pairs) + log_precision).exp(), log_precision, dim=0)
    torch.testing.assert_close(d.marginal.log_prob(z), density.log(), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(d.marginal.variance, d.variance[0])
    reference = stats.t(8.0, 0.5, 0.5**0.5).logpdf(z.numpy())
    torch.testing.assert_close(d.marginal.log_prob(z), torch.from_numpy(reference))


def test_the_kl_to_a_gamma_of_torch_is_the_same():
    ours, other = make("normal_gamma").precision, make("independent").precision
    plain = [torch.distributions.Gamma(d.concentration, d.rate) for d in (ours, other)]
    expected = kl_divergence(*plain)
    for pair in ((ours, other), (ours, plain[1]), (plain[0], other)):
        torch.testing.assert_close(kl_divergence(*pair), expected)


def test_cdf_agrees_with_scipy():
    d = make("gamma_mixture_probs")
    value = torch.tensor([0.1, 1.0, 20.0]).double()
    expected = sum(w * stats.gamma(a, scale=1 / b).cdf(value.numpy()) for w, a, b in TWO_GAMMAS)
    torch.testing.assert_close(d.cdf(value), torch.from_numpy(expected))


# Samples


def goodness_of_fit(value, d, bins=10):
    """P-value of the counts of samples in boxes, given the integrals of exp(d.log_prob) there.

    Why not only `pyro.distributions.testing.gof` of Pyro 1.9.2: its test for vectors takes
    distances to nearest neighbours, which come in equal pairs, so that the true density may get
    a p-value of 1e-7; and its chi2sf stops after 100 terms, so that a density far off gets 1.
    """
    transform = biject_to(d.support)
    free = transform.inv(value).double().reshape(len(value), -1)
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))
    boxes, grids, widths = 0, [], []
    for column in free.T.contiguous():
        edges = column.quantile(torch.linspace(0.01, 0.99, bins + 1, dtype=torch.float64))
        # Samples out of the edges are counted together, in no box.
        index = torch.bucketize(column, edges) - 1
        boxes = boxes * bins + index.where((index >= 0) & (index < bins), -(bins**3))
        half = (edges[1:] - edges[:-1]).unsqueeze(-1) / 2
        grids.append((edges[:-1].unsqueeze(-1) + half * (1 + nodes)).flatten())
        widths.append((half * weights).flatten())
    grid = torch.cartesian_prod(*grids).reshape(-1, *d.event_shape).to(value.dtype)
    point = transform(grid)
    density = (d.log_prob(point) + transform.log_abs_det_jacobian(grid, point)).exp().double()
    area = torch.cartesian_prod(*widths).reshape(len(density), -1).prod(-1)
    axes = [size for _ in grids for size in (bins, len(nodes))]
    probs = (density * area).reshape(axes).sum(tuple(range(1, len(axes), 2))).flatten()
    counts = torch.bincount(boxes[boxes >= 0], minlength=len(probs))
    enough = probs * len(value) > 10
    probs, counts = probs[enough], counts[enough]
    probs = torch.cat((probs, 1 - probs.sum(0, keepdim=True)))
    counts = torch.cat((counts, len(value) - counts.sum(0, keepdim=True)))
    return stats.chisquare(counts, probs * len(value)).pvalue


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_samples_fit_log_prob(name, dtype):
    torch.manual_seed(0)
    d = make(name, dtype)
    value = d.sample((50_000,))
    assert value.dtype == dtype
    assert goodness_of_fit(value, d) > P_VALUE


@pytest.mark.parametrize("wrong", [{"rate": 2.1}, {"concentration": 4.2}, {"loc": 0.55}])
def test_goodness_of_fit_refuses_a_wrong_density(wrong):
    torch.manual_seed(0)
    value = make("normal_gamma").sample((50_000,))
    d = NormalGamma(**{**CASES["normal_gamma"][1], **wrong})
    assert goodness_of_fit(value, d) < P_VALUE / 100


def pyro_goodness_of_fit(value, d):
    """P-values of Pyro's test in one dimension at a time: the precision, then z given it.

    The second is read off the joint density: exp(log p(z, precision) - log p(precision)), at the
    residual of z where that depends on the precision, is a density of z alone.
    """
    value = value.double()
    if not d.event_shape:
        return [density_goodness_of_fit(value, d.log_prob(value).exp())]
    z, precision = value.unbind(-1)
    log_marginal = d.precision.log_prob(precision)
    conditional = d.conditional(precision)
    scale = conditional.scale.expand(z.shape)
    log_residual = d.log_prob(value) - log_marginal + scale.log()
    return [
        density_goodness_of_fit(precision, log_marginal.exp()),
        density_goodness_of_fit((z - conditional.loc) / scale, log_residual.exp()),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_samples_fit_log_prob_by_pyro(name, dtype):
    torch.manual_seed(0)
    value = make(name, dtype).sample((20_000,))
    assert min(pyro_goodness_of_fit(value, make(name))) > P_VALUE


def test_goodness_of_fit_by_pyro_refuses_a_wrong_density():
    """Only one far off: rate 2.5 for 2 gets a p-value of 1 there (see `goodness_of_fit`)."""
    torch.manual_seed(0)
    value = make("normal_gamma").sample((20_000,))
    for wrong in ({"rate": 4.0}, {"concentration": 2.0}):
        d = NormalGamma(**{**CASES["normal_gamma"][1], **wrong})
        assert pyro_goodness_of_fit(value, d)[0] < P_VALUE


@pytest.mark.parametrize("name", PAIRS)
def test_samples_fit_precision_and_conditional(name):
    torch.manual_seed(0)
    d = make(name)
    z, precision = d.sample((20_000,)).unbind(-1)
    assert stats.kstest(d.precision.cdf(precision).numpy(), "uniform").pvalue > P_VALUE
    assert stats.kstest(d.conditional(precision).cdf(z).numpy(), "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("name", ALL)
def test_mean_and_variance_agree_with_samples(name):
    torch.manual_seed(0)
    d = make(name)
    value = d.sample((200_000,))
    assert_mean(value, d.mean)
    assert_mean((value - d.mean).square(), d.variance)


def test_moments_that_do_not_exist_are_those_of_student_t():
    d = NormalGamma(torch.zeros(4), torch.tensor([0.4, 0.8, 1.0, 1.5]), 1.0)
    torch.testing.assert_close(d.mean[..., 0], d.marginal.mean, equal_nan=True)
    torch.testing.assert_close(d.variance[..., 0], d.marginal.variance, equal_nan=True)
    options = {"concentration": (3.0, 0.4), "rate": (2.0, 1.0)}
    d = NormalGammaMixture(0.0, torch.tensor([1.0, 0.5]), **options)
    assert d.mean[..., 0].isnan().tolist() == [False, True]
    assert d.variance[0, 0] == 1.0 and d.variance[1, 0].isnan()


def per_draw_gradient(name, function, draws=100_000):
    """The gradient of function at each draw, by parameter."""
    cls, parameters, _, _ = CASES[name]
    flat, rebuild = flatten(parameters)
    # One copy of the parameters per draw, so that backward keeps the draws apart.
    leaves = [torch.full((draws,), x, dtype=torch.float64, requires_grad=True) for x in flat]
    function(cls(**rebuild(leaves)).rsample()).sum().backward()
    return rebuild([leaf.grad for leaf in leaves])


@pytest.mark.parametrize("name", ["normal_gamma", "independent"])
def test_pathwise_gradient_has_the_known_means(name):
    torch.manual_seed(0)
    a, b = (torch.tensor(CASES[name][1][k]).double() for k in ("concentration", "rate"))
    gradient = per_draw_gradient(name, lambda x: x[..., 1].log())
    assert_mean(gradient["concentration"], torch.polygamma(1, a))
    torch.testing.assert_close(gradient["rate"], torch.full_like(gradient["rate"], -1 / b))
    gradient = per_draw_gradient(name, lambda x: (x[..., 0] - 0.5).square())
    assert_mean(gradient["loc"], torch.zeros_like(a))
    if name == "normal_gamma":
        assert_mean(gradient["concentration"], -b / (a - 1) ** 2)
        assert_mean(gradient["rate"], 1 / (a - 1))
    else:
        assert_mean(gradient["scale"], 2 * CASES[name][1]["scale"])


@pytest.mark.parametrize("weight", ["probs", "logits"])
def test_pathwise_gradient_of_the_relaxed_weight(weight):
    torch.manual_seed(0)
    gradient = per_draw_gradient(f"relaxed_{weight}", lambda x: x[..., 1].log())[weight]
    p = torch.tensor(CASES[f"relaxed_{weight}"][1][weight]).double().requires_grad_()
    gate = torch.sigmoid(4.0 * ((p.sigmoid() if weight == "logits" else p) - 0.5))
    expected = (4.0 + gate).digamma() - (4.0 - 3.5 * gate).log()
    assert_mean(gradient, *torch.autograd.grad(expected, p))


@pytest.mark.parametrize("name", sorted(set(ALL) - set(REPARAMETERISED)))
def test_exact_mixtures_are_not_reparameterised_unless_asked(name):
    d = make(name)
    assert not d.has_rsample
    assert not d().requires_grad
    asked = make(name).has_rsample_(True)
    assert asked.expand((2,)).has_rsample and asked.to_event(0).has_rsample


# Shapes and types


@pytest.mark.parametrize("name", ALL)
def test_shapes(name):
    event = () if CASES[name][3] is None else (2,)
    for shape in [(), (3,), (4, 1, 3)]:
        d = make(name, shape=shape)
        assert (d.batch_shape, d.event_shape) == (shape, event)
        assert d.mean.shape == d.variance.shape == shape + event
        value = d.sample((2, 5))
        assert value.shape == d.shape((2, 5)) == (2, 5, *shape, *event)
        assert d.log_prob(value).shape == (2, 5, *shape)
        assert d.support.check(value).shape == (2, 5, *shape)
        assert d.to_event().log_prob(value).shape == (2, 5)
        if name in MIXTURES:
            assert d.responsibilities(value).shape == (2, 5, *shape)


@pytest.mark.parametrize("name", ALL)
def test_parameters_broadcast(name):
    cls, parameters, _, _ = CASES[name]
    flat, rebuild = flatten(parameters)
    for wide in range(len(flat)):
        shapes = [(4, 1) if i == wide else (3,) for i in range(len(flat))]
        pairs = zip(shapes, flat, strict=True)
        d = cls(**rebuild(torch.full(s, x, dtype=torch.float64) for s, x in pairs))
        assert d.batch_shape == (4, 3)
        torch.testing.assert_close(d.log_prob(d.mean), make(name, shape=(4, 3)).log_prob(d.mean))
        for parameter, constraint in d.arg_constraints.items():
            value = getattr(d, parameter)
            assert value.shape[: value.dim() - constraint.event_dim] == (4, 3), parameter


@pytest.mark.parametrize("name", ALL)
def test_numbers_take_the_dtype_of_a_tensor(name):
    cls, parameters, _, _ = CASES[name]
    assert cls(**parameters).sample().dtype == torch.get_default_dtype()
    flat, rebuild = flatten(parameters)
    first = torch.tensor([flat[0]], dtype=torch.float64)
    d = cls(**rebuild([first, *flat[1:]]))
    assert d.sample().dtype == d.mean.dtype == d.log_prob(d.mean).dtype == torch.float64


@pytest.mark.parametrize("name", ALL)
def test_expand(name):
    d = make(name, shape=(3, 1))
    # Attributes computed before the expansion must not go stale after it.
    d.log_prob(d.mean)
    for shape in [(3, 1), (3, 2), (5, 3, 2)]:
        expanded = d.expand(shape)
        assert type(expanded) is type(d)
        assert expanded.batch_shape == shape
        assert expanded.sample().shape == torch.Size(shape) + d.event_shape
        value = d.sample((2, 1) if len(shape) == 3 else ()).expand(expanded.shape((2,)))
        torch.testing.assert_close(expanded.log_prob(value), d.log_prob(value))
        torch.testing.assert_close(expanded.variance, d.variance.expand(expanded.shape()))
        for parameter in d.arg_constraints:
            assert getattr(expanded, parameter).unique().equal(getattr(d, parameter).unique())
    assert type(d.expand_by((2,)).expand((2, 3, 4))) is type(d)


def gammas_of_meta_tensors():
    """Whether this torch has a Gamma's draw without values; older ones have not."""
    try:
        torch._standard_gamma(torch.ones(1, device="meta"))
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("name", REPARAMETERISED)
def test_hot_path_never_looks_at_a_value(name):
    # A meta tensor has no values, so .item() or `if tensor` raises: what breaks a CUDA graph.
    drawn = name not in MIXTURES and gammas_of_meta_tensors()
    with torch.device("meta"):
        d = make(name, torch.float32, (128, 15), validate_args=False)
        value = d.rsample() if drawn else torch.empty(d.shape())
        assert d.log_prob(value).shape == (128, 15)


# Validation


@pytest.mark.parametrize(
    ("cls", "parameters", "match"),
    [
        (NormalGamma, {"loc": 0.0, "concentration": -1.0, "rate": 1.0}, "parameter concentration"),
        (NormalGamma, {"loc": 0.0, "concentration": 1.0, "rate": 0.0}, "parameter rate"),
        (NormalGamma, {"loc": math.nan, "concentration": 1.0, "rate": 1.0}, "parameter loc"),
        (NormalGammaMixture, {"loc": 0.0, "probs": 1.1, **TWO}, "parameter probs"),
        (NormalGammaMixture, {"loc": 0.0, "logits": math.nan, **TWO}, "parameter logits"),
        (NormalGammaMixture, {"loc": 0.0, **TWO}, "Either `probs` or `logits`"),
        (
            NormalGammaMixture,
            {"loc": 0.0, "probs": 0.5, "logits": 0.0, **TWO},
            "Either `probs` or `logits` must be specified, but not both",
        ),
        (
            NormalGammaMixture,
            {"loc": 0.0, "probs": 0.5, "concentration": 2.0, "rate": (1.0, 1.0)},
            "Expected concentration to be a pair, got 2.0",
        ),
        (
            NormalGammaMixture,
            {"loc": 0.0, "probs": 0.5, "concentration": (2.0, 1.0), "rate": (1.0, -1.0)},
            "parameter rate",
        ),
        (RelaxedNormalGammaMixture, {"loc": 0.0, **TWO, "sharpness": 1.0}, "Either `probs`"),
        (
            RelaxedNormalGammaMixture,
            {"loc": 0.0, "probs": 0.5, **TWO, "sharpness": -1.0},
            "parameter sharpness",
        ),
        (
            RelaxedNormalGammaMixture,
            {"loc": 0.0, "probs": -0.5, **TWO, "sharpness": 1.0},
            "parameter probs",
        ),
        (GammaMixture, TWO, "Either `probs` or `logits`"),
        (GammaMixture, {"probs": 2.0, **TWO}, "parameter probs"),
        (
            IndependentNormalGamma,
            {"concentration": 1.0, "rate": 1.0, "scale": 0.0},
            "parameter scale",
        ),
        (
            SpikeSlabPrior,
            {"probs": 0.5, "slab": (1.0, 1.0, 1.0), "spike": (1.0, 1.0)},
            r"Expected \(concentration, rate\) of slab to be a pair",
        ),
        (
            NormalGammaPrior,
            {"probs": 0.5, "slab": (1.0, 1.0), "spike": (1.0, 0.0)},
            "parameter spike",
        ),
    ],
)
def test_bad_parameters(cls, parameters, match):
    with pytest.raises(ValueError, match=match):
        cls(**parameters, validate_args=True)


@pytest.mark.parametrize("name", ALL)
def test_values_out_of_support(name):
    d = make(name, validate_args=True)
    good = d.sample()
    for precision in (-1.0, 0.0, math.nan):
        bad = torch.full_like(good, precision)
        with pytest.raises(ValueError, match="within the support"):
            d.log_prob(bad)
    if d.event_shape:
        with pytest.raises(ValueError, match="right-most size of value must match event_shape"):
            d.log_prob(torch.ones(3, dtype=torch.float64))
        assert d.precision._validate_args and d.conditional(good[..., 1])._validate_args
    assert d.expand((2,))._validate_args
    assert not make(name, validate_args=False).expand((2,))._validate_args


# Entropy and KL


@pytest.mark.parametrize("name", REPARAMETERISED)
def test_entropy_agrees_with_samples(name):
    torch.manual_seed(0)
    d = make(name, shape=(2,))
    assert d.entropy().shape == (2,)
    assert_mean(-d.log_prob(d.sample((100_000,))), d.entropy())


@pytest.mark.parametrize("q_name", ["normal_gamma", "relaxed_probs", "independent"])
@pytest.mark.parametrize("p_name", ["normal_gamma", "relaxed_probs", "relaxed_logits"])
def test_kl_agrees_with_samples(p_name, q_name):
    torch.manual_seed(0)
    p, q = make(p_name, shape=(2, 1)), make(q_name, shape=(3,))
    p.loc = p.loc + 0.7
    value = p.sample((100_000,)).expand(-1, 2, 3, 2)
    kl = kl_divergence(p, q)
    assert kl.shape == (2, 3)
    assert_mean(p.log_prob(value) - q.log_prob(value), kl)


@pytest.mark.parametrize("q_name", PAIRS)
@pytest.mark.parametrize("p_name", ["relaxed_probs", "mixture_probs", "mixture_first"])
def test_conditional_kl_agrees_with_samples(p_name, q_name):
    torch.manual_seed(0)
    p, q = make(p_name), make(q_name)
    p.loc = p.loc + 0.7
    z, precision = p.sample((100_000,)).unbind(-1)
    draws = p.conditional(precision).log_prob(z) - q.conditional(precision).log_prob(z)
    assert_mean(draws, conditional_kl(p, q))


def test_kl_to_itself_is_zero_and_kl_may_be_infinite():
    concentration = torch.tensor([0.4, 1.0, 2.0], requires_grad=True)
    p = NormalGamma(torch.zeros(3), concentration, 1.0)
    torch.testing.assert_close(kl_divergence(p, p), torch.zeros(3))
    kl = kl_divergence(p, IndependentNormalGamma(1.0, 1.0))
    assert kl.isinf().tolist() == [True, True, False]
    kl.sum().backward()
    assert concentration.grad.isfinite().all()


@pytest.mark.parametrize(
    ("p_name", "q_name"),
    [
        ("normal_gamma", "spike_slab"),
        ("normal_gamma", "normal_gamma_prior"),
        ("relaxed_probs", "spike_slab"),
        ("mixture_probs", "normal_gamma"),
        ("mixture_probs", "independent"),
        ("gamma_mixture_probs", "gamma_mixture_probs"),
    ],
)
def test_kl_without_a_closed_form_is_not_registered(p_name, q_name):
    with pytest.raises(NotImplementedError, match="No KL"):
        kl_divergence(make(p_name), make(q_name))


def test_conditional_kl_refuses_other_distributions():
    with pytest.raises(NotImplementedError, match="got IndependentNormalGamma and NormalGamma"):
        conditional_kl(make("independent"), make("normal_gamma"))


@pytest.mark.parametrize("prior", ["independent", "spike_slab", "normal_gamma_prior"])
def test_mean_field_elbo(prior):
    """The closed KL where there is one, else Pyro falls back on sampling."""
    pyro.set_rng_seed(0)
    p, q = make(prior), make("relaxed_logits", shape=(1000, 4))

    def model():
        with pyro.plate("data", 1000):
            pyro.sample("latent", p.expand((1000, 4)).to_event(1))

    def guide():
        with pyro.plate("data", 1000):
            pyro.sample("latent", q.to_event(1))

    loss = TraceMeanField_ELBO().loss(model, guide)
    value = q.sample((50,))
    expected = (q.log_prob(value) - p.log_prob(value)).mean(0).sum()
    assert loss == pytest.approx(expected.item(), rel=0.1)
    if prior == "independent":
        assert loss == pytest.approx(kl_divergence(q, p).sum().item())


# The two components


@pytest.mark.parametrize("name", MIXTURES)
def test_responsibilities_by_bayes(name):
    torch.manual_seed(0)
    d = make(name)
    value = d.sample((100,))
    precision = value if CASES[name][3] is None else value[..., 1]
    joint = [
        weight * stats.gamma(a, scale=1 / b).pdf(precision.numpy())
        for weight, a, b in zip(
            (d.probs.item(), 1 - d.probs.item()), (5.0, 4.0), (0.5, 4.0), strict=True
        )
    ]
    expected = torch.from_numpy(joint[0] / (joint[0] + joint[1]))
    torch.testing.assert_close(d.responsibilities(value), expected)
    # Their mean under the mixture is the weight again.
    posterior = d.responsibilities(d.sample((100_000,)))
    if posterior.std() > 0:
        assert_mean(posterior, d.probs)
    else:
        assert posterior.eq(d.probs).all()


def test_small_draws_are_the_least_and_have_no_gradient():
    a = torch.full((1000,), 0.01, requires_grad=True)
    value = NormalGamma(0.0, a, 1.0).rsample()[..., 1]
    assert value.min() == torch.finfo(torch.float32).tiny ** 0.4
    (slope,) = torch.autograd.grad(value.log().sum(), a)
    assert slope[value == value.min()].eq(0).all() and slope[value > value.min()].ne(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [{"probs": 0.0}, {"probs": 1.0}])
@pytest.mark.parametrize("cls", [NormalGammaMixture, GammaMixture, SpikeSlabPrior])
def test_an_absent_component_is_exactly_absent(cls, weight, dtype):
    # Far apart, and at values where the absent component would win by hundreds of nats.
    slab, spike = (1000.0, 0.1), (100.0, 100.0)
    a, b = slab if weight["probs"] else spike
    zero, weight = torch.zeros((), dtype=dtype), torch.tensor(weight["probs"], dtype=dtype)
    pairs = {"concentration": (slab[0], spike[0]), "rate": (slab[1], spike[1])}
    value = torch.tensor([[0.0, 1.0], [0.3, 1e4]], dtype=dtype)
    if cls is NormalGammaMixture:
        d, single = cls(zero, weight, **pairs), NormalGamma(zero, a, b)
    elif cls is SpikeSlabPrior:
        d, single = cls(weight, slab, spike), IndependentNormalGamma(a, b, zero)
    else:
        d, single = cls(weight, **pairs), NormalGamma(zero, a, b).precision
        value = value[..., 1]
    assert d.log_prob(value).equal(single.log_prob(value))
    assert d.mean.equal(single.mean)
    torch.testing.assert_close(d.variance, single.variance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "weight", [{"probs": p} for p in (0.0, 1.0)] + [{"logits": x} for x in (-100.0, 0.0, 100.0)]
)
@pytest.mark.parametrize("cls", [NormalGammaMixture, RelaxedNormalGammaMixture, GammaMixture])
def test_values_and_gradients_are_finite_at_the_ends(cls, weight, dtype):
    far = {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0)}
    far |= {} if cls is GammaMixture else {"loc": 0.0}
    far |= {"sharpness": 10.0} if cls is RelaxedNormalGammaMixture else {}
    flat, rebuild = flatten({**weight, **far})
    leaves = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in flat]
    d = cls(**rebuild(leaves))
    precision = torch.tensor([1e-3, 1.0, 1e4, 1e6], dtype=dtype)
    value = precision if cls is GammaMixture else torch.stack((precision.rsqrt(), precision), -1)
    log_prob = d.log_prob(value)
    assert log_prob.isfinite().all()
    if d.has_rsample:
        log_prob = log_prob + d.rsample((4,)).sum(-1)
    log_prob.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert d.mean.isfinite().all() and d.variance.isfinite().all()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_relaxed_meets_the_exact_mixture_as_sharpness_grows(p):
    far = {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0)}
    probs = torch.tensor(p, dtype=torch.float64)
    exact = NormalGammaMixture(0.0, probs, **far)
    value = torch.tensor([[0.1, 0.9], [0.0, 9e3]], dtype=torch.float64)
    errors = []
    for sharpness in (10.0, 20.0, 40.0, 80.0):
        relaxed = RelaxedNormalGammaMixture(0.0, probs, **far, sharpness=sharpness)
        errors.append((relaxed.log_prob(value) - exact.log_prob(value)).abs().max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8
    torch.testing.assert_close(relaxed.mean, exact.mean)


def test_relaxed_ends_are_accurate_in_float32():
    d = RelaxedNormalGammaMixture(
        0.0, 1.0, concentration=(1000.0, 100.0), rate=(1e-6, 100.0), sharpness=80.0
    )
    torch.testing.assert_close(d.rate, torch.tensor(1e-6))


def test_sharpness_may_be_an_annealed_buffer():
    sharpness = torch.tensor(2.0)
    options = {"concentration": (1000.0, 100.0), "rate": (0.1, 100.0), "sharpness": sharpness}
    before = RelaxedNormalGammaMixture(torch.zeros(3), 0.9, **options).concentration
    sharpness.fill_(20.0)
    after = RelaxedNormalGammaMixture(torch.zeros(3), 0.9, **options).concentration
    assert (after > before).all()
