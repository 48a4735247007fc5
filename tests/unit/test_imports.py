"""What an import costs: libraries that take longer than ours are imported where they are used."""

import subprocess
import sys

import pytest
import torch

from lowrise.linalg.precision import multiplies_in_full

LATE = ("torch._dynamo", "torch.distributed.tensor", "scipy", "tensorboard", "transformers", "datasets")


@pytest.mark.parametrize(
    "module",
    ["lowrise.layers", "lowrise.optim", "lowrise.model", "lowrise.data", "lowrise.train", "lowrise.export"],
)
def test_heavy_libraries_come_late(module):
    code = f"import sys, {module}; print(*(name for name in {LATE!r} if name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == []


def test_the_mark_of_a_constant_is_the_compiler_s():
    marked = vars(torch.compiler.assume_constant_result(lambda: None))
    assert marked == vars(multiplies_in_full)
