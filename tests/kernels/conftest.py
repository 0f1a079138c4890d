"""Kernels compiled for a GPU that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def ahead_of_time(tmp_path):
    """The function cases -> what each kernel needs of a Hopper GPU; `ahead_of_time.py` says what is in either."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("ahead_of_time.py"))]

    def run(cases):
        result = subprocess.run(command, input=json.dumps(cases), env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    return run
