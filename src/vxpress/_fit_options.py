"""The options of ``vxpress fit``: the arguments of ``fit_vae`` and the fields of ``FitOptions``.

The source of ``fit_vae`` is read and not imported, so that help and errors on the command line do not wait for torch.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from vxpress.core import config
from vxpress.core.option import declaration, hints, kind_of
from vxpress.core.registry import LIKELIHOODS, OBJECTIVES, PRIORS, Registry
from vxpress.core.settings import FitOptions

ROOT = Path(__file__).parent
REGISTRIES: dict[str, Registry[Any]] = {"LikelihoodName": LIKELIHOODS, "PriorName": PRIORS, "ObjectiveName": OBJECTIVES}
# arguments without a meaning on the command line, or given in another way
# the command reads an AnnData, which has one modality
LEFT_OUT = ("adata", "options", "copy", "modality", "modalities")
UNITS = {"str": "TEXT", "int": "N", "float": "X"}
METAVARS = {
    "layer": "LAYER",
    "mask_var": "COLUMN",
    "library": "COLUMN",
    "rng": "SEED",
    "split_rng": "SEED",
    "key_added": "NAME",
    "device": "DEVICE",
    "checkpoint_dir": "DIR",
}
# help of options that differ from the argument
TEXTS = {
    "checkpoint_dir": "Folder for checkpoints of the training, from which --resume continues. They are written every "
    "--checkpoint-minutes and on SIGTERM, which then ends the command with status 143, and are removed once the output is written.",
    "resume": "Continue from the checkpoints in --checkpoint-dir, if there are any.",
}
NOTHING = "none"
# maximum length of a help text with further sentences after the first
ROOM = 300


@dataclass(frozen=True)
class Option:
    """A keyword of the call: its annotation in the source, whether ``None`` is a valid value, and its description."""

    name: str
    annotation: str
    nullable: bool
    text: str

    @property
    def flag(self) -> str:
        """The name of the option on the command line."""
        return "--" + self.name.replace("_", "-")

    def add_to(self, parser: argparse._ArgumentGroup) -> None:
        """Add the option. It sets nothing if it is not given, so that the defaults of the call apply."""
        shared: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS, "help": self.text.replace("%", "%%")}
        kinds = [part.strip() for part in self.annotation.split("|")]
        choices = [value for kind in kinds for value in _choices(kind)]
        if "bool" in kinds and choices:
            # a name for one more way: the option stands for that
            parser.add_argument(self.flag, action="store_const", const=choices[0], **shared)
        elif "bool" in kinds:
            parser.add_argument(self.flag, action=argparse.BooleanOptionalAction, **shared)
        elif choices:
            parser.add_argument(self.flag, choices=choices, **shared)
        elif kinds[0].startswith("Sequence["):
            parser.add_argument(self.flag, nargs="+", metavar="COLUMN", **shared)
        else:
            metavar = METAVARS.get(self.name, "COLUMN" if self.name.endswith("_key") else UNITS[kinds[0]])
            parser.add_argument(self.flag, type=_reader(kinds[0], nullable=self.nullable), metavar=metavar, **shared)


def fit_options() -> list[Option]:
    """List the arguments of ``fit_vae`` in order."""
    function = _definition(ROOT / "tl" / "_fit_vae.py", "fit_vae")
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 - it is one
    texts = _texts(function)
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return [
        _option(argument.arg, argument.annotation, TEXTS.get(argument.arg, texts[argument.arg]))
        for argument in arguments
        if argument.arg not in LEFT_OUT
    ]


def further_options() -> list[Option]:
    """List the fields of ``FitOptions``, without those for classes that were registered: a command has none."""
    kinds = {name: kind_of(hint) for name, hint in hints(FitOptions).items()}
    # None leaves the choice to the preset and is not a separate value
    return [
        Option(f.name, _written(f, kinds[f.name]), nullable=False, text=_shortened(declaration(f).text))
        for f in fields(FitOptions)
        if kinds[f.name] in (bool, int, float) or get_origin(kinds[f.name]) is Literal
    ]


def _written(f: Field[Any], kind: Any) -> str:
    """Write a type as in the source."""
    if get_origin(kind) is not Literal:
        return str(kind.__name__)
    registry = declaration(f).registry
    names = dict.fromkeys((*get_args(kind), *(() if registry is None else registry.imported)))
    return f"Literal[{', '.join(map(repr, names))}]"


def _option(name: str, annotation: ast.expr | None, text: str) -> Option:
    written = "str" if annotation is None else ast.unparse(annotation)
    # None has a meaning of its own only for arguments that can be unset
    nullable = "None" in written and ("Unset" in written or "Generator" in written)
    return Option(name, written, nullable, text + (f" {NOTHING!r} is None." if nullable else ""))


def _definition(path: Path, name: str) -> ast.FunctionDef | ast.ClassDef:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    msg = f"{path.name} defines no {name}."
    raise LookupError(msg)


def _texts(definition: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    """Return the shortened description of each parameter from the docstring."""
    section = re.search(
        r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", ast.get_docstring(definition) or "", flags=re.M | re.S
    )
    assert section is not None  # noqa: S101 - public functions document their parameters
    entries = re.split(r"^(\S.*)\n", section[1], flags=re.M)[1:]
    return {name.strip(): _shortened(text) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def _shortened(text: str) -> str:
    """Remove markup, and keep the first sentence and as many others as fit."""
    plain = re.sub(r":[\w:]+:`~?([^`]*)`", r"\1", " ".join(text.split())).replace("``", "")
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z\"])", plain)
    kept = sentences[0]
    for sentence in sentences[1:]:
        if len(kept) + len(sentence) >= ROOM:
            break
        kept += f" {sentence}"
    return kept


def _choices(kind: str) -> tuple[str, ...]:
    """Return the values of a ``Literal``, given directly or by name."""
    if kind.startswith("Literal["):
        return tuple(map(str, ast.literal_eval(f"[{kind[len('Literal[') : -1]}]")))
    found = get_args(getattr(config, kind, None))
    if not found or not all(isinstance(value, str) for value in found):
        return ()
    # a process that registered a class of its own can also choose that
    return tuple(dict.fromkeys((*found, *(REGISTRIES[kind].imported if kind in REGISTRIES else ()))))


def _reader(kind: str, *, nullable: bool) -> Callable[[str], Any]:
    """Return a function that parses the text of an option; the call checks ranges."""

    def read(text: str) -> Any:
        if nullable and text == NOTHING:
            return None
        if kind == "str":
            return text
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError as error:
            msg = f"{text!r} should be a {'whole number' if kind == 'int' else 'number'}"
            raise argparse.ArgumentTypeError(msg) from error

    return read


def given(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that were given, for ``fit_vae`` and for ``FitOptions``."""

    def of(options: list[Option]) -> Iterator[tuple[str, Any]]:
        for option in options:
            if hasattr(arguments, option.name):
                yield option.name, getattr(arguments, option.name)

    return dict(of(fit_options())), dict(of(further_options()))
