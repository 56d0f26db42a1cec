""":class:`NGVAE`: a model, a guide and their training as one scikit-learn estimator."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ngvae_pyro import runs, variants
from ngvae_pyro.data import Images, as_images
from ngvae_pyro.data.images import ImageData, number_array
from ngvae_pyro.errors import UserError, described, expect, one_line
from ngvae_pyro.evaluation import diagnostics, evidence
from ngvae_pyro.extras import needed
from ngvae_pyro.fitted import (
    Fit,
    check_count,
    check_finite,
    check_folder,
    check_rows,
    decoded,
    is_seed,
    locs,
    near,
    read_latents,
)
from ngvae_pyro.specs import DataSpec, FitSpec, ModelSpec, RunSpec, Spec, parse
from ngvae_pyro.training.callbacks import Callback
from ngvae_pyro.training.trainer import fit
from ngvae_pyro.verdict import Verdict

with needed("metrics"):
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data


class NGVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A Normal-Gamma VAE that counts its own latents, as a scikit-learn estimator.

    Images or vectors x are explained by a few latents z, as many as carry information: p(x | z) has
    a mean from a network, z ~ Normal(0, 1), and for each latent training decides whether it is
    worth its price. ``n_components`` is only an upper bound, which should be too high.

    :meth:`score_samples` is an importance-sampling estimate whose draws depend on which rows are
    scored together: a row's scores from calls with different other rows agree only up to Monte
    Carlo error.

    A fraction ``held_out`` of the data is not trained on; the count, the verdict and the order of
    the latents come from it. ``NGVAE(random_state=0).fit(x)`` gives, to the last bit, the result of
    ``ngvae train normal_gamma relaxed --data x.npz --seed 0``.

    Parameters that are None take the defaults of the specs (:mod:`ngvae_pyro.specs`).

    A parameter that is None has the default that the specs declare (:mod:`ngvae_pyro.specs`).

    Args:
        n_components: Most latents; None for the model's own number.
        model: The model p(x, z): a name in ``models/``, a path to a TOML file, or a
            :class:`ngvae_pyro.ModelSpec`.
        guide: The guide q(z | x): a name in ``guides/``, a path to a TOML file, or its spec.
        decoder: The network of the model, in place of the one that it declares: a class of
            ``torch.nn.Module`` or a function that makes one (:class:`ngvae_pyro.specs.OwnSpec`), or
            the spec of a network.
        encoder: The network of the guide, likewise.
        steps: Steps of Adam.
        batch_size: Rows per step.
        learning_rate: Learning rate of Adam.
        scale: Standard deviation of the gaussian likelihood: of a pixel in [0, 1], or of a vector's
            entry in standard deviations of its column. Smaller ones find more latents.
        likelihood: Its family, such as ``negative_binomial`` for counts; a dictionary with the keys
            of :class:`ngvae_pyro.specs.LikelihoodSpec`; one's own class or function; or None for
            that of the model.
        held_out: Fraction of the rows that is not trained on, but at least one row.
        layout: ``sequences`` if the rows are sequences (N, C, L), or (N, L) of one channel, such as
            spectra: these are standardised as a whole, and not column by column. ``volumes`` if
            they are volumes (N, D, H, W); those with an axis of channels too need none.
        missing: Whether NaN stands for a missing value, of which the likelihood says nothing;
            :meth:`impute` fills it in.
        device: auto, cpu, cuda or cuda:N.
        validation: Share of the training rows that is set aside, to measure the noise and the ELBO
            on during training; with some hundreds of rows 0.2 is better than none.
        callbacks: What is called in the course of the training, a list of
            :class:`ngvae_pyro.Callback`; a folder that is saved does not have them.
        random_state: Seed of the split, the weights and the noise: an int in [0, 2**32), used as
            the seed itself, a ``RandomState``, a ``Generator``, or None for a new seed each time.
        verbose: Whether to show a progress bar during training.

    Attributes:
        n_components_: Number of informative latents, those with p above 1/2.
        latents_: Their numbers in the model, ``(n_components_,)``, most informative first: by the
        KL of
            z, nats.
        precisions_: Mean posterior precision of each, ``(n_components_,)``.
        verdict_: Whether the count can be trusted, a :class:`ngvae_pyro.verdict.Verdict`.
        metrics_: Numbers on the held-out rows, see :func:`ngvae_pyro.evaluate`.
        fit_: The :class:`ngvae_pyro.Fit`, with ``model_`` and ``guide_``.
        held_out_: The rows that were not trained on.
        n_features_in_: Number of columns of vectors, or of values of an image.
        feature_names_in_: Column names of a table, if all are strings.

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
        decoder: Spec | Callable[..., Any] | None = None,
        encoder: Spec | Callable[..., Any] | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        scale: float | None = None,
        likelihood: str | Mapping[str, Any] | Callable[..., Any] | None = None,
        held_out: float | None = None,
        layout: str | None = None,
        missing: bool = False,
        device: str | None = None,
        validation: float | None = None,
        callbacks: Sequence[Callback] | None = None,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.model = model
        self.guide = guide
        self.decoder = decoder
        self.encoder = encoder
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.scale = scale
        self.likelihood = likelihood
        self.held_out = held_out
        self.layout = layout
        self.missing = missing
        self.device = device
        self.validation = validation
        self.callbacks = callbacks
        self.random_state = random_state
        self.verbose = verbose

    # Training ---------------------------------------------------------------------------------

    def fit(self, X: Images, y: object = None) -> Self:
        """Train on images or vectors, and count the latents.

        A fit that fails leaves the estimator unchanged; a successful one replaces all attributes.

        Args:
            X: At least 3 rows: vectors (N, D) of any units; images (N, H, W), (N, H, W, C) or
                (N, C, H, W), bytes or any range; with the ``layout`` for it sequences; lists or
                tuples of these; or anything that :func:`ngvae_pyro.data.as_images` accepts.
            y: Not used.

        Raises:
            UserError: For data that cannot be read or trained on, and for parameters out of range.
            NonFiniteLoss: If the training diverges.

        Warns:
            ConvergenceWarning: If the ELBO was still rising at the end of the default ``steps``.
        """
        new = copy(self)
        for name in _fitted(new):
            delattr(new, name)
        new._train(X)
        for name in _fitted(self):
            delattr(self, name)
        self.__dict__.update({name: getattr(new, name) for name in _fitted(new)})
        for finding in self.verdict_.findings:
            if finding.kind == "short" and self.steps is None:
                longer = 2 * self.fit_.steps
                warnings.warn(
                    f"NGVAE: {finding.text}; {finding.reason}; try steps={longer}",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        return self

    def _train(self, X: Any) -> None:
        """Train, and set all attributes."""
        likelihood = self._model_spec().likelihood
        images = self._images(X, None, likelihood.whole)
        rows = len(images)
        if rows < 3:
            raise UserError(
                f"X: expected at least 3 rows, one of them held out, got n_samples={rows}"
            )
        # A path leads back to the data; the name of an array does not.
        spec = self._spec(str(X) if isinstance(X, (str, Path)) else images.name)
        count = _rows_of(spec.data.held_out, rows)
        if count == rows:
            raise UserError(
                "NGVAE: held_out: expected a fraction of the rows that leaves some to train on, "
                f"got {spec.data.held_out} of {rows} rows"
            )
        train, held_out = images.split(count, spec.fit.seed)
        model, guide = runs.load_pair(spec, train)
        callbacks = () if self.callbacks is None else self.callbacks
        progress = bool(self.verbose)
        trained = fit(model, guide, train, spec.fit, progress=progress, callbacks=callbacks)
        metrics = diagnostics.evaluate(trained, held_out, seed=spec.fit.seed)
        self._take(trained, metrics)
        self.spec_, self.held_out_ = spec, held_out

    def _spec(self, data: str) -> RunSpec:
        """The spec of the run, with the declared defaults for parameters that are None."""
        training = _given(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            validation=self.validation,
            device=self.device,
            seed=_seed(self.random_state),
        )
        missing = self.missing or None
        values = _given(name=data, held_out=self.held_out, layout=self.layout, missing=missing)
        variants.check_variant("NGVAE: guide", self.guide, "guides")
        model_spec = self._model_spec()
        guide_spec = variants.spec_of("guides", self.guide, _given(encoder=self.encoder))
        return RunSpec(
            model_name=_name(self.model, model_spec.prior.family),
            guide_name=_name(self.guide, guide_spec.family),
            model=model_spec,
            guide=guide_spec,
            fit=parse(FitSpec, training, "NGVAE"),
            data=parse(DataSpec, values, "NGVAE"),
        )

    def _model_spec(self) -> ModelSpec:
        """The spec of the model, with the parameters that are keys of it."""
        variants.check_variant("NGVAE: model", self.model, "models")
        return _model_spec(self.model, self.n_components, self.scale, self.likelihood, self.decoder)

    def _images(self, X: Any, trained: Fit | None, counts: bool = False) -> ImageData:
        """Convert the rows to images, after scikit-learn's own checks of tables."""
        if not isinstance(X, (ImageData, Dataset, DataLoader, str, Path, np.memmap)):
            X = self._array(X, trained)
        if trained is not None:
            return trained.as_images(X, "X")
        expect("NGVAE: missing", self.missing, bool, "true or false")
        images = as_images(X, "X", layout=self.layout, counts=counts, missing=self.missing)
        self.n_features_in_ = images.images[0].numel()
        if hasattr(self, "feature_names_in_"):
            form = replace(images.form, columns=tuple(map(one_line, self.feature_names_in_)))
            return ImageData.stored(images.name, images.images, form=form)
        return images

    def _array(self, X: Any, trained: Fit | None) -> np.ndarray:
        """An array of rows, with the number of axes that is known for them."""
        if hasattr(X, "columns") and hasattr(X, "dtypes"):
            _check_columns(X)
            return self._table(X, trained)
        array = _as_array(X)
        axes: Sequence[int] = (2, 3, 4, 5)
        shape = "vectors (N, D) or images (N, H, W), (N, H, W, C) or (N, C, H, W)"
        if self.layout == "sequences":
            axes, shape = (2, 3), "sequences (N, L) or (N, C, L)"
        elif self.layout == "volumes":
            axes, shape = (4, 5), "volumes (N, D, H, W), (N, C, D, H, W) or (N, D, H, W, C)"
        one = ""
        if trained is not None:
            row = trained.form.shape_of(trained.model.image_shape)
            one_kind = trained.form.standardised or trained.form.depth
            axes = (trained.form.dimensions,) if one_kind else (3, 4)
            shape = f"shape ({', '.join(map(str, ('N', *row)))}), as what was fitted"
            # Scikit-learn's checks look for the first words.
            one = ". Reshape your data: one alone is X[None]" if array.shape == row else ""
        if array.ndim not in axes:
            raise UserError(f"X: expected {shape}, got shape {array.shape}{one}")
        check_rows(array, "X")
        if array.dtype.kind == "c":
            # Scikit-learn's checks look for the first words.
            raise UserError(f"X: Complex data not supported: expected numbers, got {array.dtype}")
        # Scikit-learn decides whether objects are numbers.
        if array.dtype.kind not in "biufO":
            raise UserError(f"X: expected numbers, got dtype {array.dtype}")
        if array.ndim == 2:
            return self._table(array, trained)
        # The minimum is NaN if any value is, and takes no extra memory.
        missing = self.missing if trained is None else trained.form.missing
        if not missing and array.dtype.kind == "f" and array.size and np.isnan(array.min()):
            raise UserError("X: expected finite numbers, got NaN; missing=True takes it as missing")
        return array

    def _table(self, X: Any, trained: Fit | None) -> np.ndarray:
        """Convert a table to an array, after scikit-learn's checks of its columns."""
        check_rows(X, "X")
        try:
            # NaN and inf are refused below, in one line.
            array = check_array(X, ensure_all_finite=False, estimator=self)
        except (TypeError, ValueError) as error:
            # Some of its messages quote the whole table after the first line.
            raise _NoNumbers(f"X: {str(error).splitlines()[0]}") from None
        validate_data(self, X, reset=trained is None, skip_check_array=True)
        return array

    def _take(self, trained: Fit, metrics: diagnostics.Metrics) -> None:
        """Set the attributes that follow from a fit and its metrics."""
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
            ``(N, n_components_)`` float32.

        Raises:
            UserError: For data that cannot be read, for a shape other than the fitted one, and for
                rows so far from the training data that the codes are not finite.
        """
        check_is_fitted(self)
        return locs(self.fit_, self._images(X, self.fit_)).numpy()[:, self.latents_]

    def inverse_transform(self, X: np.ndarray | Tensor) -> np.ndarray:
        """The mean E[x | z], with the other latents at their prior means.

        Args:
            X: Codes ``(N, n_components_)``.

        Returns:
            In the layout and units of the fitted data: bytes for bytes, float32 for images in
            [0, 1], otherwise float64.

        Raises:
            UserError: For another shape, for NaN and infinity, and for codes so large that the
                means are not finite.
        """
        check_is_fitted(self)
        codes = read_latents(_as_array(X), "X", self.n_components_)
        mean = self.model_.marginal.mean.detach().cpu()
        z = mean.expand(len(codes), self.model_.latent_size).clone()
        z[:, self.latents_] = codes
        return self._own(decoded(self.fit_, z, "X").numpy())

    def impute(self, X: Images) -> np.ndarray:
        """The rows with E[x | z] where a value is missing, see :meth:`ngvae_pyro.Fit.impute`.

        Args:
            X: Rows, of which values may be NaN.

        Returns:
            In the form that :meth:`inverse_transform` returns.

        Raises:
            UserError: As :meth:`transform`.
        """
        check_is_fitted(self)
        if not isinstance(X, (ImageData, Dataset, DataLoader, str, Path)):
            X = self._array(X, self.fit_)
        return self._own(self.fit_.impute(X))

    def _own(self, images: np.ndarray) -> np.ndarray:
        """Convert images to bytes if the fitted data were bytes."""
        if not self.fit_.form.in_bytes:
            return images
        return np.clip(np.rint(255 * images), 0, 255).astype(np.uint8)

    def sample(
        self,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
    ) -> np.ndarray:
        """The means E[x | z] for draws of z from the prior, without the noise of the likelihood.

        Args:
            n_samples: Number of draws.
            random_state: As for the class.

        Returns:
            (n_samples, ...), in the form that :meth:`inverse_transform` returns.

        Raises:
            UserError: For fewer than one draw, and for an invalid random state.
        """
        check_is_fitted(self)
        check_count("n_samples", n_samples)
        return self._own(self.fit_.sample(n_samples, _seed(random_state)))

    # Densities --------------------------------------------------------------------------------

    def score_samples(self, X: Images) -> np.ndarray:
        """The log density log p(x) of each row, nats, in the units of X.

        It is estimated by importance weighting (:func:`ngvae_pyro.log_likelihood`), which takes
        about a tenth of a second per row with the default decoder on one core. The same rows in the
        same order always get the same scores. The draws depend on the seed of the training and on
        which rows are scored together, so among other rows a score is the same only up to its
        Monte Carlo error.

        Returns:
            (N,) float64: the log density of the standardised columns, or of intensities in [0, 1],
            minus sum log scale. Nothing is subtracted where x is discrete: black and white,
            classes, and counts.

        Raises:
            UserError: As :meth:`transform`, and for rows whose density overflows float32.
        """
        check_is_fitted(self)
        images = self._images(X, self.fit_)
        # Numpy would warn about a density that overflows; it is refused below.
        with near(images.name), np.errstate(over="ignore", invalid="ignore"):
            found = evidence.log_likelihood(self.fit_, images, seed=self.fit_.spec.seed)
        check_finite(found.values, images.name)
        if self.model_.likelihood.discrete:
            return found.values
        if images.form.missing:
            return found.values - self.fit_.form.log_volumes(images.images.to("cpu"))
        return found.values - self.fit_.form.log_volume(images.images[0].numel())

    def score(self, X: Images, y: object = None) -> float:
        """The mean of :meth:`score_samples`, nats; higher is better. y is not used."""
        return float(self.score_samples(X).mean())

    # Keeping it -------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the run folder that ``ngvae train`` writes, for ``ngvae inspect`` and :meth:`load`.

        Raises:
            UserError: As :func:`ngvae_pyro.save_run`, or if the estimator was read from a folder,
                because it then has no images to be evaluated on: copy that folder instead.
        """
        check_is_fitted(self)
        check_folder(folder)
        if not hasattr(self, "held_out_"):
            raise UserError(
                "save: expected an estimator that was fitted here, got one that was loaded; copy "
                "its folder"
            )
        runs.save_run(folder, self.fit_, self.spec_, self.held_out_)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Self:
        """The estimator of a run folder, written by :meth:`save` or by ``ngvae train``.

        Its parameters are those of the run, or None where the run has the declared default;
        ``model`` and ``guide`` are names if the run has declared variants. There is no
        ``feature_names_in_``: the names of columns are in ``fit_.form.columns``. Settings of the
        training that are not parameters of the estimator, such as ``fit.decay_begin``, are not
        kept.

        Args:
            folder: The run folder.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            UserError: If a file is missing, damaged or inconsistent with the others.
        """
        check_folder(folder)
        trained, spec = runs.load_run(folder, device)
        likelihood, size = spec.model.likelihood, spec.model.latent_size
        scale = None
        if likelihood.family == "gaussian" and likelihood.scale != "auto":
            scale = likelihood.scale
        model: str | Spec = spec.model
        if spec.model_name in variants.names("models"):
            declared = _model_spec(spec.model_name, size, scale, None)
            resolved = declared.likelihood.like(likelihood)
            changes = {"likelihood": resolved, "depth": spec.model.depth}
            if declared.model_copy(update=changes) == spec.model:
                model = spec.model_name
        guide: str | Spec = spec.guide
        if spec.guide_name in variants.names("guides") and guide == variants.spec_of(
            "guides", spec.guide_name, {}
        ):
            guide = spec.guide_name
        held_out = _changed(spec.data, "held_out")
        # For arrays, the run stores the share that was held out, which is a rounded fraction.
        if held_out is not None and spec.data.size is not None:
            rows = [_rows_of(part, spec.data.size) for part in (held_out, DataSpec().held_out)]
            held_out = None if rows[0] == rows[1] else held_out
        new = cls(
            size,
            model=model,
            guide=guide,
            steps=_changed(spec.fit, "steps"),
            batch_size=_changed(spec.fit, "batch_size"),
            learning_rate=_changed(spec.fit, "learning_rate"),
            validation=_changed(spec.fit, "validation"),
            scale=scale,
            held_out=held_out,
            layout=_layout(trained),
            missing=trained.form.missing,
            device=_changed(spec.fit, "device"),
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
        tags.input_tags.allow_nan = self.missing
        # Codes are float32 whatever the type of X is.
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


class _NoNumbers(UserError, TypeError):
    """A table that scikit-learn refuses; for some tables it requires a TypeError."""


def _as_array(X: Any) -> np.ndarray:
    """Convert an array, a tensor, or a list or tuple of rows to an array on the CPU."""
    if issparse(X):
        raise UserError(
            f"X: expected a dense array, got a sparse {type(X).__name__}; pass X.toarray()"
        )
    if isinstance(X, (list, tuple)):
        rows = [
            number_array(row, f"X[{i}]") if isinstance(row, Tensor) else row
            for i, row in enumerate(X)
        ]
        try:
            return np.asarray(rows)
        except (TypeError, ValueError):
            raise UserError(
                f"X: expected rows of numbers, all of one shape, got {described(X)} of others"
            ) from None
    return number_array(X, "X")


def _check_columns(table: Any) -> None:
    """Refuse a table with dates, with duplicate names, or with some names that are not strings."""
    names = list(table.columns)
    for name, dtype in zip(names, table.dtypes, strict=True):
        # Types of libraries other than numpy and pandas have no `kind`.
        if getattr(dtype, "kind", "O") not in "biufO":
            raise UserError(f"X: expected numbers, got dtype {dtype} in column {described(name)}")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"X: expected no column name twice, got {described(name)} {times} times")
    if len({isinstance(name, str) for name in names}) > 1:
        other = next(name for name in names if not isinstance(name, str))
        raise UserError(
            f"X: expected column names that are all strings or none, got {described(other)} "
            "among strings"
        )


