"""Training: reproducible, resumable forks, streamed data, moves, and selection itself."""

import math
import threading
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from support import SMALL
from torch import nn

from ngvae_pyro import axes
from ngvae_pyro.data import batches
from ngvae_pyro.data.batches import Batches
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.data.rendering import sprites
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics
from ngvae_pyro.fitted import MoveRecord
from ngvae_pyro.guide import load_guide
from ngvae_pyro.machine import resolve_device
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import FitSpec, MLPSpec, Move, Ramp, ScheduleSpec
from ngvae_pyro.training.actions import (
    BecomeExact,
    Grow,
    Propose,
    Rescale,
    Resolve,
    Rotate,
    Unfold,
    _switch,
    resolve,
)
from ngvae_pyro.training.steps import NonFiniteLoss
from ngvae_pyro.training.trainer import Trainer, fit

SHORT = FitSpec(steps=12, batch_size=16, monitor_every=4, device="cpu")
CPU = torch.device("cpu")


def weights(result):
    modules = (result.model, result.guide)
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def run(small_pair, data, spec=SHORT, **options):
    torch.manual_seed(3)
    return fit(*small_pair(), data, spec, progress=False, **options)


def test_same_seed_same_result(small_pair, data):
    a, b = run(small_pair, data), run(small_pair, data)
    assert torch.equal(weights(a), weights(b))
    assert a.history == b.history
    other = run(small_pair, data, SHORT.model_copy(update={"seed": 1}))
    assert not torch.equal(weights(a), weights(other))


