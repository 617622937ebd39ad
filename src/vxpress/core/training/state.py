"""The state of a training: everything that decides its further steps, and the settings and cells that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vxpress.core.data import Source, gene_sums
from vxpress.core.model import VAE
from vxpress.core.training import ranks
from vxpress.core.training.keeper import copied
from vxpress.core.training.same_cells import cells_of, digest

if TYPE_CHECKING:
    from vxpress.core.training import Training

FORMAT, VERSION = "state of a training of vxpress", 2
# parts of a training with a state of their own, by name of the attribute: those that are needed until the last step,
STEPPING = "optimizer", "objective", "ahead", "keeper", "trouble"
# those that differ between processes,
OWN = "noise", "stepper"
# and, for a finished training, the record alone
KEYS = {"format", "version", "belongs to", "model", "adapted", "finished", "outcome"}
SCHEDULE = "weight", "target", "lr"
MAX_NAMED = 3
# names of what is compared by a hash
DIGESTS = (
    "choice of",
    "library size",
    "category of",
    "continuous covariate of",
    "dose of",
    "label of",
    "sum of",
    "size factor of",
    "gene panel of",
    "table of",
)


@runtime_checkable
class Adapting(Protocol):
    """A module that training changes in more than weights and buffers, for example because it draws noise itself."""

    def training_state(self) -> dict[str, Any]:
        """Return tensors, numbers, strings, lists and dicts of these."""

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""


class OtherTrainingError(ValueError):
    """A state belongs to another training; ``differences`` says in what they differ."""

    def __init__(self, differences: str) -> None:
        super().__init__(
            f"The state belongs to another training: {differences}. Build the Training with the settings, cells and seed of the "
            "stored one, or train anew."
        )
        self.differences = differences


def read(training: Training) -> dict[str, Any]:
    """Return the state of a training between two steps, or after the last one."""
    state = {
        "format": FORMAT,
        "version": VERSION,
        "belongs to": dict(training.identity),
        "model": copied(training.model.state_dict()),
        "adapted": {name: module.training_state() for name, module in _adapting(training.model)},
        "finished": training.finished,
        "outcome": training.outcome.state_dict(),
    }
    if training.finished:
        return state
    # within an epoch, its order is drawn again from the state before it
    order = training.order if training.n_steps_of_epoch else training.sampler.state_dict()
    return {
        **state,
        **{name: getattr(training, name).state_dict() for name in STEPPING},
        # the parts that differ between processes
        **{name: ranks.of_all(training, getattr(training, name).state_dict()) for name in OWN},
        "sampler": dict(order),
        "schedule": [float(getattr(training, name)) for name in SCHEDULE],
    }


def write(training: Training, state: dict[str, Any]) -> None:
    """Make a training continue from a state; nothing is changed if it belongs to another training."""
    if training.finished:
        msg = "This training has ended; load the state into a new Training."
        raise RuntimeError(msg)
    check(state, identity(training))
    training.model.load_state_dict(state["model"])
    for name, module in _adapting(training.model):
        module.load_training_state(state["adapted"][name])
    training.outcome.load_state_dict(state["outcome"])
    training.finished = state["finished"]
    if training.finished:
        training.optimizer.release()
        training.model.eval()
        return
    for name in (*STEPPING, "sampler"):
        getattr(training, name).load_state_dict(state[name])
    for name in OWN:
        getattr(training, name).load_state_dict(ranks.own(training, state[name]))
    for name, value in zip(SCHEDULE, state["schedule"], strict=True):
        setattr(training, name, value)


def identity(training: Training) -> dict[str, Any]:
    """Return what decides a training, except its state: settings, cells, seed and type of device."""
    log_library_n1 = training.source.log_library_n1
    return {
        **dict(_named(asdict(training.model.config), "model.")),
        **dict(_named(asdict(training.config), "training.")),
        "seed": training.seed,
        "number of cells": len(log_library_n1),
        "number of training cells": len(training.train_rows),
        "number of validation cells": len(training.validation_rows),
        **dict(cells_of(training)),
        "sum of the counts of each gene": digest(training.gene_sums),
        "order of cells": training.sampler.kind,
        "type of device": log_library_n1.device.type,
        "number of processes": training.world.size,
        **dict(_sums_of_further(training.source)),
    }


def _sums_of_further(source: Source) -> Iterator[tuple[str, str]]:
    """Yield a hash of the counts of each modality other than the first."""
    for name, other in source.further.items():
        yield f"sum of the counts of each feature of {name}", digest(gene_sums(other))


def check(state: object, here: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``state`` is complete and belongs to the training described by ``here``."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        msg = f"A {type(state).__name__} was given that is not the state of a training; pass what Training.state_dict() returned."
        raise ValueError(msg)
    if state.get("version") != VERSION:
        msg = (
            f"The state has version {state.get('version')!r}; this version of vxpress reads version {VERSION}. Continue the "
            "training with the version of vxpress that stored it, or train anew."
        )
        raise ValueError(msg)
    required = KEYS if state.get("finished") is True else {*KEYS, *STEPPING, *OWN, "sampler", "schedule"}
    if missing := sorted(required - set(state)):
        msg = f"The state lacks {', '.join(missing)}; pass what Training.state_dict() returned, unchanged."
        raise ValueError(msg)
    there = state["belongs to"]
    differing = [name for name in dict.fromkeys((*here, *there)) if here.get(name) != there.get(name)]
    if differing:
        named = "; ".join(_difference(name, here.get(name), there.get(name)) for name in differing[:MAX_NAMED])
        further = len(differing) - MAX_NAMED
        differences = f"{named}{f'; and {further} more' if further > 0 else ''}"
        raise OtherTrainingError(differences)


def _adapting(model: VAE) -> Iterator[tuple[str, Adapting]]:
    """Yield name and module of all parts of a model with a state of their own."""
    for name, module in model.named_modules():
        if isinstance(module, Adapting):
            yield name, module


def _difference(name: str, here: Any, there: Any) -> str:
    if name.startswith(DIGESTS):
        return f"the {name} differs"
    return f"{name} is {there!r} in the state and {here!r} here"


def _named(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield settings with their full names; tuples become lists, which every file keeps as they are."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _lists(value)


def _lists(value: Any) -> Any:
    return [_lists(part) for part in value] if isinstance(value, (tuple, list)) else value
