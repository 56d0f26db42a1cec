"""A user's own Pyro model and guide, as the parts of this package see them.

A model and a guide are anything that is called with a batch: functions, modules, ``AutoNormal``.
:class:`OwnModel` and :class:`OwnGuide` stand for them wherever the package has a model and a guide
of its own; :func:`paired` makes them, and docs/own_model.md says what is expected.
"""

import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, TransformedDistribution
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ngvae_pyro.contexts import float32, in_mode
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.guide import (
    GUIDES,
    Codes,
    Guide,
    Touched,
    load_guide,
)
from ngvae_pyro.likelihoods import Likelihood, units
from ngvae_pyro.machine import seeded
from ngvae_pyro.model import VAE, GaussianVAE, NormalGammaVAE, load_model
from ngvae_pyro.nn import MISTAKES, first_line, found_by
from ngvae_pyro.specs import (
    SELECT,
    FitSpec,
    LikelihoodSpec,
    ModelSpec,
    OwnGuideSpec,
    OwnPriorSpec,
    OwnSpec,
    RunSpec,
    ScheduleSpec,
    Spec,
)
from ngvae_pyro.variants import spec_of

# Draws of a guide's sites from which the codes of an image come, where the guide does not offer
# them. The standard error of loc is an eighth of the posterior's standard deviation, and that of
# the variance 18 % of it; both are less where sites have a mean and a variance of their own.
DRAWS = 64
# Rows of data with which a pair is tried before it is trained.
TRIED = 5
# What a guide has to offer for the moves, besides its sites.
MOVED = ("codes", "switch", "recombine", "seal")
# What a run folder says of an AutoNormal.
AUTO_NORMAL = f"{AutoNormal.__module__}:{AutoNormal.__qualname__}"
# The package's guides that need nothing of a model but its sites.
OF_ANY_MODEL = ("relaxed", "score", "gaussian", "gaussian_mixture", "epanechnikov")
# Latent sites that a model may have.
LATENTS = ("precision", "z")

# The schedule of a guide that offers what moves need, and of one with precisions that does not.
SELECT_OWN = ScheduleSpec(
    z=SELECT.z,
    precision=SELECT.precision,
    signal_nats=SELECT.signal_nats,
    moves=SELECT.moves,
    silence=SELECT.silence,
    independent=SELECT.independent,
    rescale=(),
)
WITHOUT_MOVES: dict[str, Any] = {"moves": (), "silence": 1.0, "independent": 1.0}


def row_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a row of data (C, H, W) as a model of one's own has it.

    Data of one row of values have no axes of length 1: a vector of D columns is (D,), a sequence
    (C, L); images are (C, H, W).

    >>> row_shape((1, 1, 10)), row_shape((3, 1, 20)), row_shape((1, 28, 28))
    ((10,), (3, 20), (1, 28, 28))
    """
    channels, height, width = image_shape
    if height > 1:
        return channels, height, width
    return (channels, width) if channels > 1 else (width,)


class Store:
    """The parameters that programs keep in Pyro's store, apart from those of everybody else."""

    def __init__(self) -> None:
        self.state: Any = {"params": {}, "constraints": {}}
        # Names of those that one of the pair has taken.
        self.taken: set[str] = set()

    def opened(self) -> AbstractContextManager[Any]:
        """A block in which Pyro's store holds these."""
        return pyro.get_param_store().scope(self.state)


