"""Authors' checkpoint files, made here byte by byte: what they become, and what is refused without being run."""

import io
import json
import os
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from torch import Tensor

from recurra.core.testing import golden, golden_files
from recurra.mri.conversion import convert, from_direct_recurrentvarnet, from_direct_rim
from recurra.mri.models import CIRIM, DirectRIM, Reconstructor, RecurrentVarNet
from recurra.mri.operators import sense_expand

PUBLISHED = [
    file
    for pair in golden_files("mri", "*")
    if "trained" in pair.stem
    for file in sorted((pair.parent / "containers").glob("*"))
]
SMALL = {"conv_filters": (6, 6, 2), "recurrent_filters": (6, 6, 0), "cascades": 2, "fft": "uncentered-ortho"}
FIRST_GENERATION = {
    "model_name": "CIRIM",
    "recurrent_layer": "IndRNN",
    "conv_filters": [6, 6, 2],
    "conv_kernels": [5, 3, 3],
    "conv_dilations": [1, 2, 1],
    "conv_bias": [True, True, False],
    "recurrent_filters": [6, 6, 0],
    "recurrent_kernels": [1, 1, 0],
    "recurrent_dilations": [1, 1, 0],
    "recurrent_bias": [True, True, False],
    "depth": 2,
    "time_steps": 8,
    "conv_dim": 2,
    "num_cascades": 2,
    "no_dc": True,
    "keep_eta": True,
    "accumulate_estimates": True,
    "fft_type": "orthogonal_norm_only",
    "train_ds": {
        "data_path": "/home/someone/knees/h5/train/",
        "normalize_inputs": True,
        "mask_args": {"type": "gaussian2d", "accelerations": [4, 8]},
    },
}
RENAMED = {"keep_eta": "keep_prediction", "accumulate_estimates": "accumulate_predictions"}
SECOND_GENERATION = {
    **{RENAMED.get(key, key): value for key, value in FIRST_GENERATION.items() if key != "fft_type"},
    "fft_centered": False,
    "fft_normalization": "ortho",
}


