"""Stochastic variational inference: one ``fit`` for every model and guide.

The loss is Pyro's ELBO, divided by the batch size, so that losses and KLs are in nats per image.
The effect handler :class:`SiteWeights` weights the sites during training, so a model or guide does
not need to know its schedule.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from ngvae_pyro import axes, own, provenance
from ngvae_pyro.contexts import covariates, evaluating, fitting, given
from ngvae_pyro.data import Images, as_images
from ngvae_pyro.data.batches import Batches
from ngvae_pyro.data.images import ImageData, check_images
from ngvae_pyro.distributed import ALONE, SharedLoss, Team
from ngvae_pyro.errors import Notice, UserError, expect
from ngvae_pyro.fitted import Fit, MoveRecord, check_covariates, data_of, site_terms
from ngvae_pyro.guide import Codes, Guide, Relaxable, SwitchableLatents, Touched, check_pair
from ngvae_pyro.interrupts import Interrupted, Stop, deferred
from ngvae_pyro.likelihoods import FunctionLikelihood, check_likelihood
from ngvae_pyro.machine import resolve_device, seeded
from ngvae_pyro.model import VAE, NormalGammaVAE
from ngvae_pyro.nn import Network
from ngvae_pyro.objectives import with_adversary
from ngvae_pyro.objectives.base import TraceELBO
from ngvae_pyro.own import OwnGuide, OwnModel
from ngvae_pyro.specs import (
    IMMATERIAL,
    NEWER,
    BaseGuideSpec,
    FitSpec,
    NormalGammaPriorSpec,
    ScheduleSpec,
    merge,
    parse,
)
from ngvae_pyro.training import restoring
from ngvae_pyro.training.actions import (
    WORTH_A_TRIAL,
    Action,
    BecomeExact,
    Fork,
    Rescale,
    Resolve,
    actions_of,
    check_actions,
    resolve,
)
from ngvae_pyro.training.callbacks import Callback, EarlyStopping, TrainingView, check_callbacks
from ngvae_pyro.training.checkpoints import KEPT, Checkpoints, Snapshot
from ngvae_pyro.training.progress import TrainingBar
from ngvae_pyro.training.steps import PAYS_FROM, NonFiniteLoss, Steps
from ngvae_pyro.verdict import leaks

# Images on which moves are judged and progress is measured: enough for a standard error of the ELBO
# well below one nat, few enough to cost less than ten training steps.
MONITOR_IMAGES = 1024

# The fraction of training at which its ending begins. A training that is stopped skips to there:
# the learning rate is low enough for single iterates to be as good as their average, and what the
# schedules change at the very end is still to come.
ENDING = 0.95

# What AdamW has by default in torch.
WEIGHT_DECAY = 0.01

# Steps between updates of the bar.
SHOWN_EVERY = 10

# A team polls its processes for signals at this interval of steps: each poll costs a message.
HEED_EVERY = 10

# Of a network whose code nobody here has seen.
UNSTEADY = (
    "training goes step by step, unrecorded: a network of your own may do something else in each "
    "step; recorded = true in its spec says that it does not (a function as likelihood is never "
    "recorded, a class is)"
)

# Of programs that say nothing of it.
UNSTEADY_PROGRAMS = (
    "training goes step by step, unrecorded: {} may do something else in each step; an attribute "
    "recorded = True says that it does not"
)

# Largest number of inputs at which the weights of a linear layer keep the learning rate unchanged.
# The first step of Adam moves every weight by the learning rate, and so each output by as much for
# every input: with more inputs the encoder's outputs end up where float32 has no precision. With a
# rate inversely proportional to the number of inputs they move alike at all sizes (Yang and Hu,
# 2021, "Tensor programs IV: feature learning in infinite-width neural networks",
# arXiv:2011.14522). 12,288 is an RGB image of 64x64.
MOST_INPUTS = 12_288


class Annealed:
    """A buffer of the guide or the model, a number of the spec times a factor of the schedule."""

    def __init__(
        self,
        buffer: Tensor,
        declared: float | tuple[float, ...],
        factor: Callable[[float], float],
    ) -> None:
        self.buffer, self.factor = buffer, factor
        self.declared = torch.tensor(declared).to(buffer)

    def set(self, factor: float | Tensor) -> None:
        """Set the buffer to the declared number times a factor."""
        self.buffer.copy_(self.declared * factor)


class SiteWeights(Messenger):
    """Multiplies the log probability of named sites, in model and guide alike.

    A weight w of a latent site in both weights its KL term by w. Unlike ``poutine.scale`` it acts
    on single sites and accepts the weight 0.

    Args:
        weights: Weight of each named site; other sites keep 1.
    """

    def __init__(self, weights: Mapping[str, float | Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def _process_message(self, msg: "Message[..., Any]") -> None:
        weight = self.weights.get(str(msg["name"])) if msg["type"] == "sample" else None
        if weight is not None:
            msg["scale"] = msg["scale"] * weight


def convolutional(*modules: torch.nn.Module) -> bool:
    """Whether any of the modules has convolutions."""
    return any(p.dim() == 4 for module in modules for p in module.parameters())


def parameter_groups(parameters: Sequence[Tensor], learning_rate: float) -> list[dict[str, Any]]:
    """Groups for Adam, with a smaller rate for the weights of layers with very many inputs."""
    wide = [p for p in parameters if p.dim() == 2 and p.shape[1] > MOST_INPUTS]
    # By identity, because tensors compare by their values.
    rest = [p for p in parameters if all(p is not other for other in wide)]
    rates = [learning_rate * MOST_INPUTS / p.shape[1] for p in wide]
    return [
        {"params": rest, "initial_lr": learning_rate},
        *({"params": [p], "initial_lr": rate} for p, rate in zip(wide, rates, strict=True)),
    ]


def shrinking(
    groups: Sequence[dict[str, Any]], weight_decay: float, kept: Sequence[Tensor] = ()
) -> list[dict[str, Any]]:
    """The same groups for AdamW, which shrinks weights of layers, none of those ``kept``."""
    found = []
    others = {id(p) for p in kept}
    for group in groups:
        layers = [p for p in group["params"] if p.dim() > 1 and id(p) not in others]
        rest = [p for p in group["params"] if p.dim() < 2 or id(p) in others]
        found.append({**group, "params": layers, "weight_decay": weight_decay})
        found.append({**group, "params": rest, "weight_decay": 0.0})
    return [group for group in found if group["params"]]


def _described(data: ImageData, digest: str | None) -> dict[str, Any]:
    """Images, as the identity of a training names them."""
    return {"shape": list(data.images.shape), "SHA-256": digest}


def laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient with the strides of its parameter, which fused kernels require."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


class Trainer:
    """Model, guide, optimizer and position in the schedule; ``fit`` drives it."""

    def __init__(
        self,
        model: VAE,
        guide: Guide,
        data: ImageData,
        spec: FitSpec,
        schedule: ScheduleSpec,
        team: Team = ALONE,
        actions: Sequence[Action] = (),
        callbacks: Sequence[Callback] = (),
        validation: ImageData | None = None,
    ) -> None:
        if isinstance(guide.spec, BaseGuideSpec):
            for key, owner in guide.spec.foreign(schedule).items():
                raise UserError(f"schedule.{key} needs a {owner} guide, got {type(guide).__name__}")
        self.actions = [*actions_of(schedule), *actions]
        check_actions(self.actions, guide)
        # In order of time, and in the order of the schedule if at the same time.
        self.actions.sort(key=lambda action: action.at)
        self.own_actions = tuple(actions)
        if isinstance(guide, SwitchableLatents):
            # A pair that has been trained before may need other latents now.
            guide.seal(False)
        if isinstance(guide, Relaxable):
            guide.exact = not any(isinstance(action, BecomeExact) for action in self.actions)
        self.device = resolve_device(spec.device)
        self.model, self.guide = model.to(self.device), guide.to(self.device)
        self.spec, self.schedule, self.team = spec, schedule, team
        networks = [m for m in (*model.modules(), *guide.modules()) if isinstance(m, Network)]
        # With channels last, the convolutions of a 64x64 batch of 128 took two thirds of the time,
        # on two cores of an EPYC virtual machine; this has not been measured on CUDA. A network of
        # a user's own may ask for a view that this layout does not have.
        usual = any(network.own for network in networks) or not convolutional(model, guide)
        # Nor has a convolution of volumes.
        usual |= any(p.dim() == 5 for p in (*model.parameters(), *guide.parameters()))
        last = spec.fast and self.device.type == "cpu" and not usual
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.set_networks(self.memory_format, getattr(torch, spec.network_dtype))
        self.batches = Batches(
            data,
            spec.batch_size,
            spec.seed,
            self.device,
            spec.resident_bytes,
            spec.workers,
            team,
        )
        # The covariates of monitor images are given while the training runs, except where others
        # are looked at.
        self.monitor_images, self.monitor_design = self._monitored(data)
        self.validation = validation
        self.validation_images = self.validation_design = None
        if validation is not None:
            self.validation_images, self.validation_design = self._monitored(validation)
        self.model.likelihood.learn(data)
        if isinstance(model.decoder, Network) and not model.decoder.has_units:
            model.learn_units(data)
            assert model.seen is not None
            for module in guide.modules():
                if isinstance(module, Network) and not module.has_units:
                    module.set_units(*model.seen)
        # What a user holds still, such as an encoder that was trained before, stays as it is.
        both = (*self.model.parameters(), *self.guide.parameters())
        # By identity, because programs of one's own may share some.
        pair = list({id(p): p for p in both if p.requires_grad}.values())
        groups = parameter_groups(pair, spec.learning_rate)
        if spec.optimizer == "adamw":
            decay = WEIGHT_DECAY if spec.weight_decay is None else spec.weight_decay
            groups = shrinking(groups, decay, list(model.likelihood.parameters()))
        objective = guide.objective(guide.spec, spec, self.model, len(data))
        expect("the guide's objective", objective, TraceELBO, "one of ngvae_pyro.objectives")
        self.elbo = with_adversary(objective, spec, self.model)
        own = self.elbo.parameter_groups(self.device)
        groups += own
        # Parameters of the objective, such as a discriminator's.
        self.own_parameters: list[Tensor] = [p for group in own for p in group["params"]]
        self.parameters: list[Tensor] = [*pair, *self.own_parameters]
        # The loss of a batch that is shared with other processes.
        self.shared_loss = (
            SharedLoss(team, self.elbo, self.model, self.guide, self.own_parameters)
            if team.size > 1
            else None
        )
        self.site_ramps = {"z": schedule.z, "precision": schedule.precision}
        if schedule.signal_nats > 0:
            signal = self.model.likelihood.signal(self.monitor_images)
            initial = max(1.0, signal / schedule.signal_nats)
            self.site_ramps["z"] = schedule.z.model_copy(update={"initial": initial})
        self.step = 0
        # How many of the actions have been taken.
        self.acted = 0
        self.seconds_before, self.began = 0.0, time.perf_counter()
        self.fit = Fit(
            self.model, self.guide, spec, schedule=schedule, count=len(data), form=data.form
        )
        # A function may keep its state where nobody sees it.
        self.steady = all(network.steady for network in networks) and not isinstance(
            self.model.likelihood, FunctionLikelihood
        )
        programs = [part for part in (model, guide) if isinstance(part, (OwnModel, OwnGuide))]
        unsteady = [part.program.name for part in programs if not part.steady]
        self.steady = self.steady and not unsteady
        self.steps = self._steps(groups)
        if spec.fast and not self.steady and spec.steps > PAYS_FROM and team.leads:
            line = UNSTEADY_PROGRAMS.format(" and ".join(unsteady)) if unsteady else UNSTEADY
            warnings.warn(line, Notice, stacklevel=2)
        self.stop = Stop()
        self.bar = TrainingBar(spec.steps, enabled=False)
        self.callbacks = tuple(callbacks)
        # Those that are called after every step, so that a training without them has no more to do.
        self.callbacks_of_steps = [c for c in callbacks if type(c).on_step is not Callback.on_step]
        self.view, self.begun = TrainingView(self), False
        # A state, how many actions had been taken in it, and whether the guide was exact.
        self.kept: tuple[dict[str, Any], int, bool] | None = None

    def _monitored(self, data: ImageData) -> tuple[Tensor, Tensor | None]:
        """The first images, on the device, and their covariates."""
        with data.given(slice(0, MONITOR_IMAGES), self.device) as x:
            return x, covariates()

    def set_networks(self, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
        """Set the memory layout of the networks and the type that they compute in."""
        self.model.to(memory_format=memory_format)
        self.guide.to(memory_format=memory_format)
        for part in (*self.model.modules(), *self.guide.modules()):
            if isinstance(part, Network):
                part.compute_dtype = dtype

    def _steps(self, groups: list[dict[str, Any]]) -> Steps:
        """Build the steps: the optimizer, and the schedule as a table for the device."""
        columns: list[Callable[[float], float]]
        columns = [partial(self.learning_rate, group["initial_lr"]) for group in groups]
        ramps = {name: ramp for name, ramp in self.site_ramps.items() if not ramp.constant}
        columns += ramps.values()
        guide, factor = self.guide, self.schedule.factor
        self.annealed = [
            Annealed(getattr(guide, name), getattr(guide.spec, name), partial(factor, name))
            for name in guide.annealed
        ]
        if isinstance(self.model, NormalGammaVAE) and not self.schedule.slab.constant:
            prior = self.model.spec.prior
            assert isinstance(prior, NormalGammaPriorSpec)
            self.annealed.append(Annealed(self.model.slab, prior.slab, self.schedule.slab))
        self.anneal()
        columns += [number.factor for number in self.annealed]
        columns.append(float)
        row = torch.empty(1, len(columns), device=self.device)
        numbers = iter(row[0])
        for group in groups:
            group["lr"] = next(numbers)
        self.weights = {name: next(numbers) for name in ramps}
        self.factors = [next(numbers) for _ in self.annealed]
        self.elbo.fraction = next(numbers)
        kind = torch.optim.AdamW if self.spec.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(groups, weight_decay=0.0, fused=True, capturable=True)
        return Steps(
            self.gradients,
            self.parameters,
            self.optimizer,
            self.batches,
            self.spec.steps,
            lambda step: [column(step / self.spec.steps) for column in columns],
            row,
            clip_norm=self.spec.clip_norm,
            modules={"model": self.model, "guide": self.guide},
            key=self.phase,
            fast=self.spec.fast and self.team.size == 1 and self.steady,
        )

    # One step --------------------------------------------------------------------------------

    def learning_rate(self, initial: float, fraction: float) -> float:
        """Learning rate at a fraction of training: constant, then falling to 0 by ``fit.decay``."""
        if self.spec.decay == "none":
            return initial
        left = min(1.0, (1.0 - fraction) / (1.0 - self.spec.decay_begin + 1e-12))
        if self.spec.decay == "cosine":
            left = 0.5 * (1.0 - math.cos(math.pi * left))
        return initial * left

    def phase(self) -> Hashable:
        """A value that, together with the tensors, determines the operations of the next step."""
        return self.guide.phase, self.elbo.advance(self.step / self.spec.steps)

    def batch_loss(self, x: Tensor) -> Tensor:
        """-ELBO per image of a batch, with the weights of the schedule."""
        for number, factor in zip(self.annealed, self.factors, strict=True):
            number.set(factor)
        x = x.contiguous(memory_format=self.memory_format)
        with SiteWeights(self.weights):
            if self.shared_loss is not None:
                return self.shared_loss(x)
            return self.elbo.differentiable_loss(self.model, self.guide, x) / len(x)

    def anneal(self) -> None:
        """Set what is annealed to what it was in the last step, or is after all of them."""
        # A short training may have no step after the end of a ramp.
        last = self.step if self.step == self.spec.steps else max(self.step - 1, 0)
        for number in self.annealed:
            number.set(number.factor(last / self.spec.steps))

    def gradients(self, x: Tensor, design: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """The loss of a batch and its gradients with respect to the parameters.

        Args:
            x: Images (B, C, H, W).
            design: Their covariates (B, Q), if they have any.
        """
        with given(design):
            loss = self.batch_loss(x)
        if self.shared_loss is not None:
            # They are averaged over the processes as they arrive at the parameters.
            self.optimizer.zero_grad()
            loss.backward()
            return loss.detach(), *(p.grad for p in self.parameters)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), *map(laid_out, gradients, self.parameters)

    def train_step(self) -> None:
        """One optimizer step at the current position of the schedule.

        Raises:
            Interrupted: If a signal has requested the end; the step is then not taken.
        """
        self.heed()
        self.steps(self.step)
        self.step += 1
        if self.step == self.spec.steps:
            self.anneal()
        if self.step % SHOWN_EVERY == 0:
            self.bar.advance(self.step)

    # Looking at the state --------------------------------------------------------------------

    def fixed_noise(self) -> AbstractContextManager[None]:
        """Common random numbers for every evaluation, separate from those of the training."""
        return seeded(self.spec.seed, self.device)

    def loss(self) -> float:
        """-ELBO per monitor image in nats, the same in all processes, which decide by it.

        Raises:
            NonFiniteLoss: If the last step left weights whose posterior cannot be sampled.
        """
        self.finite_codes(self.monitor_images)
        looks = evaluating(self.model, self.guide)
        with looks, self.fixed_noise(), torch.no_grad(), pyro.validation_enabled(False):
            x = self.monitor_images
            return self.team.agreed(self.elbo.loss(self.model, self.guide, x) / len(x))

    def finite_codes(self, x: Tensor) -> Codes:
        """The guide's posterior summaries of images.

        Raises:
            NonFiniteLoss: If they are not finite after the last step.
        """
        with evaluating(self.guide), pyro.validation_enabled(False):
            codes = self.guide.codes(x)
        # The variance of z may be infinite, if its precision is often near 0.
        if not (codes.loc.isfinite().all() and codes.probs.isfinite().all()):
            raise NonFiniteLoss(self.step, math.nan, math.nan)
        return codes

    def codes(self, x: Tensor) -> Codes:
        """The guide's posterior summaries of images, the same in all processes."""
        codes = self.finite_codes(x)
        return Codes(**{name: self.team.agreed(value) for name, value in vars(codes).items()})

    def look(self) -> dict[str, Any]:
        """Evaluate on the monitor images, and return a row of the history."""
        self.steps.check()
        codes, loss, kl = self._terms(self.monitor_images)
        row = {
            "step": self.step,
            "loss": loss,
            "kl": kl,
            "informative": int(codes.informative.sum()),
            "probs": codes.probs.detach().mean(0).tolist(),
            "variance_of_loc": codes.loc.detach().var(0, correction=0).tolist(),
        }
        if self.validation_images is not None:
            # Callbacks may decide by it.
            with given(self.validation_design):
                row["validation_loss"] = self.team.agreed(self._terms(self.validation_images)[1])
        return row

    def _terms(self, x: Tensor) -> tuple[Codes, float, dict[str, float]]:
        """Codes, -ELBO and the KL of each site of images, nats per image.

        Raises:
            NonFiniteLoss: If they are not finite after the last step.
        """
        looks = evaluating(self.model, self.guide)
        with looks, self.fixed_noise(), pyro.validation_enabled(False):
            # First, because a posterior that is not finite cannot be sampled.
            codes = self.finite_codes(x)
            log_likelihood, kl = site_terms(self.model, self.guide, x)
        kl_sites = {name: term.sum(-1).mean().item() for name, term in kl.items()}
        loss = -log_likelihood.mean().item() + sum(kl_sites.values())
        if not math.isfinite(loss):
            raise NonFiniteLoss(self.step, loss, math.nan)
        return codes, loss, kl_sites

    def record(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to the history, and show the last one."""
        for row in rows:
            self.fit.history.append(row)
            self._call("on_look")
        if rows:
            selects = isinstance(self.guide, SwitchableLatents)
            found = None if self.model.discrete else len(leaks(rows[-1], selects))
            self.bar.show(rows[-1], found)
            self.bar.advance(self.step)

    # Forks -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """A copy of everything that a step changes."""
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "guide": copy.deepcopy(self.guide.state_dict()),
            "objective": [p.detach().clone() for p in self.own_parameters],
            "optimizer": [
                {name: value.clone() for name, value in self.optimizer.state[p].items()}
                for p in self.parameters
            ],
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.on_cuda else None,
            "step": self.step,
        }

    @property
    def on_cuda(self) -> bool:
        """Whether the training runs on a CUDA device."""
        return self.device.type == "cuda"

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a copy made by :meth:`state`."""
        self.model.load_state_dict(state["model"])
        self.guide.load_state_dict(state["guide"])
        with torch.no_grad():
            for own, value in zip(self.own_parameters, state["objective"], strict=True):
                own.copy_(value)
            # All of this is in place, because recordings refer to these tensors.
            for own, saved in zip(self.parameters, state["optimizer"], strict=True):
                moments = self.optimizer.state[own]
                for name, value in moments.items():
                    # Nothing was saved before the first step, where all moments are 0.
                    value.copy_(saved.get(name, 0.0))
                for name in saved.keys() - moments.keys():
                    # With the layout of the parameter, which a fused Adam requires.
                    like = own if saved[name].dim() else torch.empty((), device=self.device)
                    moments[name] = torch.empty_like(like).copy_(saved[name])
        torch.set_rng_state(state["rng"])
        if self.on_cuda:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step = state["step"]
        self.anneal()

    def train_and_judge(self, steps: int) -> tuple[float, list[dict[str, Any]]]:
        """Train a branch of a fork for some steps.

        Returns:
            The loss of the branch, at the parameters averaged over the second half of the steps:
            single iterates scatter by 10 nats and more at a high learning rate, as much as a latent
            is worth; their average does not. Then its rows of the history, if any were due.
        """
        rows: list[dict[str, Any]] = []
        for _ in range(steps // 2):
            self._step_of_branch(rows)
        averaged = [torch.zeros_like(p) for p in self.parameters]
        rest = steps - steps // 2
        for _ in range(rest):
            self._step_of_branch(rows)
            torch._foreach_add_(averaged, [p.detach() for p in self.parameters], alpha=1.0 / rest)
        last = self.state()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, averaged)
            # A branch must not win because its leaks are cheap. The faint ones are still fading.
            resolve(self, least=WORTH_A_TRIAL)
            loss = self.loss()
        self.set_state(last)
        self.steps.check()
        return loss, rows

    def _step_of_branch(self, rows: list[dict[str, Any]]) -> None:
        """A step, and a row if one is due, except at the last step: that row ends the training."""
        self.train_step()
        if self.step % self.spec.monitor_every == 0 and self.step < self.spec.steps:
            rows.append(self.look())

    def forget(self, touched: Touched) -> None:
        """Reset Adam's running means for parts of parameters, if it has any yet.

        Args:
            touched: Parameters, and the indices that were written to, other than by the optimizer.
        """
        for parameter, index in touched:
            state = self.optimizer.state[parameter]
            if "exp_avg" in state:
                state["exp_avg"][index] = 0.0

    # The whole training --------------------------------------------------------------------

    def moved(self, move: MoveRecord) -> None:
        """Show the outcome of a move."""
        self.bar.decided(move, self.step)
        self._call("on_move", move)

    def _call(self, hook: str, *values: Any) -> None:
        """Call a method of all callbacks."""
        if self.callbacks:
            with self._aside():
                for callback in self.callbacks:
                    getattr(callback, hook)(self.view, *values)

    @property
    def ending(self) -> int:
        """The step at which the ending of the training begins."""
        return math.ceil(ENDING * self.spec.steps)

    @property
    def moves_left(self) -> int:
        """How many of the moves are not yet decided."""
        left = self.actions[self.acted :]
        return 0 if self.fit.skipped else sum(isinstance(action, Fork) for action in left)

    def _step_is_done(self) -> None:
        with self._aside():
            for callback in self.callbacks_of_steps:
                callback.on_step(self.view)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A block whose random numbers and covariates are not those of the training."""
        with torch.random.fork_rng([self.device] if self.on_cuda else []), given(None):
            yield

    def _may_end(self) -> None:
        """Skip to the ending of the training, if a callback has asked for it.

        All processes of a team do so at the same step, whichever of them was asked.
        """
        if not self.callbacks or (self.team.size > 1 and self.step % HEED_EVERY):
            return
        now, ending = self.step, self.ending
        if now < ending and self.team.most(int(self.view.stopping)):
            if self.kept is not None:
                self._take(*self.kept)
                self.kept = None
            self.fit.skipped = ending - now
            self.step = ending
            self.anneal()

    def keep(self) -> None:
        """Keep the present state, for a training that is stopped to go back to."""
        exact = isinstance(self.guide, Relaxable) and self.guide.exact
        self.kept = self.state(), self.acted, exact

    def _take(self, state: Mapping[str, Any], acted: int, exact: bool) -> None:
        """Go on from a state in which so many actions had been taken."""
        if isinstance(self.guide, Relaxable):
            self.guide.exact = exact
        self.set_state(state)
        self.acted = acted
        if isinstance(self.guide, SwitchableLatents):
            self.guide.seal(any(isinstance(action, Resolve) for action in self.actions[:acted]))

    @property
    def finished(self) -> bool:
        """Whether the last evaluation, after the last step, is done."""
        history = self.fit.history
        looked = bool(history) and history[-1]["step"] == self.spec.steps
        return looked and self.step == self.spec.steps

    @property
    def seconds(self) -> float:
        """Seconds spent on the training, including those before an interruption."""
        return self.seconds_before + time.perf_counter() - self.began

    def _look_at(self) -> int:
        """The step at which the next evaluation is due; moves have their own evaluations."""
        history = self.fit.history
        return self._next(history[-1]["step"], self.spec.monitor_every) if history else 0

    @staticmethod
    def _next(step: int, every: int) -> int:
        """The first multiple after a step."""
        return step - step % every + every

    def run(self, bar: TrainingBar, checkpoints: Checkpoints | None) -> None:
        """Train to the last step, with the actions and the evaluations that are due on the way.

        Args:
            bar: Shows the progress.
            checkpoints: Where the training is saved, if anywhere.

        Raises:
            Interrupted: If a signal has requested the end; with ``checkpoints`` the training has
                been saved then.
        """
        actions, last = self.actions, self.spec.steps
        self.bar = bar
        bar.begin(self.step)
        self._call("on_start")
        self.begun = True
        look_at = self._look_at()
        # The first one is due after the first step, which reveals most mistakes in the arguments.
        save_at = self._next(self.step, checkpoints.every) if checkpoints and self.step else 1
        while not self.finished:
            self._may_end()
            # A fork may skip the step at which an action was due.
            looks = look_at <= self.step < last
            acts = not looks and self.acted < len(actions)
            acts = acts and (self.step == last or self.step >= actions[self.acted].at * last)
            # An action that is interrupted is repeated in full, from the checkpoint before it.
            if checkpoints is not None and (self.step >= save_at or acts):
                self.save(checkpoints)
                save_at = self._next(self.step, checkpoints.every)
            if acts:
                # In a training that was stopped there is no time for moves any more, and a scale
                # that belongs to the state it went back to would not be that state's.
                if not (self.fit.skipped and isinstance(actions[self.acted], Fork | Rescale)):
                    actions[self.acted].apply(self)
                self.acted += 1
                look_at = self._look_at()
            elif looks or self.step == last:
                self.record([self.look()])
                look_at = self._look_at()
            else:
                try:
                    self.train_step()
                except Interrupted:
                    if checkpoints is not None:
                        self.save(checkpoints)
                    raise
                if self.callbacks_of_steps:
                    self._step_is_done()
        if checkpoints is not None:
            self.save(checkpoints)
        self.heed(now=True)

    def end(self) -> None:
        """Tell the callbacks that no step will follow, if they were told that one would."""
        self.fit.steps, self.fit.seconds = self.step, self.seconds
        if self.begun:
            self._call("on_end")

    def heed(self, now: bool = False) -> None:
        """Stop if a signal has requested it, all processes of a team at the same step."""
        if self.team.size > 1 and self.step % HEED_EVERY and not now:
            return
        if signum := self.team.most(self.stop.signum or 0):
            raise Interrupted(signum)

    # Checkpoints ---------------------------------------------------------------------------

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint; one process writes it for all."""
        with self.team.together():
            if self.team.leads:
                checkpoints.save(self.snapshot())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """A description of the training as plain values, which its checkpoints must match."""
        versions = provenance.versions()
        own: dict[str, Any] = {}
        if self.own_actions:
            own["actions"] = [repr(action) for action in self.own_actions]
        if self.validation is not None:
            own["validation"] = _described(self.validation, self.validation.digest)
        fit_keys = self.spec.model_dump(mode="json", exclude=IMMATERIAL["fit"])
        for key in NEWER:
            if fit_keys[key] == FitSpec.model_fields[key].default:
                del fit_keys[key]
        model = self.model.spec.model_dump(mode="json")
        if model["likelihood"].get("per") == "all":
            # As in trainings of older versions, which had no choice of it.
            del model["likelihood"]["per"]
        if model["depth"] is None:
            # Nor of volumes.
            del model["depth"]
        return {
            "model": model,
            # The schedule may differ from the guide's own.
            "guide": self.guide.spec.model_dump(
                mode="json", exclude=IMMATERIAL["guide"] | {"schedule"}
            ),
            "schedule": self.schedule.model_dump(mode="json"),
            "fit": fit_keys,
            "images": _described(self.batches.data, self.fit.digest),
            "versions": {name: versions[name] for name in provenance.DECISIVE},
            "device": self.device.type,
            **own,
        }

    @staticmethod
    def _packed(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A state of :meth:`state` as tensors by name: weights, and those of the optimizer."""
        weights = {
            f"{part}.{name}": value
            for part in ("model", "guide")
            for name, value in state[part].items()
        }
        weights |= {f"objective.{i}": value for i, value in enumerate(state["objective"])}
        optimizer = {
            f"{i}.{name}": value
            for i, moments in enumerate(state["optimizer"])
            for name, value in moments.items()
        }
        optimizer |= {name: state[name] for name in ("rng", "cuda_rng") if state[name] is not None}
        return weights, optimizer

    def snapshot(self) -> Snapshot:
        """Everything that :meth:`restore` needs."""
        weights, optimizer = self._packed(self.state())
        position = {
            "step": self.step,
            "acted": self.acted,
            "exact": isinstance(self.guide, Relaxable) and self.guide.exact,
            "steps": self.steps.state(),
            "history": self.fit.history,
            "moves": [asdict(move) for move in self.fit.moves],
            "rotation": self.fit.rotation.as_dict() if self.fit.rotation else None,
            "extra_steps": self.fit.extra_steps,
            "seconds": self.seconds,
            "starts": self.fit.starts,
        }
        if self.fit.skipped:
            position["skipped"] = self.fit.skipped
        if self.kept is not None:
            state, acted, exact = self.kept
            position["kept"] = {"step": state["step"], "acted": acted, "exact": exact}
            for tensors, more in zip((weights, optimizer), self._packed(state), strict=True):
                tensors |= {KEPT + name: value for name, value in more.items()}
        return Snapshot(weights, optimizer, position, self.identity)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot: the next step is the same to the last bit as without a break.

        Raises:
            UserError: If it is not a possible state of this training, even if its identity matches;
                nothing is changed then.
        """
        restoring.check(self, snapshot)
        self._restore(snapshot)
        # These determine the summation order, hence the last bits.
        before, now = self.fit.starts[-2:]
        for name in ("threads", "processes"):
            if before[name] != now[name]:
                warnings.warn(
                    f"the training continues with {now[name]} {name} instead of {before[name]}: "
                    "the result is the same except for rounding",
                    Notice,
                    stacklevel=2,
                )

    def _unpacked(self, snapshot: Snapshot) -> dict[str, Any]:
        """The tensors of a snapshot as :meth:`set_state` takes them."""
        state: dict[str, Any] = {"step": snapshot.step, "rng": None, "cuda_rng": None}
        state |= {name: {} for name in ("model", "guide", "objective")}
        state["optimizer"] = [{} for _ in self.parameters]
        for name, value in snapshot.weights.items():
            part, _, rest = name.partition(".")
            state[part][rest] = value
        state["objective"] = [state["objective"][str(i)] for i in range(len(self.own_parameters))]
        for name, value in snapshot.optimizer.items():
            number, _, rest = name.partition(".")
            if rest:
                state["optimizer"][int(number)][rest] = value
            else:
                state[name] = value
        return state

    def _restore(self, snapshot: Snapshot) -> None:
        position = snapshot.position
        self._take(self._unpacked(snapshot.own), position["acted"], position["exact"])
        if (kept := snapshot.kept) is not None:
            self.kept = self._unpacked(kept), kept.position["acted"], kept.position["exact"]
        self.steps.set_state(position["steps"], self.step)
        self.fit.history = list(position["history"])
        self.fit.moves = [MoveRecord(**move) for move in position["moves"]]
        self.fit.rotation = axes.Rotation.read(position.get("rotation"))
        self.fit.extra_steps = position["extra_steps"]
        self.fit.skipped = position.get("skipped", 0)
        self.seconds_before = position["seconds"]
        self.fit.starts = [*position["starts"], *self.fit.starts]


def fit(
    model: VAE | Callable[..., Any],
    guide: Guide | Callable[..., Any] | str | BaseGuideSpec,
    data: Images,
    spec: FitSpec | None = None,
    *,
    schedule: ScheduleSpec | None = None,
    progress: bool = True,
    team: Team = ALONE,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    actions: Sequence[Action] = (),
    callbacks: Sequence[Callback] = (),
    validation: Images | float | None = None,
    **changes: Any,
) -> Fit:
    """Train a model and a guide by stochastic variational inference.

    Minimises -ELBO / batch size with Adam, with the KL of each site weighted by the schedule. Model
    and guide are in ``train()`` during the steps, and in ``eval()`` while they are evaluated.

    Args:
        model: From :func:`ngvae_pyro.load_model`, or a Pyro model of one's own: what is called with
            a batch, and has the sites z (and precision) and x (docs/own_pair.md).
        guide: From :func:`ngvae_pyro.load_guide` for that model, or a Pyro guide of one's own; for
            a model of one's own also the name or the spec of a declared guide.
        data: Training images of the model's shape, or vectors, as
            :func:`ngvae_pyro.data.as_images` reads them. Their form becomes that of the fit.
        spec: Steps, batch size, learning rate, seed, device; see :class:`FitSpec`.
        schedule: Annealing and moves; by default the guide's own.
        progress: Whether to show a bar with the informative and the leaking latents, the move that
            is tried, the loss and the KL of each site.
        team: The processes that train together, from :func:`ngvae_pyro.distributed.joined`; each
            of them calls ``fit`` with the same arguments and gets the same result.
        checkpoints: Where the training is saved, at regular intervals, at the end, and when SIGINT
            or SIGTERM requests the end.
        resume: Continue from the newest of the checkpoints, with a model and a guide as they were
            before their training. On the same machine with the same number of threads, the result
            is that of an uninterrupted training to the last bit.
        actions: Further actions that are taken once at some fraction of the steps, besides those of
            the schedule (:mod:`ngvae_pyro.training.actions`).
        callbacks: What is called in the course of the training
            (:mod:`ngvae_pyro.training.callbacks`).
        validation: Images that are not trained on, or the share of ``data`` that is set aside for
            that. At every look -ELBO of at most 1,024 of them is added to the history as
            ``validation_loss``, nats per image.
        changes: Keys of the spec to change, e.g. ``steps=600``.

    Returns:
        The same model and guide, trained in place, with the record of the training. Those of one's
        own are a :class:`ngvae_pyro.own.OwnModel` and :class:`ngvae_pyro.own.OwnGuide` there.

    Raises:
        UserError: If an argument is not what it should be, the guide or the images do not fit the
            model, one of one's own has other sites than expected, weights are not float32, the
            device is not there, another fit is under way in this process, the processes of the team
            cannot share a batch evenly, or a checkpoint cannot be written, cannot be read or is of
            another training.
        NonFiniteLoss: If the loss or its gradient is not finite; parameters are those before.
        Interrupted: If a signal requested the end and there are checkpoints.
    """
    pair: Any = model, guide
    if own.is_own(*pair):
        data = as_images(data, counts=own.whole_numbers(model))
        seed = changes.get("seed", spec.seed if isinstance(spec, FitSpec) else 0)
        pair = own.paired(model, guide, data, seed)
    check_pair(*pair)
    model, guide = pair
    assert isinstance(model, VAE) and isinstance(guide, Guide)
    data = as_images(data, counts=model.likelihood.spec.whole)
    check_images(data, model.image_shape)
    check_likelihood(model.likelihood, data)
    check_covariates(model, data)
    spec = FitSpec() if spec is None else spec
    expect("spec", spec, FitSpec, "an ngvae_pyro.FitSpec, or its keys by name, e.g. steps=600")
    if schedule is not None:
        expect("schedule", schedule, ScheduleSpec, "a ScheduleSpec")
    if checkpoints is not None:
        expect("checkpoints", checkpoints, Checkpoints, "ngvae_pyro.Checkpoints(folder)")
    if isinstance(validation, float):
        changes["validation"], validation = validation, None
    if changes:
        spec = parse(FitSpec, merge(spec.model_dump(exclude_unset=True), changes), "fit")
    own.check_fit(model, guide, spec, team.size)
    check_callbacks(callbacks)
    digest = data.digest
    data, held = _set_aside(model, guide, data, validation, spec)
    spec = spec.in_steps(len(data))
    if spec.early_stopping is not None:
        callbacks = [*callbacks, EarlyStopping(spec.early_stopping)]
    if len(data) < 2:
        raise UserError(f"data '{data.name}': expected at least 2 images to train on, got 1")
    if team.leads and not data.varies:
        warnings.warn(
            f"data '{data.name}': all {len(data):,} images are the same, so that no latent has "
            "anything to tell; the training goes on, and 0 informative latents are right",
            Notice,
            stacklevel=2,
        )
    if resume and checkpoints is None:
        raise UserError("resume: expected checkpoints to go on from, got none")
    if checkpoints is not None and not resume and checkpoints.names():
        raise UserError(f"{checkpoints.folder}: holds checkpoints already; resume or move them")
    if (line := own.without_moves(model, guide, schedule or guide.spec.schedule)) is not None:
        warnings.warn(line, Notice, stacklevel=2)
    random = seeded(spec.seed, resolve_device(spec.device))
    # The store's scope keeps two fits of one process apart: Pyro names parameters by their
    # attribute path, which is the same in every model.
    with fitting(model, guide), pyro.get_param_store().scope(), random:
        trainer = Trainer(
            model,
            guide,
            data,
            spec,
            schedule or guide.spec.schedule,
            team,
            actions,
            callbacks,
            held,
        )
        trainer.fit.digest = digest
        trainer.fit.starts.append(provenance.here(trainer.device, team.size))
        # Without checkpoints there is nothing to save, so let signals act immediately.
        signals = deferred() if checkpoints is not None else nullcontext(trainer.stop)
        with TrainingBar(spec.steps, enabled=progress) as bar, signals as trainer.stop:
            try:
                if resume and checkpoints is not None:
                    trainer.restore(checkpoints.load(trainer.identity))
                with given(trainer.monitor_design):
                    trainer.run(bar, checkpoints)
            except NonFiniteLoss as error:
                raise error.advised(spec) from None
            finally:
                trainer.set_networks(torch.contiguous_format, torch.float32)
                trainer.end()
    return trainer.fit


def _set_aside(
    model: VAE, guide: Guide, data: ImageData, validation: Images | None, spec: FitSpec
) -> tuple[ImageData, ImageData | None]:
    """The images that are trained on, and those for validation, if there are any.

    Raises:
        UserError: If they are given twice, do not fit the training images, or are missing.
    """
    if spec.validation is not None:
        if validation is not None:
            raise UserError("validation: expected images or the share fit.validation, got both")
        return data.split(spec.validation, spec.seed)
    if validation is not None:
        return data, data_of(Fit(model, guide, spec, form=data.form), validation, "validation")
    if spec.early_stopping is not None:
        raise UserError(
            "fit.early_stopping: needs images that are not trained on; set aside a share of the "
            "training images by fit.validation, such as 0.1"
        )
    return data, None
