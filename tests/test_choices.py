"""What may be chosen is declared once: names and registries, and defaults wherever they stand, agree."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args, get_type_hints

import pytest

import vxpress as vx
from vxpress._cli import _parser
from vxpress.core import config
from vxpress.core.bodies import DECODERS
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.likelihoods import LIKELIHOODS
from vxpress.core.objectives import OBJECTIVES
from vxpress.core.priors import PRIORS
from vxpress.core.settings import PRESETS, FitOptions, Settings

SIGNATURE = inspect.signature(vx.tl.fit_vae).parameters
SETTINGS = {f.name: f.default for f in dataclasses.fields(Settings)}
# what a preset leaves to the number of cells
SIZED = {"batch_size", "learning_rate"}


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (config.LikelihoodName, LIKELIHOODS),
        (config.PriorName, PRIORS),
        (config.DecoderName, DECODERS),
        (config.ObjectiveName, OBJECTIVES),
        (config.Preset, {name for name in PRESETS if name is not None}),
    ],
)
def test_a_name_stands_in_its_registry(names: Any, registry: Any) -> None:
    assert set(get_args(names)) == set(registry)


@pytest.mark.parametrize("kind", [ModelConfig, TrainConfig])
def test_a_config_has_the_defaults_of_the_settings(kind: Any) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    shared = (set(defaults) & set(SETTINGS)) - SIZED - {"prior"}
    assert len(shared) > 10
    assert {name: defaults[name] for name in shared} == {name: SETTINGS[name] for name in shared}


def test_what_a_preset_decides_is_left_to_it() -> None:
    options = {f.name: f.default for f in dataclasses.fields(FitOptions)}
    assert set(options) <= set(SETTINGS)
    assert set(options.values()) == {None}
    of_signature = set(SIGNATURE) & set(SETTINGS)
    assert {"likelihood", "n_latent", "prior", "objective", "early_stopping"} <= of_signature
    assert {name: SIGNATURE[name].default for name in of_signature} == dict.fromkeys(of_signature)
    # each is set in one place
    assert not of_signature & set(options)


def test_the_other_defaults_of_the_call_are_those_of_the_configs() -> None:
    defaults = {f.name: f.default for kind in (ModelConfig, TrainConfig) for f in dataclasses.fields(kind)}
    for name in (set(SIGNATURE) & set(defaults)) - set(SETTINGS):
        if SIGNATURE[name].default is not None:
            assert SIGNATURE[name].default == defaults[name], name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n_latent", r"(\d+) by default, 20 with"),
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
