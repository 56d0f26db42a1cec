"""Specs and variants: defaults, ramps, and one line for every mistake."""

import math
import tomllib
from typing import Annotated, Literal

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from ngvae_pyro import variants
from ngvae_pyro.cli import assign
from ngvae_pyro.errors import UserError
from ngvae_pyro.guide import load_guide
from ngvae_pyro.model import load_model
from ngvae_pyro.specs import (
    SELECT,
    AdversarialSpec,
    ConvSpec,
    FactorSpec,
    FitSpec,
    GaussianGuideSpec,
    GuideSpec,
    MLPSpec,
    ModelSpec,
    NormalGammaPriorSpec,
    Ramp,
    RelaxedGuideSpec,
    RunSpec,
    ScheduleSpec,
    SeparableSpec,
    Spec,
    parse,
)
from ngvae_pyro.variants import run_spec, spec_of

GUIDE = TypeAdapter(GuideSpec)


def test_ramp_linear_and_geometric():
    linear = Ramp(initial=0.0, begin=0.2, end=0.6)
    assert [linear(t) for t in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    geometric = Ramp(initial=16.0, begin=0.0, end=1.0, shape="geometric")
    assert [geometric(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([16, 8, 4, 1])
    step = Ramp(initial=3.0, begin=0.5, end=0.5)
    assert (step(0.5), step(0.51)) == (3.0, 1.0)


def test_price_is_minus_log_probs():
    assert -math.log(NormalGammaPriorSpec(price=4.0).slab_probs) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("spec", "values", "line"),
    [
        (ModelSpec, {"latent_siz": 3}, "unknown key 'latent_siz'; did you mean 'latent_size'?"),
        (FitSpec, {"adversarial": {"layer": 3}}, "unknown key 'adversarial.layer'; did you mean"),
        (
            FitSpec,
            {"adversarial": {"weight": -1.0}},
            "adversarial.weight: expected a number >= 0, got -1.0",
        ),
        (
            GUIDE,
            {"family": "gaussian_mixture", "schedule": {"silence": 0.5}},
            "schedule.silence belongs to the relaxed guide, not to gaussian_mixture",
        ),
        (ModelSpec, {"latent_size": -3}, "latent_size: expected a number > 0, got -3"),
        (ModelSpec, {"latent_size": 3.5}, "latent_size: expected a whole number, got 3.5"),
        (ModelSpec, {"latent_size": True}, "latent_size: expected a whole number, got True"),
        (
            ModelSpec,
            {"prior": {"family": "gausian"}},
            "prior.family: expected one of 'normal_gamma', 'gaussian', 'poisson', 'ard', 'own', "
            "got 'gausian'; did you mean 'gaussian'?",
        ),
        (ModelSpec, {"prior": {"pric": 3}}, "unknown key 'prior.pric'; did you mean 'price'?"),
        (
            ModelSpec,
            {"prior": {"family": "gaussian", "price": 3}},
            "unknown key 'prior.price' (known: family)",
        ),
        (ModelSpec, {"prior": 3}, "prior: expected a table, got 3"),
        (
            ModelSpec,
            {"prior": {"slab": [1, 2, 3]}},
            "prior.slab: expected an array of at most 2, got (1, 2, 3)",
        ),
        (ModelSpec, {"prior": {"slab": [1, "a"]}}, "prior.slab.1: expected a number, got 'a'"),
        (ModelSpec, {"prior": {"price": math.nan}}, "prior.price: expected a finite number"),
        (ModelSpec, {"likelihood": {"family": "gaussien"}}, "did you mean 'gaussian'?"),
        (
            ModelSpec,
            {"likelihood": {"scale": "foo"}},
            "likelihood.scale: expected a number or 'auto', got 'foo'",
        ),
        (
            ModelSpec,
            {"likelihood": {"scale": "atuo"}},
            "expected a number or 'auto', got 'atuo'; did you mean 'auto'?",
        ),
        (ModelSpec, {"likelihood": {"scale": -1}}, "a number >= 0.0001 or 'auto', got -1"),
        (ModelSpec, {"likelihood": {"scale": [1]}}, "a number or 'auto', got [1]"),
        (
            ModelSpec,
            {"likelihood": {"family": "bernoulli", "scale": 0.2}},
            "likelihood: scale belongs to the gaussian or student_t likelihood, not to bernoulli",
        ),
        (ModelSpec, {"decoder": {"kind": "conv", "depth": 2}}, "unknown key 'decoder.depth'"),
        (
            ModelSpec,
            {"prior": {"family": "poisson", "log_rate": [2, 1]}},
            "prior: log_rate: expected (low, high), got (2, 1)",
        ),
        (
            GUIDE,
            {"family": "relax"},
            "family: expected one of 'relaxed', 'mixture', 'flat', 'generalized', 'score', "
            "'gaussian', 'gaussian_mixture', 'epanechnikov', 'poisson', 'ard', 'own', got 'relax'; "
            "did you mean 'relaxed'?",
        ),
        (
            GUIDE,
            {"family": "poisson", "temperature": 0},
            "temperature: expected a number >= 0.0001",
        ),
        (GUIDE, {"family": "ard", "share": 1}, "share: expected a number < 1, got 1"),
        (GUIDE, {"family": "ard", "beta": 0}, "beta: expected a number > 0, got 0"),
        (
            ModelSpec,
            {"prior": {"family": "ard", "codes": 0}},
            "prior.codes: expected a number > 0, got 0",
        ),
        (GUIDE, {"sharpnes": 4}, "unknown key 'sharpnes'; did you mean 'sharpness'?"),
        (GUIDE, {"schedule": {"z": {"initial": -1}}}, "schedule.z.initial: expected a number >= 0"),
        (GUIDE, {"schedule": {"signal_nats": -1}}, "schedule.signal_nats: expected a number >= 0"),
        (GUIDE, {"schedule": {"z": 3}}, "schedule.z: expected a table, got 3"),
        (GUIDE, {"schedule": {"y": 3}}, "unknown key 'schedule.y'"),
        (
            GUIDE,
            {"schedule": {"z": {"initial": 2, "final": 3}}},
            "schedule: z.final must be 1, got 3",
        ),
        (
            GUIDE,
            {"schedule": {"z": {"initial": 2, "begin": 0.5, "end": 0.2}}},
            "schedule.z: end (0.2) must not come before begin (0.5)",
        ),
        (
            GUIDE,
            {"schedule": {"moves": [{"kind": "brith", "at": 0.2}]}},
            "schedule.moves.0.kind: expected one of 'birth', 'death', 'growth' or 'unfolding', "
            "got 'brith'; did you mean 'birth'?",
        ),
        (
            GUIDE,
            {"family": "gaussian", "schedule": {"silence": 0.8}},
            "mine.toml: schedule.silence belongs to the relaxed guide, not to gaussian",
        ),
        (
            GUIDE,
            {"family": "epanechnikov", "schedule": {"temperature": {"initial": 2}}},
            "mine.toml: schedule.temperature belongs to the poisson guide, not to epanechnikov",
        ),
        (
            GUIDE,
            {"schedule": {"temperature": {"initial": 2}}},
            "mine.toml: schedule.temperature belongs to the poisson guide, not to relaxed",
        ),
        (
            GUIDE,
            {"family": "poisson", "schedule": {"moves": [{"kind": "birth", "at": 0.2}]}},
            "mine.toml: schedule.moves belongs to the relaxed guide, not to poisson",
        ),
        (FitSpec, {"device": "tpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        (FitSpec, {"seed": -1}, "seed: expected a number >= 0, got -1"),
    ],
)
def test_every_mistake_is_one_line(spec, values, line):
    with pytest.raises(UserError) as caught:
        parse(spec, values, "mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml: ") and line in message and "\n" not in message


class Counted(Spec):
    """A number or a word in both orders, with two words and two kinds of number."""

    most: Annotated[int, Field(ge=1)] | Literal["none", "all"] = "all"
    share: Literal["auto"] | Annotated[float, Field(ge=0.0)] | bool = "auto"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"most": "al"}, "expected a whole number or 'none' or 'all', got 'al'; did you mean 'all"),
        ({"most": 0}, "most: expected a number >= 1 or 'none' or 'all', got 0"),
        ({"share": "x"}, "share: expected a number or true or false or 'auto', got 'x'"),
        ({"share": -1.0}, "share: expected a number >= 0 or true or false or 'auto', got -1.0"),
        ({"most": "x", "share": "x"}, "most: expected a whole number or 'none' or 'all', got 'x'"),
    ],
)
def test_of_a_number_or_a_word_the_line_names_both(values, line):
    with pytest.raises(UserError, match="^mine.toml: ") as caught:
        parse(Counted, values, "mine.toml")
    assert line in str(caught.value)


