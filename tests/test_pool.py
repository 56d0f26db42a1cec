"""Jobs in processes of their own and on a local Ray cluster: results, errors, and killed ones."""

import os

import pytest
import torch
import worker_cases

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
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"a Ray cluster needs ray: pip install .*\[ray\]"):
        ended(["a"], processes=2, ray="local")