class Program(nn.Module):
    """What somebody calls a model or a guide, with all of its parameters.

    Those of modules are the modules'; those of functions are in Pyro's store, where
    :meth:`adopt` finds them after the first call.

    Args:
        called: Called with a batch.
        what: Whether it is the model or the guide, for messages.
        store: Of the pair. Functions of a pair may share parameters by their names; modules bring
            their own, which may have the same names in both.
    """

    def __init__(self, called: Callable[..., Any], what: str, store: Store) -> None:
        super().__init__()
        # In a tuple, so that it is not registered twice.
        self.programs, self.what, self.adopted = (called,), what, False
        owner = getattr(called, "__self__", called)
        self.name = named(called)["factory"].rpartition(":")[2]
        if isinstance(owner, nn.Module):
            self.module = owner
            store = Store()
        self.store = store
        self.kept = nn.Module()

    @property
    def called(self) -> Any:
        """What was given."""
        return self.programs[0]

    def forward(self, x: Tensor) -> Any:
        known = len(self.store.state["params"])
        with self.store.opened():
            result = self.called(x)
        names = list(self.store.state["params"])
        if self.adopted and len(names) != known:
            raise UserError(
                f"{self.what}: {self.name} has a new parameter {names[-1]} in a later call; "
                "expected the same parameters in every call"
            )
        return result

    def adopt(self) -> None:
        """Take the parameters that the calls until now have left in the store."""
        params = self.store.state["params"]
        known = {id(p) for p in self.parameters()}
        for name in [name for name in params if name not in self.store.taken]:
            if not isinstance(params[name], nn.Parameter):
                params[name] = nn.Parameter(params[name].detach())
            if id(params[name]) not in known:
                # A dot would be the name of a module.
                self.kept.register_parameter(name.replace(".", "/"), params[name])
        self.store.taken.update(params)
        self.adopted = True

    def lacks(self, *names: str) -> list[str]:
        """Those of these names that it has no method of."""
        return [name for name in names if not callable(getattr(self.called, name, None))]

    def refused(self, reason: str) -> UserError:
        """The error of a program that is not what was expected."""
        return UserError(f"{self.what}: {self.name}: {reason}")

    def traced(self, x: Tensor) -> Mapping[str, Any]:
        """The sites of one call, by name.

        Raises:
            UserError: If the call fails.
        """
        program: Any = self
        try:
            # So that no running statistics come from it.
            with in_mode(False, self):
                return poutine.trace(program).get_trace(x).nodes
        except MISTAKES as error:
            if isinstance(error, UserError):
                raise
            reason = f"fails at a batch of shape {tuple(x.shape)}: {first_line(error)}"
            raise self.refused(reason) from error


def latents_of(sites: Mapping[str, Any]) -> dict[str, Any]:
    """The latent sample sites, without those of plates."""
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


def _check_latents(program: Program, found: Mapping[str, Any], rows: int) -> int:
    """Refuse latent sites of other names or shapes, and return K."""
    if "z" not in found or set(found) - set(LATENTS):
        raise program.refused(
            "expected a latent site z, and if there is one for its precision a latent site "
            f"precision, and no others, got {', '.join(found) or 'none'}"
        )
    for name, site in found.items():
        fn, plates = site["fn"], [f for f in site["cond_indep_stack"] if f.vectorized]
        size = found["z"]["fn"].event_shape[-1:]
        if tuple(fn.batch_shape) != (rows,) or fn.event_dim != 1 or fn.event_shape != size:
            raise program.refused(
                f"site {name}: expected batch shape ({rows},), the rows, and event shape (K,), the "
                f"latents, got {tuple(fn.batch_shape)} and {tuple(fn.event_shape)}; end it with "
                ".to_event(1)"
            )
        if len(plates) != 1 or (plates[0].full_size or rows) != rows:
            raise program.refused(
                f"site {name}: expected one plate over the rows of the batch, "
                'pyro.plate("data", len(x))'
            )
    return int(found["z"]["fn"].event_shape[0])


class RowDistribution(TorchDistribution):
    """The distribution of the site ``x``, with draws in front and in the shape of images.

    Args:
        fn: Batch shape (S N,).
        lead: Shape (...,) of the draws, S in all.
        image_shape: (C, H, W).
        program: The model, for messages.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real

    def __init__(
        self,
        fn: TorchDistribution,
        lead: Sequence[int],
        image_shape: Sequence[int],
        program: Program,
    ) -> None:
        self.fn, self.program = fn, program
        rows = fn.batch_shape[0] // math.prod(lead)
        super().__init__(torch.Size((*lead, rows)), torch.Size(image_shape), validate_args=False)

    def _shaped(self, values: Tensor) -> Tensor:
        return values.reshape(self.batch_shape + self.event_shape)

    def _moment(self, name: str) -> Tensor:
        try:
            return self._shaped(getattr(self.fn, name))
        except (AttributeError, NotImplementedError):
            raise self.program.refused(
                f"site x: its distribution offers no {name}, which is needed here"
            ) from None

    @property
    def mean(self) -> Tensor:
        """E[x | z], (..., N, C, H, W)."""
        return self._moment("mean")

    @property
    def variance(self) -> Tensor:
        """Var(x | z), (..., N, C, H, W)."""
        return self._moment("variance")

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        drawn: Tensor = self.fn.sample(torch.Size(sample_shape))
        return drawn.reshape(self.shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.expand(self.batch_shape + self.event_shape)
        value = value.reshape(self.fn.batch_shape + self.fn.event_shape)
        log_prob: Tensor = self.fn.log_prob(value)
        return log_prob.view(self.batch_shape)


class OwnDecoder(nn.Module):
    """In place of a decoder, whose output is z itself: the likelihood calls the whole model."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        # In a tuple, so that the model's parameters do not become its own as well.
        self.programs = (program,)

    def forward(self, z: Tensor) -> Tensor:
        return z