def test_a_changed_network_keeps_the_rest():
    def decoder(**changes):
        return parse(ModelSpec, {"decoder": changes}, "x").decoder

    assert ModelSpec().decoder == SeparableSpec(depth=4)
    assert decoder(width=64) == SeparableSpec(width=64)
    assert decoder(kind="mlp", width=64) == MLPSpec(width=64, depth=8)
    assert decoder(kind="mlp", depth=2) == MLPSpec(depth=2)
    assert decoder(kind="conv") == ConvSpec()
    assert parse(GUIDE, {"encoder": {"width": 64}}, "x").encoder == MLPSpec(width=64, depth=3)


def test_a_changed_schedule_keeps_the_rest():
    changes = {"z": {"begin": 0.2}, "signal_nats": 30, "moves": []}
    schedule = parse(GUIDE, {"schedule": changes}, "x").schedule
    expected = SELECT.model_copy(
        update={
            "z": SELECT.z.model_copy(update={"begin": 0.2}),
            "signal_nats": 30.0,
            "moves": (),
        }
    )
    assert schedule == expected
    spec = run_spec("normal_gamma", "relaxed", {"guide": {"schedule": changes}}, "command line")
    assert spec.guide.schedule == expected
    assert RelaxedGuideSpec(schedule=ScheduleSpec()).schedule == ScheduleSpec()
    gaussian = {"family": "gaussian", "schedule": {"z": {"initial": 2}}}
    assert parse(GUIDE, gaussian, "x").schedule == ScheduleSpec(z=Ramp(initial=2.0))
    poisson = {"family": "poisson", "schedule": {"temperature": {"end": 0.7}}}
    expected = ScheduleSpec(temperature=Ramp(initial=20.0, end=0.7))
    assert parse(GUIDE, poisson, "x").schedule == expected


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prior", "family", "price", "slab", "decoder", "kind", "width", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(
        st.sampled_from(["latent_size", "prior", "likelihood", "decoder", "schedule", "odd"]),
        json,
    ),
    st.sampled_from([ModelSpec, GUIDE]),
)
def test_any_table_is_a_spec_or_one_line(values, spec):
    try:
        parse(spec, values, "f")
    except UserError as error:
        assert "\n" not in str(error).encode("unicode_escape").decode()


