"""A trained pair: encoding, decoding and figures, and the record of its training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyro
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ngvae_pyro.axes import Rotation
from ngvae_pyro.contexts import evaluating, given, given_rows
from ngvae_pyro.data import Images, NoTensor, as_images
from ngvae_pyro.data.forms import Form, design, named
from ngvae_pyro.data.images import ImageData, check_images, number_array
from ngvae_pyro.errors import UserError, described, expect
from ngvae_pyro.extras import needed
from ngvae_pyro.guide import Guide, SwitchableLatents
from ngvae_pyro.latents import is_informative
from ngvae_pyro.model import VAE
from ngvae_pyro.own import OwnGuide, OwnModel, apart
from ngvae_pyro.specs import FitSpec, ScheduleSpec
from ngvae_pyro.specs.schedule import MoveKind
from ngvae_pyro.verdict import Verdict, judge

if TYPE_CHECKING:
    import pandas as pd
    from arviz import InferenceData
    from xarray import DataTree

    from ngvae_pyro.evaluation.diagnostics import Latent, Metrics
    from ngvae_pyro.report.plots import Figures

# Images that are processed together.
BATCH = 512
# Images in a row of a traversal.
STEPS = 11


@dataclass(frozen=True)
class MoveRecord:
    """The outcome of one proposed move; losses are -ELBO per image in nats, after the fork.

    Births, deaths and growths are of one ``latent``, unfoldings leave ``size`` informative ones.
    """

    kind: MoveKind
    latent: int | None
    step: int
    loss_without: float
    loss_with: float
    size: int | None = None

    def __str__(self) -> str:
        whose = f"to {self.size}" if self.latent is None else f"of z{self.latent}"
        return f"{self.kind} {whose}"

    @property
    def accepted(self) -> bool:
        return self.loss_with < self.loss_without

    @property
    def gain(self) -> float:
        """By how much the ELBO was higher with the move than without it, nats per image."""
        return self.loss_without - self.loss_with


@dataclass(repr=False)
class Fit:
    """A trained pair and the record of its training.

    ``history`` has one row for every evaluation on the monitor images: step, loss (-ELBO per image,
    nats), ``kl`` per site (nats per image), the number of informative latents, and for each latent
    its mean p, ``probs``, and the variance of its posterior mean, ``variance_of_loc``; and, if
    there were images for validation, their loss, ``validation_loss``. Rows within a move are those
    of the branch that was kept. ``rotation`` records the rotation of the informative latents' axes
    (:class:`ngvae_pyro.axes.Rotation`), or is None if none was due.
    ``steps`` counts optimizer steps on the final path, ``extra_steps`` those of lessons and of the
    forks that were not kept, ``skipped`` those of ``steps`` that were left out because a callback
    stopped the training, and ``seconds`` the time of both. ``starts`` tells how and where each
    of the successive processes of the training was started. ``schedule`` is the schedule that was
    followed, ``digest`` that of the training images and ``count`` their number; these are None for
    a pair that was not trained here. ``form`` maps a user's arrays to images of the model and back.
    """

    model: VAE
    guide: Guide
    spec: FitSpec
    history: list[dict[str, Any]] = field(default_factory=list)
    moves: list[MoveRecord] = field(default_factory=list)
    rotation: Rotation | None = None
    seconds: float = 0.0
    steps: int = 0
    extra_steps: int = 0
    skipped: int = 0
    starts: list[dict[str, Any]] = field(default_factory=list)
    schedule: ScheduleSpec | None = None
    digest: str | None = None
    count: int | None = None
    form: Form = field(default_factory=Form)

    @property
    def device(self) -> torch.device:
        return self.model.zero.device

    @property
    def verdict(self) -> Verdict | None:
        """Whether the count of informative latents can be trusted, from the end of the history.

        None for a pair that was not trained here. The verdict on held-out images is in the metrics
        of :func:`ngvae_pyro.evaluate`.
        """
        last = self.history[-1] if self.history else {}
        if "variance_of_loc" not in last:
            return None
        return self.judge(last["probs"], last["variance_of_loc"])

    def judge(
        self,
        probs: Sequence[float],
        variance_of_loc: Sequence[float],
        precision: Sequence[float] | None = None,
        dimension: float | None = None,
    ) -> Verdict:
        """The verdict on numbers of each latent, from whatever images they were computed."""
        return judge(
            probs,
            variance_of_loc,
            model=self.model.spec,
            selects=isinstance(self.guide, SwitchableLatents),
            steps=self.steps,
            history=self.history,
            discrete=self.model.discrete,
            precision=precision,
            scale=self.model.likelihood.scale,
            dimension=dimension,
        )

    # Encoding and decoding --------------------------------------------------------------------

    def as_images(self, images: Images, name: str = "images") -> ImageData:
        """Convert data to images for this pair, in the layout and units of the training data.

        Vectors are standardised with the moments of the training data's columns. Images with a
        range of their own are mapped as the training images were, so new ones may fall outside
        [0, 1].

        Args:
            images: As for :func:`ngvae_pyro.data.as_images`.
            name: Name for messages and reports.

        Raises:
            UserError: For data that cannot be read, for no rows, and for a shape other than the
                model's.
        """
        check_rows(images, name)
        return data_of(self, images, name)

    @overload
    def encode(self, images: Tensor) -> Tensor: ...
    @overload
    def encode(self, images: NoTensor) -> np.ndarray: ...

    def encode(self, images: Images) -> np.ndarray | Tensor:
        """The posterior mean of z.

        Args:
            images: N images or vectors that :meth:`as_images` accepts.

        Returns:
            (N, K) float32: a tensor on the same device for a tensor, otherwise an array.

        Raises:
            UserError: As :meth:`as_images`, and for images so far from the training data that the
                codes are not finite.
        """
        return _like(images, locs(self, self.as_images(images)))

    @overload
    def decode(self, z: Tensor, covariates: Mapping[str, Any] | None = None) -> Tensor: ...
    @overload
    def decode(self, z: np.ndarray, covariates: Mapping[str, Any] | None = None) -> np.ndarray: ...

    def decode(
        self, z: np.ndarray | Tensor, covariates: Mapping[str, Any] | None = None
    ) -> np.ndarray | Tensor:
        """The mean E[x | z], or E[x | z, c].

        Args:
            z: Latents (N, K).
            covariates: Of a pair with covariates, arrays (N,) by name, or a value for all N; by
                default the mean of the training data's.

        Returns:
            In the layout and units of the training data, float64; if these were bytes or in [0, 1],
            float32 in [0, 1]. A tensor on the same device for a tensor, otherwise an array.

        Raises:
            UserError: For another shape, for NaN and infinity, for latents so large that the
                means are not finite, and for covariates that were not in the training.
        """
        latents = read_latents(z, "z", self.model.latent_size)
        if covariates is None or not len(latents):
            return _like(z, decoded(self, latents, "z"))
        expect("covariates", covariates, Mapping, "a table of names and values")
        arrays = {str(name): np.asarray(value) for name, value in covariates.items()}
        for name, array in arrays.items():
            if array.shape not in ((), (len(latents),)):
                raise UserError(
                    f"covariates: {name}: expected one value or {len(latents)}, got shape "
                    f"{array.shape}"
                )
            arrays[name] = np.broadcast_to(array, len(latents))
        with given(design(self.form.covariates, arrays, "covariates").to(self.device)):
            return _like(z, decoded(self, latents, "z"))

    @torch.no_grad()
    def means(self, z: Tensor, data: ImageData | None = None) -> Tensor:
        """E[x | z] for latents (N, K), as images (N, C, H, W) on the CPU.

        Args:
            z: Latents.
            data: The N images that they are of, if any, for their covariates, and their exposure
                where they are counts.
        """
        parts = z.split(BATCH) if len(z) else ()
        seen = _nothing_of(len(z)) if data is None else data.in_parts(BATCH, self.device)
        with evaluating(self.model):
            means = [
                self.model.likelihood(self.model.decoder(part.to(self.device)), x).mean.cpu()
                for x, part in zip(seen, parts, strict=True)
            ]
        return torch.cat(means) if means else torch.zeros(0, *self.model.image_shape)

    @overload
    def reconstruct(self, images: Tensor) -> Tensor: ...
    @overload
    def reconstruct(self, images: NoTensor) -> np.ndarray: ...

    def reconstruct(self, images: Images) -> np.ndarray | Tensor:
        """E[x | z] at the posterior mean of z, in the form that :meth:`decode` returns.

        Args:
            images: N images or vectors that :meth:`as_images` accepts.

        Raises:
            UserError: As :meth:`encode`.
        """
        data = self.as_images(images)
        return _like(images, decoded(self, locs(self, data), data.name, data))

    @overload
    def impute(self, images: Tensor) -> Tensor: ...
    @overload
    def impute(self, images: NoTensor) -> np.ndarray: ...

    def impute(self, images: Images) -> np.ndarray | Tensor:
        """The data with E[x | z] where a value is missing, and as they are elsewhere.

        z is the mode of p(z | the values that are there), to which Gauss-Newton climbs from the
        encoder's mean (:func:`ngvae_pyro.evaluation.evidence.climb`), or that mean if z are counts.
        The encoder has one network for whichever values are missing and is less exact: with four
        factors in 20 columns, 30 % missing, the root mean square error of the missing values was
        0.30 standard deviations at its mean, and 0.22 at the mode.

        Args:
            images: N images or vectors that :meth:`as_images` accepts, with NaN for what is
                missing.

        Raises:
            UserError: As :meth:`encode`.
        """
        data = self.as_images(images)
        made = decoded(self, _modes(self, data), data.name, data)
        own = self.form.arrays(ImageData.to_unit(data.images))
        if not self.form.in_bytes and getattr(images, "shape", None) == tuple(made.shape):
            # Not through float32.
            own = torch.as_tensor(number_array(images, data.name).astype(made.numpy().dtype))
        return _like(images, made.where(own.isnan(), own))

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """E[x | z] for n draws of z from the prior, without the noise of the likelihood.

        Args:
            n: Number of draws.
            seed: Seed of the draws; the same seed gives the same draws.

        Returns:
            (n, ...), in the form that :meth:`decode` returns.

        Raises:
            UserError: For fewer than one draw, and for a seed that is not in [0, 2**32).
        """
        from ngvae_pyro.machine import seeded

        check_count("n", n)
        if not is_seed(seed):
            raise UserError(f"seed: expected a whole number in [0, 2**32), got {described(seed)}")
        with evaluating(self.model), seeded(seed, self.device), torch.no_grad():
            z = self.model.marginal.expand((int(n), self.model.latent_size)).sample()
        return self.form.arrays(self.means(z)).numpy()

    def latents(self, images: Images, seed: int = 0) -> "pd.DataFrame":
        """A table of the latents, most informative first.

        Args:
            images: Images or vectors that :meth:`as_images` accepts, preferably ones that were not
                trained on.
            seed: Seed of the draws for the quantiles and the KL.

        Returns:
            A row for each latent: ``latent`` k, ``informative`` (p above 1/2), ``p``, the posterior
            ``precision`` and its ``precision 5%`` and ``precision 95%`` quantiles, ``variance of
            loc`` over the images, and in nats per image ``KL z`` (and ``KL precision``), what the
            latent has ``earned`` of the likelihood
            (:func:`ngvae_pyro.evaluation.diagnostics.earned`; not for counts) and ``paid`` of KL in
            all. If the factors of the images are known, also the ``closest factor`` and the
            ``|correlation|`` of loc with it (:class:`ngvae_pyro.evaluation.diagnostics.Followed`).
        """
        with needed("tables"):
            import pandas as pd

        from ngvae_pyro.evaluation.diagnostics import evaluate, most_informative_first

        data = self.as_images(images)
        with near(data.name):
            rows = most_informative_first(evaluate(self, data, seed))
        return pd.DataFrame(
            [
                {
                    "latent": row["latent"],
                    "informative": is_informative(row["probs"]),
                    "p": row["probs"],
                    "precision": row["precision"]["mean"],
                    "precision 5%": row["precision"]["5%"],
                    "precision 95%": row["precision"]["95%"],
                    "variance of loc": row["variance_of_loc"],
                    **{f"KL {site}": value for site, value in row["kl"].items()},
                    **{key: row[key] for key in ("earned", "paid") if key in row},
                    **_closest(row),
                }
                for row in rows
            ]
        )

    def history_table(self) -> "pd.DataFrame":
        """The history as a table, with a row for each evaluation on the monitor images.

        Returns:
            ``step``, ``loss`` (-ELBO, nats per image), ``validation loss`` if there were images for
            validation, ``KL z`` (and ``KL precision``), nats per image, ``informative``, the number
            of informative latents, and for each latent k its mean p, ``p k``, and the ``variance of
            loc k``, if they were recorded.
        """
        with needed("tables"):
            import pandas as pd

        validated = any(row.get("validation_loss") is not None for row in self.history)
        return pd.DataFrame(
            [
                {
                    "step": row["step"],
                    "loss": row["loss"],
                    **({"validation loss": row["validation_loss"]} if validated else {}),
                    **{f"KL {site}": value for site, value in row["kl"].items()},
                    "informative": row["informative"],
                    **{f"p {k}": p for k, p in enumerate(row["probs"])},
                    **{
                        f"variance of loc {k}": variance
                        for k, variance in enumerate(row.get("variance_of_loc") or [])
                    },
                }
                for row in self.history
            ]
        )

    def to_arviz(
        self,
        images: Images,
        *,
        observations: int | None = None,
        chains: int = 1,
        draws_per_chain: int = 1000,
        predictive: int | None = None,
        seed: int = 0,
    ) -> "InferenceData | DataTree":
        """Posterior draws as an ArviZ object, see :func:`ngvae_pyro.to_arviz`."""
        from ngvae_pyro.evaluation.diagnostics import to_arviz

        data = self.as_images(images)
        with near(data.name):
            return to_arviz(
                self,
                data,
                observations=observations,
                chains=chains,
                draws_per_chain=draws_per_chain,
                predictive=predictive,
                seed=seed,
            )

    def save(self, folder: str | Path, held_out: Images) -> "Metrics":
        """Write a run folder, which :func:`ngvae_pyro.load_run` reads.

        Args:
            folder: The folder, which is made if necessary.
            held_out: Images or vectors that were not trained on; :meth:`as_images` accepts them.

        Returns:
            The metrics, as written to ``metrics.json``.

        Raises:
            UserError: As :func:`ngvae_pyro.save_run`.
        """
        from ngvae_pyro.runs import save_run
        from ngvae_pyro.specs import DataSpec, RunSpec

        check_folder(folder)
        images = self.as_images(held_out)
        names = {"model": self.model.spec.prior.family, "guide": self.guide.spec.family}
        spec = RunSpec(
            model_name=names["model"], guide_name=names["guide"], data=DataSpec(name=images.name)
        )
        return save_run(folder, self, spec, images)

    # Pictures ---------------------------------------------------------------------------------

    @overload
    def traverse(
        self,
        images: Tensor,
        latents: Sequence[int] | None = None,
        steps: int = STEPS,
        base: int = 0,
    ) -> Tensor: ...
    @overload
    def traverse(
        self,
        images: NoTensor,
        latents: Sequence[int] | None = None,
        steps: int = STEPS,
        base: int = 0,
    ) -> np.ndarray: ...

    def traverse(
        self,
        images: Images,
        latents: Sequence[int] | None = None,
        steps: int = STEPS,
        base: int = 0,
    ) -> np.ndarray | Tensor:
        """Decoded images as one latent moves and the others stay fixed.

        Each row goes as far as the data do: from the 5 % to the 95 % quantile of z over the
        fiftieth of the images (20 at least) whose other latents are most like the base image's, or
        to the last point at which the guide still encodes the other informative latents to their
        own values (:meth:`ngvae_pyro.evaluation.traversals.Support.reach`).

        Args:
            images: Images or vectors that :meth:`as_images` accepts; they determine the ranges, so
                the more the better.
            latents: Numbers of the latents that move, by default the informative ones, most
                informative first.
            steps: How many images a row has, 2 to 1,000, at equal distances in z.
            base: The number of the image whose other latents are kept.

        Returns:
            E[x | z], (rows, steps, ...), each in the form that :meth:`decode` returns.

        Raises:
            UserError: For images of a shape other than the model's, and for numbers of latents or
                images that do not exist.
        """
        from ngvae_pyro.evaluation import traversals

        data = self.as_images(images)
        with near(data.name):
            found = traversals.traverse(self, data, latents, steps, base)
        rows = self.form.arrays(found.flatten(0, 1))
        return _like(images, rows.unflatten(0, found.shape[:2]))

    @overload
    def interpolate(self, a: Tensor, b: Images, steps: int = STEPS) -> Tensor: ...
    @overload
    def interpolate(self, a: NoTensor, b: Images, steps: int = STEPS) -> np.ndarray: ...

    def interpolate(self, a: Images, b: Images, steps: int = STEPS) -> np.ndarray | Tensor:
        """Decoded images on the straight line between the codes of two images.

        They are E[x | z] at z = (1 - t) loc(a) + t loc(b) for t from 0 to 1.

        Args:
            a: The first image or vector that :meth:`as_images` accepts, with or without the axis N.
            b: The last one.
            steps: How many images, 2 to 1,000.

        Returns:
            E[x | z], (steps, ...), each in the form that :meth:`decode` returns.

        Raises:
            UserError: For images of a shape other than the model's, or more than one.
        """
        from ngvae_pyro.evaluation import traversals

        with near("a or b"):
            return _like(a, self.form.arrays(traversals.interpolate(self, a, b, steps)))

    @property
    def plot(self) -> "Figures":
        """The figures of this fit; each is a method that returns matplotlib Axes."""
        from ngvae_pyro.report.plots import Figures

        return Figures(self)

    # Display ----------------------------------------------------------------------------------

    def _lines(self) -> list[str]:
        """Lines on the pair and its device, the count, and the training."""
        pair = f"{_name(self.model)} with {_name(self.guide)}"
        verdict = self.verdict
        count = str(verdict) if verdict else f"{self.model.latent_size} latents"
        extra = f" (+{self.extra_steps:,} in moves)" if self.extra_steps else ""
        elbo = f", ELBO {-self.history[-1]['loss']:.1f} nats per image" if self.history else ""
        left_out = f", {self.skipped:,} of them left out" if self.skipped else ""
        steps = f"{self.steps:,} steps{left_out}{extra}{elbo}, {self.seconds:.0f} s"
        return [f"{pair} on {self.device}", count, steps if self.steps else "not trained here"]

    def __repr__(self) -> str:
        return "Fit: " + "\n  ".join(self._lines())

    def _repr_html_(self) -> str:
        rows = zip(("pair", "latents", "training"), self._lines(), strict=True)
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows)
        return f"<table>{cells}</table>"


def _name(part: VAE | Guide) -> str:
    return part.program.name if isinstance(part, (OwnModel, OwnGuide)) else type(part).__name__


def _nothing_of(count: int) -> Iterator[None]:
    """Nothing for each batch of latents, but for the rows of covariates that are given."""
    for start in range(0, count, BATCH):
        with given_rows(slice(start, start + BATCH)):
            yield None


def _closest(row: "Latent") -> dict[str, str | float]:
    """The columns on the factor that a latent follows most closely, if factors are known."""
    if "followed" not in row:
        return {}
    factor, correlation = row["followed"].closest[0]
    return {"closest factor": factor, "|correlation|": correlation}


def _like(given: Any, tensor: Tensor) -> np.ndarray | Tensor:
    """Convert a result on the CPU to the kind of the input: a tensor on its device, or an array."""
    return tensor.to(given.device) if isinstance(given, Tensor) else tensor.numpy()


# Overflow of float32 ---------------------------------------------------------------------------


def _too_far(what: str) -> UserError:
    return UserError(
        f"{what}: too far from the training data for float32: the networks give NaN or infinity"
    )


@contextmanager
def near(what: str) -> Iterator[None]:
    """Turn torch's error on parameters that overflow float32 into one line.

    Far from the training data the networks overflow, or give a variance that is zero or infinite.

    Args:
        what: The data, for the message.

    Raises:
        UserError: Instead of torch's error.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith(("Expected parameter", "Expected value argument")):
            raise
        raise _too_far(what) from None


