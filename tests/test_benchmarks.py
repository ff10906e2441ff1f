import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"
STARTED = """
import runpy, sys
sys.path.insert(0, "")
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, path
    print("started", path)
"""


def test_every_benchmark_finds_all_that_it_imports():
    """All in one process, since most of the time goes into imports."""
    names = sorted(path.name for path in FOLDER.glob("*.py"))
    done = subprocess.run([sys.executable, "-c", STARTED, *names], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("started ")] == names
