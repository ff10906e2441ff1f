"""Build the wheel (from the source archive), install it alone into a fresh environment, and predict there with the weights that it carries.

    python tools/wheel_check.py [--empty]

The environment sees the locked packages of the one that runs this through a .pth file, since installing them anew would
fetch gigabytes; the source tree and the editable install of it stay out of sight. With --empty it sees nothing, and pip
resolves what the wheel's own metadata asks for from the package index; escnn is not among it.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--empty", action="store_true", help="resolve the dependencies anew from the package index")
    empty = parser.parse_args().empty
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A copy of what is in the tree: setuptools leaves build/ and egg-info where it builds.
        source = folder / "source"
        source.mkdir()
        listed = _run("git", "-C", str(ROOT), "ls-files", "-z", "pyproject.toml", "README.md", "LICENSE", "src")
        for path in filter(None, listed.split("\0")):
            target = source / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / path).read_bytes())
        _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source))
        (wheel,) = (folder / "dist").glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")

        home = folder / "environment"
        venv.create(home, with_pip=True)
        python, packages = home / "bin" / "python", sysconfig.get_paths()["purelib"]
        # addsitedir would follow the locked environment's own .pth files, and so the editable install; a path does not.
        own = _run(str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
        if empty:
            _run(str(python), "-m", "pip", "install", "--quiet", str(wheel))
        else:
            _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
            Path(own, "locked.pth").write_text(f"{packages}\n")

        place = _run(str(python), "-c", "import d4lens; print(d4lens.__file__)", cwd=folder).strip()
        if not Path(place).is_relative_to(home):
            print(f"wheel_check: {place} was imported, not the wheel's", file=sys.stderr)
            return 1
        d4lens = str(home / "bin" / "d4lens")
        _run(d4lens, "simulate", "--n", "3", "--seed", "5", "-o", "three.zip", cwd=folder)
        _run(d4lens, "predict", "three.zip", "-o", "three.csv", cwd=folder)
        table = (folder / "three.csv").read_text()
        print(table, end="")
        return 0 if len(table.splitlines()) == 4 and "failed" not in table else 1


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"wheel_check: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