def test_declared_variants_build_and_are_described():
    models = ["ard", "gaussian", "normal_gamma", "normal_gamma_joint", "poisson"]
    assert variants.names("models") == models
    baselines = ["beta_150", "beta_27", "beta_tc", "capacity", "dip_i", "dip_ii", "factor"]
    others = ["epanechnikov", "flat", "gaussian", "generalized", "mixture", "poisson", "relaxed"]
    others += ["ard", "fixed", "gamix", "gaussian_mixture", "score"]
    assert variants.names("guides") == sorted([*baselines, *others])
    for kind in variants.KINDS:
        for name in variants.names(kind):
            text = (variants.folder(kind) / f"{name}.toml").read_text()
            assert text.startswith("# ") and len(text.splitlines()) <= 20
            assert variants.describe(kind, name).endswith(".")
        assert (variants.folder(kind) / "README.md").is_file()


def test_the_keys_of_a_variant():
    keys = dict(
        (k, (v, d)) for k, v, d in variants.keys_of(variants.spec_of("guides", "beta_27", {}))
    )
    assert keys["objective.beta"] == (27.0, None) and keys["objective.kind"] == ("beta", "elbo")
    assert keys["encoder.width"] == (256, 256)
    for kind in variants.KINDS:
        for name in variants.names(kind):
            assert kind in variants.kinds_of(name)
            assert kind in variants.kinds_of(variants.folder(kind) / f"{name}.toml")
            assert list(variants.keys_of(variants.spec_of(kind, name, {})))


def test_what_a_file_declares(tmp_path):
    path = tmp_path / "own.toml"
    for text, kinds in (
        ("latent_size = 3", ["models"]),
        ("sharpness = 3.0", ["guides"]),
        ("", ["models", "guides"]),
        ("nonsense = 1", ["models", "guides"]),
    ):
        path.write_text(text)
        assert variants.kinds_of(path) == kinds
    with pytest.raises(UserError, match="unknown variant 'relax'; did you mean 'relaxed'"):
        variants.kinds_of("relax")


def test_unknown_variant_names_the_nearest():
    with pytest.raises(UserError, match="unknown model 'gausian'; did you mean 'gaussian'"):
        load_model("gausian")
    with pytest.raises(UserError, match="missing/none.toml: cannot read the file"):
        load_model("missing/none.toml")


def test_own_toml_and_own_spec(tmp_path):
    path = tmp_path / "wide.toml"
    path.write_text('latent_size = 7\n[decoder]\nkind = "conv"\n')
    from_file = load_model(path)
    from_spec = load_model(ModelSpec(latent_size=7, decoder=ConvSpec()))
    assert from_file.spec == from_spec.spec
    path.write_text("latent_size = \n")
    with pytest.raises(UserError, match=r"wide.toml: not valid TOML"):
        load_model(path)


