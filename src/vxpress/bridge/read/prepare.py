"""Turn an AnnData and arguments into the input of the core, and check both for everything that can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._unset import Unset
from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.columns import as_mask, find_column
from vxpress.bridge.read.counts import CountData, read_counts
from vxpress.bridge.read.covariates import CovariateTable
from vxpress.bridge.read.further import Further, read_further
from vxpress.bridge.read.joint import joint_of
from vxpress.bridge.read.labels import CellLabels
from vxpress.bridge.read.learned import MIN_CELLS as MIN_LEARNED
from vxpress.bridge.read.learned import few, with_cells
from vxpress.bridge.read.library import Library, log_library, resolve_library
from vxpress.bridge.read.panels import PanelTable
from vxpress.bridge.read.perturbations import PerturbationTable
from vxpress.core.config import Preset
from vxpress.core.data import Source
from vxpress.core.option import option
from vxpress.core.parallel import local_rank
from vxpress.core.screening import differing, screened
from vxpress.core.split import split_cells

MIN_CELLS = 4


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Arguments of a fit that it records as they were given."""

    layer: str | None = None
    batch_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    optional_covariate_keys: tuple[str, ...] = option((), since="0.2.0")
    labels_key: str | None = None
    unlabeled_category: str | None = option(None, since="0.2.0")
    perturbation_key: str | None = None
    dose_key: str | None = None
    control: str | None = None
    library: str
    validation_fraction: float = option(0.1, low=0.0, high=0.99)
    target_sum: float = option(1e4, low=1e-12, high=1e12)
    preset: Preset | None = None
    n_fits: int = option(1, low=1, high=100, since="0.2.0")
    modalities: tuple[str, ...] = option((), since="0.2.0")
    panel_key: str | None = option(None, since="0.2.0")

    @property
    def dispersion_labels_key(self) -> str | None:
        """The column of the labels if every cell needs one, because the dispersion depends on it."""
        return self.labels_key if self.unlabeled_category is None else None


@dataclass(frozen=True, kw_only=True)
class FitRequest(Recorded):
    """The data that a fit reads, and which cells it holds out."""

    mask_var: str | np.ndarray | Unset | None
    split_rng: np.random.Generator


@dataclass(frozen=True)
class Prepared:
    """The data of a fit: counts, size factors, covariates, and which cells are held out."""

    counts: CountData
    modelled_g: np.ndarray
    mask_name: str | None
    covariates: CovariateTable
    library: Library
    cells: Source
    train_n: np.ndarray
    validation_n: np.ndarray
    left_out: tuple[int, ...] = ()
    """Positions of the categorical covariates whose categories differ no more than random groups of cells."""
    labels: CellLabels | None = None
    """The labels to learn, if there are any."""
    further: Further | None = None
    """The modalities other than RNA, if there are any; ``cells`` hold their counts too."""

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """Training cells of each batch that have a modality other than RNA, int64, by its name; without batches empty."""
        if self.further is None or self.covariates.batch_key is None:
            return {}
        code_n, n = self.cells.covariates.categorical_nk[:, 0].numpy()[self.train_n], len(self.covariates.batches)
        parts = self.further.parts.items()
        return {name: np.bincount(code_n[part.has_n[self.train_n]], minlength=n) for name, part in parts}

    def split_n(self) -> np.ndarray:
        """Return ``"train"``, ``"validation"`` or, for a cell excluded from the fit, ``"query"``."""
        names = np.full(len(self.cells), "query", dtype=object)
        names[self.train_n], names[self.validation_n] = "train", "validation"
        return names


