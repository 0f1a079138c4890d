"""A package index can serve what the parts declare, beside other libraries of the field."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.network
def test_everything_resolves_in_one_environment(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        str(report),
    ]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    done = subprocess.run(
        [*command, "-c", "constraints.txt", ".[all]", "monai", "astropy"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = {item["metadata"]["name"].lower() for item in json.loads(report.read_text(encoding="utf-8"))["install"]}
    assert {name for name in names if name.startswith("recurra")} == {
        "recurra",
        "recurra-kernels",
        "recurra-core",
        "recurra-forecast",
        "recurra-mri",
    }
    assert {"torch", "monai", "astropy", "h5py", "sigpy", "pandas", "statsmodels"} <= names
    assert "tensorboard" not in names
