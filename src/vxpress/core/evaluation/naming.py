"""Names of the scores that follow from moments and from lists of genes."""

from __future__ import annotations

from vxpress.core.evaluation.change import Floats, Moments
from vxpress.core.evaluation.inputs import Settings

# scores by set of genes and measure, (resamples,) each
Scores = dict[tuple[str, str], Floats]


def of_means(change: Moments, mean: Moments, settings: Settings) -> Scores:
    """Compute all scores that follow from moments; the last set of genes is the weighted one."""
    pearson, r2, mse, slope = change.pearson(), change.r2(), change.mse(), change.slope()
    mean_pearson, mean_r2, mean_mse = mean.pearson(), mean.r2(), mean.mse()
    found: Scores = {}
    for i, name in enumerate(settings.sets):
        found |= {
            (name, "pearson2_mean"): mean_pearson[..., i] ** 2,
            (name, "r2_mean"): mean_r2[..., i],
            (name, "mse_mean"): mean_mse[..., i],
            (name, "pearson_change"): pearson[..., i],
            (name, "pearson2_change"): pearson[..., i] ** 2,
            (name, "r2_change"): r2[..., i],
            (name, "mse_change"): mse[..., i],
            (name, "slope_change"): slope[..., i],
        }
    return found | {("all", "weighted_mse_change"): mse[..., -1], ("all", "weighted_r2_change"): r2[..., -1]}


def of_sd(moments: Moments, settings: Settings) -> Scores:
    """Compute the agreement of standard deviations."""
    r2 = moments.r2()
    return {(name, "r2_sd"): r2[..., i] for i, name in enumerate(settings.sets)}


def of_lists(sign: Floats, share: Floats, settings: Settings) -> Scores:
    """Name the agreement of signs (the last set are the significant genes) and the overlaps of lists."""
    found: Scores = {("all", "sign_agreement"): sign[..., -1]}
    for i, k in enumerate(settings.n_top):
        found |= {(f"top{k}", "sign_agreement"): sign[..., i + 1], (f"top{k}", "deg_overlap"): share[..., i]}
    return found
