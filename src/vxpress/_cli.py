"""The commands ``vxpress demo`` and ``vxpress fit``.

Exit status: 0 success; 1 error in the data; 2 error on the command line (an option, a path, or a name missing from the
file); 130 interrupted; 143 stopped by SIGTERM; 129 terminal closed. If training was stopped after its first epoch, its best
state is still written; with ``--checkpoint-dir``, SIGTERM and a closed terminal store a checkpoint instead.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vxpress._command_input import is_on_disk, read_input, reads_from_disk
from vxpress._command_output import check_target, number_of_fits, report, was_interrupted, write
from vxpress._file_names import FileNames
from vxpress._fit_options import fit_options, further_options, given
from vxpress._several import in_any_process, is_first_process, process_name
from vxpress._signals import Stopped, StopSignals

if TYPE_CHECKING:
    from anndata import AnnData

OK, WRONG, USAGE, INTERRUPTED = 0, 1, 2, 130
SUFFIXES = (".h5ad", ".zarr")
FIT_EXAMPLES = """\
examples:
  vxpress fit counts.h5ad -o fitted.h5ad
  vxpress fit counts.h5ad -o fitted.h5ad --batch-key donor --n-top-genes 2000
  vxpress fit counts.zarr -o fitted.zarr --layer counts --continuous-covariate-keys percent_mito
  vxpress fit data.h5ad -o data.h5ad --overwrite --key-added vae2 --rng 1
  vxpress fit counts.h5ad -o fitted.h5ad --checkpoint-dir checkpoints --resume
  vxpress fit atlas.zarr -o atlas.zarr --overwrite --on-disk
  torchrun --standalone --nproc-per-node 4 -m vxpress fit counts.h5ad -o fitted.h5ad --batch-size 2048

The output contains the input with obsm["X_vae"], layers["vae_normalized"] and the model in uns["vae"]:
  sc.pp.neighbors(adata, use_rep="X_vae"); sc.tl.leiden(adata); sc.tl.umap(adata)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else OK
    signals = StopSignals()
    try:
        with _verbosity(), signals:
            status = int(arguments.command(arguments))
            return signals.status if status == INTERRUPTED else status
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return _fail(f"{signals.what}; the output was not written.", signals.status)
    except KeyError as error:
        # str() of a KeyError is the repr of its message
        return _fail(str(error.args[0]) if error.args else str(error))
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__)


def _fail(message: str, status: int = WRONG) -> int:
    print(f"vxpress{process_name()}: {message}", file=sys.stderr)
    return status


