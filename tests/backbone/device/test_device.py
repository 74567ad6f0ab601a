"""Nothing in the path is left on the CPU when the model is elsewhere: on a pretended device, in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

TESTS = Path(__file__).parents[2]
needs_python_backend = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot pretend a device",
)


@needs_python_backend
def test_both_stages_scoring_and_prediction_run_on_another_device_with_the_cpus_results(
    tiny_t5_folder: Path, tiny_task_folder: Path
) -> None:
    command = [sys.executable, str(TESTS / "on_far_device.py"), str(tiny_t5_folder), str(tiny_task_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    near, far = map(json.loads, done.stdout.splitlines()[-2:])
    assert (near.pop("device"), far.pop("device")) == ("cpu", "far")
    assert far.pop("texts") == near.pop("texts")
    assert far == {key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in near.items()}