def check_finite(values: Tensor | np.ndarray, what: str) -> None:
    """Refuse data for which the networks return NaN or infinity.

    Raises:
        UserError: With the name of the data, ``what``.
    """
    if not torch.as_tensor(values).isfinite().all():
        raise _too_far(what)


def locs(fit: Fit, data: ImageData) -> Tensor:
    """The posterior means of z, finite, (N, K) on the CPU.

    Raises:
        UserError: For data too far from the training data.
    """
    from ngvae_pyro.evaluation.diagnostics import codes

    with near(data.name):
        loc = codes(fit, data).loc
    check_finite(loc, data.name)
    return loc


@torch.no_grad()
def _modes(fit: Fit, data: ImageData) -> Tensor:
    """The modes of p(z | x) of images that their encoder's means lead to, (N, K) on the CPU."""
    from ngvae_pyro.evaluation.evidence import climb

    loc = locs(fit, data)
    if fit.model.discrete:
        return loc
    parts = []
    with evaluating(fit.model), near(data.name):
        for x, z in zip(data.in_parts(BATCH, fit.device), loc.split(BATCH), strict=True):
            peaks = climb(fit.model, x, z.to(fit.device))
            parts.append(peaks.loc.to(z.dtype).cpu())
    return torch.cat(parts)


