"""What `train` and `inspect` say of a count of latents."""

import json

import pytest
from support import SHORT, ngvae

from ngvae_pyro import runs
from ngvae_pyro.evaluation import diagnostics

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    said = ngvae("train", "normal_gamma", "relaxed", "--out", path, *SHORT)
    return path, said


@pytest.fixture
def metrics(folder):
    """Edits the metrics of the run, which are as they were afterwards."""
    path = folder[0] / "metrics.json"
    before = path.read_text()

    def edit(**changes):
        path.write_text(json.dumps({**json.loads(before), **changes}))

    yield edit
    path.write_text(before)


def test_training_ends_with_the_verdict(folder):
    path, said = folder
    count = runs.load_metrics(path)["informative"]
    # Six steps are too few for the schedule.
    lines = said.splitlines()
    place = next(i for i, line in enumerate(lines) if "of 4 latents" in line)
    assert lines[place].startswith(f"{count} of 4 latents ") and "short" in lines[place]
    found = [line for line in lines[place + 1 :] if line.startswith("  ")]
    assert any(line.startswith("  short: trained for 6 steps") for line in found)
    assert "try --set fit.steps=" in said


def test_a_settled_count_says_so(folder, metrics):
    metrics(verdict={"settled": True, "findings": []}, probs=[0.9, 0.9, 0.1, 0.1], informative=2)
    said = ngvae("inspect", folder[0])
    assert "2 of 4 latents are informative: settled\n" in said and "short:" not in said


def test_a_run_without_a_verdict_is_judged(folder, metrics):
    leaky = {"probs": [0.9, 0.1, 0.1, 0.9], "variance_of_loc": [1.0, 2.0, 0.0, 1.0]}
    leaky["precision"] = {key: [5000.0, 1.0, 1.0, 5000.0] for key in ("mean", "5%", "95%")}
    metrics(verdict=None, informative=2, **leaky)
    said = ngvae("inspect", folder[0])
    assert "2 of 4 latents are informative: leaking, short\n" in said
    assert "  leaking: z1 (up to 0.55 nats) carries information" in said
    rows = [line for line in said.splitlines() if line.split()[:1] and " z" in f" {line.strip()}"]
    assert [line.split()[:2] for line in rows if "leaking" in line and "nats" not in line] == [
        ["z1", "leaking"]
    ]


def test_the_table_fits_eighty_columns(folder, metrics):
    wide = {"mean": [123456.0] * 4, "5%": [98765.4] * 4, "95%": [234567.8] * 4}
    leaky = {"probs": [0.9, 0.1, 0.1, 0.9], "variance_of_loc": [12.34567] * 4}
    metrics(verdict=None, informative=2, precision=wide, **leaky)
    said = ngvae("inspect", folder[0])
    table, _, rest = said.partition("earned: nats")
    assert max(map(len, table.splitlines())) <= 80
    for value in ("123,456", "98,765", "234,568", "12.3457", "leaking", "var loc"):
        assert value in table
    order = [
        f"z{row['latent']}"
        for row in diagnostics.most_informative_first(runs.load_metrics(folder[0]))
    ]
    places = [table.index(f" {name} ") for name in order]
    assert places == sorted(places)
    assert rest.count("of which the data say nothing") == 1


@pytest.mark.parametrize("pair", [("normal_gamma_joint", "relaxed"), ("gaussian", "gaussian")])
def test_what_precision_is_not_is_said_where_it_may_be_mistaken(tmp_path, pair):
    """In the joint model z hangs on the precision, and the gaussian one has no such site."""
    ngvae("train", *pair, "--out", tmp_path / "run", *SHORT)
    assert "its posterior is its prior" not in ngvae("inspect", tmp_path / "run")
