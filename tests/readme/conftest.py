"""What documented commands find beside them: a sample, a trained model, files as the authors' programs write them."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "160",
}


def run(command: list[str], folder: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def execute() -> Callable[[list[str], Path], str]:
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `sample` (generated k-space) and `run` (a tiny model, hardly trained)."""
    folder = tmp_path_factory.mktemp("trained")
    run(["recurra-mri", "sample", "--out", "sample"], folder)
    run(["recurra-mri", "train", "rim-small", "--tiny", "data.train=4", "train.epochs=1", "--out", "run"], folder)
    return folder


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `tables` (embedded series), a checkpoint `model` of two of them, and `own.csv`, anybody's."""
    folder = tmp_path_factory.mktemp("forecaster")
    run(["recurra-forecast", "sample", "--out", "tables"], folder)
    given = ["data.csv=tables/climate.csv", "data.fill=linear", "data.scaler=window", "train.epochs=2"]
    run(["recurra-forecast", "train", "arnet", *given, "--out", "model", "-q"], folder)
    (folder / "own.csv").write_bytes((folder / "tables" / "climate.csv").read_bytes())
    return folder


@pytest.fixture(scope="session")
def authors_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with small checkpoints laid out as their authors write them, from the weights of golden pairs."""
    import torch
    import yaml

    from recurra.core.testing import Golden, golden

    def weights(pair: Golden) -> bytes:
        buffer = io.BytesIO()
        torch.save(pair.state, buffer)
        return buffer.getvalue()

    folder = tmp_path_factory.mktemp("authors")
    own = ROOT / "tests" / "golden" / "mri"
    pair = golden(own / "cirim_paper_implicit.json")
    with tarfile.open(folder / "cirim.mridc", "w:gz") as container:
        config = yaml.safe_dump(pair.config | {"model_name": "CIRIM"}).encode()
        for name, content in (("model_config.yaml", config), ("model_weights.ckpt", weights(pair))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            container.addfile(member, io.BytesIO(content))
    for target, source in (("rvn.pt", "rvn_sense"), ("rim.pt", "rim_direct_shared_sense")):
        torch.save({"model": golden(own / f"{source}.json").state}, folder / target)
    for target, source in (
        ("checkpoint.pth", "forecast-long/tpgn_etth1_168_168"),
        ("state.pth", "forecast-classic/arnet_dar_linear"),
        ("best.pt", "forecast-classic/regenn_lstm_lstm_ar"),
        ("resnls.pth", "forecast-classic/resnls_5_64"),
    ):
        state = golden(own.parent / f"{source}.json").state
        torch.save({"model_dict": state} if target == "best.pt" else state, folder / target)
    return folder