class OwnLikelihood(Likelihood):
    """The site ``x`` of a model of one's own, given z.

    Args:
        spec: Whether the data are whole numbers.
        image_shape: (C, H, W).
        model: The model.
    """

    def __init__(self, spec: LikelihoodSpec, image_shape: Sequence[int], model: "OwnModel") -> None:
        super().__init__(spec, image_shape)
        self.counts = spec.whole
        self.models = (model,)

    def forward(self, output: Tensor, x: Tensor | None = None) -> TorchDistribution:
        model = self.models[0]
        if x is None:
            # A model of data tells their number of rows by them, and nothing else.
            x = output.new_zeros(output.shape[-2], *self.image_shape)
        lead, size = output.shape[:-2], output.shape[-1]
        z = output.expand(*lead, len(x), size).reshape(-1, size)
        rows = x.expand(*lead, *x.shape).reshape(-1, *x.shape[1:])
        program: Any = poutine.condition(model.run, data={"z": z})
        fn: Any = poutine.trace(program).get_trace(rows).nodes["x"]["fn"]
        return RowDistribution(fn, lead, self.image_shape, model.program)

    @torch.no_grad()
    def signal(self, x: Tensor) -> float:
        """The sum over values of Var(x) / (2 Var(x | z)) at draws of the prior, nats per image."""
        model = self.models[0]
        with seeded(0, x.device):
            fn = RowDistribution(model.sites(x)["x"]["fn"], (), self.image_shape, model.program)
        return (x.var(0) / (2.0 * fn.variance.mean(0).clamp_min(1e-12))).sum().item()

    def about(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        raise self.models[0].program.refused(
            "it offers no decoder apart from its likelihood, which log_likelihood needs"
        )


class OwnModel(VAE):
    """A Pyro model of one's own: ``called(x)`` with the sites ``z`` (and ``precision``) and ``x``.

    Args:
        program: The model.
        spec: How it is found again.
        image_shape: (C, H, W).
    """

    def __init__(self, program: Program, spec: ModelSpec, image_shape: Sequence[int]) -> None:
        # Without the decoder and the likelihood that a spec declares.
        PyroModule.__init__(self)
        self.spec, self.latent_size = spec, spec.latent_size
        self.image_shape, self.row_shape = tuple(image_shape), row_shape(image_shape)
        # Not as an attribute: Pyro would put the names of this module before those of its sites.
        self.add_module("_program", program)
        self.decoder: Any = OwnDecoder(program)
        self.likelihood = OwnLikelihood(spec.likelihood, image_shape, self)
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.steady = bool(getattr(program.called, "recorded", False))

    @property
    def program(self) -> Program:
        """The model that was given."""
        program: Any = self._modules["_program"]
        return program

    def run(self, x: Tensor) -> Any:
        """Call the model with images (B, C, H, W)."""
        return self.program(x.reshape(len(x), *self.row_shape))

    def forward(self, x: Tensor | None = None, size: int = 1) -> Any:
        if x is not None:
            return self.run(x)
        return self._drawn(size)["x"].reshape(-1, *self.image_shape)

    def sites(self, x: Tensor) -> Mapping[str, Any]:
        """The sites of one call with images."""
        nodes: Mapping[str, Any] = poutine.trace(self.run).get_trace(x).nodes
        return nodes

    @torch.no_grad()
    def drawn(self, size: int) -> dict[str, Tensor]:
        drawn = self._drawn(size)
        del drawn["x"]
        return drawn

    def _drawn(self, size: int) -> dict[str, Tensor]:
        """Draws of all sites, x among them."""
        x = self.zero.new_zeros(size, *self.image_shape)
        nodes: Any = poutine.trace(poutine.uncondition(self.run)).get_trace(x).nodes
        return {name: nodes[name]["value"] for name in (*LATENTS, "x") if name in nodes}

    @property
    def marginal(self) -> TorchDistribution:
        """The prior p(z), batch shape (1, K), or whatever the model's own ``marginal`` has.

        Raises:
            UserError: If that of z depends on the row or on its precision, and the model does not
                offer a ``marginal`` of its own.
        """
        if (own := getattr(self.program.called, "marginal", None)) is not None:
            fn: TorchDistribution = own
            return fn
        x = self.zero.new_zeros(2, *self.image_shape)
        with seeded(0, x.device):
            first, second = (self.sites(x)["z"] for _ in range(2))
            row = apart(self.sites(x[:1])["z"]["fn"])
        z = first["value"][:1].detach()
        log_p = torch.cat([site["fn"].log_prob(z) for site in (first, second)])
        if row is None or (log_p != log_p[0]).any():
            raise self.program.refused(
                "the prior of z depends on its precision or on the row, or its latents on each "
                "other, and the model offers no marginal, the p(z) of batch shape (K,) that is "
                "needed here"
            )
        return row


def apart(fn: Any) -> TorchDistribution | None:
    """The distribution of each latent, batch shape (B, K), None if they depend on each other."""
    if isinstance(fn, torch.distributions.Independent) and len(fn.event_shape) == 1:
        base: Any = fn.base_dist
        return base if not base.event_shape else None
    return None


class OwnGuide(Guide):
    """A Pyro guide of one's own: ``called(x)`` with the latent sites of its model.

    What it offers besides is used: ``codes(x)`` and ``p_is``, ``posterior(x)``, and what
    :class:`~ngvae_pyro.guide.SwitchableLatents` has. The codes of a guide that does not offer them
    come from its sites: of DRAWS draws, or of none where there is no site ``precision`` and z has a
    mean and a variance.

    Args:
        program: The guide.
        spec: How it is found again, and its schedule.
        model: The model whose latents are inferred.
    """

    def __init__(self, program: Program, spec: OwnGuideSpec, model: VAE) -> None:
        # Without the encoder that a spec declares.
        PyroModule.__init__(self)
        self.spec = spec
        self.image_shape, self.latent_size = model.image_shape, model.latent_size
        self.row_shape = row_shape(model.image_shape)
        self.add_module("_program", program)
        self.p_is = spec.p_is
        self.amortized = not isinstance(program.called, RowNormals)
        self.steady = bool(getattr(program.called, "recorded", False))

    @property
    def program(self) -> Program:
        """The guide that was given."""
        program: Any = self._modules["_program"]
        return program

    def rows(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in the shape that the guide takes."""
        return x.reshape(len(x), *self.row_shape)

    def forward(self, x: Tensor) -> None:
        self.program(self.rows(x))

    def posterior(self, x: Tensor) -> Any:
        if self.program.lacks("posterior"):
            raise self.program.refused("it offers no posterior(x), which is needed here")
        return self.program.called.posterior(self.rows(x))

    def sites(self, x: Tensor, **given: Tensor) -> dict[str, Any]:
        """The latent sites of one call, some of which may be given."""
        program = poutine.condition(self.forward, data=given)
        nodes = poutine.trace(program).get_trace(x).nodes
        return {name: nodes[name] for name in LATENTS if name in nodes}

    def codes(self, x: Tensor) -> Codes:
        if not self.amortized:
            # Here, because Pyro adds lines of its own to what is said within a trace.
            self.program.called.numbers(self.rows(x))
        if not self.program.lacks("codes"):
            with self.program.store.opened():
                codes = self.program.called.codes(self.rows(x))
            if not isinstance(codes, Codes):
                raise self.program.refused(
                    f"codes: expected ngvae_pyro.guide.Codes, got {described(codes)}"
                )
            return codes
        return self._drawn_codes(x)

    @torch.no_grad()
    def _drawn_codes(self, x: Tensor) -> Codes:
        # Not of the random numbers of the training, and the same for the same images.
        with seeded(0, x.device):
            first = self.sites(x)
            exact = len(first) == 1 and _moments(first["z"]["fn"]) is not None
            found = [first, *(self.sites(x) for _ in range(0 if exact else DRAWS - 1))]
        known = [_moments(sites["z"]["fn"]) for sites in found]
        if all(moments is not None for moments in known):
            means, variances = map(torch.stack, zip(*filter(None, known), strict=True))
        else:
            means = torch.stack([sites["z"]["value"] for sites in found])
            variances = torch.zeros_like(means)
        loc = means.mean(0)
        variance = variances.mean(0) + (means - loc).square().sum(0) / max(len(found) - 1, 1)
        precision = 1.0 / variance
        if "precision" in first:
            drawn = []
            for sites in found:
                moments = _moments(sites["precision"]["fn"])
                drawn.append(sites["precision"]["value"] if moments is None else moments[0])
            precision = torch.stack(drawn).mean(0)
        return Codes(loc, variance, precision, (variance < 0.5).to(loc))

    @torch.no_grad()
    def draws(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found = [self.sites(x) for _ in range(count)]
        z = torch.stack([sites["z"]["value"] for sites in found])
        if "precision" not in found[0]:
            return self.codes(x).precision.expand_as(z), z
        return torch.stack([sites["precision"]["value"] for sites in found]), z

    @torch.no_grad()
    def nested_draws(self, x: Tensor, precisions: int, draws: int) -> Tensor:
        first = self.sites(x)
        if "precision" not in first:
            return self.draws(x, precisions * draws)[1].unsqueeze(0)
        groups = []
        for _ in range(precisions):
            given = self.sites(x)["precision"]["value"]
            group = [self.sites(x, precision=given)["z"]["value"] for _ in range(draws)]
            groups.append(torch.stack(group))
        return torch.stack(groups)


def _moments(fn: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of a distribution, None if it does not know them."""
    try:
        return fn.mean, fn.variance
    except (AttributeError, NotImplementedError):
        return None


class OwnSwitchableGuide(OwnGuide):
    """A guide of one's own that offers what moves need (``SwitchableLatents``)."""

    def _decoder(self, decoder: Any) -> Any:
        """The decoder as the guide knows it: of a model of one's own the model itself."""
        return decoder.programs[0].called if isinstance(decoder, OwnDecoder) else decoder

    def switch(self, decoder: Any, latent: int, on: bool, loc: Tensor) -> Touched:
        touched: Touched = self.program.called.switch(self._decoder(decoder), latent, on, loc)
        return touched

    def recombine(
        self, decoder: Any, latents: Tensor, change: Tensor, precision: Tensor
    ) -> Touched:
        own = self.program.called
        touched: Touched = own.recombine(self._decoder(decoder), latents, change, precision)
        return touched

    def seal(self, sealed: bool = True) -> None:
        self.program.called.seal(sealed)


class RowNormals(nn.Module):
    """An ``AutoNormal``, whose parameters belong to the rows of the training data.

    Its sites are drawn for the rows of a batch, which are found among all by their contents.

    Args:
        auto: The guide.
        rows: The training data (N, ...) in the shape that the model takes.
    """

    digests: Tensor

    def __init__(self, auto: AutoNormal, rows: Tensor) -> None:
        super().__init__()
        # Its first call makes its parameters, for all rows.
        auto(rows)
        self.add_module("_auto", auto)
        self.register_buffer("digests", _digests(rows))
        self._index: dict[int, int] = {}

    def forward(self, x: Tensor) -> None:
        auto: Any = self._modules["_auto"]
        index = self.numbers(x)
        with pyro.plate("data", len(x)):
            for name in LATENTS:
                if (site := auto.prototype_trace.nodes.get(name)) is None:
                    continue
                loc, scale = (getattr(part, name)[index] for part in (auto.locs, auto.scales))
                fn: Any = pyro.distributions.Normal(loc, scale)
                support = site["fn"].support.base_constraint
                if support is not constraints.real:
                    fn = TransformedDistribution(fn, [biject_to(support)])
                pyro.sample(name, fn.to_event(1))

    def numbers(self, x: Tensor) -> Tensor:
        """The numbers of rows among those of the training data.

        Raises:
            UserError: If one of them is not among these.
        """
        if not self._index:
            self._index = {digest: i for i, digest in enumerate(self.digests.tolist())}
        try:
            found = [self._index[digest] for digest in _digests(x).tolist()]
        except KeyError:
            raise UserError(
                f"guide: an AutoNormal has a posterior of the {len(self.digests):,} rows that it "
                "was trained on, and of no others; expected these rows, or a guide that is a "
                "function of them"
            ) from None
        return torch.tensor(found, device=x.device)


def _digests(rows: Tensor) -> Tensor:
    """A whole number of 64 bits for the contents of each row."""
    parts = (row.tobytes() for row in rows.detach().cpu().contiguous().numpy())
    digests = [hashlib.blake2b(part, digest_size=8).digest() for part in parts]
    return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests])


