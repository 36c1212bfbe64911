"""Freed memory is kept for the next batch."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
from tlkit.system import keep_freed_memory
if {keeps}: keep_freed_memory()
import torch
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): torch.ones(10_000_000)
before = faults()
for _ in range(20): torch.ones(10_000_000)
print(faults() - before)
"""


def page_faults(keeps: bool) -> int:
    code = FAULTS.format(keeps=keeps)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_a_block_that_was_freed_is_not_filled_by_the_system_again() -> None:
    # 40 MB are about 10,000 pages of 4 KiB, or 20 of 2 MiB.
    assert page_faults(keeps=True) < page_faults(keeps=False) / 10
