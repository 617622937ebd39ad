"""An option is what it declares: its values are checked, its text is the docstring, and None leaves it unset."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, Generic, Literal, Never

import numpy as np
import pytest

from vxpress.core.option import U, check, check_option, check_used, documented, option, unset_by_default
from vxpress.core.registry import Registry

SHAPES = Registry("shape", {"round": 1, "flat": 2})


@dataclass(frozen=True, kw_only=True)
class Choosable(Generic[U]):
    width: int | U = option(3, "How wide. It is a whole number.", low=1, high=9)
    rate: float | U = option(
        0.5,
        """A rate, with a text of
        two lines.""",
        low=0.0,
        high=1.0,
        applies=lambda settings: settings.width > 3,
        needs="width=4",
    )
    shape: str | U = option("round", "A name.", registry=SHAPES)
    mode: Literal["a", "b"] | U = option("a", "A letter.")
    on: bool | U = option(True, "A switch.")


@dataclass(frozen=True, kw_only=True)
class Config(Choosable[Never]):
    sizes: tuple[int, ...] = option((), low=1, high=5)
    seed: int | None = option(None, low=0, high=9)
    quiet: bool | None = None

    def __post_init__(self) -> None:
        check(self)


@documented
@dataclass(frozen=True, kw_only=True)
@unset_by_default
class Given(Choosable[None]):
    """What is given.

    Examples
    --------
    >>> 1
    1
    """

    extra: int | None = option(None, "One more.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, r"width=0 was given; a whole number from 1 to 9 is expected\."),
        ({"width": 2.0}, r"width=2\.0 was given; a whole number"),
        ({"width": True}, r"width=True was given; a whole number"),
        ({"width": None}, r"width=None was given; a whole number"),
        ({"rate": float("nan")}, r"rate=nan was given; a number from 0 to 1 is expected\."),
        ({"rate": "1"}, r"rate='1' was given; a number"),
        ({"shape": "square"}, r"shape='square' is not known; choose one of 'round', 'flat'\."),
        ({"shape": ["round"]}, r"shape=\['round'\] is not known"),
        ({"mode": "c"}, r"mode='c' is not known; choose one of 'a', 'b'\."),
        ({"on": 1}, r"on=1 was given; True or False is expected\."),
        ({"sizes": (1, 6)}, r"sizes=6 was given; a whole number from 1 to 5"),
        ({"sizes": 3}, r"sizes=3 was given; a list is expected\."),
        ({"seed": -1}, r"seed=-1 was given; a whole number from 0 to 9"),
        ({"quiet": 0}, r"quiet=0 was given; True, False or None is expected\."),
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**values)


def test_numbers_of_numpy_become_numbers_of_python() -> None:
    config = Config(width=np.int64(4), rate=np.float32(0.25), seed=None)  # type: ignore[arg-type]
    assert (type(config.width), type(config.rate)) == (int, float)
    assert config == Config(width=4, rate=0.25)
    assert type(check_option(Config, "width", np.int32(4))) is int
    assert Config(rate=1) == Config(rate=1.0)
    assert Config(sizes=[1, 2]).sizes == (1, 2)  # type: ignore[arg-type]


def test_a_name_that_is_registered_later_is_accepted() -> None:
    SHAPES.register("long", 3)
    try:
        assert Config(shape="long").shape == "long"
    finally:
        SHAPES.remove("long")


def test_an_option_without_effect_is_refused_only_if_it_was_given() -> None:
    check_used(Config(), {"width": 3})
    check_used(Config(width=4), {"rate": 0.1})
    with pytest.raises(
        ValueError, match=r"FitOptions\(rate=0\.1\) has no effect unless you pass width=4\. Leave it out"
    ):
        check_used(Config(), {"rate": 0.1})


def test_every_option_can_be_left_out_and_is_documented_by_its_text() -> None:
    assert set(vars(Given()).values()) == {None}
    assert Given(width=None, rate=0.1) == Given(rate=0.1)
    assert list(inspect.signature(Given).parameters) == ["width", "rate", "shape", "mode", "on", "extra"]
    assert inspect.signature(Given).parameters["width"].annotation == int | None
    assert (inspect.getdoc(Given) or "").splitlines() == [
        "What is given.",
        "",
        "Parameters",
        "----------",
        "width",
        "    How wide. It is a whole number.",
        "rate",
        "    A rate, with a text of",
        "    two lines.",
        "shape",
        "    A name.",
        "mode",
        "    A letter.",
        "on",
        "    A switch.",
        "extra",
        "    One more.",
        "",
        "Examples",
        "--------",
        ">>> 1",
        "1",
    ]
    # the class it inherits from keeps its defaults
    assert Config().width == 3


def test_what_was_given_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Given().width = 3  # type: ignore[misc]


@dataclass(frozen=True)
class OneSided:
    at_least: float = option(1.0, low=0.1)
    at_most: int = option(1, high=3)

    def __post_init__(self) -> None:
        check(self)


def test_a_range_may_be_open_on_one_side() -> None:
    assert OneSided(at_least=1e9, at_most=-5) == OneSided(1e9, -5)
    with pytest.raises(ValueError, match=r"at_least=0\.0 was given; a number of at least 0\.1 is expected"):
        OneSided(at_least=0.0)
    with pytest.raises(ValueError, match="at_most=4 was given; a whole number of at most 3 is expected"):
        OneSided(at_most=4)