@contextmanager
def _verbosity() -> Iterator[None]:
    """Show progress and log messages on a terminal, and only warnings in a log file."""
    from scanpy import settings

    before = settings.verbosity
    settings.verbosity = 2 if sys.stderr.isatty() else 1
    try:
        yield
    finally:
        settings.verbosity = before


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vxpress", description="Conditional variational autoencoders of single-cell counts.")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="fit cells in batches, compare the result with PCA, and draw the figures",
        description="Fit 2,000 blood cells in three batches, simulated from real ones that come with scanpy (nothing is "
        "downloaded), cluster them, compare clusters and mixing of the batches with those of PCA, and write the AnnData and the "
        "figures. Takes less than a minute.",
    )
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("vxpress_demo"), metavar="DIR", help="default: %(default)s"
    )
    demo.set_defaults(command=_demo)

    fit = commands.add_parser(
        "fit",
        usage="vxpress fit INPUT -o OUTPUT [settings]",
        help="fit an .h5ad or .zarr file of raw counts",
        description="Fit a conditional variational autoencoder to the raw counts of an AnnData file, as\n"
        "vx.tl.fit_vae does with the same settings, and write the AnnData with the results.\n"
        "The output is written completely or not at all. Ctrl-C ends the training and writes its best state so far.",
        epilog=FIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.add_argument(
        "input", type=_data_path, help="AnnData file with raw counts, .h5ad or .zarr, or a collection of annbatch"
    )
    fit.add_argument("-o", "--output", type=_data_path, required=True, help="file to write, .h5ad or .zarr")
    fit.add_argument("--overwrite", action="store_true", help="replace an existing output, which may be the input")
    fit.add_argument(
        "--n-top-genes",
        type=_positive,
        metavar="N",
        help="model this many highly variable genes, chosen as vx.pp.highly_variable_genes does, within the batches "
        "(default: see --mask-var)",
    )
    fit.add_argument(
        "--on-disk",
        action=argparse.BooleanOptionalAction,
        help="read the counts from disk during the fit, for data larger than memory (default: if twice their size is more "
        "than the memory that is free)",
    )
    settings = fit.add_argument_group("settings", "The arguments of vx.tl.fit_vae, with its defaults.")
    for option in fit_options():
        option.add_to(settings)
    further = fit.add_argument_group(
        "further settings", "The fields of vx.tl.FitOptions; the preset sets those that are not given."
    )
    for option in further_options():
        option.add_to(further)
    fit.set_defaults(command=_fit)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without the long usage text, which ``--help`` shows."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"vxpress: {message}. {self.prog} --help lists the options.\n")


class _Version(argparse.Action):
    """The option ``--version``; the version is looked up only when needed."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"vxpress {version('vxpress')}")
        parser.exit()


def _data_path(text: str) -> Path:
    path = Path(text)
    if path.suffix not in SUFFIXES:
        msg = f"{text!r} should end in .h5ad or .zarr"
        raise argparse.ArgumentTypeError(msg)
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"{text!r} should be a whole number above 0"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _fit(arguments: argparse.Namespace) -> int:
    source, target = arguments.input, arguments.output
    settings, further = given(arguments)
    # check everything possible before reading the data and before a long fit
    try:
        check_target(target, overwrite=arguments.overwrite)
        if not source.exists():
            msg = f"{source} does not exist."
            raise FileNotFoundError(msg)
        names = FileNames.of(source)
    except OSError as error:
        return _fail(str(error), USAGE)
    try:
        _check_names(settings, names, source)
        settings = _checked(settings, further)
    except (ValueError, TypeError, ImportError) as error:
        return _fail(str(error), USAGE)

    first = is_first_process(settings)
    asked = _as_before(settings) if arguments.on_disk is None and "source" not in further else arguments.on_disk
    # the free memory may differ between processes, and an order by blocks needs all of them
    adata = read_input(source, on_disk=in_any_process(reads_from_disk(source, on_disk=asked), settings))
    if first:
        what = "opened" if is_on_disk(adata) else "read"
        print(f"{what} {source}: {adata.n_obs:,} cells x {adata.n_vars:,} genes", flush=True)
        _report_checkpoint(settings)
    stored, seconds = _run_fit(adata, arguments.n_top_genes, settings)
    if not first:
        # all processes have the same results, and one writes them
        return OK
    report(stored, seconds)
    write(adata, target, overwrite=arguments.overwrite)
    print(f"wrote {target}")
    if was_interrupted(stored):
        kept = int(stored["params"]["best_epoch"]) + 1
        return _fail(f"training was interrupted; {target} holds its best state so far, of epoch {kept}.", INTERRUPTED)
    complete, requested = number_of_fits(stored)
    if complete < requested:
        return _fail(f"{complete} of {requested} fits are complete; {target} holds them.", INTERRUPTED)
    if settings.get("checkpoint_dir") is not None:
        from vxpress.bridge.fits.checkpoints import remove_checkpoints

        remove_checkpoints(Path(settings["checkpoint_dir"]))
    return OK


def _as_before(settings: Mapping[str, Any]) -> bool | None:
    """Return whether the fit to continue reads from disk, whatever the free memory is now; None if there is none."""
    if settings.get("checkpoint_dir") is None or not settings.get("resume"):
        return None
    from vxpress.bridge.fits.checkpoints import read_by_blocks

    return read_by_blocks(Path(settings["checkpoint_dir"]))


def _report_checkpoint(settings: Mapping[str, Any]) -> None:
    """Print where a fit continues, which a log file would not show otherwise."""
    if settings.get("checkpoint_dir") is None or not settings.get("resume"):
        return
    from vxpress.bridge.fits.checkpoints import reached

    found = reached(Path(settings["checkpoint_dir"]))
    if found is not None:
        print(f"continuing from {found[0]}: {found[1]}", flush=True)


def _check_names(settings: Mapping[str, Any], names: FileNames, source: Path) -> None:
    """Raise ``ValueError`` if the file lacks a column or layer."""
    columns: list[tuple[str, str]] = []
    keys = "batch_key", "labels_key", "perturbation_key", "dose_key"
    for name in (*keys, "categorical_covariate_keys", "continuous_covariate_keys"):
        value = settings.get(name)
        columns += [(name, key) for key in ([value] if isinstance(value, str) else value or ())]
    if settings.get("library") not in (None, "observed", "latent"):
        columns.append(("library", settings["library"]))
    wanted = [(name, key, "column of obs", names.obs) for name, key in columns]
    if settings.get("mask_var") is not None:
        wanted.append(("mask_var", settings["mask_var"], "column of var", names.var))
    if settings.get("layer") is not None:
        wanted.append(("layer", settings["layer"], "layer", names.layers))
    for name, key, kind, found in wanted:
        if key not in found:
            msg = f"--{name.replace('_', '-')}: {key!r} is not a {kind} of {source} (found: {', '.join(found) or 'none'})."
            raise ValueError(msg)
    if settings.get("layer") is None and not names.has_x:
        msg = f"{source} has no X. Name the layer that holds the counts with --layer (found: {', '.join(names.layers) or 'none'})."
        raise ValueError(msg)


def _checked(settings: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """Check the arguments of ``fit_vae`` as far as possible without the data, and return them."""
    from vxpress._keys import Keys
    from vxpress.bridge.fits.fit_arguments import check_arguments
    from vxpress.tl import FitOptions
    from vxpress.tl._fit_vae import fit_vae

    settings = settings | {"options": FitOptions(**further)} if further else settings
    Keys.of(settings.get("key_added"), "key_added")
    defaults = {name: parameter.default for name, parameter in inspect.signature(fit_vae).parameters.items()}
    check_arguments(defaults | settings)
    return settings


def _run_fit(adata: AnnData, n_top_genes: int | None, settings: Mapping[str, Any]) -> tuple[Any, float]:
    """Fit, and return the fit as stored in ``uns``, and the seconds that it took."""
    import vxpress as vx
    from vxpress._keys import Keys

    if n_top_genes is not None:
        layer, batch_key = settings.get("layer"), settings.get("batch_key")
        vx.pp.highly_variable_genes(adata, n_top_genes=n_top_genes, layer=layer, batch_key=batch_key)
    start = time.perf_counter()
    vx.tl.fit_vae(adata, **settings)
    return adata.uns[Keys.of(settings.get("key_added"), "key_added").uns], time.perf_counter() - start


def _demo(arguments: argparse.Namespace) -> int:
    from scanpy import settings

    from vxpress._demo import demo

    # hide the messages of scanpy's steps; main() restores the verbosity
    settings.verbosity = min(int(settings.verbosity), 1)
    demo(arguments.output)
    return OK
