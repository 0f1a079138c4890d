"""Authors' checkpoint files -> checkpoint folders of ours; nothing in a file is executed.

`recurra.mri.key_maps` knows the keys and arguments of each project; here are the files around them: what is read, what
is inferred from shapes, what has to be asked for, and what is written down about the origin.

    direct           model_ITERATION.pt: weights under "model" and "sensitivity_model", no configuration
    mridc, atommic   tar containers (.mridc, .atommic) of model_config.yaml and model_weights.ckpt; Lightning .ckpt
"""

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from recurra.core.checkpoint import read_container, read_foreign
from recurra.core.errors import nearest
from recurra.core.files import open_output
from recurra.mri.key_maps import (
    Converted,
    from_atommic,
    from_direct_recurrentvarnet,
    from_direct_rim,
    from_mridc,
)
from recurra.mri.models import CIRIM, DirectRIM, Reconstructor, RecurrentVarNet

SOURCES = {
    "direct": ("NKI-AI/direct", "its model zoo is under CC BY-SA 3.0"),
    "mridc": ("wdika/mridc", "its published checkpoints are under Apache-2.0"),
    "atommic": ("wdika/atommic", "its published checkpoints are under Apache-2.0"),
}
# Published files whose licence is known.
LICENSES = {
    "39e0dfc09b610a40256cab6d685bb45f9b0ea2f4c6783ca4069e6e303471e976": "apache-2.0",  # CIRIM_1C_64F_l1_NODC.mridc
    "02f191133e3443ada9151d327c210efc020bed4acc706de8ef8d31679c2e26a0": "apache-2.0",  # its Lightning checkpoint
}
# What the authors call the arguments of their CIRIM; may be given as key=value when a file lacks them.
AUTHORS_KEYS = frozenset(
    {
        *("conv_filters", "conv_kernels", "conv_dilations", "conv_bias", "depth", "conv_dim", "spatial_dims"),
        *("recurrent_filters", "recurrent_kernels", "recurrent_dilations", "recurrent_bias", "recurrent_layer"),
        *("time_steps", "num_cascades", "no_dc", "keep_eta", "keep_prediction", "accumulate_estimates"),
        *("accumulate_predictions", "fft_type", "fft_centered", "fft_normalization", "coil_combination_method"),
    }
)


@dataclass
class Found:
    """A model of ours before it is built: class, arguments, weights, and what is known about their origin."""

    kind: type[Reconstructor]
    arguments: dict[str, Any]
    weights: dict[str, Tensor]
    about: dict[str, Any]


