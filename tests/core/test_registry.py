"""Registries find what is registered, and refuse what would hide it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import vxpress.core.registry as registries
from vxpress.core.registry import Registry


def test_names_are_found_in_the_order_of_registration() -> None:
    registry = Registry("shape", {"b": 1})
    registry.register("a", 2)
    assert list(registry) == ["b", "a"]
    assert registry["a"] == 2


def test_a_taken_name_is_refused_unless_it_is_to_be_replaced() -> None:
    registry = Registry("shape", {"a": 1})
    with pytest.raises(ValueError, match="shape named 'a' is already registered"):
        registry.register("a", 2)
    assert registry["a"] == 1
    registry.register("a", 2, replace=True)
    assert registry["a"] == 2


@pytest.mark.parametrize("name", ["", "two words", "a/b"])
def test_a_name_that_could_not_be_an_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a shape"):
        Registry[int]("shape").register(name, 1)


def test_the_error_for_an_unknown_name_lists_the_known_ones() -> None:
    registry = Registry("shape", {"round": 1, "flat": 2})
    registry.check("flat")
    with pytest.raises(ValueError, match=r"form='square' is not known; choose one of 'round', 'flat'\."):
        registry.check("square", "form")
    with pytest.raises(ValueError, match="shape=None is not known"):
        registry.check(None)


def test_the_home_of_a_registry_is_imported_at_its_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("vxpress.core.registry.SHAPES", Registry("shape", home="some_shapes"), raising=False)
    (tmp_path / "some_shapes.py").write_text(
        "from vxpress.core.registry import SHAPES\nassert not SHAPES\nSHAPES.register('round', 1)\n"
    )
    assert list(registries.SHAPES) == ["round"]  # type: ignore[attr-defined]
    # not a second time
    registries.SHAPES.remove("round")  # type: ignore[attr-defined]
    assert "round" not in registries.SHAPES  # type: ignore[attr-defined]


def test_a_home_that_cannot_be_imported_is_tried_again() -> None:
    registry = Registry[int]("shape", home="vxpress.nowhere")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="nowhere"):
            registry.check("round")


@pytest.mark.parametrize(
    ("registry", "place"), [("LIKELIHOODS", "likelihoods"), ("PRIORS", "priors"), ("OBJECTIVES", "objectives")]
)
def test_a_registry_is_found_where_its_classes_are_defined(registry: str, place: str) -> None:
    module = importlib.import_module(f"vxpress.core.{place}")
    assert getattr(module, registry) is getattr(registries, registry)