# Making the two ------------------------------------------------------------------------------


def named(called: Any) -> dict[str, Any]:
    """The full name of a program, and the options with which its module is made."""
    if isinstance(called, RowNormals):
        return {"factory": AUTO_NORMAL, "options": {"rows": len(called.digests)}}
    of, owner = called, getattr(called, "__self__", called)
    name = getattr(called, "__qualname__", "")
    if not isinstance(called, FunctionType):
        of = type(owner)
        name = f"{of.__qualname__}.{called.__name__}" if owner is not called else of.__qualname__
    options = getattr(owner, "options", {})
    return {
        "factory": f"{of.__module__}:{name}",
        "options": dict(options) if isinstance(options, Mapping) else {},
    }


def made(factory: str, options: Mapping[str, Any], key: str, owners: dict[str, Any]) -> Any:
    """The program of a full name, as a run folder has it.

    Args:
        factory: ``package.module:Name`` of a function, of a class of modules, or of a method of
            one.
        options: Arguments of the class.
        key: Key that holds them, for messages.
        owners: Modules that were made before, by the names of their classes; a model and a guide
            that are methods of one class are of one module.

    Raises:
        UserError: If there is none, or it is anything else: reading a run folder calls nothing
            but these.
    """
    module, _, path = factory.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise UserError(f"{key}: expected package.module:Name, got {factory!r}")
    found = found_by(factory, key)
    parent = found_by(f"{module}:{path.rpartition('.')[0]}", key) if "." in path else None
    if isinstance(found, FunctionType):
        library = module.partition(".")[0] in sys.stdlib_module_names
        if parent is None and found.__module__ == module and not library:
            return found
        if isinstance(parent, type) and issubclass(parent, nn.Module):
            kind = factory.rpartition(".")[0]
            if kind not in owners:
                owners[kind] = _made(parent, options, key)
            return getattr(owners[kind], path.rpartition(".")[2])
    if isinstance(found, type) and issubclass(found, nn.Module):
        return _made(found, options, key)
    raise UserError(
        f"{key}: expected a function, or a class of torch.nn.Module, as {factory}, got "
        f"{'none' if found is None else described(found)}"
    )


