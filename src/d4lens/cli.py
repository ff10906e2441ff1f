"""The command line: `d4lens simulate | join | predict | fit | detect | explain`."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d4lens.allocator import keep_freed_memory
from d4lens.errors import D4LensError, WriteError, reason_of
from d4lens.files import readable, writing
from d4lens.table_files import check_suffix, write_table

if TYPE_CHECKING:
    from pandas import DataFrame

    from d4lens.data.images import ImageSource
    from d4lens.inference.pipeline import Answer

_CLOSED = "standard output is closed, so the answer would be lost; open it or name a file: -o FILE"


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : list of str, optional
        The arguments; None takes the process's.

    Returns
    -------
    int
        The exit status. A user's mistake, or an answer that cannot be written, prints one sentence on standard error and
        returns 1, or 141 where the reader of a pipe has gone.
    """
    _open_streams()
    name = "d4lens"
    given = sys.argv[1:] if argv is None else argv
    try:
        try:
            arguments = _parser(given).parse_args(given)
        except SystemExit as end:
            if not end.code:
                _print("")  # help and version, which argparse does not miss
            raise
        name = f"d4lens {arguments.command}"
        keep_freed_memory()
        _check_out(arguments.out, arguments.command)
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130
    except D4LensError as error:
        _say(f"{name}: {error}")
        return 141 if isinstance(error, OSError) and error.errno == errno.EPIPE else 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{name}: {where}{reason_of(error)}")
        return 1


