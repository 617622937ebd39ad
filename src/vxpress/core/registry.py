"""Registries: the classes that an option can choose by name, and the registries of the package.

This module has no further imports, because options are checked against the registries, and the classes in them are built
from options. The module that defines the built-in classes of a kind registers them, and says which classes these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class NotRegisteredError(ValueError):
    """No class is registered under a name."""

    def __init__(self, message: str, kind: str, name: str) -> None:
        super().__init__(message)
        self.kind, self.name = kind, name
        self.function = f"register_{kind.rsplit(maxsplit=1)[-1]}"


class Registry(Mapping[str, T], Generic[T]):
    """Named classes of one kind, in the order in which they were registered.

    ``kind`` names them in messages: "likelihood", "prior", "decoder". A class that is registered from outside the
    package is found wherever a built-in one is. ``home`` is the module that registers the built-in classes: it is
    imported when the registry is first used, so names can be checked by modules that its classes import.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None, *, home: str | None = None) -> None:
        self.kind, self._home = kind, home
        self._known: dict[str, T] = dict(entries or {})
        self._own: set[str] = set()

    @property
    def _entries(self) -> dict[str, T]:
        if self._home is not None:
            # at once if it is imported already, or being imported by this thread
            import_module(self._home)
        return self._known

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def imported(self) -> tuple[str, ...]:
        """The names that are known so far, without an import of the built-in classes."""
        return tuple(self._known)

    def is_own(self, name: str) -> bool:
        """Return whether a class from outside the package is registered under this name."""
        return name in self._own

    def register(self, name: str, entry: T, *, replace: bool = False, own: bool = False) -> None:
        """Add an entry, ``own`` if it is from outside the package.

        Raises ``ValueError`` if the name is taken, unless ``replace`` is True.
        """
        if not str(name).isidentifier():
            msg = f"{name!r} cannot name a {self.kind}; a name of letters, digits and underscores is expected."
            raise ValueError(msg)
        if name in self._entries and not replace:
            msg = f"A {self.kind} named {name!r} is already registered. Choose another name, or pass replace=True."
            raise ValueError(msg)
        self._entries[name] = entry
        if own:
            self._own.add(name)

    def remove(self, name: str) -> None:
        """Remove an entry."""
        del self._entries[name]
        self._own.discard(name)

    def check(self, name: object, argument: str | None = None, *, own: bool = False) -> None:
        """Raise ``NotRegisteredError`` unless ``name`` is registered; the message calls the option ``argument``.

        With ``own``, it offers only classes from outside the package.
        """
        if not isinstance(name, str) or name not in self._entries:
            error = NotRegisteredError("", self.kind, str(name))
            choices = ", ".join(repr(known) for known in self if not own or self.is_own(known))
            advice = f"choose one of {choices}" if choices else f"none is registered, see vx.extend.{error.function}"
            error.args = (f"{argument or self.kind}={name!r} is not known; {advice}.",)
            raise error


LIKELIHOODS: Registry[Any] = Registry("likelihood", home="vxpress.core.likelihoods")
PRIORS: Registry[Any] = Registry("prior", home="vxpress.core.priors")
OBJECTIVES: Registry[Any] = Registry("objective", home="vxpress.core.objectives")
DECODERS: Registry[Any] = Registry("decoder", home="vxpress.core.bodies")
SOURCES: Registry[Any] = Registry("data source", home="vxpress.core.data")
BLOCKS: Registry[Any] = Registry("latent block", home="vxpress.core.blocks")
MAPS: Registry[Any] = Registry("latent map", home="vxpress.core.maps")
PATHS: Registry[Any] = Registry("path", home="vxpress.core.maps.paths")
