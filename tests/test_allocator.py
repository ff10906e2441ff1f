import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from d4lens.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    print(keep_freed_memory(), file=sys.stderr)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    torch.ones(48_000_000 // 4)  # more than glibc ever keeps of itself
for _ in range(20):  # until the heap has grown
    step()
before = faults()
for _ in range(20):
    step()
print(faults() - before)
"""


def faults(kind: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, kind], capture_output=True, text=True, check=True)
    if "False" in done.stderr:
        pytest.skip("not glibc")
    return int(done.stdout)


def test_what_is_freed_is_not_asked_for_again():
    kept = faults("kept")
    assert kept < 100 < 10_000 < faults("given back")