def _fitted(estimator: NGVAE) -> list[str]:
    """The names of the attributes that a fit sets."""
    return [name for name in vars(estimator) if name.endswith("_") and not name.startswith("__")]


def _model_spec(
    model: str | Path | Spec,
    n_components: int | None,
    scale: float | None,
    likelihood: str | Mapping[str, Any] | Callable[..., Any] | None,
    decoder: Spec | Callable[..., Any] | None = None,
) -> ModelSpec:
    """The spec of a model, with the keys that are parameters of the estimator applied."""
    changes: dict[str, Any] = _given(latent_size=n_components, decoder=decoder)
    own: Any = {} if likelihood is None else likelihood
    if isinstance(likelihood, str):
        own = {"family": likelihood}
    elif callable(likelihood):
        own = {"family": "own", "factory": likelihood}
    kinds = "the name of a family, a dictionary of keys, a class or a function"
    expect("NGVAE: likelihood", own, Mapping, kinds)
    if keys := {**_given(**{str(key): value for key, value in own.items()}), **_given(scale=scale)}:
        changes["likelihood"] = keys
    try:
        spec: ModelSpec = variants.spec_of("models", model, changes)
    except UserError as error:
        names = {"latent_size": "n_components", "likelihood.scale": "scale"}
        names |= {"likelihood.family": "likelihood", "likelihood": "likelihood"}
        for key, parameter in names.items():
            source, found, expected = str(error).partition(f": {key}: ")
            if found and source.startswith("changes to "):
                raise UserError(f"NGVAE: {parameter}: {expected}") from None
        raise
    return spec


