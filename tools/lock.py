"""Resolve requirements.lock from pyproject.toml: every package, transitive ones too, pinned with its hashes.

uv resolves, from a throw-away environment, so that the project's own stays as locked.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

RESOLVER = "uv==0.13.9"
ARGUMENTS = "pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header"


def main() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PIP_FIND_LINKS"}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder, "bin")
        subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", RESOLVER], check=True)
        command = [binaries / "uv", *ARGUMENTS.split(), "--quiet", "-o", "requirements.lock", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
