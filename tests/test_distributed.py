"""Several processes: the result of one process at the same batch, and clean ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_cases as cases
import pytest
import torch
from safetensors.torch import load_file
from support import ngvae, undrawn

from ngvae_pyro import distributed, runs
from ngvae_pyro.distributed import Team
from ngvae_pyro.errors import UserError
from ngvae_pyro.training.trainer import fit

SHORT = ["--steps", "24", "--latents", "4", "--device", "cpu", "--set", "fit.batch_size=8"]
SHORT += ["--set", "fit.monitor_every=12", "--set", "data.size=120"]
SHORT += ["--set", "model.decoder.width=8", "--set", "guide.encoder.width=8"]


def torchrun(*words, code=0):
    """Two processes of a script or a module; what they said on stdout and stderr."""
    # Over the loopback, because a Mac's network may not know the machine by its name.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, "--local_addr", "localhost", "--nproc_per_node", "2", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == code, result.stderr
    # What torch says of itself on every start on a Mac.
    lines = result.stderr.splitlines(keepends=True)
    said = [line for line in lines if "NOTE: Redirects are currently not supported" not in line]
    return result.stdout, "".join(said)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of_two")
    torchrun(Path(cases.__file__), folder)
    return folder


@pytest.mark.parametrize("name", cases.TRAININGS)
def test_two_processes_train_as_one(of_two, name):
    with cases.double_precision():
        one = cases.training(name)
    assert len(one["moves"]) > 0 or name != "relaxed"
    torch.testing.assert_close(torch.load(of_two / f"{name}.pt"), one)


@pytest.mark.parametrize("suffix", cases.SHAPES)
@pytest.mark.parametrize("name", cases.DISTRIBUTIONS)
def test_the_draws_of_two_processes_are_those_of_one(of_two, name, suffix):
    with cases.double_precision():
        one = cases.draws(name, cases.SHAPES[suffix])
    torch.testing.assert_close(torch.load(of_two / f"{name}{suffix}.pt"), one)


def test_all_processes_fail_together(of_two):
    first, second = (json.loads((of_two / f"failures{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    existing, uneven, diverged = first
    assert existing.startswith(f"{of_two / 'written'}: already exists")
    assert uneven == "fit.batch_size: expected a multiple of the 2 processes, got 9"
    assert diverged.startswith("non-finite loss at step ")
    assert list((of_two / "written").iterdir()) == [] and not (of_two / "shared").exists()
    left = {path.name for path in (of_two / "diverged").iterdir()}
    assert left == {"config.toml", "run.json", "weights.safetensors"}
    assert not list(of_two.glob(".*"))


@pytest.mark.slow
def test_the_command_line_trains_in_two_processes(tmp_path):
    words = ["train", "normal_gamma", "mixture", *SHORT, "--out"]
    said, log = torchrun("-m", "ngvae_pyro", *words, tmp_path / "two")
    assert said.count(" informative: ") == said.count("written to") == 1
    # By one of the two: no line is there twice, whatever became of the moves.
    lines = log.splitlines()
    assert lines[-1].startswith("step 24/24  informative ") and len({*lines}) == len(lines)
    with undrawn():
        ngvae(*words, tmp_path / "one")
    torch.testing.assert_close(
        *(load_file(tmp_path / name / "weights.safetensors") for name in ("two", "one")),
        rtol=1e-3,
        atol=1e-3,
    )
    two, one = (runs.load_metrics(tmp_path / name) for name in ("two", "one"))
    for key in ("elbo", "reconstruction_mse", "probs", "variance_of_loc"):
        assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_a_mistake_is_one_line_of_one_process(tmp_path):
    words = ["train", "gaussian", "gaussian", *SHORT, "--out", tmp_path]
    said, log = torchrun("-m", "ngvae_pyro", *words, code=1)
    lines = [text for text in log.splitlines() if text.startswith("ngvae: ")]
    assert said == "" and len(lines) == 1 and "already exists" in lines[0]
    # What torchrun says of those that failed; the one traceback is its own.
    assert log.count("Traceback") == 1 and "exitcode  : 2" in log
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_shared_is_a_user_error(small_pair, data):
    team = Team(rank=1, size=3)
    with pytest.raises(UserError, match="expected a multiple of the 3 processes, got 16"):
        fit(*small_pair(), data, cases.FIT, progress=False, team=team)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Team(rank=1, size=2, local_rank=1).check_device("auto")
    Team(rank=5, size=6, local_rank=5).check_device("cpu")
    with pytest.raises(UserError, match="process 3 of this machine, but torch sees 2 CUDA"):
        Team(rank=2, size=3, local_rank=2).check_device("cuda")
    with pytest.raises(UserError, match="with 2 processes, which take one GPU each, got 'cuda:1'"):
        Team(rank=0, size=2).check_device("cuda:1")


def test_messages_do_not_go_by_way_of_a_gpu(monkeypatch):
    """A process that has none, because there are too few, could not say so."""
    devices = []

    def broadcast(values, rank, device=None):
        devices.append(device)

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(torch.distributed, "all_gather_object", None)
    team = Team(rank=1, size=2)
    assert team.agreed("one") == "one"
    with pytest.raises(UserError, match="too few"), team.together():
        raise UserError("too few")
    assert devices == 3 * [torch.device("cpu")]


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs a machine with one GPU")
def test_two_processes_on_one_gpu_are_refused_in_one_line(tmp_path):
    words = ["train", "gaussian", "gaussian", *SHORT, "--out", tmp_path / "x"]
    words[words.index("cpu")] = "cuda"
    _, log = torchrun("-m", "ngvae_pyro", *words, code=1)
    lines = [text for text in log.splitlines() if text.startswith("ngvae: ")]
    assert len(lines) == 1 and "torch sees 1 CUDA devices" in lines[0]


def test_without_torchrun_a_process_is_alone(monkeypatch):
    for size in (None, "1"):
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        with distributed.joined() as team:
            assert team is distributed.ALONE
        assert not torch.distributed.is_initialized()
