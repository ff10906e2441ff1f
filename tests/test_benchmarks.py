import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_all_that_it_imports(path):
    done = subprocess.run([sys.executable, path.name, "--help"], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
