"""The training step on a device that is not the host: nothing on the wrong device, nothing that waits for it.

torch's FakeTensorMode stands in for the GPU; tests/helpers/fake_gpu.py says how.
"""

import re

import pytest

from helpers.program import python
from tinyimnet.config_cli import CONFIGS

ALL = sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def step(*arguments: str) -> tuple[int, str]:
    """Run steps of a configuration; returns the exit code and the last line of stderr."""
    done = python("tests/helpers/fake_gpu.py", *arguments, WANDB_MODE="disabled")
    return done.returncode, done.stderr.strip().rpartition("\n")[2]


@pytest.mark.long
@pytest.mark.parametrize(
    "name, precision", [*((name, "bf16") for name in ALL), ("baseline", "fp16"), ("tiny1m", "fp16")]
)
def test_the_step_of_every_configuration_stays_on_the_device(name: str, precision: str) -> None:
    code, error = step(name, precision)
    assert code == 0, error


@pytest.mark.parametrize("name", ["smoke", "tiny1m_cpu_distilled"])
def test_a_step_stays_on_the_device(name: str) -> None:
    code, error = step(name, "bf16")
    assert code == 0, error


@pytest.mark.parametrize(
    "fault, error", [("item", "DataDependentOutput"), ("host", "two (different )?devices fakegpu:0")]
)
def test_a_step_that_would_wait_or_fail_on_a_gpu_is_noticed(fault: str, error: str) -> None:
    code, said = step("smoke", "bf16", fault)
    assert code == 1 and re.search(error, said.replace(",", ""))