def decoded(fit: Fit, z: Tensor, what: str, data: ImageData | None = None) -> Tensor:
    """E[x | z] for latents (N, K), finite, in the layout and units of the training data.

    Args:
        fit: The trained pair.
        z: Latents on the CPU.
        what: What they are, or belong to, for the message.
        data: As of :meth:`Fit.means`.

    Raises:
        UserError: For latents too far from those in training.
    """
    with near(what):
        arrays = fit.form.arrays(fit.means(z, data))
    check_finite(arrays, what)
    return arrays


# Checks of arguments ---------------------------------------------------------------------------


def read_latents(values: Any, where: str, size: int) -> Tensor:
    """Check a user's latents and return them as float32, (N, size), on the CPU.

    Raises:
        UserError: If they are not finite numbers of this shape.
    """
    array = number_array(values, where)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where}: expected numbers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] != size:
        raise UserError(f"{where}: expected shape (N, {size}), got {tuple(array.shape)}")
    # A copy, because torch warns about memory that is not writeable.
    with np.errstate(over="ignore"):  # infinity is refused
        latents = np.array(array, np.float32)
    if not np.isfinite(latents).all():
        raise UserError(f"{where}: expected finite numbers, as float32, got NaN or infinity")
    return torch.from_numpy(latents)


def check_rows(images: Any, name: str) -> None:
    """Refuse an array without rows.

    Raises:
        UserError: With its shape.
    """
    shape = getattr(images, "shape", None)
    if isinstance(shape, tuple) and shape[:1] == (0,):
        raise UserError(f"{name}: expected at least one row, got shape {tuple(shape)}")