def _made(kind: type[nn.Module], options: Mapping[str, Any], key: str) -> nn.Module:
    try:
        return kind(**options)
    except MISTAKES as error:
        raise UserError(
            f"{key}: {kind.__qualname__}: cannot be made with the options "
            f"{dict(options)}: {first_line(error)}"
        ) from error


def check_kept(part: nn.Module) -> None:
    """Refuse to save a program that a run folder could not find again.

    Raises:
        UserError: With what to do.
    """
    if not isinstance(part, (OwnModel, OwnGuide)):
        return
    program = part.program
    spec: Any = part.spec.prior if isinstance(part, OwnModel) else part.spec
    if spec.factory == AUTO_NORMAL:
        return
    module, _, path = spec.factory.partition(":")
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    called = program.called
    kind = type(called) if isinstance(called, nn.Module) else None
    same = found is (kind or getattr(called, "__func__", called))
    if module == "__main__" or not same or not isinstance(found, (FunctionType, type)):
        raise UserError(
            f"save_run: {program.what}: expected a function, or a class of torch.nn.Module, of a "
            f"module that can be imported, got {path} of {module}; put it into a module, or keep "
            "its state_dict() with safetensors or torch.save"
        )
    owner = type(getattr(called, "__self__", called))
    if issubclass(owner, nn.Module):
        try:
            inspect.signature(owner).bind(**spec.options)
        except TypeError as error:
            raise UserError(
                f"save_run: {program.what}: {owner.__qualname__} is made again as "
                f"{owner.__qualname__}(**options), with its attribute options, {spec.options}: "
                f"{error}"
            ) from None


