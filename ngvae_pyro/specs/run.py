"""Specs of a fit, of data and of a run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from ngvae_pyro.extras import needed

with needed("train"):
    from pydantic import (
        BeforeValidator,
        Field,
        SerializerFunctionWrapHandler,
        model_serializer,
        model_validator,
    )
from ngvae_pyro.specs.base import (
    Channels,
    Colours,
    Copies,
    Fraction,
    LearningRate,
    Seed,
    Side,
    Spec,
    Steps,
    Text,
    Weight,
    to_tuple,
)
from ngvae_pyro.specs.pair import GuideSpec, ModelSpec, RelaxedGuideSpec

# The names of devices; :func:`ngvae_pyro.machine.resolve_device` uses the same pattern.
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"


class AdversarialSpec(Spec):
    """A PatchGAN discriminator whose verdict on the reconstructions is part of the fit.

    ``weight`` multiplies the adversarial loss, in nats per image; its default suits RGB images of
    64x64 pixels with standard deviation 0.1, whose log likelihood is a sum over the pixels.
    ``begin`` is the fraction of training from which it acts, ``channels`` the width of the first
    of its ``layers`` stride-2 layers, and ``learning_rate`` that of the discriminator.
    """

    weight: Weight = 200.0
    channels: Channels = 32
    layers: Annotated[int, Field(gt=0, le=10)] = 2
    learning_rate: LearningRate = 1e-3
    begin: Fraction = 0.4


class FitSpec(Spec):
    """How a model and a guide are trained: Adam on the negative ELBO per data point.

    The length is given in ``steps`` or in ``epochs``, which a fit turns into steps: a step is a
    batch, and an epoch has as many whole ones as the training images make. From the fraction
    ``decay_begin`` of training the learning rate falls to 0, on a line or on half a cosine, or not
    at all (``decay``). ``optimizer`` adamw also shrinks weights of two and more axes, in each step
    by ``weight_decay`` times the learning rate, by default 0.01 (Loshchilov and Hutter, 2019,
    "Decoupled weight decay regularization", arXiv:1711.05101); biases, precisions and the scale of
    the likelihood are left alone. Of torch's optimizers these two have moments that moves can
    reset, and a fused step that leaves out gradients that are not finite.

    The share ``validation`` of the training images is not trained on but evaluated at every look,
    and ``early_stopping`` is the number of looks without a new best of them after which the
    training ends (:class:`ngvae_pyro.EarlyStopping`).

    ``elbo`` is the estimator of the plain ELBO; the mixture, flat and Poisson guides and the
    baselines' objectives have their own. ``adversarial``, if given, is added to whichever objective
    is used. ``fast`` records the operations of a step and replays them, on CUDA as a graph.
    ``network_dtype`` is the type in which the trunks of the networks compute during training;
    weights, latent layers and densities are float32 throughout. A checkpoint is written every
    ``checkpoint_every`` steps. Data larger than ``resident_bytes`` stay in main memory, and
    ``workers`` threads gather their batches ahead: by default 2 for a GPU and none for the CPU.
    """

    steps: Steps = 4400
    epochs: Steps | None = None
    batch_size: Annotated[int, Field(gt=0, le=10**6)] = 64
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: LearningRate = 3e-3
    weight_decay: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    decay: Literal["linear", "cosine", "none"] = "linear"
    decay_begin: Fraction = 0.3
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e12)] = 2000.0
    elbo: Literal["Trace_ELBO", "TraceMeanField_ELBO"] = "Trace_ELBO"
    particles: Copies = 1
    adversarial: AdversarialSpec | None = None
    seed: Seed = 0
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    monitor_every: Steps = 250
    checkpoint_every: Steps = 500
    fast: bool = True
    network_dtype: Literal["float32", "bfloat16"] = "float32"
    resident_bytes: Annotated[int, Field(gt=0, le=10**18)] = 4 * 2**30
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    early_stopping: Annotated[int, Field(gt=0, le=10**9)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            given = [key for key in ("steps", "epochs") if values.get(key) is not None]
            if len(given) > 1:
                raise ValueError("expected steps or epochs, got both")
        return values

    @model_validator(mode="after")
    def _weights_that_shrink(self) -> Self:
        if self.weight_decay is not None and self.optimizer != "adamw":
            raise ValueError(
                f"weight_decay needs optimizer = 'adamw', got optimizer = '{self.optimizer}'"
            )
        return self

    @model_serializer(mode="wrap")
    def _with_one_length(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.epochs is not None:
            # The default, which says nothing.
            values.pop("steps", None)
        return values

    def in_steps(self, images: int) -> "FitSpec":
        """The spec with ``steps`` in place of ``epochs``, for a number of training images."""
        if self.epochs is None:
            return self
        steps = self.epochs * (images // min(self.batch_size, images))
        return self.model_copy(update={"steps": steps, "epochs": None})


# Keys that trainings of older versions had no choice of: what a default says, these did.
NEWER = {"optimizer", "weight_decay", "decay", "epochs", "validation", "early_stopping"}

# Keys that change where a run is computed, where its data lie or what it is called, but not its
# result.
IMMATERIAL = {
    "fit": {"device", "resident_bytes", "workers", "checkpoint_every"},
    "data": {"root", "download", "stream"},
    "guide": {"label"},
}


class DataSpec(Spec):
    """Which images: a name or a path that :func:`ngvae_pyro.data.load` accepts.

    ``size`` is the number of images, by default all (22,000 sprites), and ``held_out`` the fraction
    of them that is not trained on; ``resolution`` is the side of sprites in pixels, by default 32.
    ``factors`` are the columns of a table that are factors, and no part of its vectors,
    ``covariates`` those that are known of each row besides what latents are to tell, and
    ``layout`` is ``sequences`` for arrays (N, C, L), or (N, L), that are sequences, and ``volumes``
    for arrays (N, D, H, W) that are volumes. ``missing`` says that NaN, in a table an empty cell,
    stands for a value that is missing. With ``stream`` the images stay on the disk.
    """

    name: Text = "sprites"
    size: Annotated[int, Field(gt=0, le=10**9)] | None = None
    resolution: Side | None = None
    seed: Seed | None = None
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    root: Text = "data"
    download: bool = False
    factors: Annotated[tuple[Text, ...], BeforeValidator(to_tuple)] | None = None
    covariates: Annotated[tuple[Text, ...], BeforeValidator(to_tuple)] | None = None
    layout: Literal["sequences", "volumes"] | None = None
    missing: bool = False
    stream: bool = False


class RunSpec(Spec):
    """Everything that defines a run; written to ``config.toml`` of the run folder."""

    model_name: Text = "normal_gamma"
    guide_name: Text = "relaxed"
    model: ModelSpec = ModelSpec()
    guide: GuideSpec = RelaxedGuideSpec()
    fit: FitSpec = FitSpec()
    data: DataSpec = DataSpec()


class CovariateSpec(Spec):
    """A covariate and its coding, as :class:`ngvae_pyro.data.forms.Covariate` has it."""

    name: Text
    classes: Annotated[tuple[Text, ...], BeforeValidator(to_tuple)] = ()
    mean: float = 0.0
    sd: Annotated[float, Field(gt=0.0)] = 1.0


class FormSpec(Spec):
    """The axes of the arrays that held the images, and whether these were bytes.

    ``columns`` are the names of the columns of vectors or curves, if they have names, and
    ``covariates`` what comes with each entry besides the array. ``missing`` is there if values may
    be missing, and ``depth`` is that of volumes.

    If the arrays have units of their own, those are stored with the weights
    (:class:`ngvae_pyro.data.forms.Form`).
    """

    layout: Literal[
        "vectors",
        "curves",
        "sequences",
        "grey",
        "channels_last",
        "channels_first",
        "grey_volumes",
        "volumes_last",
        "volumes",
    ]
    in_bytes: bool
    columns: Annotated[tuple[Text, ...], BeforeValidator(to_tuple)] | None = None
    covariates: Annotated[tuple[CovariateSpec, ...], BeforeValidator(to_tuple)] | None = None
    missing: Literal[True] | None = None
    depth: Side | None = None


def _older(values: Any) -> Any:
    """A run's values under today's keys.

    Of older versions, all informative rates were fixed, neither the prior's slab nor the sharpness
    changed at the end, and products alone made the images of a separable decoder.
    """
    if not isinstance(values, Mapping):
        return values
    if isinstance(model := values.get("model"), Mapping):
        decoder = model.get("decoder")
        if isinstance(decoder, Mapping) and decoder.get("kind") == "separable":
            values = {**values, "model": {**model, "decoder": {"channels": 0, **decoder}}}
        likelihood = model.get("likelihood")
        if isinstance(likelihood, Mapping) and likelihood.get("family") == "gaussian":
            # Before there was a choice, all values had one scale.
            model = {**values["model"], "likelihood": {"per": "all", **likelihood}}
            values = {**values, "model": model}
    if not isinstance(guide := values.get("guide"), Mapping):
        return values
    if "rate" in guide and "freedom" not in guide:
        guide = {**guide, "freedom": 0.0}
    if isinstance(schedule := guide.get("schedule"), Mapping):
        still = {key: {"initial": 1.0} for key in ("slab", "sharpening")}
        guide = {**guide, "schedule": {**still, **schedule}}
    return {**values, "guide": guide}


class SavedRun(RunSpec):
    """``config.toml`` of a run folder: the run, and what is needed to rebuild its pair.

    Relative paths in ``data`` start from ``folder``. ``images`` is set if the images were given in
    Python, so that ``data.name`` alone does not lead to them. Runs of older versions have no
    ``form``.
    """

    _of_older_versions = model_validator(mode="before")(_older)

    image_shape: Annotated[tuple[Colours, Side, Side], BeforeValidator(to_tuple)]
    folder: Text | None = None
    images: Literal["given in Python"] | None = None
    form: FormSpec | None = None
    versions: dict[str, str] = Field(default_factory=dict)