@pytest.fixture
def unhooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user: no shape hook in front of our own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def cirim(seed: int = 0, **options: Any) -> CIRIM:
    torch.manual_seed(seed)
    model = CIRIM(**{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def authors_state(model: torch.nn.Module, renames: dict[str, str]) -> dict[str, Tensor]:
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in renames.items():
            if key.startswith(ours):
                state[theirs + key.removeprefix(ours)] = value
    return state


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def container(path: Path, config: dict[str, Any], state: Any, *, mode: str = "w:gz") -> Path:
    members = {"./model_config.yaml": yaml.safe_dump(config).encode(), "./model_weights.ckpt": saved(state)}
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def mridc_state(model: CIRIM) -> dict[str, Tensor]:
    return {"dc_weight": torch.ones(1), **authors_state(model, {"cascades.": "cirim."})}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def same_output(one: Reconstructor, other: Reconstructor) -> bool:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(1, 3, 16, 12, generator=generator, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    image = torch.randn(1, 16, 12, generator=generator, dtype=torch.complex64)
    mask = torch.rand(1, 1, 1, 12, generator=generator) < 0.5
    kspace = one.to_kspace(sense_expand(image, maps)) * mask
    with torch.no_grad():
        return torch.equal(one(kspace, maps, mask), other(kspace, maps, mask))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("config", [FIRST_GENERATION, SECOND_GENERATION], ids=["0.0.1", "0.1"])
def test_mridc_container(tmp_path: Path, config: dict[str, Any], mode: str) -> None:
    model = cirim()
    out = convert(container(tmp_path / "a.mridc", config, mridc_state(model), mode=mode), "mridc", tmp_path / "out")
    converted = CIRIM.from_pretrained(out)
    assert same(converted, model)
    assert same_output(converted, model)
    assert converted.config["semantics"] == "paper"
    assert converted.config["fft"] == "uncentered-ortho"


def test_atommic_container(tmp_path: Path) -> None:
    model = cirim(semantics="atommic", fft="centered-ortho", sensitivity_net="normunet", sensitivity_filters=2)
    renames = {"cascades.": "reconstruction_module.", "sensitivity_net.": "coil_sensitivity_maps_nn."}
    config = {**SECOND_GENERATION, "fft_centered": True, "train_ds": {"normalize_inputs": False}}
    path = container(tmp_path / "a.atommic", config, authors_state(model, renames))
    converted = CIRIM.from_pretrained(convert(path, "atommic", tmp_path / "out"))
    assert same(converted, model)
    options = {"semantics": "atommic", "sensitivity_net": "normunet", "sensitivity_filters": 2, "compat_rss": True}
    options |= {"fft": "centered-ortho", "scaling": "none"}
    assert options.items() <= converted.config.items()


def test_lightning_with_objects_of_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cirim()
    package = types.ModuleType("omegaconf.dictconfig")
    kind = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    package.DictConfig = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        context.setitem(sys.modules, "omegaconf.dictconfig", package)
        config = kind()
        config._content = FIRST_GENERATION  # type: ignore[attr-defined]
        content = {"epoch": 20, "global_step": 300, "state_dict": mridc_state(model)}
        torch.save({**content, "hyper_parameters": {"cfg": config}}, tmp_path / "a.ckpt")
    converted = CIRIM.from_pretrained(convert(tmp_path / "a.ckpt", "mridc", tmp_path / "out"))
    assert same(converted, model)
    assert converted.metadata["source_epoch"] == 20
    assert converted.metadata["source_steps"] == 300


def test_provenance_is_written_down(tmp_path: Path) -> None:
    import hashlib

    path = container(tmp_path / "a.mridc", FIRST_GENERATION, mridc_state(cirim()))
    metadata = json.loads((convert(path, "mridc", tmp_path / "out") / "config.json").read_text())["metadata"]
    assert metadata == {
        "source_project": "https://github.com/wdika/mridc",
        "source_file": "a.mridc",
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "license_note": "not stated in the file; its published checkpoints are under Apache-2.0",
        "training_data": "knees/h5/train",
        "training_mask": "gaussian2d",
        "training_accelerations": [4, 8],
        "unused_weights": ["dc_weight"],
    }
    out = convert(path, "mridc", tmp_path / "mine", ["license=mit"])
    assert json.loads((out / "config.json").read_text())["metadata"]["license"] == "mit"
    assert "license_note" not in (out / "config.json").read_text()


def test_options_may_be_ours_or_the_authors(tmp_path: Path) -> None:
    config = {key: value for key, value in FIRST_GENERATION.items() if key != "recurrent_layer"}
    path = container(tmp_path / "a.mridc", config, mridc_state(cirim()))
    out = convert(path, "mridc", tmp_path / "out", ["recurrent_layer=IndRNN", "fft=recentered-ortho", "maps=rss"])
    converted = CIRIM.from_pretrained(out)
    assert {"cell": "indrnn", "fft": "recentered-ortho", "maps": "rss"}.items() <= converted.config.items()


def test_options_are_read_as_in_a_recipe(tmp_path: Path) -> None:
    model = DirectRIM(hidden=4, length=4)
    torch.save({"model": dict(model.state_dict())}, tmp_path / "rim.pt")
    given = ["fft=centered-ortho", "length=4", "likelihood_scale=1e-3", "initializer_channels=[32, 32, 64, 64]"]
    config = DirectRIM.from_pretrained(convert(tmp_path / "rim.pt", "direct", tmp_path / "out", given)).config
    assert config["likelihood_scale"] == 1e-3
    assert config["initializer_channels"] == (32, 32, 64, 64)
    with pytest.raises(ValueError, match=r"^fft=\[1: not YAML: "):
        convert(tmp_path / "rim.pt", "direct", tmp_path / "more", ["fft=[1"])


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pt", {"model": {"cell_list.0.conv_blocks.0.1.weight": torch.ones(1)}}),
        ("a.pt", {"model": {3: torch.ones(1)}}),
        ("a.pt", {"model": dict(DirectRIM(hidden=4).state_dict()), "sensitivity_model": [1]}),
        ("a.ckpt", {"state_dict": {"cirim.0.x": torch.ones(1)}, "hyper_parameters": {"cfg": [1]}}),
        ("a.ckpt", {"state_dict": {}, "hyper_parameters": FIRST_GENERATION | {"conv_filters": 6}}),
        ("a.ckpt", {"state_dict": {}, "hyper_parameters": FIRST_GENERATION | {"conv_filters": [6, "6", [6]]}}),
        ("a.ckpt", {"state_dict": {}, "hyper_parameters": FIRST_GENERATION | {"conv_filters": [10**12, 6, 2]}}),
        ("a.ckpt", {"state_dict": {}, "hyper_parameters": FIRST_GENERATION | {"conv_dim": None}}),
        ("a.ckpt", {"state_dict": {}, "hyper_parameters": FIRST_GENERATION | {"fft_type": ["orthogonal"]}}),
    ],
)
def test_whatever_a_file_holds_the_error_names_it(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    path = tmp_path / name
    torch.save(content, path)
    given = ("fft=centered-ortho", "length=8") if name == "a.pt" else ()
    told = message(path, "direct" if name == "a.pt" else "mridc", *given)
    assert told.startswith(f"{name}: ")
    assert "\n" not in told


@pytest.mark.parametrize("refine", ["unet", "none"])
@pytest.mark.parametrize("shared", [False, True])
def test_recurrentvarnet_of_direct(tmp_path: Path, shared: bool, refine: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"steps": 3, "hidden": 5, "layers": 2, "shared": shared, "refine": refine}
    options |= {"initializer_channels": (4, 4, 6, 6), "refine_filters": 2, "refine_pools": 2}
    model = RecurrentVarNet(**options).eval()
    content: dict[str, Any] = {
        "model": authors_state(model, {key: key for key in ("block_list.", "initializer.")}),
        "optimizer": {"state": {}},
        "iteration": 148500,
        "__author__": "someone",
    }
    if refine == "unet":
        content["sensitivity_model"] = authors_state(model, {"refinement.unet.": ""})
    torch.save(content, tmp_path / "model_148500.pt")
    given = ["fft=centered-ortho", *["steps=3"] * shared]
    out = convert(tmp_path / "model_148500.pt", "direct", tmp_path / "out", given)
    converted = RecurrentVarNet.from_pretrained(out)
    assert same(converted, model)
    assert same_output(converted, model)
    assert converted.metadata["source_steps"] == 148500
    assert converted.metadata["assumed"] == {"initializer": "sense", "initializer_dilations": [1, 1, 2, 4]}


@pytest.mark.parametrize("options", [{}, {"instance_norm": True}, {"dense_connect": 2}, {"normalized": True}])
def test_rim_of_direct(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = DirectRIM(hidden=5, depth=3, length=4, learned_initializer=True, **options).eval()
    torch.save({"model": dict(model.state_dict())}, tmp_path / "rim.pt")
    given = ["fft=centered-ortho", "length=4"]
    converted = DirectRIM.from_pretrained(convert(tmp_path / "rim.pt", "direct", tmp_path / "out", given))
    assert converted.config == model.config
    assert same(converted, model)
    assert same_output(converted, model)


@pytest.mark.parity
@pytest.mark.parametrize("path", golden_files("mri", "rvn_[!b]*|rim_direct_*"), ids=lambda path: path.stem)
def test_configuration_is_inferred_from_the_authors_weights(tmp_path: Path, path: Path) -> None:
    pair = golden(path)
    recurrentvarnet = any(key.startswith("block_list.") for key in pair.state)
    expected, _ = (from_direct_recurrentvarnet if recurrentvarnet else from_direct_rim)(pair.config, pair.state)
    torch.save({"model": pair.state}, tmp_path / "model.pt")
    not_in_the_file = {"fft", "steps", "length", "initializer", "start", "skip", "initializer_dilations"}
    given = [f"{key}={json.dumps(expected[key])}" for key in not_in_the_file & expected.keys()]
    if expected.get("initializer") == "none":
        given.remove('initializer="none"')
    converted = Reconstructor.from_pretrained(convert(tmp_path / "model.pt", "direct", tmp_path / "out", given))
    has_initializer = any(key.startswith("initializer.") for key in pair.state)
    compared = {key: value for key, value in expected.items() if has_initializer or "initializer_" not in key}
    assert {key: converted.config[key] for key in compared} == compared


@pytest.mark.parity
@pytest.mark.skipif(not PUBLISHED, reason="the authors' files are not with the project; --golden DIR names a folder")
@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_published_files(tmp_path: Path, file: Path) -> None:
    pair = golden(next(path for path in golden_files("mri", "*") if "trained" in path.stem))
    converted = CIRIM.from_pretrained(convert(file, "mridc", tmp_path / "out"))
    expected = {key.replace("cirim.", "cascades."): value for key, value in pair.state.items()}
    ours = converted.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], value) for key, value in expected.items())
    assert converted.metadata["license"] == "apache-2.0"


