"""Tables: which columns are vectors, which are factors, and what is refused."""

import shutil
import sys
import tomllib
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from support import SMALL, ngvae

import ngvae_pyro as ng
from ngvae_pyro.data import as_images, load_table
from ngvae_pyro.errors import Notice, UserError
from ngvae_pyro.report import comparison_plots, plots

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(30, 3)) * [1.0, 100.0, 0.01] + [0.0, 5.0, 1.0]
KINDS = np.array(["setosa", "virginica", "iris"])[RNG.integers(0, 3, 30)]
TABLE = pd.DataFrame(VECTORS, columns=["mass", "width", "größe"]).assign(
    age=np.arange(30), kind=KINDS
)
# In alphabetical order.
CLASSES = [["iris", "setosa", "virginica"].index(kind) for kind in KINDS]


def write(folder, kind, table=TABLE, index=False):
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        table.to_parquet(path, index=index)
    else:
        table.to_csv(path, sep="\t" if kind == "tsv" else ",", index=index)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_numbers_are_vectors_and_text_is_classes(tmp_path, kind):
    path = write(tmp_path, kind)
    with pytest.warns(Notice, match=f"t.{kind}: text, so classes, .* vectors: kind$"):
        data = ng.load_data(path)
    expected = TABLE[["mass", "width", "größe", "age"]].to_numpy()
    # Text is read to the last bit since pandas 3.1.
    assert np.allclose(data.form.arrays(data.images), expected, rtol=1e-14, atol=1e-5)
    assert torch.allclose(data.images, ng.ImageData("t", expected).images)
    assert data.form.columns == ("mass", "width", "größe", "age") and data.name == "t"
    assert data.factor_names == ("kind",) and data.factors[:, 0].tolist() == CLASSES


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_named_columns_are_factors_and_no_part_of_the_vectors(tmp_path, kind):
    path = write(tmp_path, kind)
    with warnings.catch_warnings(action="error"):
        data = ng.load_data(path, factors=["kind", "age"])
    assert data.form.columns == ("mass", "width", "größe") and data.image_shape == (1, 1, 3)
    assert data.factor_names == ("kind", "age")
    assert data.factors.T.tolist() == [CLASSES, list(range(30))]
    assert np.allclose(data.form.arrays(data.images), VECTORS)


def test_names_stay_with_parts():
    with pytest.warns(Notice, match="text, so classes"):
        data = as_images(TABLE)
    train, held_out = data.split(0.2, seed=0)
    assert train.form.columns == held_out.form.columns == data.subset([1]).form.columns
    assert data.form.columns == ("mass", "width", "größe", "age")


def test_an_index_that_was_written_is_left_out(tmp_path):
    path = write(tmp_path, "csv", TABLE[["mass", "width"]], index=True)
    with pytest.warns(Notice, match="t.csv: not used: the first column, which has no name"):
        assert load_table(path).form.columns == ("mass", "width")


