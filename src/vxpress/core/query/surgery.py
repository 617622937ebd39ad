"""Add categories to a trained model that it was not trained on (architecture surgery, Lotfollahi et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vxpress._signals import interrupts_held
from vxpress.core.blocks.base import with_mean_rows
from vxpress.core.config import ModelConfig
from vxpress.core.covariates import Conditioner
from vxpress.core.isolation import on_device, seeded
from vxpress.core.model import VAE, build


def extend(model: VAE, added: Sequence[int], learned: Sequence[np.ndarray] | None = None) -> VAE:
    """Return a copy of ``model`` with ``added[k]`` more categories of covariate k, each the mean of the known ones.

    The mean is taken of a category's weights or embedding, and of its log dispersion. If a covariate was left out because
    its categories do not differ, neither do the new ones until they are trained. The library prior of a new batch
    has the moments of the mixture of the known ones.  For cells of known categories, copy and ``model`` give the same
    results.  ``learned[k]`` is a boolean array that selects the categories of covariate k for the mean, all by default.
    """
    old = model.config
    share = [_share(n, None if learned is None else learned[k]) for k, n in enumerate(old.n_categories)]
    config = replace(
        old,
        n_categories=tuple(n + more for n, more in zip(old.n_categories, added, strict=True)),
        # that the known categories do not differ says nothing about new ones
        left_out=tuple(k for k in old.left_out if added[k] == 0),
    )
    new = build(config, seed=0).to(model.decoder.location.weight.device)
    fresh = new.state_dict()
    copied, untrained = _columns(old, config, share)
    conditioned = _conditioned(new)
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("conditioner.embeddings."):
            continue
        if name in conditioned:
            before, after = (_of_condition(name, m) for m in (model, new))
            own, condition = value.split((value.shape[1] - len(before), len(before)), dim=1)
            columns = condition @ copied[before][:, after].to(value)
            columns = columns + fresh[name][:, own.shape[1] :] * untrained[after].to(value)
            state[name] = torch.cat((own, columns), dim=1)
        elif value.shape == fresh[name].shape:
            state[name] = value
        else:
            if value.shape[1:] != fresh[name].shape[1:]:
                msg = (
                    f"The columns of the weight {name!r} depend on the number of categories, so new ones cannot be added: the method "
                    "conditioned() of its class has to yield its name, and its last columns have to belong to the condition vector."
                )
                raise ValueError(msg)
            state[name] = _with_batches(model, name, len(fresh[name]), share[0])
    new.load_state_dict(state | _embeddings(model, new, share))
    return new.eval()


def new_weights(model: VAE, added: Sequence[int]) -> dict[str, Tensor]:
    """Return masks of the weights of ``model`` that belong to the last ``added[k]`` categories of each covariate k."""
    config = model.config
    columns = torch.zeros(model.conditioner.width, dtype=torch.bool)
    embedded = {}
    for i, ((k, size), start) in enumerate(zip(model.conditioner.sizes, _starts(config), strict=True)):
        if model.conditioner.embeddings is None:
            columns[start + size - added[k] : start + size] = True
        embedded[f"conditioner.embeddings.{i}.weight"] = added[k]
    conditioned = _conditioned(model) - {"decoder.readout.weight"}
    masks = {}
    for name, value in model.named_parameters():
        mask = torch.zeros(value.shape, dtype=torch.bool)
        if name in conditioned:
            of_weight = columns[_of_condition(name, model)]
            mask[:, value.shape[1] - len(of_weight) :] = of_weight
        elif name in embedded:
            mask[len(value) - embedded[name] :] = True
        elif name == "decoder.log_dispersion" and config.dispersion == "gene-batch":
            mask[len(value) - added[0] :] = True
        if mask.any():
            masks[name] = mask.to(value.device)
    return masks


def forget_labels(model: VAE) -> VAE:
    """Return a copy of a model with a dispersion per label that needs no labels: it uses the mean log dispersion."""
    state = dict(model.state_dict())
    state["decoder.log_dispersion"] = state["decoder.log_dispersion"].mean(0, keepdim=True)
    new = build(replace(model.config, dispersion="gene"), seed=0).to(model.decoder.location.weight.device)
    new.load_state_dict(state)
    return new.eval()


def _conditioned(model: VAE) -> set[str]:
    """Return the names of the weights whose last columns belong to the condition vector."""
    names = {f"decoder.{name}" for name in model.decoder.conditioned()}
    for i, modality in enumerate(model.others.values()):
        names |= {f"further.{i}.decoder.{name}" for name in modality.decoder.conditioned()}
        if model.conditioner.encoder_width:
            names |= {f"further.{i}.encoder.{name}" for name in modality.encoder.conditioned()}
    if model.conditioner.encoder_width:
        names |= {f"blocks.{name}.{weight}" for name, block in model.blocks.items() for weight in block.conditioned()}
    return names


def _of_condition(name: str, model: VAE) -> list[int]:
    """Return the columns of the condition vector that the weight ``name`` multiplies, in its last columns."""
    conditioner = model.conditioner
    of_modality, decoder, of_decoder = name.partition("decoder.")
    if decoder and (not of_modality or of_modality.startswith("further.")):
        return list(range(conditioner.body_width if of_decoder.startswith("body.") else conditioner.width))
    return conditioner.encoder_columns


def _starts(config: ModelConfig) -> list[int]:
    """Return the first column in the condition vector of each covariate that has columns."""
    at, starts = config.n_continuous, []
    for _, size in config.received:
        starts.append(at)
        at += size if config.covariate_code == "one-hot" else config.n_embedding
    return starts


def _share(n: int, learned: np.ndarray | None) -> Tensor:
    """Return the weight of each known category in the mean, (n,)."""
    weight = torch.ones(n) if learned is None else torch.from_numpy(learned).float()
    return weight / weight.sum()


def _columns(old: ModelConfig, new: ModelConfig, share: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the matrix (old width, new width) from old columns of the condition vector to new ones, and which are untrained.

    A covariate with one category, or that was left out, had no columns. With one-hot codes its new columns are zero. With
    embeddings they multiply embeddings of zero, which fine-tuning can change.
    """
    # embeddings are neither allocated nor drawn from torch's global generator
    with interrupts_held(), seeded(0), on_device("meta"):
        widths = Conditioner(old).width, Conditioner(new).width
    copied, untrained = torch.zeros(widths), torch.zeros(widths[1])
    one_hot = old.covariate_code == "one-hot"
    copied[: old.n_continuous, : old.n_continuous] = torch.eye(old.n_continuous)
    known = dict(zip((k for k, _ in old.received), _starts(old), strict=True))
    for (k, after), to in zip(new.received, _starts(new), strict=True):
        if k not in known:
            untrained[to : to + new.n_embedding] = 0.0 if one_hot else 1.0
            continue
        at, n = known[k], old.n_categories[k] if one_hot else old.n_embedding
        copied[at : at + n, to : to + n] = torch.eye(n)
        if one_hot:
            copied[at : at + n, to + n : to + after] = share[k][:, None]
    if old.n_perturbations:
        copied[-old.n_perturbations :, -old.n_perturbations :] = torch.eye(old.n_perturbations)
    return copied, untrained


def _embeddings(model: VAE, new: VAE, share: Sequence[Tensor]) -> dict[str, Tensor]:
    if new.conditioner.embeddings is None:
        return {}
    known = {
        k: model.get_parameter(f"conditioner.embeddings.{i}.weight").detach()
        for i, (k, _) in enumerate(model.conditioner.sizes)
    }
    state = {}
    for i, (k, size) in enumerate(new.conditioner.sizes):
        table = known.get(
            k, torch.zeros(len(share[k]), new.config.n_embedding, device=new.decoder.location.weight.device)
        )
        state[f"conditioner.embeddings.{i}.weight"] = with_mean_rows(table, size, share[k])
    return state


def _with_batches(model: VAE, name: str, n_rows: int, share: Tensor) -> Tensor:
    """Return a weight that has one row per batch with rows for new batches."""
    if name.startswith("blocks."):
        _, block, weight = name.split(".", 2)
        return model.blocks[block].with_batches(weight, n_rows, share)
    return with_mean_rows(model.state_dict()[name], n_rows, share)