class Payload:
    """Writes a file when it is unpickled the usual way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["direct", "lightning", "container"])
def test_a_payload_does_not_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    state = {**mridc_state(cirim()), "extra": Payload(marker)}
    if kind == "container":
        path, source = container(tmp_path / "bad.mridc", FIRST_GENERATION, state), "mridc"
    elif kind == "lightning":
        path, source = tmp_path / "bad.ckpt", "mridc"
        torch.save({"state_dict": mridc_state(cirim()), "hyper_parameters": Payload(marker)}, path)
    else:
        path, source = tmp_path / "bad.pt", "direct"
        torch.save({"model": {}, "hook": Payload(marker)}, path)
    with pytest.raises(ValueError, match=r"asks for (posix|nt)\.system, which no checkpoint needs; refused$") as error:
        convert(path, source, tmp_path / "out")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def with_member(path: Path, entry: tarfile.TarInfo, content: bytes = b"") -> Path:
    container(path, FIRST_GENERATION, mridc_state(cirim()), mode="w")
    entry.size = len(content)
    with tarfile.open(path, "a") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return path


def test_members_that_climb_or_link_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("../climbed", "/tmp/climbed", "a/../../climbed"):
        path = with_member(inside / "bad.mridc", tarfile.TarInfo(name), b"x")
        with pytest.raises(ValueError, match=f"^{path}: member '{name}' lies outside the container; refused$"):
            convert(path, "mridc", tmp_path / "out")
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = with_member(inside / "bad.mridc", link)
    with pytest.raises(ValueError, match=f"^{path}: member 'link' is a link or a device, or has holes; refused$"):
        convert(path, "mridc", tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["inside"]


@pytest.mark.parametrize("name", ["a.mridc", "a.pt", "a.ckpt"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    source = "direct" if name == "a.pt" else "mridc"
    if name == "a.mridc":
        container(path, FIRST_GENERATION, mridc_state(cirim()))
    else:
        torch.save({"model": mridc_state(cirim()), "state_dict": mridc_state(cirim())}, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=f"^{path}: ") as error:
        convert(path, source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def message(path: Path, source: str, *given: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        convert(path, source, path.parent / "out", given)
    assert not (path.parent / "out").exists()
    return str(error.value).replace(f"{path.parent}/", "")


def test_messages_about_the_file(tmp_path: Path) -> None:
    state = mridc_state(cirim())
    path = container(tmp_path / "a.mridc", FIRST_GENERATION, state)
    assert message(path, "mirdc") == "--from must be one of direct, mridc, atommic; got 'mirdc'"
    assert message(tmp_path / "b.mridc", "mridc") == "b.mridc: no such file"
    assert message(path, "atommic") == "a.mridc: holds weights of mridc, not of atommic; use --from mridc"
    assert message(path, "direct") == "a.mridc: a container of mridc; use --from mridc"
    other = container(tmp_path / "b.mridc", {**FIRST_GENERATION, "model_name": "UNet"}, state)
    assert message(other, "mridc") == "b.mridc: model_name is 'UNet'; of mridc's networks only CIRIM can be converted"
    more = container(tmp_path / "c.mridc", FIRST_GENERATION, {**state, "head.weight": torch.ones(1)})
    assert message(more, "mridc").startswith("c.mridc: head.weight: no such weight in the authors' network")
    less = {key: value for key, value in state.items() if "cirim.1.final" not in key}
    less_path = container(tmp_path / "d.mridc", FIRST_GENERATION, less)
    lacking = "cascades.1.final_layer.0.conv_layer.weight"
    assert message(less_path, "mridc") == f"d.mridc: lacks {lacking} for CIRIM with these options"
    torch.save({"weights": state}, tmp_path / "e.ckpt")
    expected = "e.ckpt: has no state_dict; expected a Lightning checkpoint with one, got weights"
    assert message(tmp_path / "e.ckpt", "mridc") == expected
    torch.save({"state_dict": state}, tmp_path / "f.ckpt")
    expected = "f.ckpt: conv_filters: missing in the configuration; give it as conv_filters=VALUE"
    assert message(tmp_path / "f.ckpt", "mridc") == expected


@pytest.mark.usefixtures("unhooked")
def test_messages_about_direct(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    model = DirectRIM(hidden=4, length=4)
    torch.save({"model": dict(model.state_dict())}, path)
    fft = "fft (centered-ortho for fastMRI, uncentered-ortho for Calgary-Campinas)"
    length = "length (the one cell is shared by all steps; 16 in the published model)"
    assert message(path, "direct") == f"a.pt: the file does not say {fft}, {length}; give each as key=value"
    assert message(path, "direct", "length=4") == f"a.pt: the file does not say {fft}; give each as key=value"
    given = ("fft=centered-ortho", "length=4")
    assert (
        message(path, "direct", *given, "maap=rss") == "a.pt: maap: DirectRIM has no such option (did you mean maps?)"
    )
    assert message(path, "direct", *given, "fft") == "'fft': expected key=value, for example fft=centered-ortho"
    wrong = "a.pt: maps must be one of espirit, rss, unit; got 'all'"
    assert message(path, "direct", *given, "maps=all") == wrong
    resized = message(path, "direct", *given, "hidden=5")
    assert resized.startswith("a.pt: cell_list.0.conv_blocks.0.1.weight has shape (4, 4, 5, 5); expected (5, 4, 5, 5)")
    torch.save({"model": {"layer.weight": torch.ones(1)}}, tmp_path / "b.pt")
    expected = "b.pt: holds neither a RecurrentVarNet (block_list.*) nor a RIM (cell_list.*), but layer.weight"
    assert message(tmp_path / "b.pt", "direct") == expected
    torch.save({"state_dict": {}}, tmp_path / "c.pt")
    expected = "c.pt: has no 'model' with weights; expected direct's model_ITERATION.pt, got state_dict"
    assert message(tmp_path / "c.pt", "direct") == expected
    half = {key: value for key, value in model.state_dict().items() if "reset" not in key}
    torch.save({"model": half}, tmp_path / "d.pt")
    expected = "d.pt: cell_list.0.conv_blocks.0.1.weight or its gates are missing; the file is not complete"
    assert message(tmp_path / "d.pt", "direct") == expected


def test_an_existing_folder_needs_overwrite(tmp_path: Path) -> None:
    path = container(tmp_path / "a.mridc", FIRST_GENERATION, mridc_state(cirim()))
    out = convert(path, "mridc", tmp_path / "out")
    with pytest.raises(ValueError, match="exists already and is not empty; pass --overwrite"):
        convert(path, "mridc", out)
    other = cirim(seed=1)
    container(path, FIRST_GENERATION, mridc_state(other))
    assert same(CIRIM.from_pretrained(convert(path, "mridc", out, overwrite=True)), other)
