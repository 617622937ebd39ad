"""Batches in which a modality was not measured: after training, they are decoded as the mean of those that have it.

No cell of such a batch has trained the weights of the batch in the decoder of the modality, so they are still random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vxpress.core.covariates import Conditioner
from vxpress.core.networks import Decoder


@torch.no_grad()
def average_unmeasured(conditioner: Conditioner, decoder: Decoder, codes_nk: Tensor) -> None:
    """Give each category that no cell with the modality has the mean weights of the other categories of its covariate.

    ``codes_nk`` are the codes of the training cells that have the modality. Embedded categories stay as they are: all modalities
    train their embedding.
    """
    if conditioner.embeddings is not None:
        return
    start = conditioner.n_continuous
    for k, size in conditioner.sizes:
        absent = codes_nk[:, k].bincount(minlength=size)[:size] == 0
        if bool(absent.any()) and not bool(absent.all()):
            for name in decoder.conditioned():
                module, _, _ = name.rpartition(".")
                if module == "readout" and decoder.readout is None:
                    continue
                weight = decoder.get_parameter(name)
                width = conditioner.body_width if name.startswith("body.") else conditioner.width
                at = weight.shape[1] - width + start
                columns = weight[:, at : at + size]
                columns[:, absent] = columns[:, ~absent].mean(1, keepdim=True)
        start += size
