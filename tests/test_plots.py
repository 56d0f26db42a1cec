"""Figures that take Axes and return them, and traversals that stay where the data are."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from support import SMALL, measured, texts

import ngvae_pyro as ng
from ngvae_pyro.data.forms import Form
from ngvae_pyro.data.images import ImageData
from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation import diagnostics, traversals
from ngvae_pyro.evaluation.traversals import Support
from ngvae_pyro.guide import Codes
from ngvae_pyro.report import comparison_plots, plots
from ngvae_pyro.specs import FitSpec

IMAGES = (torch.rand(40, 1, 8, 8, generator=torch.manual_seed(0)) * 255).to(torch.uint8)
MLP = {"width": 16, "depth": 1}


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    model = ng.load_model("normal_gamma", (1, 8, 8), latent_size=4, decoder=SMALL)
    guide = ng.load_guide("relaxed", model, encoder=SMALL)
    # Under the declared weight all latents would still be the prior after so few steps.
    schedule = guide.spec.schedule.model_copy(update={"signal_nats": 60.0})
    return ng.fit(model, guide, IMAGES, FitSpec(steps=40), schedule=schedule, progress=False)


@pytest.fixture(scope="module")
def data():
    return ImageData("forty", IMAGES)


@pytest.fixture(scope="module")
def vectors():
    torch.manual_seed(0)
    data = ImageData.stored("vectors", torch.rand(30, 1, 1, 12))
    model = ng.load_model("normal_gamma", data, latent_size=3, decoder=MLP)
    return ng.Fit(model, ng.load_guide("relaxed", model, encoder=MLP), FitSpec()), data


def blank():
    return Figure().add_subplot()


# Axes in, Axes out --------------------------------------------------------------------------------


def drawings(fit, data):
    code, numbers = diagnostics.codes(fit, data), diagnostics.evaluate(fit, data)
    return {
        "selection": lambda ax: plots.selection(fit, ax),
        "precisions": lambda ax: plots.precisions(numbers, ax),
        "variances": lambda ax: plots.variances(code.variance, code.probs, numbers, ax),
        "covariance": lambda ax: plots.covariance(code.loc, numbers, ax),
        "reconstructions": lambda ax: plots.reconstructions(fit, data, ax=ax),
        "traversals": lambda ax: plots.traversals(fit, data, numbers, ax=ax),
        "scores": lambda ax: plots.scores([("nats", np.arange(5.0), None, "a")] * 3, None, ax),
    }


def test_figures_go_into_the_subplots_of_others(fit, data, tmp_path):
    figure = Figure(figsize=(20, 10), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for ax, (name, draw) in zip(axes, drawings(fit, data).items(), strict=False):
        assert draw(ax) is ax, name
        assert ax.has_data() or ax.child_axes, name
    plots.save(axes[0], tmp_path / "a.png")
    assert tuple(figure.get_size_inches()) == (20, 10)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_axes_there_is_a_figure_of_its_own(fit, data):
    before = pyplot.get_fignums()
    for draw in drawings(fit, data).values():
        ax = draw(None)
        assert pyplot.fignum_exists(ax.figure.number)
        pyplot.close(ax.figure)
    assert pyplot.get_fignums() == before


def test_the_figures_of_a_fit(fit, data):
    plot = fit.plot
    assert plot.selection(blank()).child_axes
    for images in (data, IMAGES, IMAGES.numpy()):
        assert plot.precisions(images, blank()).get_xscale() == "log"
    ax = blank()
    assert plot.variances(data, ax) is ax and plot.covariance(data, blank()).images
    assert plot.reconstructions(data, 3, blank()).images
    assert plot.traversals(IMAGES, [2, 0], steps=4, ax=blank()).images


def test_writing_a_run_leaves_pyplot_alone(fit, data, tmp_path):
    before = pyplot.get_fignums()
    plots.save_all(tmp_path / "figures", fit, data, ng.evaluate(fit, data))
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {*drawings(fit, data)} - {"scores"}
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(
    ("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89P")]
)
def test_a_figure_is_written_as_its_suffix_says(fit, data, tmp_path, suffix, start):
    path = tmp_path / f"a.{suffix}"
    plots.save(plots.traversals(fit, data, ng.evaluate(fit, data), ax=blank()), path)
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="a.png: cannot write there: "):
        plots.save(blank(), tmp_path / "nowhere" / "a.png")
    ax = blank()
    ax.remove()
    with pytest.raises(UserError, match="drawn: expected Axes of a figure"):
        plots.save(ax, tmp_path / "a.png")


# What leaks ---------------------------------------------------------------------------------------


def test_leaking_latents_are_marked():
    metrics = measured([0.9, 0.1, 0.1], leaking=[1])
    ax = plots.precisions(metrics, blank())
    assert [text.get_text() for text in ax.get_legend().texts] == [
        *("informative", "leaking", "uninformative"),
    ]
    markers = [line.get_marker() for line in ax.lines if line.get_marker() != "None"]
    assert sorted(markers) == ["D", "o", "o"]
    values = torch.full((20, 3), 0.9)
    ax = plots.variances(values, torch.tensor([[0.9, 0.1, 0.1]] * 20), metrics, blank())
    assert ax.get_ylim()[0] < 1.0
    hatched = [patch for patch in ax.patches if patch.get_hatch()]
    assert len(hatched) == 1
    assert "leaking (1 latent)" in [text.get_text() for text in ax.get_legend().texts]
    settled = plots.precisions(measured([0.9, 0.1, 0.1]), blank())
    assert len(settled.get_legend().texts) == 2


def test_rows_of_an_older_version_say_nothing_of_leaks():
    metrics = measured([0.9, 0.1])
    del metrics["verdict"]
    assert [row["leaking"] for row in plots.latent_rows(metrics)] == [False, False]
    assert len(plots.precisions(metrics, blank()).get_legend().texts) == 2


# Traversals ---------------------------------------------------------------------------------------


def test_a_traversal_ends_where_the_data_end():
    generator = torch.Generator().manual_seed(0)
    free, alone, noise = torch.randn(3, 4000, generator=generator)
    # The second follows the first; nothing depends on the third, and the fourth is noise.
    loc = torch.stack([free, free + 0.05 * noise, alone, torch.zeros(4000)], 1)
    z = loc + torch.tensor([0.01, 0.01, 0.01, 1.0]) * torch.randn(
        10, *loc.shape, generator=generator
    )
    support = Support(loc, z, [0, 1, 2], 0.0)
    for base in range(5):
        own = loc[base]
        low, high = support.ends(1, base)
        # Over all images it goes from -1.6 to 1.6.
        assert low <= own[1] <= high and abs(low - own[0]) < 0.8 and abs(high - own[0]) < 0.8
        low, high = support.ends(2, base)
        assert low < -1.0 and high > 1.0
        low, high = support.ends(3, base)
        assert low == pytest.approx(-1.64, abs=0.3) and high == pytest.approx(1.64, abs=0.3)
        # As near to an image as images are to each other.
        end = torch.stack([own, own])
        end[:, 1] = torch.tensor(support.ends(1, base))
        assert torch.cdist(end[:, :3], loc[:, :3]).min(1).values.max() < 0.7


def test_a_traversal_ends_where_the_image_breaks_up():
    def broken(z):
        """An image that is z, but beyond 1 of the first latent the second is lost."""
        return torch.stack([z[:, 0], torch.where(z[:, 0] > 1.0, 9.0, z[:, 1])], 1)

    # Decoder and guide as simple as can be, in the place of networks.
    class Pair(torch.nn.Module):
        device, model, guide = torch.device("cpu"), None, None
        amortized = True

        def decoder(self, z):
            return broken(z)[:, None, None]

        def codes(self, x):
            return SimpleNamespace(loc=x[:, 0, 0])

    pair = Pair()
    fit = SimpleNamespace(model=pair, guide=pair, device=pair.device, means=pair.decoder)
    loc = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    support = Support(loc, loc[None], [0, 1], 0.1)
    base = int(loc.square().sum(1).argmin())
    low, high = support.ends(0, base)
    assert low < -1.2 and high > 1.2
    reached = support.reach(fit, 0, base)
    assert reached[0] == pytest.approx(low) and 0.7 < reached[1] <= 1.0
    # The second breaks nothing, and one that carries nothing is not looked at.
    assert support.reach(fit, 1, base) == pytest.approx(support.ends(1, base))
    still = Support(loc * torch.tensor([0.1, 1.0]), loc[None], [1], 0.1)
    assert still.reach(None, 0, base) == still.ends(0, base)


def test_of_few_images_all_are_similar():
    loc = torch.tensor([[0.0, 1.0], [1.0, 2.0], [5.0, 9.0]])
    low, high = Support(loc, loc[None], [0, 1], 0.0).ends(1, 0)
    assert low == 1.0 and high == pytest.approx(8.3)


def test_rows_move_one_latent_each(fit, data):
    found = fit.traverse(IMAGES, [2, 0], steps=5, base=7)
    assert found.shape == (2, 5, 1, 8, 8) and isinstance(found, torch.Tensor)
    support = Support.of(fit, data)
    z = support.loc[7].repeat(2, 5, 1)
    for row, k in enumerate([2, 0]):
        z[row, :, k] = torch.linspace(*support.reach(fit, k, 7), 5)
    assert torch.equal(found, traversals.decode(fit, z))
    again = fit.traverse(IMAGES.numpy(), [2, 0], steps=5, base=7)
    assert isinstance(again, np.ndarray) and np.array_equal(again, found.numpy())
    assert torch.equal(fit.traverse(IMAGES, np.array([2, 0]), steps=5, base=7), found)


def test_informative_latents_move_by_default(fit, data):
    rows = diagnostics.most_informative_first(ng.evaluate(fit, data))
    informative = [row["latent"] for row in rows if row["probs"] > 0.5]
    found = fit.traverse(IMAGES, steps=3)
    assert found.shape == (len(informative), 3, 1, 8, 8)
    if informative:
        # Of batches of other sizes, so not to the last bit.
        torch.testing.assert_close(found[-1:], fit.traverse(IMAGES, informative[-1:], steps=3))
    assert len(fit.traverse(data, range(4))[0]) == 11


def test_an_interpolation_goes_from_one_reconstruction_to_the_other(fit, data):
    found = fit.interpolate(IMAGES[0], IMAGES[1], steps=4)
    assert found.shape == (4, 1, 8, 8)
    ends = diagnostics.reconstruct(fit, ImageData.to_unit(IMAGES[:2]))
    assert torch.allclose(found[[0, -1]], ends, atol=1e-5)
    loc = diagnostics.codes(fit, data).loc
    third = traversals.decode(fit, (2 * loc[:1] + loc[1:2]) / 3)
    assert torch.allclose(found[1:2], third, atol=1e-5)
    for image in (IMAGES[0].numpy(), IMAGES[:1].numpy()):
        again = fit.interpolate(image, data.subset([1]), steps=4)
        assert isinstance(again, np.ndarray) and np.allclose(again, found, atol=1e-5)


def test_typical_images_differ_and_are_near_the_centre():
    loc = torch.tensor([[9.0], [0.1], [1.0], [-1.0], [-9.0], [0.9], [0.2], [8.0]])
    assert traversals.typical(loc, 1) == [traversals.typical(loc, 3)[0]]
    chosen = traversals.typical(loc, 3)
    assert len(set(chosen)) == 3 and not {0, 4, 7} & set(chosen)
    assert sorted(traversals.typical(loc, 8)) == list(range(8))


def test_a_figure_of_traversals_says_where_it_goes(fit, data):
    metrics = measured([0.9, 0.1, 0.8, 0.1], leaking=[3])
    ax = plots.traversals(fit, data, metrics, steps=3, bases=[5], ax=blank())
    said = texts(ax)
    support = Support.of(fit, data)
    for name, latent in (("z0", 0), ("z2", 2), ("z3", 3)):
        span = support.reach(fit, latent, 5)
        low, high = (f"{v:z.2f}".replace("-", "\N{MINUS SIGN}") for v in span)
        at = said.index(name)
        assert said[at : at + 3] == [name, low, high]
    at = said.index("z0")
    assert said[at + 3 : at + 5] == ["4.0", "5,000"]
    # The one that is left.
    assert "z1" in said and said.index("z0") < said.index("z2") < said.index("z3")
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    assert (colours["z0"], colours["z3"]) == (plots.INFORMATIVE, plots.ACCENT)
    assert {"z from", "to", "KL (nats)", "precision"} <= set(said)
    said = texts(plots.traversals(fit, data, measured([0.9, 0.1, 0.1, 0.1]), ax=blank()))
    assert "the other\n3 latents" in said and "z1" not in said
    said = texts(plots.traversals(fit, data, metrics, latents=[1], ax=blank()))
    assert [name for name in said if name.startswith("z") and len(name) == 2] == ["z1"]


def test_only_so_many_rows_are_shown(fit, data, monkeypatch):
    monkeypatch.setattr(plots, "ROWS", 2)
    ax = plots.traversals(fit, data, measured([0.9, 0.8, 0.7, 0.1]), ax=blank())
    assert "2 most informative of 3" in ax.get_title("left")
    names = [text for text in texts(ax) if text.startswith("z") and len(text) == 2]
    assert names == ["z0", "z1", "z3"]


def test_several_images_to_start_from(fit, data):
    ax = plots.traversals(fit, data, measured([0.9] * 4), steps=3, bases=3, ax=blank())
    assert len(ax.child_axes) == 3 and all(child.images for child in ax.child_axes)
    assert texts(ax).count("z0") == 3
    pictures = [np.asarray(child.images[0].get_array()) for child in ax.child_axes]
    assert not np.array_equal(pictures[0], pictures[1])


def test_vectors_are_curves(vectors):
    fit, data = vectors
    metrics = measured([0.9, 0.1, 0.9])
    ax = plots.traversals(fit, data, metrics, steps=5, ax=blank())
    assert len(ax.child_axes) == 3 and not any(child.images for child in ax.child_axes)
    curves = ax.child_axes[0].lines
    assert len(curves) == 5 and all(len(curve.get_xdata()) == 12 for curve in curves)
    images, _ = traversals.walk(
        fit, support := Support.of(fit, data), [[0]], 5, traversals.typical(support.loc, 1)[0]
    )
    drawn = np.stack([curve.get_ydata() for curve in curves])
    assert np.allclose(drawn, images[0].flatten(1).numpy())
    lightness = [sum(matplotlib.colors.to_rgb(curve.get_color())) for curve in curves]
    assert lightness == sorted(lightness)
    assert "column" in ax.child_axes[-1].get_xlabel()
    ax = plots.reconstructions(fit, data, 4, ax=blank())
    panels = [panel for panel in ax.child_axes if panel.lines]
    assert len(panels) == 4 and all(len(panel.lines) == 2 for panel in panels)
    x = data.images[:4].flatten(1).numpy()
    assert np.allclose([panel.lines[0].get_ydata() for panel in panels], x)


# A comparison -------------------------------------------------------------------------------------


def test_models_come_in_one_order_and_latents_are_named():
    def look(label, probs):
        rows = plots.latent_rows(measured(probs))
        z = torch.randn(20, len(probs))
        codes = Codes(z, torch.full_like(z, 0.5), z, torch.tensor([probs] * 20))
        pictures = torch.rand(2, 3, 1, 8, 8)
        sample = SimpleNamespace(codes=codes, z=z)
        inks = [plots.INFORMATIVE, plots.ACCENT]
        return comparison_plots.Look(label, 0, sample, rows, pictures, ["z1", "z0"], inks, Form())

    looks = [look(label, [0.1, 0.9, 0.8]) for label in ("first", "second", "third")]
    orders = []
    for draw in (
        comparison_plots.variances,
        comparison_plots.covariances,
        lambda figure, looks: comparison_plots.traversals(figure, looks, 3),
    ):
        figure = Figure()
        draw(figure, looks)
        titles = [ax.get_title() for ax in figure.axes]
        orders.append([title.split(":")[0].split(",")[0] for title in titles if title])
        if draw is comparison_plots.covariances:
            ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
            assert ticks == [f"z{row['latent']}" for row in looks[0].rows]
    assert orders == [["first", "second", "third"]] * 3
