"""Authors' checkpoint files, turned into ours: tables of key names, one a source.

One pure function a source and architecture turns the authors' configuration and state dict into ours. Configurations
keep the authors' names as far as they go; what our models do not know is an error, never dropped in silence.

    direct           model_ITERATION.pt: weights under "model" and "sensitivity_model", no configuration
    mridc, atommic   tar containers (.mridc, .atommic) of a configuration and weights; Lightning .ckpt
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from recurra.core import conversion
from recurra.core.checkpoint import Pretrained, read_container, read_foreign
from recurra.core.conversion import Found, Renames, Source, ask, count, rename, some, tensors
from recurra.mri.models import CIRIM, DirectRIM, RecurrentVarNet

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]

_LISTS = tuple(f"{of}_{what}" for of in ("conv", "recurrent") for what in ("filters", "kernels", "dilations", "bias"))
_LEFT_BEHIND: Renames = (
    (r"(\w*_)?loss(_fn)?\b.*", None),  # windows of the authors' losses
    (r"(MSE|NMSE|SSIM|PSNR|HAARPSI|TotExamples)\..*", None),  # and their running metrics
)
_ATOMMIC: Renames = (
    (r"reconstruction_module\.(\d+)\.(.*)", r"cascades.\1.\2"),
    (r"coil_sensitivity_maps_nn\.(.*)", r"sensitivity_net.\1"),
    *_LEFT_BEHIND,
)
_MRIDC: Renames = (
    (r"cirim\.(\d+)\.(.*)", r"cascades.\1.\2"),
    (r"sens_net\.(.*)", r"sensitivity_net.\1"),
    (r"dc_weight", None),  # of the whole network, which never used it
    *_LEFT_BEHIND,
)
_DIRECT: Renames = ((r"((?:block_list|cell_list|initializer)\..*)", r"\1"),)
_REFINEMENT: Renames = ((r"((?:down_sample_layers|conv|up_transpose_conv|up_conv)\..*)", r"refinement.unet.\1"),)
# What the authors call the arguments of their CIRIM; may be given as key=value when a file lacks them.
AUTHORS_KEYS = frozenset(
    {
        *(*_LISTS, "recurrent_layer", "depth", "conv_dim", "spatial_dims", "time_steps", "num_cascades", "no_dc"),
        *("keep_eta", "keep_prediction", "accumulate_estimates", "accumulate_predictions"),
        *("fft_type", "fft_centered", "fft_normalization", "coil_combination_method"),
    }
)
# Published files whose licence is known.
LICENSES = {
    "39e0dfc09b610a40256cab6d685bb45f9b0ea2f4c6783ca4069e6e303471e976": "apache-2.0",  # CIRIM_1C_64F_l1_NODC.mridc
    "02f191133e3443ada9151d327c210efc020bed4acc706de8ef8d31679c2e26a0": "apache-2.0",  # its Lightning checkpoint
}


# --- mridc and atommic


def from_atommic(config: Mapping[str, Any], state: State) -> Converted:
    """Arguments and weights of `CIRIM` from those of ATOMMIC's CIRIM.

    Raises:
        ValueError: the configuration is none of a CIRIM, or asks for what ours cannot do.
    """
    ours, weights = _cirim(config, state, _ATOMMIC)
    return ours | {"semantics": "atommic"} | _sensitivity_net(weights, compat_rss=True), weights


def from_mridc(config: Mapping[str, Any], state: State) -> Converted:
    """Arguments and weights of `CIRIM` from those of mridc's CIRIM, RIM or IRIM, of any generation.

    Raises:
        ValueError: the configuration is none of a CIRIM, or asks for what ours cannot do.
    """
    ours, weights = _cirim(config, state, _MRIDC)
    return ours | {"semantics": "paper"} | _sensitivity_net(weights, compat_rss=False), weights


def rim_block_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `RIMBlock` from those of the authors' class.

    Raises:
        ValueError: the configuration is none of a RIM.
    """
    lists = {name: tuple(_required(config, name)) for name in _LISTS}
    # The authors zip their lists with three activations, and lose convolutions that no cell follows.
    if len(lists["conv_filters"]) < 3:
        raise ValueError(f"conv_filters: {lists['conv_filters']}: two layers end in a ReLU in the authors' code")
    kept = [i for i in (0, 1) if lists["recurrent_filters"][i]] + [2]
    options: dict[str, Any] = {name: tuple(values[i] for i in kept) for name, values in lists.items()}
    axes, dim = config.get("spatial_dims"), config.get("conv_dim", 2)
    return options | {
        "cell": str(_required(config, "recurrent_layer")).lower(),
        "steps": config.get("time_steps", 8),
        "dim": dim,
        "fft_dim": min(len(axes), dim) if axes else min(2, dim),
        "data_consistency": "implicit" if config.get("no_dc", True) else "explicit",
        "combine": str(config.get("coil_combination_method", "SENSE")).lower(),
        "fft": _atommic_fft(config),
    }


