"""The command line: `d4lens simulate | join | predict | fit | explain`."""

import argparse
import os
import sys
from pathlib import Path

from d4lens.errors import D4LensError


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake prints one sentence on standard error and returns 1."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _check_out(arguments.out)
        return arguments.run(arguments)
    except D4LensError as error:
        print(f"d4lens {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone; there is nobody left to tell, and Python must not flush at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"d4lens {arguments.command}: {error.filename or arguments.out}: {error.strerror}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="d4lens", description="Tells from one image of a strong gravitational lens which dark matter is in it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    simulate = commands.add_parser("simulate", help="simulate lens images, with their truth, into one archive")
    simulate.add_argument("--preset", default="deeplense", metavar="{deeplense,model-i}",
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

    join = commands.add_parser("join", help="join the shards of one simulated data set into one archive")
    join.add_argument("paths", nargs="+", type=Path, metavar="SHARD", help="all shards, in any order")
    join.add_argument("-o", "--out", type=Path, required=True, help="archive to write, ending in .zip")
    join.set_defaults(run=_join)

    predict = commands.add_parser("predict", help="classify images")
    _add_images(predict, out="predictions.csv")
    predict.add_argument("--weights", type=Path, help="a model.safetensors (default: the weights of the package)")
    predict.add_argument("--no-tta", action="store_true", help="one view of each image instead of all eight")
    predict.set_defaults(run=_predict)

    fit = commands.add_parser("fit", help="fit a smooth lens to each image")
    _add_images(fit, out="fit.csv")
    fit.set_defaults(run=_fit)

    explain = commands.add_parser("explain", help="draw what the answer for one image rests on")
    explain.add_argument("path", metavar="IMAGE", help="one .npy file")
    explain.add_argument("--weights", type=Path, help="a model.safetensors (default: the weights of the package)")
    explain.add_argument("-o", "--out", type=Path, default=Path("explained.png"), help="picture to write")
    explain.set_defaults(run=_explain)
    return parser


def _check_out(out: Path | None) -> None:
    """Refuse a place that cannot be written before the work is done, not after."""
    if out is None:
        return
    if out.is_dir():
        raise D4LensError(f"{out} is a folder; name a file in it: -o {out / 'NAME'}")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise D4LensError(f"{out} cannot be written: {folder} is no folder that takes files; choose another place")


def _add_images(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help=".npy files, folders or zips of them")
    parser.add_argument("-o", "--out", type=Path, help=f"table to write, such as {out} (default: print it)")


def _simulate(arguments: argparse.Namespace) -> int:
    from d4lens.simulate import preset, write_shard

    if arguments.out.suffix != ".zip":
        raise D4LensError(f"the archive's name must end in .zip, not {arguments.out.name!r}")
    if arguments.n < 1 or arguments.n_val < 0:
        raise D4LensError(f"--n must be at least 1 and --n-val at least 0, not {arguments.n} and {arguments.n_val}")
    overrides = dict(_override(text) for text in arguments.overrides)
    workers = arguments.workers or os.cpu_count() or 1
    lenses = preset(arguments.preset, overrides)
    shard, shards = _shard(arguments.shard)
    counts = arguments.n, arguments.n_val
    write_shard(arguments.out, lenses, arguments.seed, *counts, shard, shards, workers, progress=True)
    part = f"part {shard + 1} of {shards} of " if shards > 1 else ""
    print(f"{part}{sum(counts)} images in {arguments.out}")
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from d4lens.simulate import join_shards

    join_shards(arguments.paths, arguments.out)
    print(f"{len(arguments.paths)} shards joined in {arguments.out}")
    return 0


def _shard(text: str | None) -> tuple[int, int]:
    """ "2/4" -> (1, 4); None is the whole."""
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


def _predict(arguments: argparse.Namespace) -> int:
    from d4lens.predict import predict_table

    return _write(predict_table(arguments.paths, weights=arguments.weights, tta=not arguments.no_tta), arguments)


def _fit(arguments: argparse.Namespace) -> int:
    from d4lens.predict import fit_table

    return _write(fit_table(arguments.paths), arguments)


def _explain(arguments: argparse.Namespace) -> int:
    from d4lens.explain import draw, explain

    explanation = explain(arguments.path, arguments.weights)
    draw(explanation, arguments.out)
    print(f"{arguments.path}: drawn in {arguments.out}")
    return 0


def _write(answer, arguments: argparse.Namespace) -> int:
    """Write or print the table; every image that failed is told on standard error and makes the exit status 1."""
    from d4lens.files import atomic_path

    for path, reason in answer.failures:
        print(f"d4lens {arguments.command}: {path}: {reason}", file=sys.stderr)
    if len(answer.failures) < len(answer.table):
        if arguments.out is None:
            answer.table.to_csv(sys.stdout, index=False, float_format="%.6g")
        else:
            with atomic_path(arguments.out) as temporary:
                answer.table.to_csv(temporary, index=False, float_format="%.6g")
            print(f"{len(answer.table)} rows in {arguments.out}")
    if answer.failures:
        print(
            f"d4lens {arguments.command}: {len(answer.failures)} of {len(answer.table)} images failed", file=sys.stderr
        )
    return 1 if answer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