def prepare(
    adata: AnnData, request: FitRequest, *, library_of_modelled_genes: bool, screen_covariates: bool = True
) -> Prepared:
    """Read the data of a fit, check them, and split the cells."""
    check_gene_names(adata)
    modelled_g, mask_name = modelled_genes(adata, request.mask_var)
    covariates = CovariateTable.learn(
        adata.obs,
        request.batch_key,
        request.categorical_covariate_keys,
        request.continuous_covariate_keys,
        request.dispersion_labels_key,
        optional_keys=request.optional_covariate_keys,
    )
    if request.perturbation_key is not None:
        learned = PerturbationTable.learn(adata.obs, request.perturbation_key, request.control, request.dose_key)
        covariates = replace(covariates, perturbations=learned)
    counts = read_counts(adata, request.layer, modelled_g)
    _warn_empty_genes(adata, counts, modelled_g)
    measured_n = None
    if request.panel_key is not None:
        panels = PanelTable.learn(adata, request.panel_key, modelled_g, counts)
        covariates, measured_n = replace(covariates, panels=panels), panels.library(counts, panels.codes(adata.obs))
    library = resolve_library(
        adata.obs, counts, request.library, modelled_only=library_of_modelled_genes, measured_n=measured_n
    )
    if measured_n is not None:
        _warn_library_of_panels(request.library, library, counts, measured_n)
    counted_n = (library.values_n > 0) & (counts.inside_n > 0)
    further = _further(adata, request)
    usable = np.flatnonzero(counted_n if further is None else counted_n | further.any_n)
    n_empty = adata.n_obs - len(usable)
    if len(usable) < MIN_CELLS:
        msg = f"{len(usable)} of {adata.n_obs} cell(s) have a count in the modelled genes; at least {MIN_CELLS} are needed to fit a model. Check adata.X and mask_var=."
        raise ValueError(msg)
    if n_empty:
        logg.warning(
            f"{n_empty} cell(s) have no count in the modelled genes. They are excluded from the fit (split 'query') and get the "
            "latent position of an empty cell. sc.pp.filter_cells(adata, min_counts=1) removes them."
        )
    cells = counts.cells(log_library(library.values_n), covariates.read(adata.obs))
    if further is not None:
        cells = further.join(cells, counted_n)
    labels = _labels(adata, request, usable)
    codes_nk = cells.covariates.categorical_nk.numpy()[usable]
    # whoever names an optional covariate wants both views of it
    asked = covariates.positions(request.optional_covariate_keys)
    counted = counted_n[usable]
    left_out: tuple[int, ...] = ()
    if screen_covariates:
        alone = tuple(k for k, code_n in enumerate(codes_nk.T) if set(code_n[~counted]) - set(code_n[counted]))
        left_out = _left_out(covariates, cells, usable[counted], codes_nk[counted], (*asked, *alone))
    # a covariate without effect does not decide either which cells are held out
    split_by_nk = np.delete(codes_nk, left_out, axis=1)
    if covariates.perturbations is not None:
        split_by_nk = np.column_stack((split_by_nk, covariates.perturbations.codes(adata.obs)[usable]))
    if further is not None:
        split_by_nk = np.column_stack((split_by_nk, further.codes(counted_n)[usable]))
    train, validation = split_cells(len(usable), request.validation_fraction, request.split_rng, split_by_nk)
    covariates = covariates.trained_on(codes_nk[train])
    if covariates.perturbations is not None and cells.covariates.dose_np is not None:
        trained = covariates.perturbations.trained_on(cells.covariates.dose_np.numpy()[usable[train]])
        covariates = replace(covariates, perturbations=trained)
    _warn_few_cells(covariates, left_out)
    return Prepared(
        counts,
        modelled_g,
        mask_name,
        covariates,
        library,
        cells,
        usable[train],
        usable[validation],
        left_out,
        labels,
        further,
    )


def _warn_library_of_panels(name: str, library: Library, counts: CountData, measured_n: np.ndarray) -> None:
    """Warn if a column with size factors counts genes outside the model that only some panels measured."""
    of_column = name not in ("observed", "latent")
    if of_column and np.allclose(library.values_n, counts.total_n, rtol=1e-3) and (measured_n < counts.total_n).any():
        logg.warning(
            f"obs[{name!r}] also counts genes outside the model (mask_var=) that only some panels measured, so size factors do not "
            "compare between panels. library='observed' counts those that all panels measured."
        )


def _further(adata: AnnData, request: FitRequest) -> Further | None:
    """Read the modalities other than RNA, if there are any."""
    joint = joint_of(adata)
    if joint is None or len(request.modalities) < 2:
        return None
    return read_further(joint, request.modalities[1:], request.layer)


def _labels(adata: AnnData, request: FitRequest, usable: np.ndarray) -> CellLabels | None:
    """Return the labels to learn; None if none were asked for."""
    if request.labels_key is None or request.unlabeled_category is None:
        return None
    return CellLabels.read(adata.obs, request.labels_key, request.unlabeled_category, usable)


