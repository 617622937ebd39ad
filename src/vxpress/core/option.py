"""What an option is: a field of a frozen dataclass that declares which values it takes, when it applies, and its text.

Each option is declared once, with :func:`option`. Its name, type and default are those of the field. The rest is a
:class:`Declaration`: :func:`check` reads it when a configuration is built, :func:`check_used` when users give options,
:func:`documented` writes the docstring, and the codec of stored fits reads ``since``.
"""

from __future__ import annotations

import inspect
import math
import textwrap
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vxpress._checks import check_choice, check_range
from vxpress._similar import similar
from vxpress.core.registry import Registry

C = TypeVar("C")
U = TypeVar("U")
"""What an option can be besides a value: nothing in a configuration (``Never``), ``None`` where users may leave it out."""


@dataclass(frozen=True)
class Declaration:
    """What an option declares besides name, type and default.

    Numbers are from ``low`` to ``high``, either of which may be left out. Names are those of ``registry`` (messages offer
    only those from outside the package if ``own``), otherwise those of the ``Literal`` that is the type. ``label`` is the
    name in messages if it differs. An option with ``since``, the first release that stored it, is
    not stored while it has its default, which is also what a stored fit without it has. ``applies`` returns whether the
    option has an effect with given settings, ``needs`` is what to pass so that it does. ``text`` documents it.

    With ``of``, the name of another option that chooses a class from a registry, this one holds the options of that class,
    an instance of its ``Options``. With ``flat``, these are stored next to the other fields. An ``internal`` option of a
    class is stored and not offered to users.
    """

    low: float | None = None
    high: float | None = None
    registry: Registry[Any] | None = None
    own: bool = False
    label: str | None = None
    since: str | None = None
    of: str | None = None
    flat: bool = False
    internal: bool = False
    applies: Callable[[Any], bool] | None = None
    needs: str | Callable[[], str] = ""
    text: str = ""


def option(default: Any, text: str = "", **declared: Any) -> Any:
    """Declare an option as a field of a frozen dataclass.

    Parameters
    ----------
    default
        Its default, or a function that makes it.
    text
        Its documentation.
    **declared
        Further fields of :class:`Declaration`, above all ``low`` and ``high``, the range of a number.

    Returns
    -------
    A dataclass field.
    """
    metadata = declares(text=text, **declared)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def declares(**declared: Any) -> dict[str, Declaration]:
    """Return the metadata of a field without default."""
    return {"option": Declaration(**declared)}


def declaration(f: Field[Any]) -> Declaration:
    """Return what a field declares."""
    return cast("Declaration", f.metadata.get("option", Declaration()))


def default_of(f: Field[Any]) -> Any:
    """Return the default of a field, ``MISSING`` if it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def hints(cls: type) -> Mapping[str, Any]:
    """Return the types of all fields of a dataclass."""
    return _hints(cast("Hashable", cls))


@cache
def _hints(cls: Hashable) -> Mapping[str, Any]:
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
        value, of = getattr(config, f.name), declaration(f).of
        checked = (
            _checked(f, value, hints(type(config))[f.name])
            if of is None
            else _own_options(type(config), of, getattr(config, of), f.name, value)
        )
        if checked is not value:
            object.__setattr__(config, f.name, checked)


def check_option(cls: type, name: str, value: Any) -> Any:
    """Check one option of a dataclass before it is built, and return its value as a Python scalar."""
    return _checked(_field(cls, name), value, hints(cls)[name])


def _checked(f: Field[Any], value: Any, hint: Any) -> Any:
    kind, declared, nullable = kind_of(hint), declaration(f), type(None) in _parts(hint)
    label = declared.label or f.name
    several = get_origin(kind) is tuple
    if nullable and value is None:
        return None
    if several and not isinstance(value, tuple):
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            msg = f"{label}={value!r} was given; a list is expected."
            raise ValueError(msg)
        value = (value,) if isinstance(value, str) else tuple(value)
    if declared.registry is not None:
        for one in value if several else (value,):
            declared.registry.check(one, label, own=declared.own)
    elif get_origin(kind) is Literal:
        check_choice(label, value, kind)
    elif kind is bool and not isinstance(value, bool):
        msg = f"{label}={value!r} was given; {'True, False or None' if nullable else 'True or False'} is expected."
        raise ValueError(msg)
    elif declared.low is not None or declared.high is not None:
        low = -math.inf if declared.low is None else declared.low
        high = math.inf if declared.high is None else declared.high
        number = get_args(kind)[0] if several else kind
        for one in value if several else (value,):
            check_range(label, one, low, high, integer=number is int)
    return kind(value) if kind in (int, float) else value


def check_used(settings: Any, given: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if an option was given that has no effect with the other settings."""
    for f in fields(settings):
        declared = declaration(f)
        if f.name in given and declared.applies is not None and not declared.applies(settings):
            needs = declared.needs if isinstance(declared.needs, str) else declared.needs()
            msg = f"options=FitOptions({f.name}={given[f.name]!r}) has no effect unless you pass {needs}. Leave it out."
            raise ValueError(msg)


