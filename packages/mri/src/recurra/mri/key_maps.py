"""Checkpoints of other projects, turned into ours.

One pure function a source: the authors' configuration and state dict -> ours. Configurations keep the authors' names as
far as they go; what our models do not know is an error, never dropped in silence.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]
Renames = tuple[tuple[str, str | None], ...]  # pattern -> replacement, or None for what is left behind

_LISTS = (
    "conv_filters",
    "conv_kernels",
    "conv_dilations",
    "conv_bias",
    "recurrent_filters",
    "recurrent_kernels",
    "recurrent_dilations",
    "recurrent_bias",
)
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


def from_atommic(config: Mapping[str, Any], state: State) -> Converted:
    """Arguments and weights of `CIRIM` from those of ATOMMIC's CIRIM.

    Raises:
        ValueError: the configuration is none of a CIRIM, or asks for what ours cannot do.
    """
    ours, weights = _cirim(config, state, _ATOMMIC)
    return ours | {"semantics": "atommic"} | _sensitivity_net(weights, compat_rss=True), weights


def from_mridc(config: Mapping[str, Any], state: State, *, recenter: bool = False) -> Converted:
    """Arguments and weights of `CIRIM` from those of mridc's CIRIM, RIM or IRIM.

    Args:
        config: of any generation of mridc.
        state: weights.
        recenter: replace the uncentered Fourier transform by the recentered one, which keeps the image in the middle:
            the same network, but for what its padding meets at the borders.

    Raises:
        ValueError: the configuration is none of a CIRIM, or asks for what ours cannot do.
    """
    ours, weights = _cirim(config, state, _MRIDC)
    if recenter and ours["fft"] == "uncentered-ortho":
        ours["fft"] = "recentered-ortho"
    return ours | {"semantics": "paper"} | _sensitivity_net(weights, compat_rss=False), weights


def from_direct_recurrentvarnet(
    config: Mapping[str, Any], state: State, sensitivity_state: State | None = None
) -> Converted:
    """Arguments and weights of `RecurrentVarNet` from those of direct's.

    Args:
        config: arguments of the authors' class, and `fft_centered` and `fft_normalized` of its operators.
        state: weights of the network.
        sensitivity_state: weights of the U-Net that refines coil sensitivities, if there is one.
    """
    weights = _rename(state, _DIRECT)
    ours = {
        "steps": config.get("num_steps", 15),
        "hidden": config.get("recurrent_hidden_channels", 64),
        "layers": config.get("recurrent_num_layers", 4),
        "shared": not config.get("no_parameter_sharing", True),
        "normalized": config.get("normalized", False),
        "initializer": _initializer(config, "initializer_initialization"),
        "initializer_channels": tuple(config.get("initializer_channels") or (32, 32, 64, 64)),
        "initializer_dilations": tuple(config.get("initializer_dilations") or (1, 1, 2, 4)),
        "initializer_multiscale": config.get("initializer_multiscale", 1),
        "fft": _direct_fft(config),
        "refine": "none",
    }
    if sensitivity_state is not None:
        weights |= _rename(sensitivity_state, _REFINEMENT)
        filters, pools = _unet_size(weights, "refinement.unet.")
        ours |= {"refine": "unet", "refine_filters": filters, "refine_pools": pools}
    return ours, weights


def from_direct_rim(config: Mapping[str, Any], state: State, sensitivity_state: State | None = None) -> Converted:
    """Arguments and weights of `DirectRIM` from those of direct's RIM.

    Args:
        config: arguments of the authors' class, and `fft_centered` and `fft_normalized` of its operators.
        state: weights of the network.
        sensitivity_state: weights of the U-Net that refines coil sensitivities, if there is one.
    """
    if not config.get("replication_padding", True):
        raise ValueError("replication_padding: direct's zero padding gives layers of different sizes; expected True")
    weights = _rename(state, _DIRECT)
    ours = {
        "hidden": config["hidden_channels"],
        "depth": config.get("depth", 1),
        "length": config.get("length", 8),
        "shared": not config.get("no_parameter_sharing", True),
        "start": str(config.get("image_initialization", "zero_filled")).lower(),
        "skip": config.get("skip_connections", True),
        "instance_norm": config.get("instance_norm", False),
        "dense_connect": int(config.get("dense_connect", 0)),
        "normalized": config.get("normalized", False),
        "learned_initializer": bool(_initializer(config, None) != "none"),
        "initializer_channels": tuple(config.get("initializer_channels") or (32, 32, 64, 64)),
        "initializer_dilations": tuple(config.get("initializer_dilations") or (1, 1, 2, 4)),
        "initializer_multiscale": config.get("initializer_multiscale", 1),
        "fft": _direct_fft(config),
        "refine": "none",
    }
    if sensitivity_state is not None:
        weights |= _rename(sensitivity_state, _REFINEMENT)
        filters, pools = _unet_size(weights, "refinement.unet.")
        ours |= {"refine": "unet", "refine_filters": filters, "refine_pools": pools}
    return ours, weights


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
    axes = config.get("spatial_dims")
    dim = config.get("conv_dim", 2)
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
    weights = _rename(state, renames)
    # Configurations may leave `no_dc` out, which means another thing in every generation; the weights know.
    explicit = any(key.endswith(".dc_weight") for key in weights)
    return ours | {"data_consistency": "explicit" if explicit else "implicit"}, weights


def _rename(state: State, renames: Renames) -> dict[str, Tensor]:
    """Weights under our names."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in renames:
            match = re.fullmatch(pattern, key)
            if match is None:
                continue
            if replacement is not None:
                renamed[match.expand(replacement)] = value
            break
        else:
            raise ValueError(f"{key}: no such weight in the authors' network; is this another architecture?")
    return renamed


def _required(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(f"{name}: missing in the configuration; give it as {name}=VALUE")
    return config[name]


def _initializer(config: Mapping[str, Any], kind: str | None) -> str:
    """What the learned initialiser starts from; "none" if there is none."""
    complete = (
        config.get("initializer_channels", ()) is not None and config.get("initializer_dilations", ()) is not None
    )
    if not (config.get("learned_initializer", False) and complete):
        return "none"
    return str(config.get(kind) or "none").lower() if kind else "image"


def _direct_fft(config: Mapping[str, Any]) -> str:
    """Our name for the operators of direct."""
    shift = "centered" if config.get("fft_centered", True) else "uncentered"
    return f"{shift}-{'ortho' if config.get('fft_normalized', True) else 'backward'}"


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


def _unet_size(weights: State, prefix: str) -> tuple[int, int]:
    """Filters and poolings of a U-Net whose keys begin with `prefix`."""
    first = weights[f"{prefix}down_sample_layers.0.layers.0.weight"]
    levels = {key.split(".")[prefix.count(".") + 1] for key in weights if key.startswith(f"{prefix}down_sample_layers")}
    return first.shape[0], len(levels)


def _sensitivity_net(weights: State, *, compat_rss: bool) -> dict[str, Any]:
    """Arguments for learned sensitivities, if there are weights of them."""
    if not any(key.startswith("sensitivity_net.") for key in weights):
        return {}
    filters, pools = _unet_size(weights, "sensitivity_net.norm_unet.unet.")
    net = {"sensitivity_net": "normunet", "sensitivity_filters": filters, "sensitivity_pools": pools}
    # The maps given to such a network are not used: take those that cost least.
    return net | {"compat_rss": compat_rss, "maps": "rss"}
