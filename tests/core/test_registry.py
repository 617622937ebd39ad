"""Registries find what is registered, and refuse what would hide it."""

from __future__ import annotations

import pytest

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