def _open_streams() -> None:
    """Have standard output speak UTF-8 whatever the locale, as the files do, and fill the places of closed streams.

    The next file opened would take such a place, and what is printed would go into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    if sys.stderr is None:  # print would take standard output in its place
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end


def _print(text: str) -> None:
    """Print, and know that it has arrived. Raises WriteError where it has not, D4LensError where standard output is closed."""
    if sys.stdout is None:
        raise D4LensError(_CLOSED)
    try:
        with writing(Path("standard output"), always=True):
            print(readable(text), end="", flush=True)
    except WriteError:
        with suppress(OSError, ValueError):  # Python flushes what is left once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _say(sentence: str) -> None:
    """One line on standard error."""
    with suppress(OSError):
        print(readable(sentence), file=sys.stderr, flush=True)


def _report(sentence: str) -> None:
    """One line on standard output that is not the answer: where it is closed, nobody wants it."""
    if sys.stdout is not None:
        _print(f"{sentence}\n")


def _parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="d4lens", description="Tells from one image of a strong gravitational lens which dark matter is in it."
    )
    parser.add_argument("--version", action="version", version=f"d4lens {version('d4lens')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    simulate = _command(
        commands,
        "simulate",
        "simulate lens images, with their truth, into one archive",
        "d4lens simulate --preset deeplense --n 30 --seed 1 -o thirty.zip",
    )
    simulate.add_argument("--preset", default="deeplense", metavar=_preset_names(argv),
                          help="what is simulated (default: deeplense)")  # fmt: skip
    simulate.add_argument("--n", type=int, required=True, help="number of images, in equal classes")
    simulate.add_argument("--n-val", type=int, default=0, help="images of the val split beside them (default: 0)")
    simulate.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    simulate.add_argument("-o", "--out", type=Path, required=True, help="archive to write, ending in .zip")
    simulate.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], dest="overrides",
                          help="fix a prior (sersic_n=2), give its range (theta_E=0.9,1.6) or throw a switch "
                          "(corrected=true); may be repeated")  # fmt: skip
    simulate.add_argument("--workers", type=int, default=0, help="processes; 0 takes every core (default: 0)")
    simulate.add_argument(
        "--shard", metavar="I/K", help="make only part I (from 1) of K; `d4lens join` puts them together"
    )
    simulate.set_defaults(run=_simulate)

    join = _command(
        commands,
        "join",
        "join the shards of one simulated data set into one archive",
        "d4lens join one.zip two.zip -o lenses.zip",
    )
    join.add_argument("paths", nargs="+", type=Path, metavar="SHARD", help="all shards, in any order")
    join.add_argument("-o", "--out", type=Path, required=True, help="archive to write, ending in .zip")
    join.set_defaults(run=_join)

    predict = _command(
        commands,
        "predict",
        "classify images",
        "d4lens predict my_images/ -o predictions.csv\n"
        "  d4lens predict lens.fits --band F814W --psf 0.05 -o predictions.parquet",
    )
    _add_images(predict, out="predictions.csv")
    _add_smooth_lens(predict)
    predict.add_argument("--weights", type=Path, help="a model.safetensors (default: the weights of the package)")
    predict.add_argument("--no-tta", action="store_true", help="one view of each image instead of all eight")
    predict.add_argument("--force-label", action="store_true", help="give a label also where a flag withholds it")
    predict.set_defaults(run=_predict)

    fit = _command(
        commands,
        "fit",
        "fit a smooth lens to each image",
        "d4lens fit 'survey/*.fits' --free n,R_e -o fit.csv",
    )
    _add_images(fit, out="fit.csv")
    _add_smooth_lens(fit)
    fit.set_defaults(run=_fit)

    detect = _command(
        commands,
        "detect",
        "look for masses beside the main lens: where, how massive, how sure",
        "d4lens detect lens.fits --z-lens 0.5 --z-source 1 --sensitivity map.fits -o found.csv",
    )
    _add_images(detect, out="found.csv")
    detect.add_argument(
        "--profile", default="point", choices=("point", "sis"), help="of the masses (default: point masses)"
    )
    detect.add_argument("--p-false", type=float, default=0.01, metavar="P",
                        help="list what noise alone shows anywhere in the image with less than this probability "
                        "(default: 0.01)")  # fmt: skip
    detect.add_argument("--z-lens", type=float, metavar="Z", help="redshift of the lens, for solar masses")
    detect.add_argument("--z-source", type=float, metavar="Z", help="redshift of the source, for solar masses")
    detect.add_argument(
        "--sensitivity", type=Path, metavar="FITS", help="map of the mass that would have shown, to write"
    )
    detect.add_argument(
        "--sigma", type=float, default=5.0, help="standard deviations at which it would have shown (default: 5)"
    )
    detect.add_argument("--force", action="store_true", help="list candidates also where a flag withholds them")
    _add_smooth_lens(detect)
    detect.set_defaults(run=_detect)

    explain = _command(
        commands,
        "explain",
        "draw what the answer for each image rests on",
        "d4lens explain lens.npy -o lens.png\n  d4lens explain my_images/ --layout talk -o pictures",
    )
    _add_paths(explain)
    _add_instrument(explain)
    _add_smooth_lens(explain)
    explain.add_argument("--weights", type=Path, help="a model.safetensors (default: the weights of the package)")
    explain.add_argument("-o", "--out", type=Path,
                         help="picture to write (.png, .pdf, .svg), or a folder for several (default: explained.png, "
                         "explained/)")  # fmt: skip
    explain.add_argument(
        "--masses", action="store_true", help="with the masses beside the main lens, as detect finds them"
    )
    explain.add_argument("--layout", choices=("full", "talk"), default="full",
                         help="all panels, or four for a slide (default: full)")  # fmt: skip
    explain.set_defaults(run=_explain)
    return parser


def _preset_names(argv: Sequence[str]) -> str:
    """Return the presets as usage and help of `simulate` show them."""
    if "simulate" not in argv:
        return "NAME"  # no other command shows it, and the import takes seconds
    from d4lens.simulator import PRESETS

    return f"{{{','.join(PRESETS)}}}"


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, what: str, example: str
) -> argparse.ArgumentParser:
    """Add a command whose help ends in an example."""
    return commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _check_out(out: Path | None, command: str) -> None:
    """Refuse a place that cannot be written before the work is done, not after."""
    tables = command in ("predict", "fit", "detect")
    if out is None:
        if tables and sys.stdout is None:
            raise D4LensError(_CLOSED)
        return
    if tables and not out.is_dir():
        check_suffix(out)
    if out.is_dir() and command != "explain":
        raise D4LensError(f"{out} is a folder; name a file in it: -o {out / 'NAME'}")
    folder = out if out.is_dir() else next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise D4LensError(f"{out} cannot be written: {folder} is no folder that takes files; choose another place")


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images (.npy, .npz, .fits, .png, .tif), folders or zips of them, or quoted patterns",
    )


def _add_images(parser: argparse.ArgumentParser, out: str) -> None:
    _add_paths(parser)
    parser.add_argument(
        "-o", "--out", type=Path, help=f"table to write, such as {out}, or .parquet or .json (default: print csv)"
    )
    _add_instrument(parser)


def _add_instrument(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what is known of the images", "where their headers do not tell, or to overrule them"
    )
    group.add_argument("--pixel-scale", type=float, metavar="ARCSEC", help="arcsec per pixel")
    group.add_argument(
        "--psf",
        metavar="SIGMA|FILE[:EXT]",
        help="the PSF: its sigma in arcsec, or the file of an image of it, and which of several (name or number)",
    )
    group.add_argument("--gain", type=float, help="photons (electrons) per unit of the values; 1 for photon counts")
    group.add_argument("--exposure", type=float, metavar="SECONDS", help="multiplies values that are a rate")
    group.add_argument("--sky", type=float, metavar="COUNTS", help="mean sky photons per pixel, also where subtracted")
    group.add_argument("--band", metavar="NAME|INDEX", help="which image of files that hold several")
    group.add_argument(
        "--mask", metavar="FILE", help="image of the same pixels, nonzero or True where they hold no data"
    )
    group.add_argument(
        "--free",
        default="",
        metavar="NAMES",
        help="parameters to fit beyond the preset's, such as n,R_e,lens_e1,lens_e2",
    )


def _add_smooth_lens(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which smooth lens is fitted")
    group.add_argument(
        "--noise",
        metavar="FILE[:EXT]",
        help="standard deviation of each pixel in the image's units, infinite where there are no data (of an .npz: noise)",
    )
    group.add_argument(
        "--einstein-radius", type=float, metavar="ARCSEC", help="about right, of a lens whose galaxy shines itself"
    )
    group.add_argument(
        "--model",
        choices=("specialist", "marginal", "auto"),
        default="auto",
        help="smooth lens: the preset's, one whose source and lens light are marginalised, or what suits the image (default)",
    )


def _simulate(arguments: argparse.Namespace) -> int:
    from d4lens.simulator import DataSet, preset, write_archive

    if arguments.out.suffix != ".zip":
        raise D4LensError(f"the archive's name must end in .zip, not {arguments.out.name!r}")
    if arguments.n < 1 or arguments.n_val < 0:
        raise D4LensError(f"--n must be at least 1 and --n-val at least 0, not {arguments.n} and {arguments.n_val}")
    overrides = dict(_override(text) for text in arguments.overrides)
    workers = arguments.workers or os.cpu_count() or 1
    lenses = preset(arguments.preset, overrides)
    shard, shards = _shard(arguments.shard)
    data = DataSet(lenses, arguments.seed, arguments.n, arguments.n_val)
    write_archive(arguments.out, data, shard, shards, workers, progress=True)
    part = f"part {shard + 1} of {shards} of " if shards > 1 else ""
    _report(f"{part}{arguments.n + arguments.n_val} images in {arguments.out}")
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from d4lens.simulator import join_shards

    join_shards(arguments.paths, arguments.out)
    _report(f"{len(arguments.paths)} shards joined in {arguments.out}")
    return 0


def _shard(text: str | None) -> tuple[int, int]:
    """Read "2/4" as (1, 4); None is the whole."""
    if text is None:
        return 0, 1
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise D4LensError(f"--shard takes I/K with I from 1 to K, such as 2/4, not {text!r}")
    return int(part) - 1, int(parts)


def _override(text: str) -> tuple[str, bool | float | list[float]]:
    name, equals, value = text.partition("=")
    if name and value in ("true", "false"):
        return name, value == "true"
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not (name and equals and len(numbers) in (1, 2)):
        raise D4LensError(f"--set takes NAME=VALUE or NAME=LOW,HIGH with numbers, or NAME=true, not {text!r}")
    return name, numbers[0] if len(numbers) == 1 else numbers


def _found(arguments: argparse.Namespace) -> "list[ImageSource]":
    from d4lens.data import images

    return list(images.find(arguments.paths))


def _predict(arguments: argparse.Namespace) -> int:
    from d4lens.inference.pipeline import classify, load_classifier

    known = _known(arguments) | {"tta": not arguments.no_tta, "force_label": arguments.force_label}
    classifier = load_classifier(arguments.weights)
    return _write(classify(_found(arguments), classifier, **known), arguments)


def _fit(arguments: argparse.Namespace) -> int:
    from d4lens.inference.pipeline import fit_sources

    known = _known(arguments)
    return _write(fit_sources(_found(arguments), **known), arguments)


def _detect(arguments: argparse.Namespace) -> int:
    from d4lens.inference.mass_search import Wanted, detect_sources

    names = ("profile", "p_false", "z_lens", "z_source", "sensitivity", "sigma", "force")
    wanted = Wanted(**{name: getattr(arguments, name) for name in names})
    _check_out(arguments.sensitivity, "a map")
    known = _known(arguments)
    return _write(detect_sources(_found(arguments), wanted=wanted, **known), arguments)


def _explain(arguments: argparse.Namespace) -> int:
    """Draw every image; one that fails is named, and the rest goes on."""
    from d4lens.inference.explain import explain_source
    from d4lens.inference.picture import draw_explanation, places_for
    from d4lens.inference.pipeline import load_classifier

    known = _known(arguments)
    classifier = load_classifier(arguments.weights)
    found = _found(arguments)
    places = places_for([source.name for source in found], arguments.out)
    sources = known["instrument"].joined(found)
    failed = 0
    for source, place in zip(sources, places, strict=True):
        try:
            explanation = explain_source(source, classifier, masses=arguments.masses, **known)
        except D4LensError as error:
            _say(f"d4lens explain: {error}")
            failed += 1
            continue
        draw_explanation(explanation, place, arguments.layout)
        _report(f"{source.name}: drawn in {place}")
    if failed and len(sources) > 1:
        _say(f"d4lens explain: {failed} of {len(sources)} images failed")
    return 1 if failed else 0


def _known(arguments: argparse.Namespace) -> dict[str, Any]:
    """Collect what the user tells of the images; say what is odd about it."""
    from d4lens.data.images import read_instrument
    from d4lens.inference.arguments import names_of

    names = ("pixel_scale", "psf", "gain", "exposure", "sky", "band", "mask", "noise", "einstein_radius")
    instrument = read_instrument(**{name: getattr(arguments, name, None) for name in names})
    if instrument.psf is not None and instrument.psf.note:
        _say(f"d4lens {arguments.command}: {instrument.psf.note}")
    model = {"model": arguments.model} if hasattr(arguments, "model") else {}
    return {"instrument": instrument, "free": names_of(arguments.free), **model}


def _write(answer: "Answer", arguments: argparse.Namespace) -> int:
    """Write or print the table; every image that failed is named on standard error and makes the exit status 1."""
    for path, reason in answer.failures:
        _say(f"d4lens {arguments.command}: {reason if path in reason else f'{path}: {reason}'}")
    if arguments.out is None:
        _print(_csv(answer.table))
    else:
        try:
            write_table(answer.table, arguments.out)
        except OSError:  # hours of work may stand in it
            _say(f"d4lens {arguments.command}: the table goes to standard output instead of {arguments.out}")
            _report(_csv(answer.table).rstrip("\n"))
            raise
        _report(f"{len(answer.table)} rows in {arguments.out}")
    if answer.failures:
        _say(f"d4lens {arguments.command}: {len(answer.failures)} of {len(answer.table)} images failed")
    return 1 if answer.failures else 0


def _csv(table: "DataFrame") -> str:
    return str(table.to_csv(index=False, float_format="%.6g"))