def whole_numbers(model: Any) -> bool:
    """Whether a model is of whole numbers, which are kept as they are."""
    if isinstance(model, VAE):
        return model.likelihood.spec.whole
    return bool(getattr(model, "whole_numbers", False))


def is_own(model: Any, guide: Any) -> bool:
    """Whether one of the two is a program of the user's own."""
    return _is_program(model) or _is_program(guide)


def _is_program(part: Any) -> bool:
    return callable(part) and not isinstance(part, (VAE, Guide, type))


@float32()
def paired(model: Any, guide: Any, data: ImageData, seed: int) -> tuple[VAE, Guide]:
    """A model and a guide of the package's classes that stand for a user's own.

    Args:
        model: One of the package's, or what is called with a batch.
        guide: The same; for a model of one's own also the name or the spec of a declared guide.
        data: The training data.
        seed: Of the parameters that are made by the first call.

    Raises:
        UserError: If one of them cannot be called with a batch, or has other sites than expected,
            and for data that they do not take.
    """
    if not (isinstance(model, VAE) or _is_program(model)):
        raise UserError(
            "model: expected a model from ngvae_pyro.load_model, or one of your own that is called "
            f"with a batch, got {described(model)}"
        )
    named_one = isinstance(guide, (str, Spec)) and not isinstance(model, VAE)
    if not (isinstance(guide, Guide) or _is_program(guide) or named_one):
        raise UserError(
            "guide: expected a guide from ngvae_pyro.load_guide, or one of your own that is called "
            f"with a batch, got {described(guide)}"
        )
    if data.form.missing:
        raise UserError(
            f"data '{data.name}': a model or a guide of your own takes no missing values (NaN)"
        )
    if data.covariates is not None and not isinstance(model, VAE):
        raise UserError(
            f"data '{data.name}': a model of your own takes no covariates; they can be columns of x"
        )
    x, shape = ImageData.to_unit(data.images[:TRIED].to("cpu")), data.image_shape
    store = Store()
    with seeded(seed, torch.device("cpu")):
        if not isinstance(model, VAE):
            program = Program(model, "model", store)
            size = _checked_model(program, x.reshape(len(x), *row_shape(shape)))
            model = OwnModel(program, _model_spec(model, size), shape)
            if not model.likelihood.counts:
                model.seen = units(data)
        if isinstance(guide, (str, Spec)):
            return model, _declared(spec_of("guides", guide, {}), model)
        if isinstance(guide, Guide):
            raise UserError(
                "guide: expected a guide of your own for a model of your own, or the name or the "
                f"spec of one of the package's, such as 'gaussian', got {described(guide)}"
            )
        if isinstance(guide, AutoGuide):
            guide = _of_rows(guide, data)
        program = Program(guide, "guide", store)
        found = _checked_guide(program, x, model)
        words = {"p_is": guide.p_is} if hasattr(guide, "p_is") else {}
        spec = OwnGuideSpec(**named(guide), **words, schedule=_schedule(program, found))
    return model, _kind_of(program)(program, spec, model)