def convert(
    path: str | Path, source: str, out: str | Path, overrides: Sequence[str] = (), *, overwrite: bool = False
) -> Path:
    """Converts an authors' checkpoint into a checkpoint folder.

    Args:
        path: The file.
        source: Which project wrote it, one of `SOURCES`.
        out: The folder to write.
        overrides: `key=value`, YAML values: arguments of our class, of the authors' class where the file lacks them,
            or `license=`.
        overwrite: An existing folder may be replaced.

    Returns:
        `out`.

    Raises:
        ValueError: If the file is damaged, malicious or another network's, or does not say enough.
    """
    path, out = Path(path), Path(out)
    if source not in SOURCES:
        raise ValueError(f"--from must be one of {', '.join(SOURCES)}; got {source!r}")
    given = _parsed(overrides)
    open_output(out, overwrite)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    license = given.pop("license", None)
    try:
        found = _direct(path, given) if source == "direct" else _atommic(path, source, given)
        model = _build(found, given)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not complete, or of another network: {type(error).__name__} {error}") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error
    model.save_pretrained(out, metadata=_provenance(path, source, license) | found.about)
    return out


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    parsed = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{item!r}: expected key=value, for example fft=centered-ortho")
        try:
            parsed[key] = _tuples(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ValueError(f"{key}: {text!r} is not a YAML value") from error
    return parsed


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _atommic(path: Path, source: str, given: Mapping[str, Any]) -> Found:
    """CIRIM of a container or a Lightning checkpoint."""
    config, state, about = _read_atommic(path)
    name = config.get("model_name")
    if name not in (None, "CIRIM", "RIM", "IRIM"):
        raise ValueError(f"model_name is {name!r}; of {source}'s networks only CIRIM can be converted")
    generations = {"mridc": "cirim.", "atommic": "reconstruction_module."}
    for other, prefix in generations.items():
        if other != source and any(key.startswith(prefix) for key in state):
            raise ValueError(f"holds weights of {other}, not of {source}; use --from {other}")
    data = _section(config, "train_ds")
    config |= {key: value for key, value in given.items() if key in AUTHORS_KEYS}
    arguments, weights = (from_mridc if source == "mridc" else from_atommic)(config, state)
    if data.get("normalize_inputs") is False:
        arguments["scaling"] = "none"
    about |= _training(data) | _unused(state, weights)
    return Found(CIRIM, arguments, weights, about)


def _read_atommic(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Configuration, weights, and how long they were trained."""
    if path.suffix not in (".ckpt", ".pt", ".pth"):
        return *read_container(path), {}
    content = read_foreign(path)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"has no state_dict; expected a Lightning checkpoint with one, got {_some(content)}")
    hyper = content.get("hyper_parameters")
    config = hyper.get("cfg", hyper) if isinstance(hyper, dict) else {}
    trained = {"source_epoch": content.get("epoch"), "source_steps": content.get("global_step")}
    return dict(config or {}), state, {key: value for key, value in trained.items() if isinstance(value, int)}


def _training(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration says of the training data."""
    mask = _section(data, "mask_args")
    about = {
        # The authors' folders outside the data set are nobody's business.
        "training_data": "/".join(Path(str(data["data_path"])).parts[-3:]) if data.get("data_path") else None,
        "training_mask": mask.get("type"),
        "training_accelerations": mask.get("accelerations"),
    }
    return {key: value for key, value in about.items() if value is not None}


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _unused(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    used = {id(value) for value in weights.values()}
    unused = [key for key, value in state.items() if id(value) not in used]
    return {"unused_weights": unused} if unused else {}


def _direct(path: Path, given: Mapping[str, Any]) -> Found:
    """RecurrentVarNet or RIM of direct, whose files hold no configuration: inferred from shapes, or asked for."""
    if path.suffix in (".mridc", ".atommic"):
        raise ValueError(f"a container of {path.suffix[1:]}; use --from {path.suffix[1:]}")
    content = read_foreign(path)
    state, refinement = content.get("model"), content.get("sensitivity_model")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"has no 'model' with weights; expected direct's model_ITERATION.pt, got {_some(content)}")
    networks: dict[str, tuple[type[Reconstructor], Any, Any]] = {
        "block_list.": (RecurrentVarNet, _infer_recurrentvarnet, from_direct_recurrentvarnet),
        "cell_list.": (DirectRIM, _infer_rim, from_direct_rim),
    }
    prefix = next((one for one in networks if any(key.startswith(one) for key in state)), None)
    if prefix is None:
        raise ValueError(f"holds neither a RecurrentVarNet (block_list.*) nor a RIM (cell_list.*), but {_some(state)}")
    kind, infer, rename = networks[prefix]
    config, asked, assumed = infer(state)
    missing = [f"{key} ({hint})" for key, hint in asked.items() if key not in given]
    if missing:
        raise ValueError(f"the file does not say {', '.join(missing)}; give each as key=value")
    converted: Converted = rename(config, state, refinement)
    arguments, weights = converted
    assumed = {key: value for key, value in assumed.items() if key not in given}
    about: dict[str, Any] = {"assumed": assumed} if assumed else {}
    if isinstance(content.get("iteration"), int):
        about["source_steps"] = content["iteration"]
    return Found(kind, arguments | assumed, weights, about)


_FFT = {"fft": "centered-ortho for fastMRI, uncentered-ortho for Calgary-Campinas"}


def _infer_recurrentvarnet(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Authors' arguments that the shapes tell, ours that must be asked for, and ours that are assumed."""
    blocks = _count(state, r"block_list\.(\d+)\.")
    stack = _infer_stack(state, "block_list.0.regularizer.")
    config: dict[str, Any] = {
        "num_steps": blocks,
        "no_parameter_sharing": blocks > 1,
        "recurrent_hidden_channels": stack["hidden"],
        "recurrent_num_layers": stack["layers"],
        "normalized": stack["normalized"],
    }
    asked = dict(_FFT)
    if blocks == 1:
        asked["steps"] = "the one block is shared by all; 8 in the published ablation"
    initializer = _infer_initializer(state)
    if not initializer:
        return config, asked, {}
    config |= initializer | {"initializer_initialization": "sense"}
    return config, asked, {"initializer": "sense", "initializer_dilations": (1, 1, 2, 4)}


def _infer_rim(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Authors' arguments that the shapes tell, ours that must be asked for, and ours that are assumed."""
    cells = _count(state, r"cell_list\.(\d+)\.")
    stack = _infer_stack(state, "cell_list.0.")
    config: dict[str, Any] = {
        "hidden_channels": stack["hidden"],
        "depth": stack["layers"],
        "length": cells,
        "no_parameter_sharing": cells > 1,
        "normalized": stack["normalized"],
        "instance_norm": stack["instance_norm"],
        "dense_connect": stack["dense_connect"],
    }
    asked = dict(_FFT)
    if cells == 1:
        asked["length"] = "the one cell is shared by all steps; 16 in the published model"
    assumed: dict[str, Any] = {"start": "sense", "skip": True}
    initializer = _infer_initializer(state)
    if initializer:
        config |= initializer
        assumed["initializer_dilations"] = (1, 1, 2, 4)
    return config, asked, assumed


def _infer_stack(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Sizes of the Conv2dGRU whose keys begin with `prefix`."""
    normalized = any(key.startswith(f"{prefix}convgru.") for key in state)
    prefix += "convgru." if normalized else ""
    layers = _count(state, rf"{re.escape(prefix)}reset_gates\.(\d+)\.")
    first = state.get(f"{prefix}conv_blocks.0.1.weight")
    if first is None or not layers:
        raise ValueError(f"{prefix}conv_blocks.0.1.weight or its gates are missing; the file is not complete")
    hidden = first.shape[0]
    # Layer i sees its predecessor and the last min(i, dense_connect) convolutions.
    inputs = [state[f"{prefix}conv_blocks.{i}.1.weight"].shape[1] // hidden for i in range(1, layers + 1)]
    return {
        "hidden": hidden,
        "layers": layers,
        "normalized": normalized,
        "instance_norm": f"{prefix}reset_gates.0.1.weight" in state,
        "dense_connect": max(inputs) - 1,
    }


def _infer_initializer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the recurrent state initialiser; empty if there is none."""
    count = _count(state, r"initializer\.conv_blocks\.(\d+)\.")
    if not count:
        return {}
    channels = [state[f"initializer.conv_blocks.{i}.1.weight"].shape[0] for i in range(count)]
    features = state["initializer.out_blocks.0.0.weight"].shape[1]
    multiscale = next((m for m in range(1, count + 1) if sum(channels[-m:]) == features), None)
    if multiscale is None:
        raise ValueError(f"initializer.out_blocks.0.0.weight has {features} inputs, no sum of the last of {channels}")
    return {"learned_initializer": True, "initializer_channels": channels, "initializer_multiscale": multiscale}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes at the start of a key."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _some(content: Mapping[Any, Any]) -> str:
    """The first keys of a dict, for a message."""
    names = [str(key) for key in content]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "nothing"


def _build(found: Found, given: Mapping[str, Any]) -> Reconstructor:
    """The model, filled; every weight must be there and fit."""
    known = inspect.signature(found.kind).parameters
    for key in given:
        if key not in known and key not in AUTHORS_KEYS:
            raise ValueError(f"{key}: {found.kind.__name__} has no such option{nearest(key, known)}")
    arguments = found.arguments | {key: value for key, value in given.items() if key in known}
    try:
        model = found.kind(**arguments)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{found.kind.__name__} does not accept its options: {str(error).splitlines()[0]}") from error
    state = model.state_dict()
    for title, keys in (
        ("lacks", state.keys() - found.weights.keys()),
        ("has too many weights:", found.weights.keys() - state.keys()),
    ):
        if keys:
            raise ValueError(
                f"{title} {_some(dict.fromkeys(sorted(keys)))} for {found.kind.__name__} with these options"
            )
    for key, value in found.weights.items():
        if value.shape != state[key].shape:
            expected = tuple(state[key].shape)
            raise ValueError(f"{key} has shape {tuple(value.shape)}; expected {expected} with these options")
    model.load_state_dict(found.weights)
    return model


def _provenance(path: Path, source: str, license: object) -> dict[str, Any]:
    """Where the weights come from, and under which licence."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    project, published = SOURCES[source]
    known = license or LICENSES.get(digest)
    return {
        "source_project": f"https://github.com/{project}",
        "source_file": path.name,
        "source_sha256": digest,
        **({"license": str(known)} if known else {"license_note": f"not stated in the file; {published}"}),
    }