def test_wavelengths_are_names(tmp_path):
    path = write(tmp_path, "csv", pd.DataFrame(VECTORS, columns=["400", "410.5", "420"]))
    with pytest.warns(Notice, match="t.csv: the numbers of the first line are names: 400, 410.5"):
        assert load_table(path).form.columns == ("400", "410.5", "420")
    path.write_text("\n".join(path.read_text().split("\n")[1:]))
    with pytest.raises(UserError, match="t.csv: expected names of columns in the first line, got"):
        load_table(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a,b\n1,\n3,4\n5,6\n,7", "column 'a': expected a value in each row, got NaN or none in 1"),
        ("a,b\n1,nan\n3,4\n5,NA", "column 'b': .*, got NaN or none in 2 of 3; data.missing = true"),
        ("a,b\n1,x\n3,\n5,y", "column 'b': expected a value in each row"),
        ("a,b\n1\n3,4", "column 'b': expected a value in each row"),
        ("a,b\n1,inf\n3,4", "column 'b': expected finite numbers, got inf in 1 rows$"),
        ("a,a\n1,2\n3,4", "expected no column name twice, got 'a' 2 times$"),
        ("a,\n1,2\n3,4", "expected a name of each column, got none of column 1$"),
        ("a,b\n1,2,3\n3,4,5", "expected 2 values in each row, as in the first line, got more$"),
        ("a,b\n1,2\n3,4,5", "cannot read the .csv file: .* Expected 2 fields in line 3, saw 3"),
        ("a;b\n1;2\n3;4", "expected columns between commas, got ';': a;b$"),
        ("a,b\nx,y\nz,y", "expected a column of numbers, got a, b$"),
        ("a,b\n1,2", "expected at least 2 rows, got 1$"),
        ("a,b", "expected a column of numbers, got a, b$"),
        ("", "cannot read the .csv file: No columns"),
        ('a,b\n"1,2\n3,4', "cannot read the .csv file: "),
        ("a,b\n\udcff,2\n3,4", "cannot read the .csv file: 'utf-8' codec"),
    ],
)
def test_refused_tables_are_one_line(tmp_path, text, match):
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=match) as caught:
        load_table(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_refused_options_and_files(tmp_path, monkeypatch):
    path = write(tmp_path, "csv")
    with pytest.raises(UserError, match="t.csv: factors: found no column 'knd'; did you mean 'kin"):
        ng.load_data(path, factors=["knd"])
    with pytest.raises(UserError, match="expected a column of numbers that is no factor, got mass"):
        ng.load_data(path, factors=list(TABLE.columns))
    np.save(tmp_path / "x.npy", VECTORS)
    with pytest.raises(UserError, match=r"x.npy: factors: only tables \(.csv, .*, .h5ad\) have"):
        ng.load_data(tmp_path / "x.npy", factors=["mass"])
    with pytest.raises(UserError, match="no.tsv: expected a table, found no such file"):
        ng.load_data(tmp_path / "no.tsv")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    if "pyarrow" in sys.modules:
        with pytest.raises(UserError, match="x.parquet: cannot read the .parquet file: "):
            ng.load_data(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"parquet files need pyarrow: .*\[parquet\]"):
        ng.load_data(tmp_path / "x.parquet")


# Tables in memory -------------------------------------------------------------------------------


def test_tables_of_pandas_of_any_types():
    table = pd.DataFrame(
        {
            "whole": pd.Series(range(6), dtype="Int64"),
            "bool": [True, False] * 3,
            "half": np.arange(6, dtype=np.float16),
            "grade": pd.Categorical([10, 9, 2] * 2),
            "group": pd.Categorical(["u", "v"] * 3),
        }
    )
    with pytest.warns(Notice, match="vectors: group$"):
        data = as_images(table)
    numbers = [range(6), [1, 0] * 3, range(6), [10, 9, 2] * 2]
    assert torch.equal(data.images, as_images(np.array(numbers).T.astype(float)).images)
    assert data.factors[:, 0].tolist() == [0, 1] * 3
    assert as_images(pd.DataFrame(VECTORS)).form.columns == ()
    with pytest.raises(UserError, match=r"images: column 'when': expected numbers or text, got da"):
        as_images(table.assign(when=pd.Timestamp(0)))
    with pytest.raises(UserError, match=r"images: column 'whole': .*, got NaN or none in 1 of 6"):
        as_images(table.assign(whole=pd.Series([1, None, 3, 4, 5, 6], dtype="Int64")))


def test_a_fit_takes_columns_by_their_names():
    table = TABLE[["mass", "width"]]
    data = as_images(table)
    fit = SimpleNamespace(form=data.form)
    assert torch.equal(as_images(table, form=fit.form).images, data.images)
    turned = table[["width", "mass"]]
    line = "expected column 'mass' as number 0, as what was fitted, got 'width'$"
    for other in (turned, as_images(turned)):
        with pytest.raises(UserError, match=line):
            as_images(other, form=fit.form)
    # Arrays have no names.
    again = as_images(table.to_numpy(), form=fit.form)
    assert torch.equal(again.images, data.images) and again.form.columns == ("mass", "width")


def test_the_estimator_keeps_names(tmp_path):
    table = TABLE[["mass", "width", "größe"]]
    vae = ng.NGVAE(2, model=ng.ModelSpec(decoder=SMALL), steps=2, random_state=0).fit(table)
    assert vae.fit_.form.columns == ("mass", "width", "größe")
    assert vae.held_out_.form.columns == vae.fit_.form.columns
    vae.save(tmp_path / "run")
    assert ng.NGVAE.load(tmp_path / "run").fit_.form.columns == vae.fit_.form.columns


# Runs -------------------------------------------------------------------------------------------

WORDS = ["--steps", "4", "--latents", "3", "--set", "fit.batch_size=8", "--device", "cpu"]
WORDS += ["--set", "model.decoder.width=8", "--set", "guide.encoder.width=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    words = ["--data", write(folder, "csv"), "--set", 'data.factors=["kind", "age"]', *WORDS]
    ngvae("train", "normal_gamma", "relaxed", *words, "--out", folder / "r")
    return folder


def test_a_run_keeps_names_and_factors(run):
    config = tomllib.loads((run / "r" / "config.toml").read_text())
    assert config["form"]["columns"] == ["mass", "width", "größe"]
    assert config["data"]["factors"] == ["kind", "age"]
    fit, spec = ng.load_run(run / "r", "cpu")
    assert fit.form.columns == ("mass", "width", "größe") and spec.data.factors == ("kind", "age")
    ngvae("inspect", run / "r")
    path = write(run / "r", "tsv", TABLE.rename(columns={"width": "length"}))
    words = ["--data", path, "--set", 'data.factors=["kind", "age"]', "--size", "4"]
    said = ngvae("score", run / "r", *words, code=2)
    assert said == "data 't': expected column 'width' as number 1, as what was fitted, got 'length'"


def test_names_that_do_not_fit_are_one_line(run, tmp_path):
    shutil.copytree(run / "r", tmp_path / "r")
    path = tmp_path / "r" / "config.toml"
    text = path.read_text()
    path.write_text(text.replace('    "größe",\n', ""))
    assert path.read_text() != text
    with pytest.raises(UserError, match="form.columns: expected the names of all columns, got 2"):
        ng.load_run(tmp_path / "r", "cpu")


def test_figures_have_the_names(run):
    fit, _ = ng.load_run(run / "r", "cpu")
    data = fit.as_images(VECTORS)

    def named(panels):
        return [[tick.get_text() for tick in panel.get_xticklabels()] for panel in panels]

    ax = plots.reconstructions(fit, data, 2, ax=Figure().add_subplot())
    panels = [panel for panel in ax.child_axes if panel.lines]
    assert named(panels) == [["mass", "width", "größe"]] * 2
    rows = plots.latent_rows(ng.evaluate(fit, data))
    ax = plots.traversals(fit, data, rows, steps=3, ax=Figure().add_subplot())
    assert named(ax.child_axes[-1:]) == [["mass", "width", "größe"]]
    figure = Figure()
    pictures = torch.rand(2, 3, 1, 1, 3)
    look = SimpleNamespace(
        traversals=pictures, form=fit.form, label="a", seed=0, names=["z0", "z1"], colours=["k"] * 2
    )
    comparison_plots.traversals(figure, [look], 1)
    panels = [panel for ax in figure.axes for panel in ax.child_axes]
    assert ["mass", "width", "größe"] in named(panels)