def test_pairs_that_do_not_fit():
    with pytest.raises(UserError, match="guide family 'gaussian' does not fit .* 'normal_gamma'"):
        load_guide("gaussian", load_model("normal_gamma"))
    with pytest.raises(UserError, match="expected guide family gaussian"):
        load_guide("relaxed", load_model("gaussian"))


def test_changes_go_on_top_of_a_spec_of_ones_own():
    mine = GaussianGuideSpec(objective=FactorSpec(width=16))
    changed = spec_of("guides", mine, {"encoder": {"width": 8}})
    assert changed == GaussianGuideSpec(objective=FactorSpec(width=16), encoder=MLPSpec(width=8))


def test_changes_go_on_top_of_a_variant():
    model = load_model("normal_gamma_joint", latent_size=4)
    assert model.spec.prior.joint and model.latent_size == 4
    assert load_guide("relaxed", model, sharpness=10.0).spec.sharpness == 10.0


@pytest.mark.parametrize(
    ("model", "guide", "changes"),
    [
        ("normal_gamma", "relaxed", {"model": {"likelihood": {"family": "bernoulli"}}}),
        ("normal_gamma", "relaxed", {"model": {"likelihood": {"scale": 0.2, "learned": True}}}),
        ("normal_gamma_joint", "relaxed", {"guide": {"schedule": {"moves": [], "silence": 0.5}}}),
        ("gaussian", "gaussian", {"model": {"decoder": {"kind": "conv"}}}),
        ("gaussian", "gaussian", {"guide": {"encoder": {"kind": "conv", "channels": 4}}}),
        ("gaussian", "gaussian", {"model": {"likelihood": {"family": "continuous_bernoulli"}}}),
        ("gaussian", "epanechnikov", {"guide": {"schedule": {"z": {"initial": 2.0}}}}),
        ("poisson", "poisson", {"guide": {"schedule": {"temperature": {"end": 0.7}}}}),
        ("poisson", "poisson", {"model": {"prior": {"log_rate": [-6.0, -2.0]}}}),
        ("gaussian", "gaussian_mixture", {"guide": {"encoder": {"kind": "resnet_v2"}}}),
        ("ard", "ard", {"model": {"prior": {"codes": 500, "rate": 1.0}}, "guide": {"beta": 3.0}}),
        ("gaussian", "gamix", {"fit": {"adversarial": {"weight": 5}}}),
    ],
)
def test_what_is_written_is_read_again(model, guide, changes):
    spec = run_spec(model, guide, changes, "command line")
    written = tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True))
    assert parse(RunSpec, tomllib.loads(written), "config.toml") == spec


def test_assignments():
    values = {}
    for text in (
        "guide.sharpness=12",
        "model.prior.slab=[2.0, 1e-3]",
        "data.name=sprites:x",
        "fit.adversarial.weight=5",
    ):
        assign(values, text)
    spec = run_spec("normal_gamma", "relaxed", values, "command line")
    assert spec.guide.sharpness == 12.0
    assert spec.model.prior.slab == (2.0, 1e-3)
    assert spec.data.name == "sprites:x"
    assert spec.fit.adversarial == AdversarialSpec(weight=5.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sharpness=3", "expected part.key=value"),
        ("guide.sharpness", "expected part.key=value"),
        ("giude.sharpness=3", "unknown part 'giude'; did you mean 'guide'?"),
    ],
)
def test_bad_assignments(text, line):
    with pytest.raises(UserError) as caught:
        assign({}, text)
    assert line in str(caught.value)


def test_run_spec_round_trips_through_plain_values():
    spec = RunSpec(guide_name="gaussian", guide=GaussianGuideSpec())
    assert parse(RunSpec, spec.model_dump(mode="json", exclude_none=True), "again") == spec
    assert isinstance(RunSpec().guide, RelaxedGuideSpec)


def test_an_older_name_of_a_key_is_read():
    """Of runs that are there: their latents were made uncorrelated and not independent."""
    assert ScheduleSpec(decorrelate=0.9) == ScheduleSpec(independent=0.9)
    spec = parse(RelaxedGuideSpec, {"schedule": {"decorrelate": 0.7}}, "config.toml")
    assert spec.schedule == SELECT.model_copy(update={"independent": 0.7})
    both = {"schedule": {"decorrelate": 0.7, "independent": 1.0}}
    with pytest.raises(UserError, match="decorrelate is the older name of independent"):
        parse(RelaxedGuideSpec, both, "config.toml")
    with pytest.raises(UserError, match=r"schedule.independent: expected a number <= 1, got 2"):
        parse(RelaxedGuideSpec, {"schedule": {"independent": 2}}, "config.toml")