@float32()
def rebuilt(spec: RunSpec, image_shape: Sequence[int]) -> tuple[VAE, Guide]:
    """The untrained pair of a run folder, of which one is a program of somebody's own.

    Args:
        spec: Of the run.
        image_shape: (C, H, W).

    Raises:
        UserError: If a program is not there any more, or has other sites than it had.
    """
    x = torch.zeros(TRIED, *image_shape)
    rows = x.reshape(TRIED, *row_shape(image_shape))
    store, owners = Store(), dict[str, Any]()
    with seeded(spec.fit.seed, torch.device("cpu")), pyro.validation_enabled(False):
        prior, own = spec.model.prior, spec.guide
        if isinstance(prior, OwnPriorSpec):
            called = made(prior.factory, prior.options, "model.prior.factory", owners)
            program = Program(called, "model", store)
            if (size := _checked_model(program, rows)) != spec.model.latent_size:
                raise program.refused(f"expected {spec.model.latent_size} latents, got {size}")
            model: VAE = OwnModel(program, spec.model, image_shape)
        else:
            model = load_model(spec.model, image_shape)
        if not isinstance(own, OwnGuideSpec):
            return model, _declared(own, model)
        if own.factory == AUTO_NORMAL and isinstance(model, OwnModel):
            count = int(own.options.get("rows", 0))
            auto = AutoNormal(model.program.called)
            guide: Any = RowNormals(auto, rows[:1].expand(count, *rows.shape[1:]))
        else:
            guide = made(own.factory, own.options, "guide.factory", owners)
        program = Program(guide, "guide", store)
        if not isinstance(guide, RowNormals):
            _checked_guide(program, x, model)
        return model, _kind_of(program)(program, own, model)


def _model_spec(called: Any, size: int) -> ModelSpec:
    return ModelSpec(
        latent_size=size,
        prior=OwnPriorSpec(**named(called)),
        likelihood=LikelihoodSpec(
            family="own", factory=OwnLikelihood, whole_numbers=whole_numbers(called)
        ),
        decoder=OwnSpec(factory=OwnDecoder),
    )


def _checked_model(program: Program, rows: Tensor) -> int:
    """Refuse a model with other sites than expected; take its parameters, and return K."""
    sites, shape = program.traced(rows), tuple(rows.shape[1:])
    size = _check_latents(program, latents_of(sites), len(rows))
    observed = sites.get("x", {"type": "none"})
    if observed["type"] != "sample" or not observed["is_observed"]:
        raise program.refused('expected an observed site x, pyro.sample("x", ..., obs=x)')
    fn = observed["fn"]
    if tuple(fn.batch_shape) != (len(rows),) or tuple(fn.event_shape) != shape:
        raise program.refused(
            f"site x: expected batch shape ({len(rows)},), the rows, and event shape {shape}, got "
            f"{tuple(fn.batch_shape)} and {tuple(fn.event_shape)}; end it with "
            f".to_event({len(shape)})"
        )
    program.adopt()
    return size


