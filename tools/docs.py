"""The API pages, from the docstrings of every public module. Writes build/docs/, opened by build/docs/index.html."""

import argparse
import os
import sys
import warnings
from pathlib import Path

import pdoc
from pdoc import docstrings

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "d4lens"


def modules() -> list[str]:
    """Names of the modules and packages that stand in d4lens itself; a package's own come with it."""
    files = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return sorted(f"d4lens.{path.stem}" for path in files if not path.stem.startswith("_"))


def table(content: str) -> str:
    """A numpydoc section of parameters, results or errors as a table; pdoc alone makes a list of it."""
    lines = ["", "| name | type | meaning |", "|---|---|---|"]
    for item in docstrings._indented_list(content):
        head, _, text = item.partition("\n")
        name, _, kind = head.partition(" : ")
        cells = (f"`{name.strip()}`", kind.strip(), " ".join(text.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("build/docs"))
    out = parser.parse_args().out
    os.environ.setdefault("PDOC_ALLOW_EXEC", "1")  # numpy asks the processor's kind when it is imported
    docstrings._numpy_parameters = table
    pdoc.render.configure(docformat="numpy", show_source=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules(), output_directory=out)
    faults = [str(one.message) for one in found if "pdoc" in Path(one.filename).parts]
    if faults:
        sys.exit("\n".join(faults))
    print(f"{out / 'index.html'}: {len(list(out.rglob('*.html')))} pages")


if __name__ == "__main__":
    main()
