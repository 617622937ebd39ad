"""The part of a fit that annotates cells: its labels and the classifier, in a stored fit and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vxpress.core.annotation.annotator import Annotator
from vxpress.core.annotation.features import LatentFeatures
from vxpress.core.annotation.head import Head
from vxpress.core.annotation.novelty import Labelled
from vxpress.core.annotation.softmax import Softmax

LATENT, GENES, EXPECTED = "latent", "genes", "expected"


@dataclass(frozen=True)
class LabelModel:
    """The names of the labels of a fit, by code, and the annotator."""

    key: str
    names: tuple[str, ...]
    annotator: Annotator

    def to_uns(self) -> dict[str, Any]:
        """Return nested mappings of strings and arrays; names of labels are values, never keys."""
        found, head = self.annotator, self.annotator.head
        features = found.features
        return {
            "labels_key": self.key,
            "labels": np.array(self.names, dtype=object),
            LATENT: {
                "centre": features.centre_d.numpy(),
                "spread": features.spread_d.numpy(),
                "landmarks": features.landmark_kd.numpy(),
                "width": np.array([features.width], dtype=np.float64),
                "weight": head.latent.weight_cd.numpy(),
                "bias": head.latent.bias_c.numpy(),
            },
            GENES: {"weight": head.genes.weight_cd.numpy(), "bias": head.genes.bias_c.numpy()},
            EXPECTED: {"weight": found.expected_fg.numpy()},
            "pool": np.array(head.pool, dtype=np.float64),
            "labelled": {
                "position": found.labelled.z_md,
                "label": found.labelled.code_m,
                "fold": found.labelled.fold_m,
                "batch": found.labelled.batch_m,
                "held_out": found.held_out_mc,
                "met": found.met_m,
            },
        }

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any], n_latent: int, n_genes: int) -> LabelModel | None:
        """Read what :meth:`to_uns` stored; None if nothing is stored, ``ValueError`` if it is damaged."""
        if not stored:
            return None
        names = tuple(str(name) for name in np.asarray(stored["labels"]).reshape(-1))
        latent, genes, labelled = stored[LATENT], stored[GENES], stored["labelled"]
        c, d, g = len(names), n_latent, n_genes
        k, m = len(np.asarray(latent["landmarks"])), len(np.asarray(labelled["label"]))
        features = LatentFeatures(
            _tensor(latent, "centre", (d,)),
            _tensor(latent, "spread", (d,)),
            _tensor(latent, "landmarks", (k, d)),
            float(_array(latent, "width", (1,))[0]),
        )
        head = Head(
            Softmax(_tensor(latent, "weight", (c, d + k)), _tensor(latent, "bias", (c,))),
            Softmax(_tensor(genes, "weight", (c, g)), _tensor(genes, "bias", (c,))),
            (float(_array(stored, "pool", (2,))[0]), float(_array(stored, "pool", (2,))[1])),
        )
        code_m, fold_m, batch_m = (
            _array(labelled, name, (m,), kinds="iu").astype(np.int64) for name in ("label", "fold", "batch")
        )
        if len(set(names)) < c or c < 2 or (code_m < 0).any() or (code_m >= c).any() or features.width <= 0:
            msg = "the labels that it annotates with are not distinct names, or do not match their codes"
            raise ValueError(msg)
        held_out_mc = _array(labelled, "held_out", (m, c)).astype(np.float32)
        position_md = _array(labelled, "position", (m, d)).astype(np.float32)
        return cls(
            str(stored["labels_key"]),
            names,
            Annotator(
                features,
                head,
                _tensor(stored[EXPECTED], "weight", (1 + d + k, g)),
                Labelled(position_md, code_m, fold_m, batch_m, held_out_mc.argmax(1)),
                held_out_mc,
                _array(labelled, "met", (m,), kinds="b").astype(bool),
            ),
        )


def _array(stored: Mapping[str, Any], name: str, shape: tuple[int, ...], kinds: str = "f") -> np.ndarray:
    """Read an array of a shape and type; numbers are finite."""
    value = np.asarray(stored[name])
    if value.shape != shape or value.dtype.kind not in kinds or not np.isfinite(value).all():
        msg = f"{name!r} of its annotation has shape {value.shape} and type {value.dtype}, or values that are not finite; {shape} is expected"
        raise ValueError(msg)
    return value


def _tensor(stored: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.array(_array(stored, name, shape), dtype=np.float32))