def test_fit_leaves_the_random_state_and_the_param_store_alone(small_pair, data):
    pair = small_pair()
    before = torch.get_rng_state()
    fit(*pair, data, SHORT, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_data_gives_the_resident_result(small_pair, data, workers):
    resident = run(small_pair, data)
    settings = {"resident_bytes": 1, "workers": workers}
    streamed = run(small_pair, data, SHORT.model_copy(update=settings))
    assert torch.equal(weights(resident), weights(streamed))


def test_batches_are_a_function_of_the_step(data):
    resident = Batches(data, 16, seed=5, device=CPU, resident_bytes=2**30)
    forward = [resident.index(step) for step in range(30)]
    assert torch.equal(resident.index(7), forward[7])
    epoch = torch.cat(forward[: resident.per_epoch])
    assert len(epoch.unique()) == len(epoch) == 192  # no image twice in an epoch
    assert not torch.equal(forward[0], forward[resident.per_epoch])
    state = torch.get_rng_state()
    for workers in (None, 0, 2):
        streamed = Batches(data, 16, seed=5, device=CPU, resident_bytes=1, workers=workers)
        # Back, as a fork goes, over the end of an epoch, and the same step again.
        for step in (3, 4, 0, 11, 12, 13, 13):
            images = ImageData.to_unit(data.images[resident.index(step)])
            assert torch.equal(resident[step], images) and torch.equal(streamed[step], images)
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_gather_ahead_and_end_with_the_batches(data, monkeypatch):
    streamed = Batches(data, 16, seed=5, device=CPU, resident_bytes=1, workers=2)
    before = set(threading.enumerate())
    streamed[0]
    workers = set(threading.enumerate()) - before
    assert 1 <= len(workers) <= 2  # the second starts if the first has enough to do

    def broken(images, index, pinned):
        raise OSError("no more images")

    monkeypatch.setattr(batches, "_gather", broken)
    # Asked of the workers already; the first that was not says what is wrong at its own step.
    for step in (1, 2, 3, 4):
        expected = ImageData.to_unit(data.images[streamed.index(step)])
        assert torch.equal(streamed[step], expected)
    with pytest.raises(OSError, match="no more images"):
        streamed[5]
    del streamed
    for worker in workers:
        worker.join(timeout=10)
        assert not worker.is_alive()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_on_the_cpu(data, workers):
    cpu = Batches(data, 16, seed=5, device=CPU, resident_bytes=2**30)
    for resident_bytes in (1, 2**30):
        gpu = Batches(data, 16, 5, torch.device("cuda"), resident_bytes, workers)
        for step in (0, 1, 2, 20, 1):
            images = gpu[step]
            assert images.device.type == "cuda"
            # A GPU divides by 255 with another last bit.
            assert torch.allclose(images.cpu(), cpu[step], atol=1e-6)


def test_history_has_what_the_bar_shows(small_pair, data):
    rows = run(small_pair, data, schedule=ScheduleSpec()).history
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    for row in rows:
        assert set(row["kl"]) == {"precision", "z"} and len(row["probs"]) == 5
        assert row["informative"] == sum(p > 0.5 for p in row["probs"])


@pytest.mark.usefixtures("deaths")
def test_history_goes_on_through_moves(small_pair, data):
    """Rows of a move are those of the branch that was kept."""
    move = Move(kind="death", at=0.1, steps=5)  # untrained, every latent is half informative
    result = run(small_pair, data, schedule=ScheduleSpec(moves=(move,)))
    assert [row["step"] for row in result.history] == [0, 4, 8, 12] and result.moves


@pytest.mark.usefixtures("deaths")
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize(("steps", "overtime"), [(12, []), (6, [12.0, 12.0])])
def test_rows_of_a_move_are_those_of_the_branch_that_is_kept(
    small_pair, data, monkeypatch, accepted, steps, overtime
):
    """Without the jump they are those of the plain training, and with it they are not."""
    never = SHORT.model_copy(update={"monitor_every": 3, "steps": 30})
    # A scale that is due during a move is set after it.
    still = ScheduleSpec(rescale=())
    plain = run(small_pair, data, never, schedule=still).history
    # The loss of death for each latent, and of the branches without and with it.
    judged = {3 + steps, 15}
    monkeypatch.setattr(Trainer, "loss", lambda own: next(losses) if own.step in judged else 1.0)
    monkeypatch.setattr(
        Propose, "candidates", lambda own, it: ([2], it.codes(it.monitor_images).loc)
    )
    losses = iter(overtime + ([20.0, 10.0] if accepted else [10.0, 20.0]))
    move = Move(kind="death", at=0.1, steps=steps)
    schedule = ScheduleSpec(moves=(move,), rescale=())
    result = run(small_pair, data, never, schedule=schedule)
    assert [m.accepted for m in result.moves] == [accepted]
    rows = result.history
    assert [row["step"] for row in rows] == [row["step"] for row in plain]
    assert rows[:2] == plain[:2]
    inside = slice(2, 6)  # steps 6, 9, 12 and 15, of the move from 3 to 15
    assert (rows[inside] == plain[inside]) == (not accepted)
    assert (rows == plain) == (not accepted)


@pytest.mark.usefixtures("deaths")
def test_looks_change_no_bit_of_the_training(small_pair, data):
    """Those within moves among them: with and without looks the weights are the same."""
    moves = (Move(kind="death", at=0.2, steps=10), Move(kind="birth", at=0.6, steps=6))
    found = []
    for every in (3, 1000):
        spec = SHORT.model_copy(update={"steps": 40, "monitor_every": every})
        found.append(run(small_pair, data, spec, schedule=ScheduleSpec(moves=moves)))
    looked, unlooked = found
    assert looked.moves and looked.moves == unlooked.moves
    assert len(looked.history) == 15 and len(unlooked.history) == 2
    assert torch.equal(weights(looked), weights(unlooked))


def test_sharpness_is_annealed_to_its_declared_value(small_pair, data):
    result = run(small_pair, data)
    assert result.guide.sharpness.item() == result.guide.spec.sharpness
    trainer = Trainer(*small_pair(), data, SHORT, result.guide.spec.schedule)
    trainer.train_step()
    assert trainer.guide.sharpness.item() == pytest.approx(10.0)


def test_z_weight_starts_at_the_signal_in_the_data(small_pair, data):
    schedule = ScheduleSpec(z=Ramp(initial=5.0, end=0.5), signal_nats=60.0)
    trainer = Trainer(*small_pair(), data, SHORT, schedule)
    signal = trainer.model.likelihood.signal(ImageData.to_unit(data.images))
    assert trainer.site_ramps["z"](0.0) == pytest.approx(signal / 60.0, rel=1e-5)
    weight = trainer.weights["z"]
    trainer.train_step()
    assert weight.item() == pytest.approx(signal / 60.0, rel=1e-5)
    trainer.step = SHORT.steps - 1
    trainer.train_step()
    assert weight.item() == 1.0
    faint = ScheduleSpec(z=Ramp(initial=5.0, end=0.5), signal_nats=1e9)
    assert Trainer(*small_pair(), data, SHORT, faint).site_ramps["z"](0.0) == 1.0


def test_wrong_shape_and_device_are_user_errors(small_pair, data):
    with pytest.raises(UserError, match=r"images of shape \(3, 32, 32\), the model expects \(1, 8"):
        fit(*small_pair(image_shape=(1, 8, 8)), data, SHORT, progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device 'cuda' asked for, but torch sees 0"):
            resolve_device("cuda")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_schedule_needs_the_guide_it_speaks_of(small_pair, data):
    pair = small_pair("gaussian", "gaussian")
    schedule = ScheduleSpec(moves=(Move(kind="death", at=0.5),))
    with pytest.raises(UserError, match=r"schedule.moves needs a relaxed guide, got GaussianGuide"):
        fit(*pair, data, SHORT, schedule=schedule, progress=False)


def test_a_non_finite_loss_names_the_step_and_keeps_the_last_state(small_pair, data):
    spec = SHORT.model_copy(update={"learning_rate": 1e30, "steps": 40})
    torch.manual_seed(3)
    model, guide = small_pair()
    with pytest.raises(NonFiniteLoss, match=r"non-finite loss at step \d+") as caught:
        fit(model, guide, data, spec, progress=False)
    # The parameters are those that the failing step started from: every one of them finite.
    assert caught.value.step >= 1
    assert all(torch.isfinite(p).all() for m in (model, guide) for p in m.parameters())


# Moves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["relaxed", "mixture", "score"])
def test_weights_that_the_last_step_has_spoilt_are_told(small_pair, data, guide):
    """No loss comes after them; they are seen by the moves, or by the last look."""
    spec = FitSpec(steps=1, batch_size=16, device="cpu", learning_rate=1e30)
    with pytest.raises(NonFiniteLoss, match="at step 1:"):
        fit(*small_pair(guide=guide), data, spec, progress=False)


@pytest.fixture
def trainer(small_pair, data):
    trainer = Trainer(*small_pair(), data, SHORT, ScheduleSpec())
    for _ in range(3):
        trainer.train_step()
    return trainer


def spread(trainer, latent, std):
    """Give the loc of a latent a standard deviation over the images that are looked at."""
    head = trainer.guide.encoder.head
    with torch.no_grad():
        now = trainer.guide.codes(trainer.monitor_images).loc[:, latent].std()
        head.weight[latent] *= std / now
        head.bias[latent] *= std / now


@pytest.mark.parametrize(("guide", "precision"), [("relaxed", 100.0), ("fixed", 10_000.0)])
def test_birth_keeps_the_reconstruction_and_raises_the_precision(
    small_pair, data, guide, precision
):
    """That of a leak of variance v is (1 + v)^2, unless all have the declared one."""
    trainer = Trainer(*small_pair(guide=guide), data, SHORT, ScheduleSpec())
    trainer.train_step()
    x, k = trainer.monitor_images, 2
    spread(trainer, k, 3.0)
    with torch.no_grad():
        trainer.guide.encoder.head.bias[5 + k] = -4.0
        codes = trainer.guide.codes(x)
        before = trainer.model.decoder(codes.loc)
        trainer.guide.switch(trainer.model.decoder, k, True, codes.loc[:, k])
        after = trainer.guide.codes(x)
    torch.testing.assert_close(trainer.model.decoder(after.loc), before, atol=1e-5, rtol=1e-5)
    assert after.loc[:, k].std().item() == pytest.approx(1.0, abs=1e-3)
    concentration, rate = trainer.guide.spec.concentration[0], trainer.guide.rate[0]
    learned = concentration / (rate if isinstance(rate, float) else rate[k].item())
    assert learned == pytest.approx(precision, rel=1e-3)
    assert (after.variance[:, k] < 2.0 / precision).all() and (codes.variance[:, k] > 0.9).all()
    others = [0, 1, 3, 4]
    assert torch.equal(after.loc[:, others], codes.loc[:, others])
    assert torch.equal(after.probs[:, others], codes.probs[:, others])
    torch.testing.assert_close(after.precision[:, others], codes.precision[:, others])


def test_death_silences_a_latent(trainer):
    x, k = trainer.monitor_images, 1
    with torch.no_grad():
        loc = trainer.guide.codes(x).loc[:, k]
        trainer.guide.switch(trainer.model.decoder, k, False, loc)
        codes = trainer.guide.codes(x)
        z = codes.loc.clone()
        z[:, k] += 100.0
        assert torch.equal(trainer.model.decoder(z), trainer.model.decoder(codes.loc))
    assert (codes.loc[:, k] == 0).all()
    assert codes.variance[:, k].mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_death_is_tried_where_codes_have_fewer_dimensions(trainer, monkeypatch):
    """Of latents that each tell something none is superfluous."""
    count = int(trainer.codes(trainer.monitor_images).informative.sum())
    tried = []
    fork = lambda self, trainer, jump, move: tried.append(move) or move  # noqa: E731
    monkeypatch.setattr(Propose, "fork", fork)
    for dimension, expected in ((count, 0), (count - 0.7, 0), (None, 0), (count - 0.8, 1)):
        monkeypatch.setattr("ngvae_pyro.dimension.of_codes", lambda loc, found=dimension: found)
        tried.clear()
        Propose(0.0, "death", 4).apply(trainer)
        assert len(tried) == expected


@pytest.mark.parametrize("kind", ["birth", "death"])
def test_a_refused_move_leaves_no_trace(trainer, kind, monkeypatch):
    """Without the jump, a fork is the plain run: same weights, same noise, same batches."""
    loc = torch.randn(50)
    start = trainer.state()
    for _ in range(4):
        trainer.train_step()
    plain = trainer.state()
    trainer.set_state(start)
    losses = iter([1.0, 5.0])
    monkeypatch.setattr(trainer, "loss", lambda: next(losses))
    fork, move = Propose(0.0, kind, 4), MoveRecord(kind, 0, 0, math.nan, math.nan)
    jump = partial(_switch, trainer, 0, kind == "birth", loc)
    record = fork.fork(trainer, jump, move)
    assert not record.accepted and trainer.fit.extra_steps == 4
    forked = trainer.state()
    for part in ("model", "guide"):
        assert all(torch.equal(plain[part][k], forked[part][k]) for k in plain[part])
    assert torch.equal(plain["rng"], forked["rng"]) and plain["step"] == forked["step"]


def test_an_accepted_move_goes_on_with_the_jump(trainer, monkeypatch):
    losses = iter([5.0, 1.0])
    monkeypatch.setattr(trainer, "loss", lambda: next(losses))
    jump = partial(_switch, trainer, 3, False, torch.randn(50))
    move = MoveRecord("death", 3, trainer.step, math.nan, math.nan)
    record = Propose(0.0, "death", 1).fork(trainer, jump, move)
    assert record.accepted and trainer.step == record.step + 1
    assert trainer.model.decoder.stem.weight[:, 3].abs().max() < 0.01


@pytest.mark.parametrize(
    ("losses", "accepted"),
    [([10.0, 12.9, 9.0, 8.0], True), ([10.0, 7.1, 8.0, 9.0], False), ([1.0, 1.0, 1.0, 1.0], False)],
)
def test_a_close_decision_has_overtime(trainer, monkeypatch, losses, accepted):
    """Both branches go on, each from where it was, and the jump is not taken again."""
    jumps, start = [], trainer.state()
    for _ in range(4):
        trainer.train_step()
    plain = trainer.state()
    trainer.set_state(start)
    monkeypatch.setattr(trainer, "loss", partial(next, iter(losses)))

    def jump():
        jumps.append(trainer.step)
        _switch(trainer, 0, True, torch.randn(50))

    move = MoveRecord("birth", 0, 0, math.nan, math.nan)
    record = Propose(0.0, "birth", 2).fork(trainer, jump, move)
    assert jumps == [start["step"]] and record.accepted == accepted
    assert (record.loss_without, record.loss_with) == tuple(losses[2:])
    assert trainer.step == start["step"] + 4 and trainer.fit.extra_steps == 4
    same = all(torch.equal(v, plain["model"][k]) for k, v in trainer.state()["model"].items())
    assert same == (not accepted)


@pytest.mark.parametrize("left", [0, 1])
def test_there_is_no_overtime_where_there_is_no_time(trainer, monkeypatch, left):
    """A close decision stands before a shorter one is made."""
    trainer.step = trainer.spec.steps - 2 - left
    monkeypatch.setattr(trainer, "loss", partial(next, iter([2.0, 1.0])))
    move = MoveRecord("birth", 0, trainer.step, math.nan, math.nan)
    assert Propose(0.0, "birth", 2).fork(trainer, lambda: None, move).accepted
    assert trainer.step == trainer.spec.steps - left and trainer.fit.extra_steps == 2


def test_overtime_leaves_time_for_the_moves_that_it_delays(trainer):
    """It would end at 2,400; then come the growth, and where it is due until then the unfolding."""
    trainer.spec = trainer.spec.model_copy(update={"steps": 4000})
    birth, growth, resolved = Propose(0.5, "birth", 200), Grow(0.55, steps=400), Resolve(0.8)
    for due, expected in ((0.6, 200), (0.59, 0)):
        unfolding = Unfold(due, steps=500)
        trainer.actions = [birth, growth, unfolding, Propose(0.7, "death", 800), resolved]
        assert birth.overtime(trainer, 2200) == expected
        trainer.acted = 2
        assert unfolding.overtime(trainer, 2600) == 0
        trainer.acted = 0
    assert birth.overtime(trainer, 1900) == 200


@pytest.fixture
def leaking(trainer):
    """Informative latents 0 and 1; of the others 2 leaks much, 3 and 4 leak little."""
    head = trainer.guide.encoder.head
    with torch.no_grad():
        head.weight[5:] = 0.0
        head.bias[5:] = torch.tensor([3.0, 3.0, -3.0, -3.0, -3.0])
    for k, variance in enumerate([1.0, 0.01, 2.0, 0.01, 0.5]):
        spread(trainer, k, math.sqrt(variance))
    return trainer


@torch.no_grad()
def looked_at(trainer):
    return trainer.guide.codes(trainer.monitor_images)


def test_faint_leaks_are_silenced_without_a_trial(leaking, monkeypatch):
    """Informative latents stay as they are, however faint, and no loss is asked for."""
    monkeypatch.setattr(leaking, "loss", None)
    spread(leaking, 2, 0.9)
    before = looked_at(leaking)
    resolve(leaking, least=1.0)
    assert torch.equal(looked_at(leaking).loc, before.loc)
    resolve(leaking, least=0.0)
    after = looked_at(leaking)
    assert torch.equal(after.loc[:, :2], before.loc[:, :2])
    assert torch.equal(after.probs[:, :2], before.probs[:, :2])
    assert (after.loc[:, 2:] == 0).all() and (after.probs[:, 2:] < 0.1).all()
    assert (leaking.model.decoder.stem.weight[:, 2:] == 0).all()


@pytest.mark.parametrize(("silent", "informative"), [(1.0, 2.0), (1.0, 1.0), (2.0, 1.0)])
def test_a_strong_leak_becomes_what_is_better(leaking, monkeypatch, silent, informative):
    def loss():
        return informative if looked_at(leaking).probs[0, 2] > 0.5 else silent

    monkeypatch.setattr(leaking, "loss", loss)
    before = looked_at(leaking).loc[:, 2]
    resolve(leaking, least=0.0)
    after = looked_at(leaking)
    assert (after.loc[:, 3:] == 0).all()
    if informative < silent:
        assert (after.probs[:, 2] > 0.9).all() and after.loc[:, 2].std() == pytest.approx(1.0)
        assert torch.corrcoef(torch.stack([before, after.loc[:, 2]]))[0, 1] > 0.999
    else:
        assert (after.loc[:, 2] == 0).all() and (after.probs[:, 2] < 0.1).all()


def test_a_branch_is_judged_without_its_strong_leaks(leaking, monkeypatch):
    """And trains on with them; the faint ones are left to training in both."""
    judged = []

    def loss():
        judged.append(looked_at(leaking).loc.var(0))
        return 1.0

    monkeypatch.setattr(leaking, "loss", loss)
    spread(leaking, 2, 8.0)
    leaking.train_and_judge(1)
    assert judged[-1][2] == 0 and (judged[-1][3:] > 0).all()
    assert (looked_at(leaking).loc.var(0) > 0).all()


def test_latents_that_fell_silent_stay_the_prior(leaking, monkeypatch):
    monkeypatch.setattr(leaking, "loss", lambda: 1.0)
    Resolve(0.0).apply(leaking)
    assert leaking.guide.open.tolist() == [1, 1, 0, 0, 0]
    kept = leaking.guide.encoder.head.bias[:2].detach().clone()
    for _ in range(5):
        leaking.train_step()
    codes = looked_at(leaking)
    assert (codes.loc[:, 2:] == 0).all() and (codes.loc[:, :2].var(0) > 0).all()
    assert not torch.equal(leaking.guide.encoder.head.bias[:2], kept)
    # By the weights themselves, so that those who load them need no mask.
    assert (leaking.guide.encoder.head.weight[2:5] == 0).all()
    assert (leaking.guide.encoder.head.bias[2:5] == 0).all()


def test_actions_come_in_order_of_time(small_pair, data):
    moves = (Move(kind="death", at=0.6), Move(kind="birth", at=0.3))
    schedule = ScheduleSpec(moves=moves, silence=0.5, rescale=(0.55, 0.3))
    assert Trainer(*small_pair(), data, SHORT, schedule).actions == [
        *(
            Rescale(0.3),
            Propose(0.3, "birth"),
            Resolve(0.5),
            Rescale(0.55),
            Propose(0.6, "death"),
        )
    ]


def test_candidates_do_not_change_the_state(trainer):
    before = trainer.state()
    for kind in ("birth", "death"):
        Propose(0.0, kind).candidates(trainer)
    after = trainer.state()
    for part in ("model", "guide"):
        assert all(torch.equal(before[part][k], after[part][k]) for k in before[part])


class Halves(nn.Module):
    """A decoder of which two latents are the brightness of a half each, and no other is used."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.15))

    def forward(self, z):
        halves = [z[..., k, None, None, None].expand(*z.shape[:-1], 1, 8, 4) for k in (1, 4)]
        return 0.5 + self.slope * torch.cat(halves, -1)


def test_what_the_decoder_does_not_use_becomes_the_prior():
    """The choice alone, in a short training; the next test has all of the schedule."""
    network = {"latent_size": 6, "decoder": SMALL, "likelihood": {"scale": 0.1}}
    model = load_model("normal_gamma", (1, 8, 8), **network)
    rest = {"moves": (), "silence": 1.0, "independent": 1.0}
    guide = load_guide("relaxed", model, encoder=SMALL, schedule=rest)
    model.decoder = Halves()
    with torch.no_grad():
        images = ImageData("halves", model.decoder(torch.randn(400, 6)).clamp(0, 1))
    settings = FitSpec(steps=300, batch_size=32, device="cpu")
    metrics = diagnostics.evaluate(fit(model, guide, images, settings, progress=False), images)
    assert metrics["informative"] == metrics["active_units"] == 2
    for row in diagnostics.most_informative_first(metrics):
        if row["latent"] in (1, 4):
            assert row["probs"] > 0.5 and row["precision"]["mean"] > 1000
        else:
            assert 0.95 < row["precision"]["mean"] < 1.2
            assert row["variance_of_loc"] < 0.01


@pytest.mark.slow
def test_selection_counts_the_factors():
    """Two factors, six latents: two end up informative and the other four are the prior."""
    train, held_out = sprites(6000, vary=("x", "red"), seed=11).split(0.1, seed=11)
    torch.manual_seed(11)
    network = MLPSpec(width=64, depth=3)
    model = load_model("normal_gamma", latent_size=6, decoder=network)
    guide = load_guide("relaxed", model, encoder=network)
    result = fit(model, guide, train, FitSpec(steps=2500, seed=11, device="cpu"), progress=False)
    metrics = diagnostics.evaluate(result, held_out)
    assert metrics["informative"] == metrics["active_units"] == 2
    for row in diagnostics.most_informative_first(metrics)[2:]:
        assert 0.95 < row["precision"]["mean"] < 1.2
        assert row["variance_of_loc"] < 0.01
    assert metrics["reconstruction_mse"] < 1e-3
    assert math.isfinite(metrics["elbo"])


# Rotation ------------------------------------------------------------------------------------


def correlated(small_pair, data):
    """A trainer whose latents are all informative, and whose first two go together."""
    model, guide = small_pair()
    head = guide.encoder.head
    with torch.no_grad():
        head.weight[5:] = 0.0
        head.bias[5:] = 2.5
        head.weight[1] = head.weight[0] + 0.5 * head.weight[1]
    spec = FitSpec(steps=10, batch_size=16, device="cpu")
    own = Trainer(model, guide, data, spec, guide.spec.schedule)
    own.train_step()
    return own


def off_diagonal(loc):
    correlation = loc.double().T.corrcoef()
    return (correlation - correlation.diagonal().diag()).abs().max().item()


def test_folding_a_change_of_axes_keeps_the_reconstruction(small_pair, data):
    own = correlated(small_pair, data)
    x = ImageData.to_unit(data.images)
    loc = own.guide.codes(x).loc.detach()
    drawn = own.model.decoder(loc).detach()
    assert off_diagonal(loc) > 0.3
    latents = torch.tensor([0, 1, 2, 4])
    found = axes.find(loc[:, latents].double().numpy())
    change = torch.tensor(found.uncorrelated, dtype=torch.float32)
    own.guide.freedom.fill_(own.guide.spec.freedom)
    precision = torch.tensor([5_000.0, 500.0, 1_000.0, 20_000.0])
    with torch.no_grad():
        own.forget(own.guide.recombine(own.model.decoder, latents, change, precision))
    # The diagonal of A^-T L A^-1, by definition.
    inverse = torch.linalg.inv(change)
    expected = (inverse.T @ precision.diag() @ inverse).diagonal()
    learned = own.guide.spec.concentration[0] / own.guide.rate[0].detach()
    torch.testing.assert_close(learned[latents], expected, rtol=1e-4, atol=0.0)
    assert learned[3].item() == pytest.approx(10_000.0)
    new = own.guide.codes(x).loc.detach()
    assert off_diagonal(new[:, latents]) < 1e-4
    torch.testing.assert_close(new[:, 3], loc[:, 3])
    torch.testing.assert_close(own.model.decoder(new), drawn, atol=1e-4, rtol=1e-3)
    # Each latent stays what it was, as far as it can.
    assert all(torch.corrcoef(torch.stack([new[:, k], loc[:, k]]))[0, 1] > 0.5 for k in latents)
    own.train_step()


@pytest.mark.parametrize(
    ("costs", "outcome"),
    [([0.0], "independent"), ([1000.0, 0.0], "uncorrelated"), ([1000.0, 1000.0], "kept")],
)
def test_a_rotation_is_undone_where_it_costs(small_pair, data, monkeypatch, costs, outcome):
    own = correlated(small_pair, data)
    before = {k: v.clone() for k, v in own.guide.state_dict().items()}
    losses = iter([0.0, *costs])
    monkeypatch.setattr(own, "loss", lambda: next(losses))
    # Of so few images no latent is surely another than Gaussian.
    monkeypatch.setattr(axes, "gaussian", lambda sources: np.zeros(sources.shape[1], bool))
    Rotate(1.0).apply(own)
    changed = any((v != before[k]).any() for k, v in own.guide.state_dict().items())
    assert changed == (outcome != "kept")
    rotation = own.fit.rotation
    assert (rotation.outcome, rotation.cost, rotation.step) == (outcome, costs[0], 1)
    assert len(rotation.latents) == len(rotation.agreement) == len(rotation.negentropy)
    assert outcome in str(rotation) and ("1e+03 nats" in str(rotation)) == (costs[0] > 0)


def test_gaussian_latents_are_only_made_uncorrelated(small_pair, data, monkeypatch):
    own = correlated(small_pair, data)
    monkeypatch.setattr(axes, "gaussian", lambda sources: np.ones(sources.shape[1], bool))
    monkeypatch.setattr(own, "loss", lambda: 0.0)
    Rotate(1.0).apply(own)
    assert own.fit.rotation.outcome == own.fit.rotation.tried == "uncorrelated"
    assert "are Gaussian" in str(own.fit.rotation)
    loc = own.guide.codes(ImageData.to_unit(data.images)).loc.detach()
    assert off_diagonal(loc) < 1e-3


@pytest.mark.parametrize("count", [8, 12])
def test_a_training_on_few_images_ends(small_pair, count):
    """Their bootstrap samples are linearly dependent."""
    spec = FitSpec(steps=12, batch_size=4, device="cpu")
    schedule = ScheduleSpec(independent=0.9)
    result = fit(*small_pair(), sprites(count), spec, schedule=schedule, progress=False)
    assert result.steps == 12


def test_more_latents_than_a_search_takes_stay(small_pair, data, monkeypatch):
    monkeypatch.setattr(axes, "MOST", 3)
    own = correlated(small_pair, data)
    Rotate(1.0).apply(own)
    assert own.fit.rotation is None


def test_copies_are_left_as_they_are(small_pair, data):
    own = correlated(small_pair, data)
    head = own.guide.encoder.head
    with torch.no_grad():
        head.weight[1], head.bias[1] = head.weight[0], head.bias[0]
    before = head.weight.detach().clone()
    Rotate(1.0).apply(own)
    torch.testing.assert_close(head.weight, before)


def test_a_rotation_needs_two_informative_latents(small_pair, data):
    own = correlated(small_pair, data)
    head = own.guide.encoder.head
    with torch.no_grad():
        head.bias[5:9] = -4.0
        head.weight[5:] = 0.0
    before = head.weight.detach().clone()
    Rotate(1.0).apply(own)
    assert (head.weight == before).all()


def test_the_mixture_starts_relaxed_and_ends_exact(small_pair, data):
    model, guide = small_pair("normal_gamma", "mixture")
    assert guide.exact  # as one that is loaded
    trainer = Trainer(model, guide, data, SHORT, ScheduleSpec(exact=0.5, rescale=()))
    assert not guide.exact
    trainer.train_step()
    x = trainer.monitor_images
    before, probs = guide.encoder(x), guide.codes(x).probs
    [action] = trainer.actions
    assert action == BecomeExact(0.5)
    action.apply(trainer)
    assert guide.exact
    loc, logits = guide.encoder(x)
    torch.testing.assert_close(loc, before[0])
    torch.testing.assert_close(logits, 4.0 * before[1])
    assert torch.equal(guide.codes(x).probs > 0.5, probs > 0.5)
    result = fit(*small_pair("normal_gamma", "mixture"), data, SHORT, progress=False)
    assert result.guide.exact and result.steps == 12
    assert not Trainer(model, guide, data, SHORT, ScheduleSpec(rescale=())).actions and guide.exact


def test_only_the_mixture_becomes_exact(small_pair, data):
    with pytest.raises(UserError, match=r"schedule.exact needs a mixture guide, got RelaxedGuide"):
        Trainer(*small_pair(), data, SHORT, ScheduleSpec(exact=0.5))