# options of a class that is chosen by name


@dataclass(frozen=True)
class Options:
    """Base class of the options of one prior or one decoder body: a frozen dataclass, by default without fields."""

    def __post_init__(self) -> None:
        check(self)


def options_class(cls: type, of: str, name: str) -> type[Options]:
    """Return the ``Options`` of the class that the option ``of`` of a configuration chooses by ``name``."""
    registry = declaration(_field(cls, of)).registry
    assert registry is not None  # noqa: S101 - it chooses a class
    registry.check(name, declaration(_field(cls, of)).label or of)
    found: type[Options] = registry[name].Options
    return found


def offered(kind: type[Options]) -> list[str]:
    """List the options that users can give."""
    return [f.name for f in fields(kind) if not declaration(f).internal]


def check_offered(kind: type[Options], given: object, argument: str, owner: str) -> None:
    """Check names and types of options that a user gives for a class, which ``owner`` names as in ``prior='vamp'``.

    Raises ``TypeError`` if they are not a mapping, and ``ValueError`` for an unknown name or a value of another type.
    """
    if not isinstance(given, Mapping):
        msg = f"{argument}={given!r} was given; a dict with the options of {owner} by name is expected."
        raise TypeError(msg)
    known = offered(kind)
    for name, value in given.items():
        if name not in known:
            meant = similar(str(name), known)
            hint = (
                f"Did you mean {' or '.join(map(repr, meant))}?" if meant else f"It has {', '.join(map(repr, known))}."
            )
            msg = f"{argument} holds {name!r}, which is not an option of {owner}. {hint if known else 'It has none.'}"
            raise ValueError(msg)
        _check_type(f"{argument}: {name}", value, kind_of(hints(kind)[name]), declaration(_field(kind, name)))


def _check_type(label: str, value: Any, kind: Any, declared: Declaration) -> None:
    """Raise ``ValueError`` unless a value has the type of an option, and is in its range, if that is a scalar."""
    if kind in (int, float):
        low = -math.inf if declared.low is None else declared.low
        high = math.inf if declared.high is None else declared.high
        check_range(label, value, low, high, integer=kind is int)
    elif kind in (bool, str) and not isinstance(value, kind):
        msg = f"{label}={value!r} was given; {'True or False' if kind is bool else 'a string'} is expected."
        raise ValueError(msg)


def _own_options(cls: type, of: str, name: str, argument: str, value: Any) -> Options:
    """Return the options of the chosen class; they may be given as a mapping, and by default are its defaults."""
    kind = options_class(cls, of, name)
    if isinstance(value, kind):
        return value
    if type(value) is Options:
        value = {}
    if not isinstance(value, Mapping):
        msg = f"{argument}={value!r} was given; options of {of}={name!r} are expected, {kind.__name__}(...)."
        raise TypeError(msg)
    return kind(**value)


def _field(cls: type, name: str) -> Field[Any]:
    return next(f for f in fields(cls) if f.name == name)


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