def _layout(trained: Fit) -> str | None:
    """The layout that has to be declared for arrays like those of a fit."""
    if trained.form.sequential:
        return "sequences"
    return "volumes" if trained.form.layout == "grey_volumes" else None


def _rows_of(held_out: float, rows: int) -> int:
    """How many rows a fraction of them is, at least one."""
    return max(1, round(held_out * rows))


def _changed(spec: Spec, key: str) -> Any:
    """A value of a spec, or None if it is the default."""
    value = getattr(spec, key)
    return None if value == type(spec).model_fields[key].default else value


def _given(**values: Any) -> dict[str, Any]:
    """The parameters that are not None, with numpy's numbers converted to plain ones."""
    return {key: _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def _name(variant: str | Path | Spec, family: str) -> str:
    """The name of a variant, or the family of a spec, which has no name."""
    return family if isinstance(variant, Spec) else str(variant)


def _seed(random_state: Any) -> int:
    """The seed of a random state: an int itself, or a draw from anything else."""
    if is_seed(random_state):
        return int(random_state)
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**32))
    shared = random_state is None or random_state is np.random
    if shared or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31))
    raise UserError(
        "NGVAE: random_state: expected a whole number in [0, 2**32), a RandomState, a Generator or "
        f"None, got {described(random_state)}"
    )