def _left_out(
    covariates: CovariateTable, cells: Source, usable: np.ndarray, codes_nk: np.ndarray, asked: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the positions of the categorical covariates without effect that are not ``asked`` for, and report them."""
    some = screened(len(usable))
    rows = torch.from_numpy(usable[some])
    differ = differing(cells.load(rows), cells.log_library_n1[rows, 0].exp().numpy(), codes_nk[some])
    found = tuple(
        k for k, (_, names) in enumerate(covariates.categorical) if len(names) > 1 and not differ[k] and k not in asked
    )
    for k in found:
        logg.info(
            f"    obs[{covariates.categorical[k][0]!r}]: its categories differ no more than random groups of cells, so it is left "
            "out of the model; FitOptions(screen_covariates=False) keeps it"
        )
    return found


def _warn_few_cells(covariates: CovariateTable, left_out: tuple[int, ...]) -> None:
    """Warn about categories with too few training cells, except of covariates that the model does not receive."""
    for k, ((key, names), n_train) in enumerate(zip(covariates.categorical, covariates.n_train, strict=True)):
        small, n = few(names, n_train)
        if not small or k in left_out:
            continue
        out = ""
        if key == covariates.batch_key and len(covariates.averaged_batches) < len(names):
            out = " Averages over batches exclude these batches."
        logg.warning(
            f"obs[{key!r}] has {len(small)} categor{'y' if len(small) == 1 else 'ies'} with fewer than {MIN_LEARNED} training "
            f"cells: {with_cells(small, n)}. These are too few to learn them well.{out} Merge them with other categories, or remove their cells."
        )


def modelled_genes(adata: AnnData, mask_var: str | np.ndarray | Unset | None) -> tuple[np.ndarray, str | None]:
    """Return the genes to model as a boolean array, and the name of the mask; the rule is that of ``sc.pp.pca``."""
    if isinstance(mask_var, Unset):
        mask_var = "highly_variable" if "highly_variable" in adata.var else None
    if mask_var is None:
        return np.ones(adata.n_vars, dtype=bool), None
    name = mask_var if isinstance(mask_var, str) else None
    hint = "vx.pp.highly_variable_genes(adata) writes 'highly_variable'."
    given = mask_var if name is None else find_column(adata.var, name, argument="mask_var", of="var", hint=hint)
    where = "mask_var" if name is None else f"adata.var[{name!r}]"
    gaps = (
        f"Exclude these genes, {where} = {where}.fillna(False).astype(bool), or model all genes: mask_var=None."
        if name is not None
        else "Give each gene a value, for example with fillna(False), or model all genes: mask_var=None."
    )
    mask = as_mask(given, adata.var_names, where, of="gene", gaps=gaps)
    if not mask.any():
        msg = f"mask_var={name or 'the given array'} selects no gene. Pass mask_var=None to model all genes."
        raise ValueError(msg)
    logg.info(f"    modelling {int(mask.sum())} of {adata.n_vars} genes" + (f" (var[{name!r}])" if name else ""))
    return mask, name


def _warn_empty_genes(adata: AnnData, counts: CountData, modelled_g: np.ndarray) -> None:
    n_empty = int((counts.inside_g == 0).sum())
    if n_empty == int(modelled_g.sum()):
        msg = "None of the modelled genes has a count. Check adata.X, layer= and mask_var=."
        raise ValueError(msg)
    if n_empty:
        logg.warning(
            f"{n_empty} of the {int(modelled_g.sum())} modelled genes have no count in any cell; "
            "sc.pp.filter_genes(adata, min_cells=1) removes them."
        )


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device: for ``"auto"`` CUDA if available, else the CPU; otherwise the named device, if it is available.

    Several processes on one machine get a GPU each for ``"auto"`` and ``"cuda"``.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        msg = f"device={device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:0'."
        raise ValueError(msg) from error
    if found.type not in ("cpu", "cuda"):
        msg = f"device={str(device)!r} is not supported: sums are computed in double precision, which it may lack. Use device='auto', 'cpu' or 'cuda'."
        raise ValueError(msg)
    of_process = local_rank()
    if found.type == "cuda" and found.index is None and of_process is not None:
        found = torch.device("cuda", of_process)
        if of_process >= torch.cuda.device_count() > 0:
            msg = (
                f"LOCAL_RANK={of_process}, but this machine has {torch.cuda.device_count()} GPU(s). Start as many processes as it has "
                "GPUs (torchrun --standalone --nproc-per-node), or pass device='cpu'."
            )
            raise ValueError(msg)
    absent = found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count())
    if absent:
        msg = f"device={str(device)!r} is not available on this machine. Use device='auto' or device='cpu'."
        raise ValueError(msg)
    return found


def as_tuple(keys: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return column names as a tuple; one name may be given as a string."""
    if keys is None:
        return ()
    if not isinstance(keys, Iterable):
        msg = f"The name of a column, or a list of names, is expected; found {keys!r}."
        raise TypeError(msg)
    return (keys,) if isinstance(keys, str) else tuple(keys)