def _cirim(config: Mapping[str, Any], state: State, renames: Renames) -> Converted:
    """Arguments and weights of `CIRIM`, but for semantics and learned sensitivities."""
    ours = rim_block_options(config) | {
        "depth": config.get("depth", 2),
        "cascades": config.get("num_cascades", 1),
        "keep_prediction": config.get("keep_prediction", config.get("keep_eta", True)),
        "accumulate": config.get("accumulate_predictions", config.get("accumulate_estimates", True)),
    }
    weights = rename(state, renames)
    # Configurations may leave `no_dc` out, which means another thing in every generation; the weights know.
    explicit = any(key.endswith(".dc_weight") for key in weights)
    return ours | {"data_consistency": "explicit" if explicit else "implicit"}, weights


def _required(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(f"{name}: missing in the configuration; give it as {name}=VALUE")
    return config[name]


def _atommic_fft(config: Mapping[str, Any]) -> str:
    """Our name for the Fourier transform of mridc and ATOMMIC."""
    if "fft_type" in config:  # before mridc 0.1
        names = {"orthogonal": "centered-ortho", "orthogonal_norm_only": "uncentered-ortho"}
        if config["fft_type"] not in names:
            raise ValueError(f"fft_type must be one of {', '.join(names)}; got {config['fft_type']!r}")
        return names[config["fft_type"]]
    shift = "centered" if config.get("fft_centered", False) else "uncentered"
    scale = str(config.get("fft_normalization") or "backward").lower()
    return f"{shift}-{'backward' if scale == 'none' else scale}"


def _sensitivity_net(weights: State, *, compat_rss: bool) -> dict[str, Any]:
    """Arguments for learned sensitivities, if there are weights of them."""
    if not any(key.startswith("sensitivity_net.") for key in weights):
        return {}
    filters, pools = _unet_size(weights, "sensitivity_net.norm_unet.unet.")
    net = {"sensitivity_net": "normunet", "sensitivity_filters": filters, "sensitivity_pools": pools}
    # The maps given to such a network are not used: take those that cost least.
    return net | {"compat_rss": compat_rss, "maps": "rss"}


def _read_cirim(source: str, path: Path, given: Mapping[str, Any]) -> Found:
    """CIRIM of a container or a Lightning checkpoint, of mridc or ATOMMIC."""
    config, state, about = _contents(path)
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


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Configuration, weights, and how long they were trained."""
    if path.suffix not in (".ckpt", ".pt", ".pth"):
        return *read_container(path), {}
    content = read_foreign(path)
    state = tensors(content, "state_dict", "has no state_dict; expected a Lightning checkpoint with one")
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


def _unused(state: State, weights: State) -> dict[str, Any]:
    used = {id(value) for value in weights.values()}
    unused = [key for key, value in state.items() if id(value) not in used]
    return {"unused_weights": unused} if unused else {}


# --- direct


def from_direct_recurrentvarnet(
    config: Mapping[str, Any], state: State, sensitivity_state: State | None = None
) -> Converted:
    """Arguments and weights of `RecurrentVarNet` from those of direct's.

    Args:
        config: arguments of the authors' class, and `fft_centered` and `fft_normalized` of its operators.
        state: weights of the network.
        sensitivity_state: weights of the U-Net that refines coil sensitivities, if there is one.
    """
    ours = {
        "steps": config.get("num_steps", 15),
        "hidden": config.get("recurrent_hidden_channels", 64),
        "layers": config.get("recurrent_num_layers", 4),
        "initializer": _initializer(config, "initializer_initialization"),
    }
    return _direct(ours, config, state, sensitivity_state)


def from_direct_rim(config: Mapping[str, Any], state: State, sensitivity_state: State | None = None) -> Converted:
    """Arguments and weights of `DirectRIM` from those of direct's RIM; see `from_direct_recurrentvarnet`."""
    if not config.get("replication_padding", True):
        raise ValueError("replication_padding: direct's zero padding gives layers of different sizes; expected True")
    ours = {
        "hidden": config["hidden_channels"],
        "depth": config.get("depth", 1),
        "length": config.get("length", 8),
        "start": str(config.get("image_initialization", "zero_filled")).lower(),
        "skip": config.get("skip_connections", True),
        "instance_norm": config.get("instance_norm", False),
        "dense_connect": int(config.get("dense_connect", 0)),
        "learned_initializer": bool(_initializer(config, None) != "none"),
    }
    return _direct(ours, config, state, sensitivity_state)


def _direct(
    ours: dict[str, Any], config: Mapping[str, Any], state: State, sensitivity_state: State | None
) -> Converted:
    """Arguments and weights of a network of direct: its own arguments, and those that both have."""
    weights = rename(state, _DIRECT)
    ours |= {
        "shared": not config.get("no_parameter_sharing", True),
        "normalized": config.get("normalized", False),
        "initializer_channels": tuple(config.get("initializer_channels") or (32, 32, 64, 64)),
        "initializer_dilations": tuple(config.get("initializer_dilations") or (1, 1, 2, 4)),
        "initializer_multiscale": config.get("initializer_multiscale", 1),
        "fft": _direct_fft(config),
        "refine": "none",
    }
    if sensitivity_state is not None:
        weights |= rename(sensitivity_state, _REFINEMENT)
        filters, pools = _unet_size(weights, "refinement.unet.")
        ours |= {"refine": "unet", "refine_filters": filters, "refine_pools": pools}
    return ours, weights


def _initializer(config: Mapping[str, Any], kind: str | None) -> str:
    """What the learned initialiser starts from; "none" if there is none."""
    complete = all(config.get(f"initializer_{name}", ()) is not None for name in ("channels", "dilations"))
    if not (config.get("learned_initializer", False) and complete):
        return "none"
    return str(config.get(kind) or "none").lower() if kind else "image"


def _direct_fft(config: Mapping[str, Any]) -> str:
    """Our name for the operators of direct."""
    shift = "centered" if config.get("fft_centered", True) else "uncentered"
    return f"{shift}-{'ortho' if config.get('fft_normalized', True) else 'backward'}"


def _unet_size(weights: State, prefix: str) -> tuple[int, int]:
    """Filters and poolings of a U-Net whose keys begin with `prefix`."""
    first = weights[f"{prefix}down_sample_layers.0.layers.0.weight"]
    levels = {key.split(".")[prefix.count(".") + 1] for key in weights if key.startswith(f"{prefix}down_sample_layers")}
    return first.shape[0], len(levels)


def _read_direct(path: Path, given: Mapping[str, Any]) -> Found:
    """RecurrentVarNet or RIM of direct, whose files hold no configuration: inferred from shapes, or asked for."""
    if path.suffix in (".mridc", ".atommic"):
        raise ValueError(f"a container of {path.suffix[1:]}; use --from {path.suffix[1:]}")
    content = read_foreign(path)
    state = tensors(content, "model", "has no 'model' with weights; expected direct's model_ITERATION.pt")
    kind: type[Pretrained]
    if any(key.startswith("block_list.") for key in state):
        kind, infer, translate = RecurrentVarNet, _infer_recurrentvarnet, from_direct_recurrentvarnet
    elif any(key.startswith("cell_list.") for key in state):
        kind, infer, translate = DirectRIM, _infer_rim, from_direct_rim
    else:
        raise ValueError(f"holds neither a RecurrentVarNet (block_list.*) nor a RIM (cell_list.*), but {some(state)}")
    config, asked, assumed = infer(state)
    ask(asked, given)
    arguments, weights = translate(config, state, content.get("sensitivity_model"))
    assumed = {key: value for key, value in assumed.items() if key not in given}
    about: dict[str, Any] = {"assumed": assumed} if assumed else {}
    if isinstance(content.get("iteration"), int):
        about["source_steps"] = content["iteration"]
    return Found(kind, arguments | assumed, weights, about)


_FFT = {"fft": "centered-ortho for fastMRI, uncentered-ortho for Calgary-Campinas"}


def _infer_recurrentvarnet(state: State) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Authors' arguments that the shapes tell, ours that must be asked for, and ours that are assumed."""
    blocks = count(state, r"block_list\.(\d+)\.")
    stack = _infer_stack(state, "block_list.0.regularizer.")
    config: dict[str, Any] = {
        "num_steps": blocks,
        "no_parameter_sharing": blocks > 1,
        "recurrent_hidden_channels": stack["hidden"],
        "recurrent_num_layers": stack["layers"],
        "normalized": stack["normalized"],
    }
    asked = _FFT | ({"steps": "the one block is shared by all; 8 in the published ablation"} if blocks == 1 else {})
    initializer = _infer_initializer(state)
    if not initializer:
        return config, asked, {}
    config |= initializer | {"initializer_initialization": "sense"}
    return config, asked, {"initializer": "sense", "initializer_dilations": (1, 1, 2, 4)}


def _infer_rim(state: State) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Authors' arguments that the shapes tell, ours that must be asked for, and ours that are assumed."""
    cells = count(state, r"cell_list\.(\d+)\.")
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
    shared = {"length": "the one cell is shared by all steps; 16 in the published model"}
    asked = _FFT | (shared if cells == 1 else {})
    assumed: dict[str, Any] = {"start": "sense", "skip": True}
    initializer = _infer_initializer(state)
    if initializer:
        config |= initializer
        assumed["initializer_dilations"] = (1, 1, 2, 4)
    return config, asked, assumed


def _infer_stack(state: State, prefix: str) -> dict[str, Any]:
    """Sizes of the Conv2dGRU whose keys begin with `prefix`."""
    normalized = any(key.startswith(f"{prefix}convgru.") for key in state)
    prefix += "convgru." if normalized else ""
    layers = count(state, rf"{re.escape(prefix)}reset_gates\.(\d+)\.")
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


def _infer_initializer(state: State) -> dict[str, Any]:
    """Arguments of the recurrent state initialiser; empty if there is none."""
    convs = count(state, r"initializer\.conv_blocks\.(\d+)\.")
    if not convs:
        return {}
    channels = [state[f"initializer.conv_blocks.{i}.1.weight"].shape[0] for i in range(convs)]
    features = state["initializer.out_blocks.0.0.weight"].shape[1]
    multiscale = next((m for m in range(1, convs + 1) if sum(channels[-m:]) == features), None)
    if multiscale is None:
        raise ValueError(f"initializer.out_blocks.0.0.weight has {features} inputs, no sum of the last of {channels}")
    return {"learned_initializer": True, "initializer_channels": channels, "initializer_multiscale": multiscale}


# --- the sources

_APACHE = "its published checkpoints are under Apache-2.0"
SOURCES = {
    "direct": Source("https://github.com/NKI-AI/direct", "its model zoo is under CC BY-SA 3.0", _read_direct),
    **{
        name: Source(f"https://github.com/wdika/{name}", _APACHE, partial(_read_cirim, name), AUTHORS_KEYS, LICENSES)
        for name in ("mridc", "atommic")
    },
}


def convert(
    path: str | Path, source: str, out: str | Path, overrides: Sequence[str] = (), *, overwrite: bool = False
) -> Path:
    """As the verb: the folder of the converted checkpoint."""
    return conversion.convert(path, SOURCES, source, out, overrides, example="fft=centered-ortho", overwrite=overwrite)
