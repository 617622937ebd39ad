"""What an option is: a field of a frozen dataclass that declares which values it takes, when it applies, and its text.

Each option is declared once, with :func:`option`. Its name, type and default are those of the field. The rest is a
:class:`Declaration`: :func:`check` reads it when a configuration is built, :func:`check_used` when users give options,
:func:`documented` writes the docstring, and the codec of stored fits reads ``since``.
"""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vxpress._checks import check_choice, check_range
from vxpress.core.registry import Registry

C = TypeVar("C")
U = TypeVar("U")
"""What an option can be besides a value: nothing in a configuration (``Never``), ``None`` where users may leave it out."""


@dataclass(frozen=True)
class Declaration:
    """What an option declares besides name, type and default.

    Numbers are from ``low`` to ``high``. Names are those of ``registry``, otherwise those of the ``Literal`` that is the
    type. ``label`` is the name in messages if it differs. An option with ``since``, the first release that stored it, is
    not stored while it has its default, which is also what a stored fit without it has. ``applies`` returns whether the
    option has an effect with given settings, ``needs`` is what to pass so that it does. ``text`` documents it.
    """

    low: float | None = None
    high: float | None = None
    registry: Registry[Any] | None = None
    label: str | None = None
    since: str | None = None
    applies: Callable[[Any], bool] | None = None
    needs: str | Callable[[], str] = ""
    text: str = ""


def option(default: Any, text: str = "", **declared: Any) -> Any:
    """Declare an option: the default and the text of the field, and what else :class:`Declaration` holds."""
    metadata = declares(text=text, **declared)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def declares(**declared: Any) -> dict[str, Declaration]:
    """Return the metadata of a field without default."""
    return {"option": Declaration(**declared)}


def declaration(f: Field[Any]) -> Declaration:
    """Return what a field declares."""
    found = f.metadata.get("option", _NOTHING)
    assert isinstance(found, Declaration)  # noqa: S101 - written by option()
    return found


_NOTHING = Declaration()


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """Return the types of all fields of a dataclass."""
    return get_type_hints(cls)


def kind_of(hint: Any) -> Any:
    """Return the type of an option that may also be ``None``, without it."""
    return next(part for part in _parts(hint) if part is not type(None) and not isinstance(part, TypeVar))


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


# checks


def check(config: Any) -> None:
    """Check every field of a frozen dataclass, and convert numpy scalars to Python scalars.

    Raises ``ValueError`` that names the field, what was found and what is expected.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        checked = _checked(f, value, hints(config.__class__)[f.name])
        if checked is not value:
            object.__setattr__(config, f.name, checked)


def check_option(cls: type, name: str, value: Any) -> Any:
    """Check one option of a dataclass before it is built, and return its value as a Python scalar."""
    return _checked(next(f for f in fields(cls) if f.name == name), value, hints(cls)[name])


def _checked(f: Field[Any], value: Any, hint: Any) -> Any:
    kind, declared, nullable = kind_of(hint), declaration(f), type(None) in _parts(hint)
    label = declared.label or f.name
    several = get_origin(kind) is tuple
    if nullable and value is None:
        return None
    if declared.registry is not None:
        for one in value if several else (value,):
            declared.registry.check(one, label)
    elif get_origin(kind) is Literal:
        check_choice(label, value, kind)
    elif kind is bool and not isinstance(value, bool):
        msg = f"{label}={value!r} was given; {'True, False or None' if nullable else 'True or False'} is expected."
        raise ValueError(msg)
    elif declared.low is not None and declared.high is not None:
        number = get_args(kind)[0] if several else kind
        for one in value if several else (value,):
            check_range(label, one, declared.low, declared.high, integer=number is int)
    return kind(value) if kind in (int, float) else value


def check_used(settings: Any, given: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if an option was given that has no effect with the other settings."""
    for f in fields(settings):
        declared = declaration(f)
        if f.name in given and declared.applies is not None and not declared.applies(settings):
            needs = declared.needs if isinstance(declared.needs, str) else declared.needs()
            msg = f"options=FitOptions({f.name}={given[f.name]!r}) has no effect unless you pass {needs}. Leave it out."
            raise ValueError(msg)


# options that users may leave out


def unset_by_default(cls: type[C]) -> type[C]:
    """Make ``None``, which leaves the choice to a preset, the default of every option of a class to be made a dataclass."""
    own = inspect.get_annotations(cls)
    annotations: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        for f in fields(base) if is_dataclass(base) else ():
            annotations[f.name] = kind_of(hints(base)[f.name]) | None
            setattr(cls, f.name, field(default=None, metadata=f.metadata))
    cls.__annotations__ = annotations | own
    return cls


def documented(cls: type[C]) -> type[C]:
    """Add the texts of the options to the docstring of a dataclass, as its parameters, before the section "Examples"."""
    entries = [f"{f.name}\n{textwrap.indent(inspect.cleandoc(declaration(f).text), '    ')}" for f in fields(cls)]  # type: ignore[arg-type]
    section = "\n".join(("Parameters", "----------", *entries, "", ""))
    summary, heading, examples = textwrap.dedent(f"    {cls.__doc__}").partition("Examples\n--------\n")
    cls.__doc__ = summary + section + heading + examples
    return cls