def check_count(name: str, value: Any) -> None:
    """Refuse anything but a whole number above 0.

    Raises:
        UserError: With the name of the argument.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}: expected a whole number, at least 1, got {described(value)}")


def is_seed(value: Any) -> bool:
    """Whether a value is a whole number in [0, 2**32), and so may be the seed of a run."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**32


def check_folder(folder: Any) -> None:
    """Refuse names of which nothing good comes.

    The empty one would mean the working directory; from one that UTF-8 cannot write, safetensors
    does not read weights.

    Raises:
        UserError: With what to pass.
    """
    if isinstance(folder, str) and not folder:
        raise UserError("folder: expected the name of a folder, got ''; '.' is the current one")
    if isinstance(folder, (str, Path)):
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"folder: expected a name that UTF-8 can write, got {described(folder)}"
            ) from None


def check_fit(fit: Any) -> None:
    """Refuse anything but a :class:`Fit`.

    Raises:
        UserError: With what to pass.
    """
    if isinstance(getattr(fit, "fit_", None), Fit):
        raise UserError(f"fit: expected a trained pair, got an {type(fit).__name__}; pass its fit_")
    if isinstance(fit, type) or not (hasattr(fit, "model") and hasattr(fit, "guide")):
        raise UserError(
            f"fit: expected a trained pair from ngvae_pyro.fit or load_run, got {described(fit)}"
        )