def _checked_guide(program: Program, x: Tensor, model: VAE) -> set[str]:
    """Refuse a guide with other latents than its model; take its parameters, return its sites."""
    found = latents_of(program.traced(x.reshape(len(x), *row_shape(model.image_shape))))
    size = _check_latents(program, found, len(x))
    expected = set(latents_of(poutine.trace(model).get_trace(x).nodes))
    if set(found) != expected:
        raise program.refused(
            f"expected the latent sites of the model, {' and '.join(sorted(expected))}, got "
            f"{' and '.join(sorted(found))}"
        )
    if size != model.latent_size:
        raise program.refused(
            f"site z: expected the {model.latent_size} latents of the model, got {size}"
        )
    program.adopt()
    return set(found)


def _kind_of(program: Program) -> type[OwnGuide]:
    return OwnGuide if program.lacks(*MOVED) else OwnSwitchableGuide


def _schedule(program: Program, found: set[str]) -> ScheduleSpec:
    if "precision" not in found:
        return ScheduleSpec(rescale=())
    return SELECT_OWN.model_copy(update=WITHOUT_MOVES if program.lacks(*MOVED) else {})


def _declared(spec: Any, model: VAE) -> Guide:
    """One of the package's guides for a model of one's own."""
    if not isinstance(model, OwnModel):
        return load_guide(spec, model)
    expect("guide", spec, tuple(GUIDES), "the spec of a guide, e.g. a GaussianGuideSpec")
    sites = latents_of(model.sites(torch.zeros(TRIED, *model.image_shape)))
    fits = NormalGammaVAE if "precision" in sites else GaussianVAE
    families = {s.model_fields["family"].default: g for s, g in GUIDES.items()}
    known = [family for family in OF_ANY_MODEL if families[family].fits is fits]
    if spec.family not in known:
        raise UserError(
            f"guide: expected {' or '.join(known)} for a model with the latent sites "
            f"{' and '.join(sorted(sites))}, got {spec.family}"
        )
    kind = families[spec.family]
    used = WITHOUT_MOVES.keys() & set(spec.schedule.in_use)
    schedule = spec.schedule.model_copy(update={key: WITHOUT_MOVES[key] for key in used})
    return kind(spec.model_copy(update={"schedule": schedule}), model)


def check_fit(model: VAE, guide: Guide, spec: FitSpec, processes: int) -> None:
    """Refuse what a training does not do with programs of one's own.

    Raises:
        UserError: For the first of these.
    """
    owns = isinstance(model, OwnModel), isinstance(guide, OwnGuide)
    if any(owns) and processes > 1:
        raise UserError(
            f"team: expected one process for a model or a guide of your own, got {processes}"
        )
    both = (*model.parameters(), *guide.parameters())
    if any(owns) and not any(p.requires_grad for p in both):
        raise UserError(
            "model and guide: expected parameters to train, of modules or by pyro.module and "
            "pyro.param, got none"
        )
    if owns[0] and spec.adversarial is not None:
        raise UserError("fit.adversarial: expected none for a model of your own")
    if all(owns) and spec.network_dtype != "float32":
        raise UserError(
            "fit.network_dtype: expected float32 for a model and a guide of your own, got "
            f"{spec.network_dtype}"
        )


def without_moves(model: VAE, guide: Guide, schedule: ScheduleSpec) -> str | None:
    """One line that says why a pair of one's own trains without moves, if it does."""
    if schedule.moves:
        return None
    if isinstance(guide, OwnGuide):
        name, lacking = guide.program.name, guide.program.lacks(*MOVED)
        if not lacking:
            return None
        why = f"it has no {', '.join(lacking)} (ngvae_pyro.guide.SwitchableLatents)"
    elif isinstance(model, OwnModel):
        name, why = type(guide).__name__, "its moves need a decoder of the package's"
    else:
        return None
    return f"guide: {name} trains without moves (births, deaths, growths, rotations): {why}"


def _of_rows(guide: AutoGuide, data: ImageData) -> RowNormals:
    if not isinstance(guide, AutoNormal):
        raise UserError(
            f"guide: expected an AutoNormal, whose parameters belong to rows, got an "
            f"{type(guide).__name__}, which has all rows in one, and a batch is a part of them"
        )
    rows = ImageData.to_unit(data.images.to("cpu"))
    return RowNormals(guide, rows.reshape(len(rows), *row_shape(data.image_shape)))
