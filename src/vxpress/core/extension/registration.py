"""Checks of a class that is registered from outside the package: base, methods, constructor and options.

What a class lacks is reported when it is registered, not by an error from inside a fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import getattr_static
from typing import Any

from torch.distributions import Distribution

from vxpress.core.blocks import BLOCKS, Block, NormalBlock
from vxpress.core.bodies import DECODERS, Body
from vxpress.core.data import SOURCES, Source
from vxpress.core.likelihoods import LIKELIHOODS, Likelihood, Output, Shares
from vxpress.core.maps import MAPS, LatentMap
from vxpress.core.objectives import OBJECTIVES, Objective
from vxpress.core.option import Options
from vxpress.core.priors import PRIORS, Prior
from vxpress.core.registry import Registry


@dataclass(frozen=True)
class Kind:
    """What is expected of the classes of one registry.

    ``missing`` returns the methods that a class should define and does not. ``arguments`` are those with which an
    instance is made, empty if a method of the class makes it. ``further`` raises if something else is wrong.
    """

    registry: Registry[Any]
    base: type
    missing: Callable[[Any], list[str]]
    arguments: tuple[str, ...] = ()
    further: Callable[[str, str, Any], None] = lambda what, name, cls: None

    @property
    def base_name(self) -> str:
        """Name of the base class for users."""
        return f"vx.extend.{self.base.__name__}"


def check_class(kind: Kind, name: str, cls: object) -> None:
    """Raise ``TypeError`` unless ``cls`` is a complete class of this kind."""
    what = f"The {kind.registry.kind} {name!r}"
    if not isinstance(cls, type):
        msg = f"{what} is {cls!r}, an instance of {type(cls).__name__}; a subclass of {kind.base_name} is expected."
        raise TypeError(msg)
    if not issubclass(cls, kind.base) or cls is kind.base:
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        found = "the base class itself" if cls is kind.base else f"the class {cls.__name__}({bases})"
        msg = f"{what} is {found}; a subclass is expected: class {cls.__name__}({kind.base_name})."
        raise TypeError(msg)
    if missing := kind.missing(cls):
        msg = f"{what}: the class {cls.__name__} does not define {_listed(missing)}. Define what is missing; {kind.base_name} says what each returns."
        raise TypeError(msg)
    if kind.arguments:
        _check_constructor(what, cls, kind.arguments)
    _check_options(what, cls)
    _check_arguments(what, cls, kind)
    kind.further(what, name, cls)


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _check_constructor(what: str, cls: type, arguments: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(cls)
    except ValueError:  # written in C
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        msg = (
            f"{what}: {cls.__name__}{signature} cannot be called as {cls.__name__}({', '.join(arguments)}) ({error}). Let "
            f"__init__ take (self, {', '.join(arguments)}); options of its own belong in its class Options."
        )
        raise TypeError(msg) from error


def _check_arguments(what: str, cls: type, kind: Kind) -> None:
    """Raise unless each method takes the arguments that the method of the base class takes."""
    for name, function in vars(kind.base).items():
        base, own = getattr(function, "__func__", function), inspect.getattr_static(cls, name)
        own = getattr(own, "__func__", own)
        if name.startswith("__") or not (inspect.isfunction(base) and inspect.isfunction(own)) or own is base:
            continue
        parameters = inspect.signature(base).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        named = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
        try:
            inspect.signature(own).bind(*positional, **named)
        except TypeError as error:
            msg = (
                f"{what}: {cls.__name__}.{name}({', '.join(inspect.signature(own).parameters)}) does not take the arguments of "
                f"{kind.base_name}.{name}({', '.join((*positional, *named))}) ({error})."
            )
            raise TypeError(msg) from error


def _check_options(what: str, cls: Any) -> None:
    options = getattr(cls, "Options", Options)
    if not (isinstance(options, type) and issubclass(options, Options) and is_dataclass(options)):
        found = options
    elif options.__dataclass_params__.frozen and (options is Options or "__dataclass_fields__" in vars(options)):  # type: ignore[attr-defined]
        if bare := [f.name for f in fields(options) if f.default is MISSING and f.default_factory is MISSING]:
            msg = f"{what}: {cls.__name__}.Options has no default for {_listed(bare)}; a default is expected: {bare[0]}: float = vx.extend.option(1.0)."
            raise TypeError(msg)
        return
    else:
        found = f"{options.__name__}, which is not a frozen dataclass"
    msg = f"{what}: {cls.__name__}.Options is {found}; a frozen dataclass is expected: @dataclass(frozen=True) class Options(vx.extend.Options)."
    raise TypeError(msg)


def _same(cls: type, base: type, *names: str) -> list[str]:
    """List the names that a class has from its base."""
    return [name for name in names if getattr(cls, name) is getattr(base, name)]


# what each kind has to define


def _missing_in_likelihood(cls: type[Likelihood]) -> list[str]:
    own = ["from_decoded", "zero_probability", "expected_log1p", "at", "steps"]
    if isinstance(cls.output, Shares):
        own.append("log_rate")
    if cls.gamma_rate:
        own.append("rate_update")
    # properties and class methods are compared without binding them to the class
    missing = [name for name in own if getattr_static(cls, name) is getattr_static(Likelihood, name)]
    missing += _same(cls, Distribution, "log_prob", "mean", "variance")
    # sample() calls draw()
    return missing + (_same(cls, Likelihood, "draw") if cls.sample is Likelihood.sample else [])


def _check_likelihood(what: str, name: str, cls: Any) -> None:
    if not isinstance(cls.output, Output):
        hint = (
            f"write output = {cls.output.__name__}()"
            if isinstance(cls.output, type)
            else "for example output = Shares()"
        )
        msg = f"{what}: {cls.__name__}.output is {cls.output!r}; an instance of vx.extend.Output is expected: {hint}."
        raise TypeError(msg)
    heads = cls.heads
    if not hasattr(heads, "items") or not all(
        isinstance(head, str) and head.isidentifier() and isinstance(value, (int, float))
        for head, value in heads.items()
    ):
        msg = f"{what}: {cls.__name__}.heads is {heads!r}; a dict of start values by name is expected, such as {{'gate': -3.0}}."
        raise TypeError(msg)
    if "dispersion" in heads:
        msg = f"{what}: {cls.__name__}.heads names 'dispersion', which is the package's own. Set has_dispersion = True instead."
        raise TypeError(msg)


def _missing_in_prior(cls: type[Prior]) -> list[str]:
    # a prior that does not depend on conditions may override the methods that treat them
    missing = []
    for general, own in (("log_prob", "conditional_log_prob"), ("sample", "conditional_sample")):
        if general in _same(cls, Prior, general):
            missing += _same(cls, Prior, own)
    if cls.analytic:
        missing += _same(cls, Prior, "kl")
    if not cls.cheap:
        missing += _same(cls, Prior, "kl_bound")
    if cls.invertible:
        missing += _same(cls, Prior, "to_base", "from_base")
    return missing


def _missing_in_body(cls: type[Body]) -> list[str]:
    # without a constructor nothing sets n_features
    return (["__init__"] if cls.__init__ is Body.__init__ else []) + _same(cls, Body, "forward")


def _missing_in_block(cls: type[Block]) -> list[str]:
    own = ("prior", "enter") if issubclass(cls, NormalBlock) else ("log_prior", "prior_mean", "sample_prior", "enter")
    return _same(cls, NormalBlock if issubclass(cls, NormalBlock) else Block, *own)


def _check_block(what: str, name: str, cls: type[Block]) -> None:
    if getattr(cls, "name", None) != name:
        msg = f"{what}: {cls.__name__}.name is {getattr(cls, 'name', None)!r}; the name it is registered under is expected: name = {name!r}."
        raise TypeError(msg)
    if name == "var" or name.endswith("_var"):
        msg = f"{what}: a slot whose name ends in 'var' holds the posterior variance of z or of a block. Choose another name."
        raise ValueError(msg)


def _missing_in_objective(cls: type[Objective]) -> list[str]:
    return _same(cls, Objective, "terms", "loss", "final")


def _missing_in_source(cls: type[Source]) -> list[str]:
    return sorted(cls.__abstractmethods__)


def _missing_in_map(cls: type[LatentMap]) -> list[str]:
    return _same(cls, LatentMap, "learn")


KINDS: dict[str, Kind] = {
    kind.registry.kind.rsplit(maxsplit=1)[-1]: kind
    for kind in (
        Kind(LIKELIHOODS, Likelihood, _missing_in_likelihood, further=_check_likelihood),
        Kind(PRIORS, Prior, _missing_in_prior, ("config", "n_latent", "n_inputs")),
        Kind(DECODERS, Body, _missing_in_body, ("config", "n_condition")),
        Kind(BLOCKS, Block, _missing_in_block, ("config", "n_condition"), _check_block),
        Kind(OBJECTIVES, Objective, _missing_in_objective, ("config", "model")),
        Kind(SOURCES, Source, _missing_in_source),
        Kind(MAPS, LatentMap, _missing_in_map, ("options",)),
    )
}


def register(kind: str, name: str, cls: Any, *, replace: bool = False) -> None:
    """Check a class and add it to the registry of its kind.

    The same class under the same name, such as after running a cell of a notebook again, replaces the earlier one.
    """
    expected = KINDS[kind]
    registry = expected.registry
    check_class(expected, name, cls)
    known = registry.get(name)
    if known is not None and not registry.is_own(name):
        msg = f"The {registry.kind} {name!r} belongs to the package: stored fits with this name would change their meaning. Choose another name."
        raise ValueError(msg)
    again = known is not None and (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
    registry.register(name, cls, replace=replace or again, own=True)


def unregister(kind: str, name: str) -> None:
    """Remove a class that was registered from outside the package."""
    if kind not in KINDS:
        msg = f"kind={kind!r} is not known; choose one of {', '.join(map(repr, KINDS))}."
        raise ValueError(msg)
    registry = KINDS[kind].registry
    registry.check(name)
    if not registry.is_own(name):
        msg = f"The {registry.kind} {name!r} belongs to the package and cannot be removed."
        raise ValueError(msg)
    registry.remove(name)
