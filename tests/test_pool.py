"""Jobs in processes of their own and on a local Ray cluster: results, errors, and killed ones."""

import os
import sys

import pytest
import torch
import worker_cases
from support import RayError

from ngvae_pyro.errors import UserError
from ngvae_pyro.runs import pool

WHERE = [
    {"processes": 2},
    pytest.param({"processes": 2, "ray": "local"}, marks=pytest.mark.slow),
]


def ended(jobs, **where):
    """What became of each job: its result, or the error."""
    found = {}
    for job, result in pool.run_all(jobs, worker_cases.work, **where):
        try:
            found[job] = result()
        except (UserError, pool.Lost) as error:
            found[job] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.parametrize("where", WHERE)
def test_an_error_or_a_death_takes_one_job_with_it(where):
    if "ray" in where:
        pytest.importorskip("ray")
    found = ended(["a", "fails", "killed", "b"], **where)
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert found == {
        "a": ("a", threads),
        "fails": "UserError: it fails in a line",
        "killed": "Lost: its process was killed, or out of memory",
        "b": ("b", threads),
    }


def test_one_job_at_once_is_done_here():
    before = torch.get_num_threads()
    assert ended(["a", "fails", "b"], processes=1) == {
        "a": ("a", before),
        "fails": "UserError: it fails in a line",
        "b": ("b", before),
    }


def test_without_ray_a_line_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"a Ray cluster needs ray: pip install .*\[ray\]"):
        ended(["a"], processes=2, ray="local")


NOT_STARTED = "The current node timed out during startup. This could happen because"


@pytest.mark.parametrize(
    ("error", "address", "line"),
    [
        (
            ConnectionError("Failed to connect\nin vain"),
            "a:1",
            "no Ray cluster there: Failed to con",
        ),
        (TimeoutError("Timed out after 30"), "a:1", "no Ray cluster there: Timed out after 30"),
        (
            ValueError("Invalid address format: a"),
            "a",
            "no Ray cluster there: Invalid address",
        ),
        (RuntimeError("Failed to start GCS."), "local", "Ray does not start: Failed to start GCS."),
        (RayError("Deadline Exceeded"), "a:1", "no Ray cluster there: Deadline Exceeded"),
        (Exception(NOT_STARTED), "local", f"Ray does not start: {NOT_STARTED}"),
        (Exception("\n\nlast lines\nof a log"), "local", "Ray does not start: last lines"),
        (RuntimeError(), "local", "Ray does not start: RuntimeError"),
    ],
)
def test_a_cluster_that_is_not_reached_is_one_line(ray_that_raises, error, address, line):
    fake = ray_that_raises(error)
    with pytest.raises(UserError) as caught:
        ended(["a"], processes=2, ray=address)
    said = str(caught.value)
    assert said.startswith(f"--ray {address}: {line}") and said.isprintable()
    assert fake.ended == 1


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError("x")])
def test_a_fault_within_ray_is_no_message_to_the_user(ray_that_raises, error):
    ray_that_raises(error)
    with pytest.raises(type(error)) as caught:
        ended(["a"], processes=2, ray="a:1")
    assert caught.value is error


def test_an_address_without_an_answer_is_given_up_after_two_tries(ray_that_raises):
    for address, tries in (("local", None), ("a:1", "2")):
        ray_that_raises(OSError("no answer"))
        with pytest.raises(UserError):
            ended(["a"], processes=2, ray=address)
        assert os.environ.get("RAY_NUM_REDIS_GET_RETRIES") == tries
