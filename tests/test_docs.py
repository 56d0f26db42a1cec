"""The documentation says what the code has."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pyro
import pytest
import torch

import ngvae_pyro
from ngvae_pyro.guide import Codes
from ngvae_pyro.specs import DataSpec, FitSpec, NormalGammaPriorSpec, RelaxedGuideSpec

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
MODULES = sorted(page.stem for page in (DOCS / "api").glob("*.rst") if page.stem != "index")


@pytest.mark.parametrize(("table", "spec"), [("fit", FitSpec), ("data", DataSpec)])
def test_the_table_of_keys_has_every_key_with_its_default(table, spec):
    text = (ROOT / "docs" / "running.md").read_text()
    rows = re.findall(rf"^\| `{table}\.(\w+)` \| ([^|]*) \|", text, re.MULTILINE)

    def shown(value):
        if value is None:
            return "none"
        return f"`{value}`" if isinstance(value, str) else str(value).lower()

    defaults = {name: field.default for name, field in spec.model_fields.items()}
    assert [name for name, _ in rows] == list(defaults)
    for name, default in rows:
        expected = defaults[name]
        assert default == shown(expected) or float(default) == expected, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_of_a_page_lead_somewhere_in_a_plain_viewer(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_every_public_module_has_a_page_of_the_reference():
    named = set(re.findall(r"^   (\w+)$", (DOCS / "api" / "index.rst").read_text(), re.MULTILINE))
    assert named == set(MODULES)
    assert set(ngvae_pyro._MODULES) <= named
    assert ".. public-names:: ngvae_pyro\n" in (DOCS / "api" / "index.rst").read_text()


@pytest.mark.parametrize("name", MODULES)
def test_a_page_of_the_reference_is_of_its_module(name):
    assert f".. public-names:: ngvae_pyro.{name}\n" in (DOCS / "api" / f"{name}.rst").read_text()
    # The directive asks for what stands in the module under names without an underscore.
    module = importlib.import_module(f"ngvae_pyro.{name}")
    assert any(callable(value) for key, value in vars(module).items() if key[0] != "_")


def test_the_notation_has_every_number_of_the_posterior_and_the_prior():
    notation = (DOCS / "concepts.md").read_text().partition("## Notation")[2]
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", notation))))
    named = {field.name for field in dataclasses.fields(Codes)} - {"variance"}
    for spec in (NormalGammaPriorSpec, RelaxedGuideSpec):
        named |= set(spec.model_fields)
    # Not quantities: what a spec is of, its network, its objective and its training.
    named -= {"family", "joint", "encoder", "objective", "schedule", "label"}
    assert named <= words


def blocks(page, kind):
    text = (DOCS / f"{page}.md").read_text()
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "count"),
    [
        *(("own_model", 5), ("own_guide", 7), ("own_network", 2)),
        *(("likelihoods", 3), ("covariates", 2), ("coming_from", 6)),
        pytest.param(
            *("own_pair", 2), marks=pytest.mark.filterwarnings("ignore:.*trains without moves")
        ),
        pytest.param("tutorials/your_data", 8, marks=pytest.mark.slow),
    ],
)
def test_the_cells_of_a_page_run(page, count):
    cells = blocks(page, "{code-cell}")
    assert len(cells) == count
    cells = [cell.removeprefix(":tags: [remove-cell]\n") for cell in cells]
    # The site trains them to their ends.
    code, shortened = re.subn(r"(steps=|STEPS = 6, 10, 0\.1, )\d+", r"\g<1>10", "\n".join(cells))
    assert shortened
    with pyro.get_param_store().scope():
        exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize(
    ("page", "kind", "first"),
    [
        ("own_network", "{code-cell}", "import torch"),
        ("likelihoods", "python", "class Laplace"),
        ("own_guide", "{code-cell}", "import pyro"),
        ("own_pair", "{code-cell}", "import pyro"),
        ("python", "python", "class Hour"),
    ],
)
def test_what_is_ones_own_takes_25_lines(page, kind, first):
    (example,) = [code for code in blocks(page, kind) if code.startswith(first)]
    assert len([line for line in example.splitlines() if line]) <= 25


def test_the_callback_of_a_page_ends_a_training(capsys):
    (code,) = [code for code in blocks("python", "python") if code.startswith("class Hour")]
    code = code.partition("\n\n\nfit = ")[0].replace("> 3600", "> 0")
    names = {"ng": ngvae_pyro}
    exec(compile(code, "python", "exec"), names)
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    model = ngvae_pyro.load_model("gaussian", rows, latent_size=2)
    guide = ngvae_pyro.load_guide("gaussian", model)
    how = {"steps": 100, "batch_size": 8, "device": "cpu", "progress": False}
    fit = ngvae_pyro.fit(model, guide, rows, validation=0.2, callbacks=[names["Hour"]()], **how)
    assert fit.skipped == 95 and capsys.readouterr().out.startswith("0 ")


def test_a_network_of_a_page_is_found_by_its_name(tmp_path, monkeypatch):
    first, _ = blocks("own_network", "{code-cell}")
    example = [line for line in first.splitlines() if line]
    assert len(example) <= 25
    (tmp_path / "mynets.py").write_text(first.partition("\n\n\ndata = ")[0])
    (tmp_path / "mine.toml").write_text(blocks("own_network", "toml")[0])
    monkeypatch.chdir(tmp_path)
    decoder = ngvae_pyro.load_model("mine.toml", (3, 32, 32)).decoder
    assert type(decoder.trunk).__name__ == "Pictures" and decoder.stem.out_features == 64
    assert decoder.steady
    sys.modules.pop("mynets")
