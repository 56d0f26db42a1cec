"""Recorded programs: the same numbers as the functions, whatever these do to memory."""

import re

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import distributions as dist
from torch import nn

from ngvae_pyro.training.program import KEPT_BYTES, NotRecordable, Program, Recording


@pytest.fixture(autouse=True)
def unvalidated():
    """The checks of distributions read values."""
    with pyro.validation_enabled(False):
        yield


def program_of(function, *inputs):
    return Program(Recording(function, *inputs))


def both(function, program, *inputs):
    """What a function and its program give, with the same noise."""
    results = []
    for call in (function, program):
        torch.manual_seed(0)
        results.append([None if r is None else r.clone() for r in call(*inputs)])
    return results


def test_a_training_step_is_the_same():
    network = nn.Sequential(nn.Linear(6, 300), nn.SiLU(), nn.LayerNorm(300), nn.Linear(300, 6))
    parameters = list(network.parameters())

    def step(x):
        a, b = network(x).exp().chunk(2, -1)
        loss = dist.Gamma(a, b).rsample().square().sum() + dist.Normal(a, 1.0).rsample().sum()
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    program = program_of(step, torch.randn(300, 6))
    for _ in range(2):
        with torch.no_grad():
            # A program holds the parameters themselves.
            for p in parameters:
                p.mul_(1.1)
        plain, recorded = both(step, program, torch.randn(300, 6))
        for own, reference in zip(recorded, plain, strict=True):
            # Older versions of torch record the gradient of silu as the formula it is.
            torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5)


def test_noise_is_drawn_anew():
    program = program_of(lambda x: (x + torch.randn_like(x),), torch.zeros(5))
    first, second = (program(torch.zeros(5))[0].clone() for _ in range(2))
    assert not torch.equal(first, second)


def test_noise_that_nothing_uses_is_drawn_all_the_same():
    def function(x):
        torch.rand(3)
        return (torch.rand(2) + x,)

    plain, recorded = both(function, program_of(function, torch.zeros(2)), torch.zeros(2))
    assert torch.equal(plain[0], recorded[0])


def test_large_results_keep_their_memory():
    size = KEPT_BYTES // 4
    program = program_of(lambda x: (x * 2, (x * 2)[:3] + 1), torch.zeros(size))
    large, small = program(torch.ones(size))
    again, _ = program(torch.full((size,), 5.0))
    assert again.data_ptr() == large.data_ptr() and large[0] == 10
    assert small.tolist() == [3, 3, 3]


def test_constants_and_duplicates_cost_nothing():
    def function(x):
        half = torch.full_like(x, 0.5).logit().exp() + torch.tensor(3.0)
        return (x.sin() + half + x.sin().expand(4).view(4),)

    program = program_of(function, torch.zeros(4))
    assert len(program) == 3  # sin, and two sums
    plain, recorded = both(function, program, torch.arange(4.0))
    assert torch.equal(plain[0], recorded[0])


OPERATIONS = {
    "double": lambda t, i: t[i] * 2,
    "same": lambda t, i: t[i].expand_as(t[i]),
    "view": lambda t, i: t[i].view(2, -1).view(-1),
    "flip": lambda t, i: t[i].view(2, -1).t().t().reshape(-1),
    "half": lambda t, i: t[i].view(2, -1)[0].repeat(2),
    "write": lambda t, i: t[i].add_(1.0),
    "write_view": lambda t, i: t[i].view(2, -1)[1].mul_(3.0).repeat(2),
    "write_half": lambda t, i: t[i][: len(t[i]) // 2].copy_(t[0][: len(t[0]) // 2]).repeat(2),
    "sum": lambda t, i: sum(t),
    "constant": lambda t, i: torch.full((len(t[i]),), 2.0),
    "clone": lambda t, i: t[i].clone(),
    "noise": lambda t, i: t[i] + torch.rand(len(t[i])),
    "empty": lambda t, i: torch.empty(len(t[i])).normal_(),
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 20)), max_size=12),
    st.sampled_from([8, 2 * KEPT_BYTES // 4]),
)
def test_any_order_of_writes_and_views_is_kept(steps, size):
    memory = torch.zeros(size)

    def function(x):
        tensors = [x.clone(), memory]
        for name, which in steps:
            tensors.append(OPERATIONS[name](tensors, which % len(tensors)))
        return tuple(tensors)

    program = program_of(function, torch.zeros(size))
    x, start = torch.arange(float(size)), torch.linspace(0, 1, size)
    results = []
    for call in (function, program):
        torch.manual_seed(0)
        memory.copy_(start)
        results.append([r.clone() for r in call(x)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_value_that_is_read_back_is_named():
    def function(x):
        return (x * 2 if x.sum() > 0 else x,)

    with pytest.raises(NotRecordable, match=re.escape("test_program.py:")) as caught:
        program_of(function, torch.ones(3))
    assert "reads the value of a tensor" in str(caught.value)


def test_a_value_read_within_a_pyro_model_is_named():
    def model(x):
        if pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)).sum().item() > 0:
            x = x + 1
        return (x,)

    with pytest.raises(NotRecordable, match="test_program.py"):
        program_of(
            lambda x: pyro.poutine.trace(model).get_trace(x).nodes["_RETURN"]["value"],
            torch.ones(3),
        )


@pytest.mark.parametrize(
    "function", [torch.nonzero, lambda x: x[x > 0], lambda x: x[:, None][x > 0, 0]]
)
def test_a_size_that_depends_on_values_is_refused(function):
    with pytest.raises(NotRecordable, match="aten.*makes a tensor whose size depends on values"):
        program_of(lambda x: (function(x),), torch.ones(3))


def test_an_index_of_positions_is_recorded():
    where = torch.tensor([2, 0])
    assert program_of(lambda x: (x[where],), torch.zeros(3))(torch.arange(3.0))[0].tolist() == [
        2,
        0,
    ]


def test_copies_between_devices_are_listed():
    """To the device ``meta``, which every machine has."""
    number = torch.tensor(2.0)
    program = program_of(lambda x: (x.to("meta") * number,), torch.ones(3))
    assert program.transfers == ["aten._to_copy.default"]


def test_other_errors_are_those_of_the_function():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        program_of(lambda x: (x @ x,), torch.ones(2, 3))