def data_of(fit: Fit, data: Images, name: str = "images") -> ImageData:
    """Convert data to the form of a fit; see :meth:`Fit.as_images`."""
    found = as_images(data, name, fit.form)
    check_data(fit, found)
    return found


def check_covariates(model: VAE, data: ImageData) -> None:
    """Refuse data whose covariates are not those that the networks of a model take.

    Raises:
        UserError: With what to pass.
    """
    reference = model.reference
    expected = 0 if reference is None else len(reference)
    got = 0 if data.covariates is None else data.covariates.shape[1]
    if got != expected:
        raise UserError(
            f"data '{data.name}': expected {expected or 'no'} columns of covariates, as the "
            f"networks take, got {got or 'none'}; load_model(variant, data) makes networks for them"
        )


def check_data(fit: Fit, data: Any) -> None:
    """Refuse images whose shape is not the model's, or whose units are not the fit's.

    Raises:
        UserError: With what to pass.
    """
    check_images(data, fit.model.image_shape)
    if data.form.depth != fit.form.depth:
        raise UserError(
            f"data '{data.name}': expected a depth of {fit.form.depth}, that of the training data, "
            f"got {data.form.depth}"
        )
    if data.form.missing and not fit.model.likelihood.spec.missing:
        raise UserError(
            f"data '{data.name}': values may be missing, and those of the training data may not"
        )
    if not data.form.same_units(fit.form):
        raise UserError(
            f"data '{data.name}': expected the units of the training data, {fit.form!r}, got "
            f"{data.form!r}; pass fit.as_images(array)"
        )
    if data.form.covariates != fit.form.covariates:
        raise UserError(
            f"data '{data.name}': expected covariates as in training, "
            f"{named(fit.form.covariates)}, got {named(data.form.covariates)}; pass "
            "fit.as_images(data)"
        )
    if fit.model.likelihood.spec.whole and not data.whole:
        raise UserError(f"data '{data.name}': expected counts, whole numbers from 0 on")


@torch.no_grad()
def site_terms(model: VAE, guide: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One-sample terms of the ELBO for each image of a batch.

    Returns:
        log p(x | z) of shape (B,), and for each latent site its sampled KL term
        log q - log p of shape (B, K), all in nats. Where latents depend on each other, as they may
        in a guide of one's own, each has an equal share.
    """
    guide_trace = pyro.poutine.trace(guide).get_trace(x)
    model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(x)
    kl = {}
    for name in guide_trace.stochastic_nodes:
        q: Any = guide_trace.nodes[name]
        p: Any = model_trace.nodes[name]
        if site_is_subsample(q):
            continue
        value, each_q, each_p = q["value"], apart(q["fn"]), apart(p["fn"])
        if each_q is not None and each_p is not None:
            kl[name] = each_q.log_prob(value) - each_p.log_prob(value)
        else:
            whole = q["fn"].log_prob(value) - p["fn"].log_prob(value)
            kl[name] = whole.unsqueeze(-1).expand_as(value) / value.shape[-1]
    x_site: Any = model_trace.nodes["x"]
    return x_site["fn"].log_prob(x_site["value"]), kl
