"""What may be chosen is declared once: names and registries, and defaults wherever they stand, agree."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest

import vxpress as vx
from vxpress._cli import _parser
from vxpress.bridge.fits.fit_arguments import CheckedArguments, check_arguments
from vxpress.core import config, settings
from vxpress.core.bodies import DECODERS
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import SOURCES
from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.objectives import OBJECTIVES
from vxpress.core.option import declaration, default_of, kind_of
from vxpress.core.priors import PRIORS
from vxpress.core.settings import PRESETS, THINNING, FitOptions, Settings, model_config, preset_settings, train_config

SIGNATURE = inspect.signature(vx.tl.fit_vae).parameters
SETTINGS = {f.name: default_of(f) for f in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (config.LikelihoodName, LIKELIHOODS),
        (config.PriorName, PRIORS),
        (config.DecoderName, DECODERS),
        (config.ObjectiveName, OBJECTIVES),
        (config.SourceName, SOURCES),
        (config.Preset, {name for name in PRESETS if name is not None}),
    ],
)
def test_a_name_stands_in_its_registry(names: Any, registry: Any) -> None:
    assert set(get_args(names)) == set(registry)


def _fields(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def defaults_of_the_call() -> CheckedArguments:
    return check_arguments({name: parameter.default for name, parameter in SIGNATURE.items()})


def test_the_defaults_of_the_configurations_are_those_of_a_fit() -> None:
    settings = defaults_of_the_call().settings
    # options that earlier releases did not store are off in a configuration without them, and switched on by a fit
    later = PRESETS[None]
    assert settings == replace(Settings(), **later)
    of_model, of_training = (
        {name: later[name] for name in _fields(kind) & set(later)} for kind in (ModelConfig, TrainConfig)
    )
    assert model_config(settings, n_genes=1_000) == ModelConfig(n_genes=1_000, thinning=THINNING, **of_model)
    # with few cells, because the number of cells decides the size of a minibatch
    few = settings.sized(1_000)
    n_epochs = few.max_epochs(1_000, 0)
    assert train_config(few, n_epochs) == TrainConfig(max_epochs=n_epochs, **of_training)


def test_only_options_that_stored_fits_may_lack_have_a_default_apart_from_their_configuration() -> None:
    declared = {f.name: declaration(f).since for kind in (ModelConfig, TrainConfig) for f in dataclasses.fields(kind)}
    assert {name for name in PRESETS[None] if declared[name] is None} == set()


@pytest.mark.parametrize(("n_genes", "part"), [(1, 0.001), (80, 0.08), (1_000, 1.0), (20_000, 1.0)])
def test_a_panel_of_few_genes_is_hidden_less(n_genes: int, part: float) -> None:
    found = model_config(preset_settings(n_latent=1), n_genes=n_genes)
    assert (found.dropout, found.thinning) == pytest.approx((0.3 * part, 0.9 * part))
    given = model_config(preset_settings(n_latent=1, dropout=0.2, thinning=0.5), n_genes=n_genes)
    assert (given.dropout, given.thinning) == (0.2, 0.5)


@pytest.mark.parametrize(("n_train", "size"), [(2, 128), (499, 128), (500, 256), (1_499, 256), (1_500, 512)])
def test_more_cells_have_larger_minibatches(n_train: int, size: int) -> None:
    assert preset_settings().sized(n_train).batch_size == size


# the defaults of SCVI and of its training in scvi-tools 1.5.1, in the words of vxpress
SCVI = {
    "likelihood": "zinb",
    "dispersion": "gene",
    "n_latent": 10,
    "n_hidden": 128,
    "n_layers": 1,
    "dropout": 0.1,
    "thinning": 0.0,
    "norm": "batch",
    "norm_momentum": 0.01,
    "norm_eps": 1e-3,
    "bias_before_norm": True,
    "encode_covariates": False,
    "condition_output": False,
    "covariate_code": "one-hot",
    "decoder": "mlp",
    "blocks": (),
    "prior": "normal",
    "objective": "elbo",
    "start": "random",
    "batch_size": 128,
    "optimizer": "adam",
    "schedule": "constant",
    "learning_rate": 1e-3,
    "weight_decay": 1e-6,
    "adam_eps": 0.01,
    "max_grad_norm": 0.0,
    "beta": 1.0,
    "free_bits": 0.0,
    "encoder_steps": 0,
    "kl_schedule": "linear",
    "kl_warmup": 400.0,
    "warmup_unit": "epochs",
    "early_stopping": False,
    "keep_best": False,
    "refit_dispersion": False,
    "library_of_modelled_genes": True,
    "screen_covariates": False,
    "epochs": "scvi-tools",
}
# settings that have no effect with these, or none on the model
WITHOUT_EFFECT = {
    "n_embedding", "n_samples", "patience", "kl_cycles", "kl_capacity", "free_bits_form", "prior_components", "prior_options",
    "decoder_options", "readout", "source", "hidden_share", "most_thinned",
}  # fmt: skip


def test_the_scvi_preset_has_every_setting_of_scvi_tools() -> None:
    built = vars(preset_settings("scvi"))
    assert set(SCVI) | WITHOUT_EFFECT == set(built)  # a new option is decided here, too
    assert {name: built[name] for name in SCVI} == SCVI


def test_the_scvi_preset_names_every_setting_in_which_the_defaults_differ() -> None:
    defaults = vars(preset_settings(None))
    assert {name for name in SCVI if defaults[name] != SCVI[name]} <= set(PRESETS["scvi"])


def test_a_fit_of_several_modalities_has_defaults_of_its_own() -> None:
    given = {name: parameter.default for name, parameter in SIGNATURE.items()}
    several = {"modalities": {"rna": "nb", "protein": "nb_mixture"}}
    alone, joint, mine = (
        settings.resolve(given | change) for change in ({}, several, {**several, "n_hidden": 64, "beta": 2.0})
    )
    assert {name for name, value in vars(joint).items() if value != getattr(alone, name)} == set(settings.JOINT)
    assert (mine.n_hidden, mine.beta, mine.batch_size) == (64, 2.0, settings.JOINT["batch_size"])
    assert settings.resolve(given | several | {"preset": "likelihood"}) == settings.resolve(
        given | {"preset": "likelihood"}
    )
    assert joint.max_epochs(6_000, 600) == pytest.approx(2 * alone.max_epochs(6_000, 600), abs=1)
    text = " ".join((inspect.getdoc(vx.tl.fit_vae) or "").split())
    assert f"``n_hidden`` ({settings.JOINT['n_hidden']})" in text


def test_the_documented_training_budget_is_true() -> None:
    text = " ".join((inspect.getdoc(vx.tl.fit_vae) or "").split())
    assert f"corresponds to {settings.VISITS:,} visits of cells for up to {settings.VISITS_UP_TO:,} cells" in text
    assert f"at most {settings.MAX_EPOCHS} epochs" in text


def test_every_setting_is_given_in_one_place_and_left_to_the_preset_by_default() -> None:
    options = {f.name: f.default for f in dataclasses.fields(FitOptions)}
    assert set(options) <= set(SETTINGS)
    assert set(options.values()) == {None}
    of_signature = {name: SIGNATURE[name].default for name in set(SIGNATURE) & set(SETTINGS)}
    assert {"likelihood", "n_latent", "prior", "objective", "early_stopping"} <= set(of_signature)
    with_one_default = {name: value for name, value in of_signature.items() if value is not None}
    assert with_one_default == {"dispersion": SETTINGS["dispersion"]}
    assert not set(of_signature) & set(options)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_changes_settings_that_exist(preset: Any) -> None:
    assert set(PRESETS[preset]) <= set(SETTINGS)
    built = preset_settings(preset, n_latent=7, dropout=0.4)
    expected = {name: value for name, value in SETTINGS.items() if name not in PRESETS[preset]}
    for name, value in (expected | PRESETS[preset] | {"n_latent": 7, "dropout": 0.4}).items():
        assert getattr(built, name) == value, name


def test_an_option_has_the_type_that_it_has_in_the_configuration() -> None:
    hints = {name: hint for kind in (ModelConfig, TrainConfig, Settings) for name, hint in get_type_hints(kind).items()}
    for name, hint in get_type_hints(FitOptions).items():
        assert type(None) in get_args(hint), name
        assert kind_of(hint) == kind_of(hints[name]), name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n_latent", r"(\d+) by default, because"),
        ("n_hidden", r"(\d+) by default"),
        ("n_layers", r"(\d+) by default"),
        ("n_samples", r"``\"dreg\"``; (\d+) by default"),
        ("kl_cycles", r"cyclical schedule; (\d+) by default"),
        ("encoder_steps", r"(\d+) by default"),
        ("prior_components", r"``prior=\"vamp\"``; (\d+) by default"),
    ],
)
def test_documented_defaults_are_true(name: str, text: str) -> None:
    documented = inspect.getdoc(vx.tl.fit_vae if name in SIGNATURE else FitOptions) or ""
    entry = re.search(rf"^{name}(?: :.*)?\n((?:    .*\n|\n)+)", documented, flags=re.MULTILINE)
    assert entry is not None
    found = re.search(text, " ".join(entry[1].split()))
    assert found is not None
    assert int(found[1]) == SETTINGS[name]


def test_the_command_line_offers_what_the_call_takes() -> None:
    commands = next(action for action in _parser()._actions if hasattr(action, "choices") and action.choices)
    fit: Any = dict(commands.choices)["fit"]  # type: ignore[arg-type]
    hints = get_type_hints(vx.tl.fit_vae)
    compared = set()
    for action in fit._actions:
        if action.choices and action.dest in SIGNATURE:
            valid = {
                value
                for part in (hints[action.dest], *get_args(hints[action.dest]))
                for value in get_args(part)
                if isinstance(value, str)
            }
            assert set(action.choices) == valid, action.dest
            compared.add(action.dest)
    assert {"likelihood", "preset", "prior", "objective"} <= compared
