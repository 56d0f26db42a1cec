"""Codes that are unrolled or begun anew, and a pair that learns them."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.fitted import MoveRecord
from ngvae_pyro.guide import load_guide
from ngvae_pyro.interrupts import Interrupted
from ngvae_pyro.likelihoods import BernoulliLikelihood
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import FitSpec, LikelihoodSpec, MLPSpec, Move, ScheduleSpec
from ngvae_pyro.training import actions, lessons
from ngvae_pyro.training.actions import Grow, Unfold, actions_of, check_actions
from ngvae_pyro.training.lessons import coordinates, missing, teach
from ngvae_pyro.training.trainer import Trainer

ANGLES = torch.rand(2000, generator=torch.Generator().manual_seed(7)) * 4.0 - 2.0
ARC = 1.4 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    monkeypatch.setattr(actions, "STEPS", 500)


@pytest.mark.slow
def test_an_arc_is_unrolled():
    straight = torch.randn(2000)
    codes = torch.stack([ARC[:, 0], straight, ARC[:, 1]], 1)
    found = coordinates(codes, torch.tensor([2e3, 1e4, 2e3]), 2, steps=500)
    torch.testing.assert_close(torch.cov(found.T), torch.eye(2), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found.mean(0), torch.zeros(2), atol=1e-4, rtol=0.0)
    # Both are functions of the two coordinates, nearly linear ones.
    for truth in (ANGLES, straight):
        design = torch.cat([found, torch.ones(2000, 1)], 1)
        rest = truth - design @ torch.linalg.lstsq(design, truth[:, None]).solution[:, 0]
        assert rest.var() < 0.1 * truth.var()
    # The ends of the arc, which are near each other in the codes, are now far apart.
    (alone,) = coordinates(ARC, torch.ones(2), 1, steps=500).T
    assert abs(spearmanr(alone, ANGLES).statistic) > 0.99


@pytest.fixture
def bent():
    """A training whose images have one factor, which its guide has bent over latents 3 and 1."""
    at = (ANGLES + 2.0)[:, None] * 3.0 + 2.0
    images = (-0.5 * ((torch.arange(16.0) - at) / 1.5).square()).exp().view(-1, 1, 4, 4)
    # Not bytes: their rounding is as large as what is between neighbours.
    data = ImageData("bump", images)
    network = MLPSpec(width=64, depth=2)
    model = load_model("normal_gamma", data, latent_size=4, decoder=network)
    guide = load_guide("relaxed", model, encoder=network)
    spec = FitSpec(steps=2000, batch_size=64, device="cpu", learning_rate=2e-3)
    own = Trainer(model, guide, data, spec, ScheduleSpec())
    own.train_step()
    head, latents = guide.encoder.head, torch.tensor([3, 1])
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0] * 4 + [-4.0, 2.5, -4.0, 2.5]))
        model.decoder.stem.weight[:, [0, 2]] = 0.0
    codes = torch.zeros(len(ARC), 4).index_copy(1, latents, ARC)
    for _ in range(3):
        teach(own, data.images, codes)
    return own


def informative(own):
    codes = own.codes(own.monitor_images)
    return codes.informative.nonzero().flatten().tolist(), codes.loc.detach()


@pytest.mark.slow
def test_a_folded_factor_gets_one_latent(bent):
    assert informative(bent)[0] == [1, 3]
    # Taught well enough: the codes are the arc.
    assert (informative(bent)[1][:, [3, 1]] - ARC[:1024]).square().mean() < 0.01
    begin = bent.step
    Unfold(0.0, steps=100).apply(bent)
    (move,) = bent.fit.moves
    assert move.accepted and str(move) == "unfolding to 1"
    assert (move.latent, move.size, move.step) == (None, 1, begin)
    assert bent.step == begin + 100 and bent.fit.extra_steps == 100 + 2 * 200
    latents, loc = informative(bent)
    assert len(latents) == 1
    assert abs(spearmanr(loc[:, latents[0]], ANGLES[:1024]).statistic) > 0.99
    # Switched off: silent.
    assert loc.var(0)[[k for k in range(4) if k not in latents]].max() < 0.01


@pytest.mark.slow
def test_a_refused_unfolding_leaves_no_trace(bent, monkeypatch):
    start = bent.state()
    for _ in range(4):
        bent.train_step()
    plain = bent.state()
    bent.set_state(start)
    losses = iter([9.0, 1.0, 5.0])
    monkeypatch.setattr(bent, "loss", lambda: next(losses))
    monkeypatch.setattr(lessons, "LESSON", 2)
    monkeypatch.setattr(actions, "STEPS", 2)
    Unfold(0.0, steps=4).apply(bent)
    (move,) = bent.fit.moves
    assert not move.accepted
    forked = bent.state()
    for part in ("model", "guide"):
        assert all(torch.equal(plain[part][k], forked[part][k]) for k in plain[part])
    assert torch.equal(plain["rng"], forked["rng"]) and plain["step"] == forked["step"]


def test_codes_of_full_dimension_are_left_alone(bent, monkeypatch):
    square = torch.rand(2000, 4), torch.ones(4), torch.tensor([1, 3])
    monkeypatch.setattr(actions, "_look", lambda trainer, count: square)
    before = bent.state()
    Unfold(0.0, steps=4).apply(bent)
    assert not bent.fit.moves and bent.step == before["step"]


def test_fewer_coordinates_are_the_nearest_and_the_rest_are_silent(bent):
    guide, decoder = bent.guide, bent.model.decoder
    latents, change = torch.tensor([3, 1]), torch.tensor([[0.6, 0.8]])
    x = bent.monitor_images
    with torch.no_grad():
        loc = guide.codes(x).loc
        drawn = decoder(guide.codes(x).loc @ projection(latents, change, 4))
        touched = guide.recombine(decoder, latents, change, torch.tensor([3e3, 2e3]))
        bent.forget(touched)
        new = guide.codes(x)
    torch.testing.assert_close(new.loc[:, 3], loc[:, [3, 1]] @ change[0], atol=1e-5, rtol=1e-4)
    assert (new.loc[:, [0, 1, 2]] == 0).all()
    assert new.informative.tolist() == [False, False, False, True]
    torch.testing.assert_close(decoder(new.loc), drawn, atol=1e-5, rtol=1e-4)
    # The diagonal of A^-T L A^-1: 0.36 times 3,000 and 0.64 times 2,000.
    guide.freedom.fill_(guide.spec.freedom)
    own = guide.spec.concentration[0] / guide.rate[0]
    assert own[3].item() == pytest.approx(2_360.0, rel=1e-3)
    assert own[1].item() == pytest.approx(10_000.0, rel=1e-3)


def projection(latents, change, size):
    """The matrix that takes codes to the nearest ones that keep their new coordinates."""
    whole = torch.zeros(size, size)
    whole[latents[:, None], latents] = (torch.linalg.pinv(change) @ change).T
    return whole


@pytest.fixture
def blind(bent):
    """A training whose latents say nothing of a factor that moves all images."""
    with torch.no_grad():
        bent.model.decoder.stem.weight.zero_()
        bent.guide.encoder.head.weight.zero_()
        bent.guide.encoder.head.bias.copy_(torch.tensor([0.0] * 4 + [-4.0] * 4))
        teach(bent, bent.batches.data.images, torch.zeros(2000, 4))
    return bent


def test_what_is_missing_is_the_principal_component_of_the_residuals(blind):
    worth, direction = missing(blind)
    x = blind.monitor_images
    rest = (x - blind.model.decoder(blind.guide.codes(x).loc)).flatten(1).detach().double()
    vectors = np.linalg.eigh(np.cov(rest[:512].numpy().T)).eigenvectors
    assert abs(direction.double().numpy() @ vectors[:, -1]) == pytest.approx(1.0, abs=1e-4)
    scores = rest[512:].numpy() @ vectors[:, -1]
    scale = blind.model.likelihood.scale
    assert worth == pytest.approx(scores.var(ddof=1) / (2 * scale**2), rel=1e-3)
    assert worth > 100


def test_noise_is_not_missing(blind, monkeypatch):
    scale = blind.model.likelihood.scale
    noise = scale * torch.randn(1024, 16)
    monkeypatch.setattr(lessons, "residuals", lambda trainer, x: (noise, torch.tensor(scale**2)))
    assert missing(blind)[0] == pytest.approx(0.5, abs=0.15)
    Grow(0.0, steps=4).apply(blind)
    assert not blind.fit.moves


def test_a_few_images_do_not_tell_what_is_missing(blind):
    """Their principal component is noise, and would be taught."""
    monitored = blind.monitor_images
    blind.monitor_images = monitored[: lessons.FEWEST - 1]
    assert missing(blind)[0] == 0.0
    blind.monitor_images = monitored[: lessons.FEWEST]
    assert missing(blind)[0] > 100


def test_a_signal_ends_the_search_for_coordinates():
    calls = []

    def heed():
        calls.append(len(calls))
        if len(calls) == 3:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        coordinates(ARC, torch.ones(2), 1, 500, heed)
    assert calls == [0, 1, 2]


def test_a_latent_begins_with_what_is_missing(blind):
    (latents, loc), before = informative(blind), missing(blind)[0]
    assert latents == [] and loc.var(0).max() < 0.01
    Grow(0.0, steps=40).jump(blind, 2, *missing(blind))
    latents, loc = informative(blind)
    assert latents == [2] and loc[:, 2].var() > 0.5
    assert missing(blind)[0] < 0.5 * before
    assert str(MoveRecord("growth", 2, 0, 1.0, 0.5)) == "growth of z2"


@pytest.mark.slow
def test_a_lesson_alone_does_not_win(bent, monkeypatch):
    """The branch without a jump is judged after as many steps, in overtime too."""
    judged, train_and_judge = [], bent.train_and_judge
    monkeypatch.setattr(bent, "train_and_judge", lambda n: judged.append(n) or train_and_judge(n))
    monkeypatch.setattr(lessons, "LESSON", 6)
    monkeypatch.setattr(actions, "CLOSE", math.inf)
    start = bent.step
    Grow(0.0, steps=4).fork(bent, lambda: None, MoveRecord("growth", 0, start, 0.0, 0.0))
    assert judged == [4, 6, 4, 4, 6, 4]
    assert bent.step == start + 8 and bent.fit.extra_steps == (4 + 6 + 6) + (4 + 6)
    # There may be no such time at the end.
    assert Grow(0.0, steps=4).later(bent, bent.spec.steps - 4) == 0


def test_a_growth_comes_before_the_silence(bent):
    schedule = ScheduleSpec(moves=(Move(kind="growth", at=0.5),), silence=0.5, rescale=())
    with pytest.raises(UserError, match=r"growth at 0\.5 .* before schedule\.silence, 0\.5"):
        check_actions(actions_of(schedule), bent.guide)


def test_what_is_missing_of_black_and_white_is_in_units_of_the_bits(blind):
    blind.model.likelihood = BernoulliLikelihood(
        LikelihoodSpec(family="bernoulli"), blind.model.image_shape
    )
    x = blind.monitor_images
    worth, direction = missing(blind)
    p = blind.model.decoder(blind.guide.codes(x).loc).sigmoid().detach()
    rest = (x - p).flatten(1)[512:]
    expected = (rest @ direction).var() / (2 * (p * (1 - p)).mean())
    assert worth == pytest.approx(expected.item(), rel=1e-3)


def test_few_images_tell_nothing(blind):
    for count in (3, 2):
        blind.monitor_images = blind.monitor_images[:count]
        assert missing(blind)[0] == 0.0


def test_an_unfolding_that_was_refused_is_not_tried_again(bent):
    bent.fit.moves = [MoveRecord("unfolding", None, 0, 1.0, 2.0, size=1)]
    Unfold(0.0, steps=4).apply(bent)
    assert len(bent.fit.moves) == 1


def test_no_latent_grows_where_none_is_left(blind, monkeypatch):
    with torch.no_grad():
        blind.guide.encoder.head.bias[4:] = 2.5
    Grow(0.0, steps=4).apply(blind)
    assert not blind.fit.moves


def test_the_schedule_declares_it():
    moves = (Move(kind="unfolding", at=0.4, steps=20), Move(kind="growth", at=0.3))
    schedule = ScheduleSpec(moves=moves, rescale=())
    assert actions_of(schedule) == [Unfold(0.4, steps=20), Grow(0.3)]
