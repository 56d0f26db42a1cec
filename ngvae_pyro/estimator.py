"""`NGVAE`: a model, a guide and their training as one estimator of scikit-learn."""

import warnings
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.utils.data import Dataset

from ngvae_pyro import diagnostics, evidence, runs, variants
from ngvae_pyro.data import Images, as_images
from ngvae_pyro.errors import UserError
from ngvae_pyro.fitted import Fit
from ngvae_pyro.images import ImageData
from ngvae_pyro.specs import DataSpec, FitSpec, RunSpec, Spec, parse
from ngvae_pyro.svi import fit
from ngvae_pyro.verdict import Verdict


class NGVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A Normal-Gamma VAE that counts its own latents, as an estimator of scikit-learn.

    Images or vectors x are explained by few latents z, of which there are as many as carry
    information: p(x | z) with a mean from a network, z ~ Normal(0, 1), and for each latent the
    choice whether it is paid for. ``n_components`` is only a bound that should be too high.

    A part of the data, ``held_out``, is not trained on: the count, the verdict and the order of the
    latents are those of that part. ``NGVAE(random_state=0).fit(x)`` is to the last bit what
    ``ngvae train normal_gamma relaxed --data x.npz --seed 0`` trains.

    Args:
        n_components: Latents at most; None for the model's own, 15.
        model: What p(x, z) is: a name in ``models/``, a path to a TOML file, or a
            :class:`ngvae_pyro.ModelSpec`.
        guide: What q(z | x) is: a name in ``guides/``, a path to a TOML file, or the spec of one.
        steps: Steps of Adam.
        batch_size: Rows in each of them.
        learning_rate: Of Adam.
        scale: Standard deviation of the gaussian likelihood: of a pixel in [0, 1], or of a vector's
            entry in standard deviations of its column. Smaller ones find more latents.
        held_out: Fraction of the rows that is not trained on.
        device: auto, cpu, cuda or cuda:N.
        random_state: Seed of the split, the weights and the noise: an int, which is the seed
            itself, a ``RandomState``, a ``Generator``, or None for another one each time.
        verbose: Show a bar while it trains.

        None is the default that the specs declare (:mod:`ngvae_pyro.specs`).

    Attributes:
        n_components_: Informative latents, those with p above 1/2.
        latents_: Which of the model's latents they are, (n_components_,), most informative first:
            by the KL of z, nats.
        precisions_: Mean posterior precision of each, (n_components_,).
        verdict_: What speaks against the count, a :class:`ngvae_pyro.verdict.Verdict`.
        metrics_: Numbers on the held-out rows, see :func:`ngvae_pyro.evaluate`.
        fit_: The :class:`ngvae_pyro.Fit`, with ``model_`` and ``guide_``.
        held_out_: The rows that were not trained on.
        n_features_in_: Columns of vectors, or numbers of an image.
        feature_names_in_: Columns of a table whose names are all strings.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(60, 4))
        >>> vae = NGVAE(2, steps=5, random_state=0).fit(x)
        >>> vae.inverse_transform(vae.transform(x)).shape
        (60, 4)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        model: str | Path | Spec = "normal_gamma",
        guide: str | Path | Spec = "relaxed",
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        scale: float | None = None,
        held_out: float | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.model = model
        self.guide = guide
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.scale = scale
        self.held_out = held_out
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # Training ---------------------------------------------------------------------------------

    def fit(self, X: Images, y: object = None) -> Self:
        """Train on images or vectors, and count the latents.

        Args:
            X: Vectors (N, D) of any units; images (N, H, W), (N, H, W, C) or (N, C, H, W), bytes or
                of any range; or what :func:`ngvae_pyro.data.as_images` takes.
            y: Not used.

        Raises:
            UserError: For what cannot be read or trained on, and for a parameter out of range.
            NonFiniteLoss: If the training diverges.

        Warns:
            ConvergenceWarning: If the ELBO still rose at the end of the default ``steps``.
        """
        images = self._images(X, None)
        if len(images) < 3:
            raise UserError(
                f"X: expected at least 3 rows, one of them held out, got n_samples={len(images)}"
            )
        # A path leads to the data again; a name of an array does not.
        spec = self._spec(str(X) if isinstance(X, (str, Path)) else images.name)
        train, held_out = images.split(spec.data.held_out, spec.fit.seed)
        model, guide = runs.load_pair(spec, train)
        trained = fit(model, guide, train, spec.fit, progress=bool(self.verbose))
        metrics = diagnostics.evaluate(trained, held_out, seed=spec.fit.seed)
        self._take(trained, metrics)
        self.spec_, self.held_out_ = spec, held_out
        for finding in self.verdict_.findings:
            if finding.kind == "short" and self.steps is None:
                longer = 2 * trained.steps
                warnings.warn(
                    f"NGVAE: {finding.text}; {finding.reason}; try steps={longer}",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        return self

    def _spec(self, data: str) -> RunSpec:
        """What is run, with the declared defaults where a parameter is None."""
        model: dict[str, Any] = _given(latent_size=self.n_components)
        if self.scale is not None:
            model["likelihood"] = _given(scale=self.scale)
        training = _given(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            device=self.device,
            seed=_seed(self.random_state),
        )
        values = _given(name=data, held_out=self.held_out)
        model_spec = variants.spec_of("models", self.model, model)
        guide_spec = variants.spec_of("guides", self.guide, {})
        return RunSpec(
            model_name=_name(self.model, model_spec.prior.family),
            guide_name=_name(self.guide, guide_spec.family),
            model=model_spec,
            guide=guide_spec,
            fit=parse(FitSpec, training, "NGVAE"),
            data=parse(DataSpec, values, "NGVAE"),
        )

    def _images(self, X: Any, trained: Fit | None) -> ImageData:
        """The rows as images, after scikit-learn's own checks of what has columns."""
        if isinstance(X, Tensor):
            X = X.detach().cpu()
            X = (X.float() if X.dtype == torch.bfloat16 else X).numpy()
        if isinstance(X, list):
            X = np.asarray(X)
        known = isinstance(X, (ImageData, Dataset, str, Path))
        if not known and getattr(X, "ndim", 2) not in (3, 4):
            # NaN and inf are refused below, in one line.
            X = validate_data(self, X, reset=trained is None, ensure_all_finite=False)
        images = as_images(X, "X") if trained is None else trained.as_images(X, "X")
        if trained is None:
            self.n_features_in_ = images.images[0].numel()
        return images

    def _take(self, trained: Fit, metrics: diagnostics.Metrics) -> None:
        """The attributes that follow from a fit and its metrics."""
        self.fit_, self.metrics_ = trained, metrics
        self.model_, self.guide_ = trained.model, trained.guide
        rows = diagnostics.most_informative_first(metrics)
        rows = rows[: metrics["informative"]]
        self.n_components_ = len(rows)
        self.latents_ = np.array([row["latent"] for row in rows], dtype=int)
        self.precisions_ = np.array([row["precision"]["mean"] for row in rows], dtype=float)
        self.verdict_ = Verdict.from_metrics(metrics) or trained.judge(
            metrics["probs"], metrics["variance_of_loc"]
        )

    # Codes and images -------------------------------------------------------------------------

    def transform(self, X: Images) -> np.ndarray:
        """The posterior means of the informative latents, most informative first.

        Returns:
            (N, n_components_) float32.
        """
        check_is_fitted(self)
        codes = diagnostics.codes(self.fit_, self._images(X, self.fit_))
        return codes.loc.numpy()[:, self.latents_]

    def inverse_transform(self, X: np.ndarray | Tensor) -> np.ndarray:
        """The mean E[x | z], with the other latents at the means of their prior.

        Args:
            X: Codes (N, n_components_).

        Returns:
            In the layout and the units of what was fitted: bytes for bytes, float32 for images in
            [0, 1], else float64.
        """
        check_is_fitted(self)
        codes = np.asarray(X, dtype=np.float32)
        if codes.ndim != 2 or codes.shape[1] != self.n_components_:
            raise UserError(
                f"X: expected codes of shape (N, {self.n_components_}), got {codes.shape}"
            )
        mean = self.model_.marginal.mean.detach().cpu().numpy()
        z = np.broadcast_to(mean, (len(codes), self.model_.latent_size)).astype(np.float32)
        z[:, self.latents_] = codes
        return self._own(self.fit_.decode(z))

    def _own(self, images: np.ndarray) -> np.ndarray:
        """Bytes for what was fitted as bytes."""
        if not self.fit_.form.in_bytes:
            return images
        return np.clip(np.rint(255 * images), 0, 255).astype(np.uint8)

    def sample(
        self,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
    ) -> np.ndarray:
        """The means E[x | z] of draws of z from the prior, without the noise of the likelihood.

        Returns:
            (n_samples, ...), as :meth:`inverse_transform` returns it.
        """
        check_is_fitted(self)
        return self._own(self.fit_.sample(n_samples, _seed(random_state)))

    # Densities --------------------------------------------------------------------------------

    def score_samples(self, X: Images) -> np.ndarray:
        """log p(x) of each row, nats, as a density in the units of X.

        By importance weighting (:func:`ngvae_pyro.log_likelihood`), which takes about a tenth of a
        second a row with the default decoder on one core; the draws are those of the seed that was
        trained with.

        Returns:
            (N,) float64. Of the density of the standardised columns, or of intensities in [0, 1],
            sum log scale is taken off; of bernoulli likelihoods nothing is.
        """
        check_is_fitted(self)
        images = self._images(X, self.fit_)
        found = evidence.log_likelihood(self.fit_, images, seed=self.fit_.spec.seed)
        if self.model_.likelihood.family == "bernoulli":
            return found.values
        return found.values - self.fit_.form.log_volume(images.images[0].numel())

    def score(self, X: Images, y: object = None) -> float:
        """The mean of :meth:`score_samples`, nats; higher is better. y is not used."""
        return float(self.score_samples(X).mean())

    # Keeping it -------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the run folder that ``ngvae train`` writes, for ``ngvae inspect`` and :meth:`load`.

        Raises:
            UserError: As :func:`ngvae_pyro.save_run`, or if this one was read from a folder, which
                has no images to measure it on: copy the folder then.
        """
        check_is_fitted(self)
        if not hasattr(self, "held_out_"):
            raise UserError(
                "save: expected an estimator that was fitted here, got one that was loaded; copy "
                "its folder"
            )
        runs.save_run(folder, self.fit_, self.spec_, self.held_out_)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Self:
        """The estimator of a run folder, written by :meth:`save` or by ``ngvae train``.

        Args:
            folder: The run folder.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            UserError: If a file is missing, damaged or does not fit the others.
        """
        trained, spec = runs.load_run(folder, device)
        new = cls(
            model=spec.model,
            guide=spec.guide,
            steps=spec.fit.steps,
            batch_size=spec.fit.batch_size,
            learning_rate=spec.fit.learning_rate,
            held_out=spec.data.held_out,
            device=spec.fit.device,
            random_state=spec.fit.seed,
        )
        new._take(trained, runs.load_metrics(folder))
        new.n_features_in_ = int(np.prod(spec.image_shape))
        return new

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        # Codes are float32 whatever the units are.
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _given(**values: Any) -> dict[str, Any]:
    """The parameters that are not None, as plain numbers where they are numpy's."""
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def _name(variant: str | Path | Spec, family: str) -> str:
    """The name of a variant; of a spec, which has none, its family."""
    return family if isinstance(variant, Spec) else str(variant)


def _seed(random_state: Any) -> int:
    """A seed: an int is one itself, anything else is drawn from."""
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        return int(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**32))
    return int(check_random_state(random_state).randint(2**31))
