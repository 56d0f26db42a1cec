"""The HTML pages: what they say, that names stay text, and that they fit a phone."""

import base64
import html
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from support import Page, said_by, saved

from ngvae_pyro.errors import UserError
from ngvae_pyro.evaluation.diagnostics import most_informative_first
from ngvae_pyro.report import pages as report
from ngvae_pyro.report.pages import duration, number, write_comparison_report, write_run_report
from ngvae_pyro.report.table import SLIDES

NASTY = "<script>alert(1)</script> [red] & \"quotes\" 'single' {{ 7 * 7 }}"
LONG = "a_name_without_any_place_to_break_it_" * 6
WIDTHS = (360, 390, 1280)
START = {"command": "ngvae train", "device": "cpu (a CPU)", "threads": 1, "processes": 1}


def png(width=1050, height=30):
    """A black picture as PNG."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = (b"\x00" + b"\x00" * width) * height
    return report.PNG + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def draw(folder, *names):
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / "figures" / f"{name}.png").write_bytes(png())


def measured(size=15, informative=7, sites=("z", "precision")):
    """Metrics of a run in which every other latent is informative, as far as they go."""
    on = [k % 2 == 1 and k // 2 < informative for k in range(size)]
    precision = [7000.123456789 - k if on[k] else 1.0006123456789 for k in range(size)]
    return {
        "informative": sum(on),
        "active_units": sum(on),
        "elbo": 4149.71627787078,
        "reconstruction_mse": 0.00012196634021220786,
        "kl": {
            site: {
                "total": 31.058473582836715,
                "per_latent": [4.118975247469815 if x else 0.00211 for x in on],
            }
            for site in sites
        },
        "precision": {
            "mean": precision,
            "5%": [0.9 * value for value in precision],
            "95%": [1.1 * value for value in precision],
        },
        "probs": [0.8599802255630493 if x else 0.017871346324682236 for x in on],
        "variance_of_loc": [0.5971559882164001 if x else 0.00017917819786816835 for x in on],
        "seconds": 126.123,
        "steps": 4400,
        "extra_steps": 1200,
    }


def judged(leaking=(), texts=(), size=15):
    """Metrics with a verdict: settled, or some latents leak."""
    changes = {"model.likelihood.scale": 0.05}
    findings = [
        {
            "kind": "leaking",
            "text": text,
            "reason": "a reason",
            "latents": list(leaking),
            "changes": changes,
        }
        for text in texts
    ]
    return {**measured(size), "verdict": {"settled": not findings, "findings": findings}}


def evaluated(size=15, factors=("x", "y", "size")):
    row = {
        "mean": -0.0123456789,
        "variance": 1.0123456789,
        "skewness": 0.123456789,
        "kurtosis": -1.123456789,
        "variance_of_loc": 0.987654321,
        "mean_variance": 0.000123456789,
        "variance_law": 0.98777777,
        "ks_statistic": 0.0612345,
        "ks_p_value": 1e-9,
    }
    return {
        "points": 15000,
        "source": "15,000 new sprites",
        "factors": list(factors),
        "slides": {
            "entropy": 1.951234567,
            "decorrelation": 14.61234567,
            "disentanglement": 0.6812345,
            "informative": 7,
        },
        "scores": {
            "mig": 0.3123456789,
            "sap": 0.15,
            "dci_disentanglement": 0.71,
            "dci_completeness": 0.69,
            "dci_informativeness": 0.98,
            "factor_vae_score": 0.68,
            "beta_vae_score": 1.0,
            "modularity": 0.87,
            "explicitness": 0.94,
            "irs": 0.61,
            "mcc": 0.5678,
            "mcc_rank": 0.5432,
        },
        "mig_per_factor": dict.fromkeys(factors, 0.2468),
        "total_correlation": None,
        "active_units": 7,
        "variance_law": 0.9987654321,
        "ks_statistic": 0.0312345,
        "aggregate": [
            {"latent": k, **row, "rho": None if k % 2 == 0 else 0.0123456} for k in range(size)
        ],
        "log_likelihood": {
            "mean": 4181.23712345,
            "se": 1.23456789,
            "k_median": 0.8123,
            "k_bad": 0.734,
            "draws": 500,
            "images": 500,
        },
    }


def compared(labels=("NG-VAE", "vanilla VAE", "beta-VAE (27)"), metrics=None):
    pairs = [f"model_{i}+guide_{i}" for i in range(len(labels))]
    titles = metrics or ("MIG", "Entropy", "Informative latents", "ELBO")
    better = {"Entropy": "lower", "Informative latents": "factors", "ELBO": None}
    groups = dict.fromkeys(("Entropy", "Informative latents"), SLIDES)

    def cell(i):
        value = 2.69 + i
        text = f"{value:.2f} ± 0.01"
        return {
            "mean": value,
            "std": 0.01,
            "values": [value],
            "shown": text,
            "best": i == 1,
        }

    return {
        "data": "sprites",
        "factors": 7,
        "latent_size": 15,
        "seeds": [60, 61],
        "command": "ngvae compare --data sprites --seeds 2 --out runs/compared",
        "models": [
            {"pair": pair, "label": label, "runs": 2}
            for pair, label in zip(pairs, labels, strict=True)
        ],
        "metrics": [
            {
                "key": title,
                "title": title,
                "unit": "nats" if title in ("Entropy", "ELBO") else "",
                "group": groups.get(title, "Others"),
                "better": better.get(title, "higher"),
                "text": f"what {title} means",
            }
            for title in titles
        ],
        "values": {title: {pair: cell(i) for i, pair in enumerate(pairs)} for title in titles},
        "failed": [],
    }


@pytest.fixture
def run_page(tmp_path):
    def build(spec=None, metrics=None, evaluation=None, record=None):
        metrics = metrics or measured()
        path = write_run_report(tmp_path, spec or saved(), metrics, evaluation, record)
        assert path == tmp_path / "report.html"
        return Page(path)

    return build


@pytest.fixture
def comparison_page(tmp_path):
    def build(comparison=None):
        path = write_comparison_report(tmp_path, comparison or compared())
        assert path == tmp_path / "report.html"
        return Page(path)

    return build


# A run --------------------------------------------------------------------------------------------


def test_a_run_says_what_was_found(run_page):
    page = run_page(evaluation=evaluated())
    for text in (
        "7 of 15 latents are informative",
        "normal_gamma + relaxed on sprites, seed 0",
        "3 factors: x, y, size",
        "4,400 steps and 1,200 in moves",
        "4,149.7",
        "4,181.2",
        "standard error 1.2",
        "1.22e-04",
        "500 draws for each of 500 images",
        "15,000 new sprites",
        "1 if each latent serves one factor, 0 if each serves all equally",
        "[model.likelihood]",
        "2.15.0",
    ):
        assert text in page.text
    assert page.row("MIG")[1].strip() == "0.312"
    # What has no number says why.
    title, value = page.row("Total correlation")
    assert value.strip() == "–" and "needs latents of which none follows from" in title
    assert page.row("Distance from N(0, 1)")[1].strip() == "0.031"
    order = [
        *("ELBO", "Selection and latents", "Most informative first", "Scores"),
        *("MIG of each factor", "Aggregate posterior of each latent", "Configuration"),
        *("4,400 steps", "2.15.0", "Every setting"),
    ]
    places = [page.text.index(name) for name in order]
    assert places == sorted(places)


def test_a_verdict_comes_first(run_page):
    page = run_page(metrics=judged())
    assert "7 of 15 latents are informative: settled" in page.text
    assert "Nothing was found that speaks against the count." in page.text
    page = run_page(metrics=judged([0, 2], ["z0 and z2 carry information"]))
    assert "7 of 15 latents are informative: leaking" in page.text
    finding = "z0 and z2 carry information; a reason. Try --set model.likelihood.scale=0.05"
    assert page.text.index(finding) < page.text.index("ELBO")
    assert page.row("z0")[0] == "z0leaking" and page.row("z1")[0] == "z1"
    classes = [attrs.get("class") for attrs in page.all("tr")]
    assert classes.count("leaking") == 2
    # An older version's run has none.
    page = run_page()
    assert "7 of 15 latents are informative" in page.text and "settled" not in page.text


def captions(tmp_path, metrics):
    draw(tmp_path, *report.RUN_FIGURES, "check")
    page = Page(write_run_report(tmp_path, saved(), metrics))
    return page.text


def test_captions_say_what_the_verdict_allows(tmp_path):
    settled = captions(tmp_path, judged())
    assert (
        "all others move at once, which should change nothing" in settled
        and "hatched" not in settled
    )
    assert "its exact posterior is its prior" in settled
    leaking = captions(tmp_path, judged([0, 2], ["x"]))
    for text in (
        "z0, z2 (diamonds) leak",
        "the leaking latents (hatched)",
        "z0, z2 (orange) are not counted and yet vary",
        "what they change is what leaks",
    ):
        assert text in leaking and text not in settled
    assert "rows of uninformative latents are empty" not in leaking
    assert "z4 (diamond) leaks" in captions(tmp_path, judged([4], ["x"]))
    many = captions(tmp_path, judged(range(0, 30, 2), ["x"], size=30))
    assert "z0, z2, z4, z6, z8, z10, z12, z14 and 7 more (diamonds)" in many
    old = captions(tmp_path, measured())
    for text in (settled, leaking, old):
        assert "stays at the prior's precision" not in text
        assert "r_hat says nothing of them" in text and "which ngvae check draws from" in text
    assert "should change nothing" not in old and "hatched" not in old


def test_counts_have_captions_of_their_own(tmp_path):
    text = captions(tmp_path, {**judged(), "discrete": True})
    assert "One over the posterior rate of each count" in text and "width of q(z | x)" not in text


def test_how_a_run_was_trained(run_page):
    assert "Command" not in run_page().parts
    again = {**START, "device": "cuda:0 (a GPU)", "threads": 4, "processes": 2}
    page = run_page(record={"starts": [START, again], "seconds": 7384.0})
    for text in ("2 h 3 min", "in 2 starts", "cuda:0 (a GPU)", "4 threads in each of 2 processes"):
        assert text in page.text
    assert "ngvae train" in page.parts
    assert [duration(s) for s in (0.4, 59.6, 152.0)] == ["0 s", "1 min 0 s", "2 min 32 s"]


def test_one_informative_latent_is_singular(run_page):
    assert "1 of 2 latents is informative" in run_page(metrics=measured(2, 1)).text


def test_latents_are_in_order_of_information(run_page):
    metrics = measured()
    page = run_page(metrics=metrics, evaluation=evaluated())
    order = [f"z{row['latent']}" for row in most_informative_first(metrics)]
    latents, aggregate = page.tables[0], page.tables[-1]
    assert [row[0] for row in latents[1:]] == order
    assert [row[0] for row in aggregate[2:]] == order
    assert latents[1] == ["z1", "0.860", "6,999", "6,299", "7,699", "0.5972", "4.12", "4.12"]
    assert latents[-1][:4] == ["z14", "0.018", "1.00", "0.90"]
    assert aggregate[1][:4] == ["prior, Normal(0, 1)", "0.000", "1.000", "0.00"]
    cells = dict(zip(aggregate[0], aggregate[2], strict=True))
    assert cells["mean"] == "−0.012" and cells["rho"] == "0.012" and cells["KS p"] == "<0.001"
    assert dict(zip(aggregate[0], aggregate[-1], strict=True))["rho"] == "–"
    marked = [attrs["class"] for attrs in page.all("tr") if "class" in attrs]
    in_order = ["informative"] * 7 + ["uninformative"] * 8
    assert marked == [*in_order, "reference", *in_order]


def followed(size=15, names=("red", "size", "y")):
    """Correlations of a run: each latent follows the first, but the second one mixes two."""
    first, second, third = names
    mixing = {second: 0.61, third: 0.52, first: 0.2}
    return [mixing if k == 3 else {first: 0.93, second: 0.1, third: 0.0} for k in range(size)]


def test_latents_say_what_they_follow(run_page):
    page = run_page(metrics={**judged([0], ["x"]), "correlations": followed()})
    table = page.tables[0]
    assert table[0][:3] == ["latent", "follows", "p"]
    cells = {row[0]: row[1].replace("\xa0", " ") for row in table[1:]}
    assert cells["z1"] == cells["z0leaking"] == "red 0.93"
    assert cells["z3"] == "mixes size 0.61, y 0.52"
    # What carries nothing follows nothing, whatever its rounding correlates with.
    assert [cells[f"z{k}"] for k in (2, 4, 14)] == [""] * 3
    assert "is at least 0.5 and its square is at least 2 times that of any other" in page.text
    assert [len(row) for row in table] == [9] * 16
    # Numbers stay with their names.
    assert "size\xa00.61, y\xa00.52" in page.source
    page = run_page(metrics={**judged(), "correlations": followed(names=(NASTY, "a", "b"))})
    assert f"{NASTY} 0.93".replace(" 7", "\xa07").replace(" 0", "\xa00") in page.tables[0][1][1]


@pytest.mark.parametrize("metrics", [measured(), {**measured(), "correlations": None}])
def test_a_run_of_unknown_factors_says_nothing_of_them(run_page, metrics):
    page = run_page(metrics=metrics)
    assert "follows" not in page.text and page.tables[0][0][:2] == ["latent", "p"]


def test_an_evaluation_of_an_older_version_has_no_mcc(run_page):
    page = run_page(evaluation=evaluated())
    assert page.row("MCC")[1].strip() == "0.568"
    assert page.row("MCC, ranks")[1].strip() == "0.543"
    evaluation = evaluated()
    for key in ("mcc", "mcc_rank"):
        del evaluation["scores"][key]
    page = run_page(evaluation=evaluation)
    for name in ("MCC", "MCC, ranks"):
        title, value = page.row(name)
        assert value.strip() == "–" and "needs a new ngvae evaluate" in title
    assert page.row("IRS")[1].strip() == "0.610"


def test_the_joint_prior_is_not_called_normal(run_page):
    joint = saved("normal_gamma_joint+relaxed", model={"prior": {"joint": True}})
    assert "prior, Normal(0, 1)" not in run_page(joint, evaluation=evaluated()).text
    page = run_page(saved("gaussian+gaussian"), measured(sites=("z",)), evaluated())
    assert "prior, Normal(0, 1)" in page.text and "KL of precision" not in page.text
    assert "the share of images whose inferred variance" in page.text


def test_a_label_names_the_guide(run_page):
    spec = saved(
        "gaussian+beta",
        model={"prior": {"family": "gaussian"}},
        guide={"family": "gaussian", "label": "beta-VAE (27)"},
    )
    page = run_page(spec, measured(sites=("z",)))
    assert "beta-VAE (27) on sprites" in page.text and "gaussian + beta" in page.text


@pytest.mark.parametrize(("k_bad", "warned"), [(0.734, True), (0.1, False), (None, False)])
def test_a_bad_log_likelihood_is_warned_of(run_page, k_bad, warned):
    evaluation = evaluated()
    evaluation["log_likelihood"]["k_bad"] = k_bad
    page = run_page(evaluation=evaluation)
    assert ("the estimate is a lower bound that many draws would raise" in page.text) == warned
    assert ("73 % of the images" in page.text) == warned


@pytest.mark.parametrize("key", [*evaluated(), None])
def test_any_part_of_an_evaluation_may_be_missing(run_page, key):
    evaluation = {name: value for name, value in evaluated().items() if name != key}
    page = run_page(evaluation=evaluation if key else None)
    assert "7 of 15 latents are informative" in page.text
    for heading, needed in (("Scores", None), ("MIG of each factor", "mig_per_factor")):
        assert (heading in page.parts) == (key is not None and key != needed)
    assert ("Aggregate posterior of each latent" in page.parts) == (key not in (None, "aggregate"))


def test_a_run_without_active_units_or_versions(run_page):
    metrics = measured()
    del metrics["active_units"]
    page = run_page(saved(versions={}), metrics, {"scores": {"mig": 0.123456}})
    assert page.row("MIG")[1].strip() == "0.123" and "2.15.0" not in page.text


# A comparison -------------------------------------------------------------------------------------


def test_a_comparison_has_a_table_for_each_group(comparison_page):
    page = comparison_page()
    for text in (
        "3 models on sprites",
        "NG-VAE, vanilla VAE, beta-VAE (27)",
        "2 seeds each: 60, 61",
        "15 latents",
        "7 factors",
        "Bold is best",
        "closest to 7, the number of factors",
        "what MIG means",
        "ngvae compare --data sprites --seeds 2 --out runs/compared",
    ):
        assert text in page.text
    slides, others, _ = page.tables
    # The paper's table comes first, whatever comes first in the list.
    assert [row[0] for row in slides[1:]] == [
        "Entropynats, lower is better",
        "Informative latentsbest near 7",
    ]
    assert [row[0] for row in others[1:]] == ["MIGhigher is better", "ELBOnats"]
    assert slides[0][1:] == ["NG-VAE", "vanilla VAE", "beta-VAE (27)"]
    assert slides[1][1:] == ["2.69 ± 0.01", "3.69 ± 0.01", "4.69 ± 0.01"]
    assert page.source.count("<strong>3.69 ± 0.01</strong>") == 4
    assert "Failed runs" not in page.parts


def test_what_a_comparison_lacks_is_a_dash(comparison_page):
    comparison = compared()
    del comparison["values"]["MIG"]["model_0+guide_0"]
    comparison["values"]["MIG"]["model_1+guide_1"]["mean"] = None
    del comparison["values"]["ELBO"]
    comparison["models"][2]["runs"] = 1
    comparison["failed"] = ["beta-VAE (27), seed 61: the training diverged"]
    page = comparison_page(comparison)
    assert page.row("MIG")[1:] == ["–", "–", "4.69 ± 0.01"]
    assert all(not row[0].startswith("ELBO") for table in page.tables for row in table)
    assert page.tables[0][0][-1] == "beta-VAE (27)1 of 2 runs"
    assert "One run is missing from the tables." in page.text
    assert "beta-VAE (27), seed 61: the training diverged" in page.text


def test_a_comparison_without_known_factors(comparison_page):
    comparison = {**compared(), "factors": None, "seeds": [0]}
    for cell in comparison["values"]["MIG"].values():
        cell["mean"] = None
    page = comparison_page(comparison)
    assert "seed 0." in page.text and "factors" not in page.text
    assert page.row("Informative latents")[0] == "Informative latents"
    assert "what MIG means" not in page.text and "Means over" not in page.text


# Both ---------------------------------------------------------------------------------------------


def nasty_run(tmp_path, name):
    spec = saved(f"{name}+{name}", data={"name": name}, versions={name: name})
    evaluation = {**evaluated(factors=[name, "y"]), "source": name}
    draw(tmp_path, "selection", "traversals", "precisions", re.sub("[/<>\"']", "_", name)[:80])
    record = {"starts": [{**START, "command": name, "device": name}], "seconds": 7.0}
    metrics = {**judged([0, 2], [name]), "correlations": followed(names=(name, "size", "y"))}
    return write_run_report(tmp_path, spec, metrics, evaluation, record)


def nasty_comparison(tmp_path, name):
    comparison = compared(labels=(name, "b", "c", "d"), metrics=(name, "Entropy"))
    comparison |= {"data": name, "command": name, "failed": [name]}
    comparison["models"][0]["pair"] = name
    for cells in comparison["values"].values():
        cells[name] = {"mean": 1.0, "shown": name, "best": True}
    draw(tmp_path, re.sub("[/<>\"']", "_", name)[:80])
    return write_comparison_report(tmp_path, comparison)


@pytest.mark.parametrize("write", [nasty_run, nasty_comparison])
def test_names_stay_text(tmp_path, write):
    page = Page(write(tmp_path, NASTY))
    assert page.text.count(NASTY) >= 4
    assert not page.all("script")


@pytest.mark.parametrize("write", [nasty_run, nasty_comparison])
def test_a_page_needs_nothing_else(tmp_path, write):
    page = Page(write(tmp_path, NASTY))
    assert page.source.startswith("<!DOCTYPE html>\n") and page.all("html") == [{"lang": "en"}]
    metas = page.all("meta")
    policy = next(meta["content"] for meta in metas if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert not {"script", "link", "iframe", "object", "form", "base"} & {t for t, _ in page.tags}
    attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "href"]
    for name, value in attributes:
        assert name != "src" or value.startswith("data:image/png;base64,")
    style = page.source.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|@font-face|https?:", style)
    assert len(page.all("h1")) == 1 and len(page.all("title")) == 1
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))


def test_figures_are_embedded_in_a_fixed_order(tmp_path):
    draw(tmp_path, "another", "traversals", "selection", "page")
    (tmp_path / "figures" / "notes.txt").write_text("not a figure")
    page = Page(write_run_report(tmp_path, saved(), measured()))
    images = page.all("img")
    assert [image["alt"].split()[0] for image in images] == ["Grid", "Line", "Figure", "Figure"]
    assert [image["alt"] for image in images[2:]] == ["Figure another", "Figure page"]
    assert base64.b64decode(images[0]["src"].partition(",")[2]) == png()
    assert images[0]["style"] == "--width: 700px"
    draw(tmp_path, "reconstruction", "variances")
    page = Page(write_comparison_report(tmp_path, compared()))
    words = [image["alt"].split()[0] for image in page.all("img")]
    assert words == ["Histograms", "Grids", "Scatter", "Figure", "Figure"]
    assert "Figure page" not in page.source


def test_no_figures_no_heading(run_page):
    assert not {"What the latents do", "Further figures"} & set(run_page().parts)


def test_the_page_is_hardly_larger_than_its_figures(tmp_path):
    (tmp_path / "figures").mkdir()
    noise = png() + bytes(300_000)
    (tmp_path / "figures" / "selection.png").write_bytes(noise)
    size = write_run_report(tmp_path, saved(), measured(), evaluated()).stat().st_size
    assert size < len(noise) * 4 / 3 + 50_000


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(40)])
def test_a_damaged_figure_is_one_line(tmp_path, content):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "selection.png").write_bytes(content)
    with pytest.raises(UserError, match="selection.png: damaged: not a PNG image"):
        write_run_report(tmp_path, saved(), measured())


def test_the_old_page_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = write_run_report(tmp_path, saved(), measured())
    before = path.read_bytes()

    def full(self, target):
        assert self.parent == tmp_path and self.stat().st_size > 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="report.html: cannot write there: No space left on device"):
        write_run_report(tmp_path, saved(), measured(3, 1))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UserError, match="report.html: cannot write there"):
            write_comparison_report(folder, compared())


def test_pages_are_the_same_each_time_and_as_readable_as_other_files(tmp_path):
    (tmp_path / "other").write_text("")
    path = write_run_report(tmp_path, saved(), measured(), evaluated())
    first = path.read_bytes()
    write_run_report(tmp_path, saved(), measured(), evaluated())
    assert path.read_bytes() == first
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.1 + 0.2, 2, "0.30"),
        (-0.001, 2, "0.00"),
        (-1.5, 1, "−1.5"),
        (7390.123456, 2, "7,390.1"),
        (1234567.8, 2, "1,234,568"),
        (15, 2, "15"),
        (0.0, 3, "0.000"),
        (float("nan"), 2, "–"),
        (float("inf"), 2, "–"),
        (None, 2, "–"),
    ],
)
def test_numbers(value, decimals, text):
    assert number(value, decimals) == text


@pytest.mark.parametrize("write", [nasty_run, nasty_comparison])
def test_no_number_has_more_digits_than_anybody_reads(tmp_path, write):
    page = Page(write(tmp_path, "name"))
    assert not re.search(r"\d\.\d{5}", page.text.partition("Configuration")[0])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_of_wcag_aa(run_page):
    schemes = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", run_page().source, re.DOTALL)
    ]
    assert schemes[0]["informative"] == "#0b5fa5" and set(schemes[0]) == set(schemes[1])
    for colours in schemes:
        # The warning's colour is that of a line, not of letters.
        for ink, least in (("text", 7), ("muted", 4.5), ("informative", 4.5), ("warning", 3)):
            for paper in ("page", "panel"):
                dark, light = sorted((luminance(colours[ink]), luminance(colours[paper])))
                assert (light + 0.05) / (dark + 0.05) >= least, (ink, paper)


# In a browser -------------------------------------------------------------------------------------


def in_browser(tmp_path, path):
    """What headless Chromium says of a page in frames of the widths of a phone and a laptop."""
    frames = "".join(
        f'<iframe style="width: {width}px; height: 700px; border: 0" '
        f'srcdoc="{html.escape(path.read_text(encoding="utf-8"))}"></iframe>'
        for width in WIDTHS
    )
    script = """
    addEventListener("load", () => {
      const found = [...document.querySelectorAll("iframe")].map((frame) => {
        const page = frame.contentDocument, root = page.documentElement;
        const all = (selector) => [...page.querySelectorAll(selector)];
        const first = page.querySelector(".scroll");
        first.scrollLeft = 1000;
        return {
          width: root.clientWidth,
          needed: root.scrollWidth,
          images: all("img").map((image) => image.naturalWidth),
          scrolled: all(".scroll").filter((box) => box.scrollWidth > box.clientWidth).length,
          stuck: page.querySelector("tbody th").getBoundingClientRect().left
            - first.getBoundingClientRect().left,
          columns: all(".columns").map((box) =>
            frame.contentWindow.getComputedStyle(box).gridTemplateColumns.split(" ").length),
          font: parseFloat(frame.contentWindow.getComputedStyle(page.body).fontSize),
        };
      });
      document.body.textContent = JSON.stringify(found);
    });
    """
    return said_by(tmp_path, script, frames, 3000)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("write", [nasty_run, nasty_comparison])
@pytest.mark.parametrize("name", ["usual", LONG], ids=["usual", "long"])
def test_a_page_fits_a_phone_and_a_laptop(tmp_path, write, name):
    path = write(tmp_path, name)
    phone, *_, laptop = pages = in_browser(tmp_path, path)
    for found, width in zip(pages, WIDTHS, strict=True):
        # Less a scroll bar, where the browser gives it room of its own.
        assert width - 20 <= found["width"] <= width
        assert found["needed"] <= found["width"]
        assert found["images"] and all(found["images"]), "the policy lets figures be shown"
        assert abs(found["stuck"]) <= 1, "the first column stays where it is"
        assert found["font"] >= 16
        assert set(found["columns"]) == {2 if found is laptop else 1}
    assert phone["scrolled"] >= 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_many_models_scroll_in_a_box_of_their_own(tmp_path):
    draw(tmp_path, "variances")
    labels = [f"a model with a name {i}" for i in range(14)]
    path = write_comparison_report(tmp_path, compared(labels))
    for found in in_browser(tmp_path, path):
        assert found["needed"] <= found["width"] and found["scrolled"] >= 2
