"""Data sets of known truth: the same every time, what they say, and every factor shows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import script

import ngvae_pyro as ng
from ngvae_pyro.errors import UserError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sets.py"


@pytest.fixture(scope="module")
def sets():
    """benchmarks/sets.py, which imports its neighbour as a script does."""
    with script("sets", "kinds") as sets:
        yield sets


def drawable(one):
    try:
        one.check()
    except UserError:
        return False
    return True


with script("sets", "kinds") as _sets:
    NAMES = [name for name, one in _sets.SETS.items() if drawable(one)]


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_the_same_every_time_and_every_factor_shows(sets, name):
    one = sets.find(name)
    count = 60
    images, factors = one.render(count, seed=4)
    assert len(images) == count and list(factors) == list(one.spans)
    if one.vectors:
        assert images.ndim == 2 and images.dtype == np.float32 and np.isfinite(images).all()
    else:
        assert images.dtype in (bool, np.uint8)
        assert images.ndim == 3 or 3 in (images.shape[1], images.shape[3])
        assert images.min() == 0 if images.dtype == bool else images.max() > 20
    for key, column in factors.items():
        low, high = one.spans[key][:2]
        assert low <= column.min() < column.max() <= high, key
        held, rest = one.render(count, seed=4, hold=[key])
        assert list(rest) == [other for other in factors if other != key]
        for other, same in rest.items():
            np.testing.assert_array_equal(same, factors[other])
        changed = (held != images).reshape(count, -1).any(1).mean()
        # A class of two or three often is the one in the middle, by chance.
        assert changed > 0.3, key
    again, _ = one.render(count, seed=4)
    np.testing.assert_array_equal(again, images)
    assert (one.render(count, seed=5)[0] != images).any()


def test_there_are_enough_and_half_of_them_are_kept(sets):
    everything = sets.SETS.values()
    kept = [one for one in everything if one.kept]
    assert len(everything) >= 26 and 2 * len(kept) >= len(everything)
    # Whatever may be hard is among the kept ones, and drawn by other code.
    assert any(one.noise for one in kept) and any(one.contrast < 1 for one in kept)
    assert any(one.vectors for one in kept) and any(one.bernoulli for one in kept)
    assert not {one.draw for one in kept} & {one.draw for one in everything if not one.kept}
    for one in everything:
        circles = one.note.count("circle")
        assert one.truth == len(one.spans) + circles, one.name


def test_names_say_what_is_done(sets):
    assert sets.find("sprites-faint60-noise05").noise == 0.05
    assert sets.find("sprites-faint60-noise05").contrast == 0.6
    assert sets.find("sprites-faint60-noise05").strength == pytest.approx(0.05 / 0.6)
    assert sets.find("sprites-500").size == 500 and sets.find("sprites-K100").latents == 100
    for size in (500, 2_000, 5_000, 20_000, 50_000):
        total = sets.replace(sets.find("sprites"), size=size).total
        assert total - round(0.1 * total) == size
    with pytest.raises(UserError, match="unknown set 'croses'; did you mean 'crosses'"):
        sets.find("croses")


def test_noise_and_contrast_are_what_is_said(sets):
    clean = sets.find("horizons").render(300)[0] / 255.0
    faint = sets.find("horizons-faint30").render(300)[0] / 255.0
    np.testing.assert_allclose(faint, 0.35 + 0.3 * clean, atol=0.004)
    noisy = sets.find("horizons-noise10").render(300)[0] / 255.0
    inside = (clean > 0.35) & (clean < 0.65)
    assert (noisy - clean)[inside].std() == pytest.approx(0.1, rel=0.02)
    plain, noisy = (sets.find(name).render(300)[0] for name in ("bumps", "bumps-noise05"))
    assert (noisy - plain).std() == pytest.approx(0.05 * plain.std(), rel=0.02)


def test_a_circle_closes_and_an_arc_does_not(sets):
    """The ends of the hue are one colour where it goes round."""
    ends = {"angle": np.array([0.0, 2 * np.pi]), "brightness": np.ones(2)}
    first, last = sets.hue(**ends)
    np.testing.assert_allclose(first, last, atol=1e-12)
    red, green = sets.hue(np.array([0.0, 2 * np.pi / 3]), np.ones(2))
    np.testing.assert_allclose([red, green], [[1, 0, 0], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("name", ["crosses-noise05", "bumps", "speckle", "sprites_xy"])
def test_a_file_is_read_by_the_package(sets, tmp_path, name):
    path = tmp_path / "x.npz"
    sets.find(name).save(path, 40, seed=1)
    data = ng.load_data(path)
    assert len(data) == 40 and data.binary == (name == "speckle")
    assert list(data.factor_names) == list(sets.find(name).spans)
    assert (data.form.layout == "vectors") == sets.find(name).vectors


def run(*words):
    command = [sys.executable, SCRIPT, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_command_writes_a_file_and_a_table(tmp_path):
    done = run("flat_3", "--out", tmp_path / "x.npz", "--size", 30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert np.load(tmp_path / "x.npz")["imgs"].shape == (30, 20)
    table = run("--table").stdout
    assert "| triangle | 6 | kept | 20,000 | 15 |" in table and "sets, " in table
    done = run("flat_4", "--out", tmp_path / "y.npz")
    assert done.returncode == 2 and "unknown set 'flat_4'; did you mean" in done.stderr
    assert done.stderr.count("\n") <= 4 and not (tmp_path / "y.npz").exists()


@pytest.mark.parametrize("why", ["is not there", "lacks another"])
def test_a_missing_package_is_a_line(sets, monkeypatch, tmp_path, why):
    monkeypatch.setitem(sys.modules, "prosail", None)
    if why == "lacks another":
        monkeypatch.delitem(sys.modules, "prosail")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "prosail.py").write_text("import no_such_package")
    with pytest.raises(UserError) as raised:
        sets.find("leaf").render(3)
    said = str(raised.value)
    assert said.startswith("leaf: needs prosail, which cannot be imported (")
    assert said.endswith("): pip install -e '.[bench]'") and "\n" not in said
    assert ("no_such_package" in said) is (why == "lacks another")
