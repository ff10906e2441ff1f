"""Prediction imports timm without torch's compiler, and leaves the compiler as it was."""

import os
import subprocess
import sys

import pytest

WITHOUT = """
import sys
import d4lens.inference.pipeline
assert "timm" in sys.modules
assert "torch._dynamo" not in sys.modules
"""
COMPILES = """
import torch
import torch._dynamo.utils
assert torch._dynamo.utils.counters is not None
print(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).sum().item())
"""
ASKS_FOR_MORE = """
import d4lens.inference
import timm
print(timm.counters is not None)
"""


def run(code: str, folder: str = "") -> str:
    path = os.pathsep.join(filter(None, [folder, *sys.path]))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", [WITHOUT + COMPILES, "import torch._dynamo\nimport d4lens.inference\n" + COMPILES])
def test_the_compiler_is_not_imported_and_works_for_whoever_wants_it(code):
    assert run(code) == "4.0\n"


def test_a_timm_that_asks_the_compiler_for_more_gets_it(tmp_path):
    (tmp_path / "timm.py").write_text("from torch._dynamo.utils import counters\n")
    assert run(ASKS_FOR_MORE, str(tmp_path)) == "True\n"
