"""The base class of every model: a folder of `config.json`, `model.safetensors` and `README.md` holds it whole."""

import inspect
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from recurra.core.budget import Budget
from recurra.core.container import read_container
from recurra.core.errors import FileError, nearest
from recurra.core.files import aside as beside
from recurra.core.files import disk_is_full, full_disk, only_one
from recurra.core.foreign import read_foreign

__all__ = ["CARD", "CONFIG", "WEIGHTS", "Pretrained", "read_container", "read_foreign"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_Model = TypeVar("_Model", bound="Pretrained")

_CONFIG_BYTES, _DEPTH = 2**22, 50
"""The most bytes and nesting of a config.json; those of ours have some thousand and three."""


class Pretrained(nn.Module, PyTorchModelHubMixin, library_name="recurra"):
    """A model whose constructor arguments are its config: JSON values, where an array stands for a tuple.

    Attributes:
        metadata: free-form JSON that travels with the checkpoint: training data, licence, provenance, figures.
    """

    metadata: dict[str, Any]

    def __new__(cls: type[_Model], *args: Any, **kwargs: Any) -> _Model:
        """Instance that remembers its arguments; a copy (made without arguments) brings its own memory along."""
        instance: _Model = super().__new__(cls)
        try:
            bound = _signature(cls).bind(*args, **kwargs)
        except TypeError:  # the constructor says it better
            return instance
        bound.apply_defaults()
        instance.__dict__["_arguments"] = {key: tuples(value) for key, value in bound.arguments.items()}
        instance.__dict__["metadata"] = {}
        return instance

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, defaults included."""
        return dict(self.__dict__["_arguments"])

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        metadata: Mapping[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: None = None,
        model_card_kwargs: None = None,
        **hub: Any,
    ) -> str | None:
        """Write the checkpoint, aside first: an interrupted save leaves what was there before.

        Args:
            save_directory: the folder; other files in it stay.
            metadata: replaces `self.metadata` in what is written.
            push_to_hub: also upload, as `repo_id` (default: the folder's name).
            repo_id: name on the Hugging Face hub.
            config: ignored; the hub's own upload passes it.
            model_card_kwargs: ignored; the hub's own upload passes it.
            hub: options of the upload.

        Returns:
            Address of the upload, if there was one.

        Raises:
            ValueError: an argument or the metadata is not JSON, or the weights are on the meta device.
        """
        folder = Path(save_directory)
        described = self.metadata if metadata is None else dict(metadata)
        text = _config_text(self, described)
        weights = _distinct(self)
        _replace_files(folder, text, _card(self, described), weights)
        if push_to_hub:
            return str(self.push_to_hub(repo_id or folder.name, **hub))
        return None

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        **hub: Any,
    ) -> _Model:
        """The model of a checkpoint folder, in evaluation mode, with the weights' own precision.

        Called on an abstract class, it returns whichever of its subclasses the folder holds.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face hub ("owner/name").
            device: where the weights go.
            hub: `revision`, `token`, `cache_dir`, `force_download` or `local_files_only` for a hub name.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or it holds something else.
        """
        folder = _local(pretrained_model_name_or_path, hub)
        config = _read_config(folder)
        architecture, metadata = config.pop("architecture"), config.pop("metadata", {})
        config.pop("recurra_version", None)
        kind = _resolve(cls, architecture, folder)
        _check_keys(kind, config, folder)
        budget = Budget(folder / WEIGHTS)
        try:
            with torch.random.fork_rng(devices=[]), budget:  # loading draws no random number that anyone sees
                model = kind(**{key: tuples(value) for key, value in config.items()})
        except Exception as error:  # of any type: a constructor checks what people give, not what a file may say
            raise FileError(folder / CONFIG, f"{kind.__name__} does not accept it: {_line(error)}") from error
        _load_weights(model, folder / WEIGHTS)
        model.metadata = metadata
        return model.eval().to(device)


def _signature(kind: type) -> inspect.Signature:
    """Signature of the constructor, without self."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _line(error: Exception) -> str:
    """First line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def tuples(value: Any) -> Any:
    """The value with every list in it turned into a tuple, as it would come back from a file."""
    if isinstance(value, (list, tuple)):
        return tuple(tuples(item) for item in value)
    return {key: tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _jsonable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_jsonable, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_jsonable, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _config_text(model: Pretrained, metadata: dict[str, Any]) -> str:
    """Contents of config.json."""
    name = type(model).__name__
    for key, value in {**model.config, "metadata": metadata}.items():
        if not _jsonable(value):
            raise ValueError(
                f"{name}: {key}: a checkpoint stores numbers, strings, booleans, None, tuples and dicts of them; "
                f"got {type(value).__name__} {str(value)[:60]!r}"
            )
    config = {"architecture": name, "recurra_version": version("recurra-core"), **model.config}
    if metadata:
        config["metadata"] = metadata
    return json.dumps(config, indent=2) + "\n"


def _replace_files(folder: Path, config: str, card: str, weights: dict[str, Tensor]) -> None:
    """Write the files of a checkpoint aside, then put them in place."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = beside(folder / ".saving")
    try:
        aside.mkdir()
        (aside / CONFIG).write_text(config, encoding="utf-8")
        (aside / CARD).write_text(card, encoding="utf-8")
        safetensors.torch.save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
        # It lets only the owner read, whatever the umask says.
        (aside / WEIGHTS).chmod((aside / CONFIG).stat().st_mode)
        with only_one(folder, wait=True):  # no other process may mix its files with these
            if _arguments_of(folder / CONFIG) != _arguments_of(aside / CONFIG):
                # Between the renames no old config may stand beside weights it does not describe.
                (folder / CONFIG).unlink(missing_ok=True)
            for name in (CARD, WEIGHTS, CONFIG):
                os.replace(aside / name, folder / name)
    except (safetensors.SafetensorError, OSError) as error:
        if disk_is_full(error):
            raise full_disk(folder / WEIGHTS) from error
        raise OSError(f"{folder}: cannot write the checkpoint: {_line(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _arguments_of(path: Path) -> Any:
    """What a config.json says but for the metadata; None if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {k: v for k, v in content.items() if k != "metadata"} if isinstance(content, dict) else None


def _tied(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For every name, the names that are views of the very same memory (itself included), in order."""
    groups: defaultdict[Any, list[str]] = defaultdict(list)
    for key, value in state.items():
        # Tensors without memory all start at address 0.
        where = (value.device, value.data_ptr(), value.shape, value.stride()) if value.numel() else key
        groups[where].append(key)
    return {key: group for group in groups.values() for key in group}


def _distinct(model: Pretrained) -> dict[str, Tensor]:
    """Weights and buffers, tied ones once, each in memory of its own."""
    state = model.state_dict()
    for key, value in state.items():
        if value.is_meta:
            raise ValueError(f"{type(model).__name__}: {key} is on the meta device; load weights before saving")
    return {key: state[key].contiguous().clone() for key in {group[0]: None for group in _tied(state).values()}}


def _local(name: str | Path, hub: dict[str, Any]) -> Path:
    """Folder of a checkpoint, downloaded first when the name is a hub name and no local path."""
    folder = Path(name).expanduser()
    hub_name = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{folder}: expected a checkpoint folder ({CONFIG}, {WEIGHTS}), got a file")
    if not hub_name or folder.parent.exists():
        raise ValueError(f"{folder}: no such checkpoint folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, CARD], **hub))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: no such checkpoint folder, nor found on the hub: {_line(error)}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Contents of config.json, which has an architecture."""
    path = folder / CONFIG
    for needed in (path, folder / WEIGHTS):
        if not needed.is_file():
            raise ValueError(f"{folder}: no {needed.name}; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    if path.stat().st_size > _CONFIG_BYTES:
        raise FileError(path, f"has {path.stat().st_size:,} bytes; expected at most {_CONFIG_BYTES:,}")
    try:
        config = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_number, parse_float=_number
        )
        _check_depth(config)
    except RecursionError:
        raise FileError(path, "not JSON that a checkpoint has: nested too deeply") from None
    except ValueError as error:
        raise FileError(path, f"not JSON: {_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(f"{path}: no 'architecture'; this is not a Recurra checkpoint (for others, see convert)")
    if not isinstance(config.get("metadata", {}), dict):
        raise ValueError(f"{path}: metadata: expected an object, got {config['metadata']!r}")
    return config


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON; a key that occurs twice says two things."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:100]} is there twice")
        found[key] = value
    return found


def _number(text: str) -> float:
    """The number of a text; JSON has none that is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:100]} is no finite number")
    return value


def _check_depth(config: Any) -> None:
    """Refuse what is nested more deeply than what goes through it can follow."""
    level = [config]
    for _ in range(_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"nested more than {_DEPTH} deep")


def _subclasses(kind: type[_Model]) -> list[type[_Model]]:
    """The class and all below it that can be constructed, latest definition last."""
    below = [inner for sub in kind.__subclasses__() for inner in _subclasses(sub)]
    return below if inspect.isabstract(kind) or kind is Pretrained else [kind, *below]


def _resolve(kind: type[_Model], name: str, folder: Path) -> type[_Model]:
    """The class of this name at or below `kind`: found among classes that exist, never imported by name."""
    if kind.__name__ == name:
        return kind
    known = {sub.__name__: sub for sub in _subclasses(kind)}
    if name in known:
        return known[name]
    if name in {sub.__name__ for sub in _subclasses(Pretrained)}:
        raise ValueError(f"{folder} holds a {name}, which is no {kind.__name__}; load it with {name}.from_pretrained")
    raise ValueError(f"{folder / CONFIG}: architecture: no {kind.__name__} is called {name!r}{nearest(name, known)}")


def _check_keys(kind: type[Pretrained], config: Mapping[str, Any], folder: Path) -> None:
    """Refuse options the class does not have, and lacking ones that it needs."""
    parameters = _signature(kind).parameters
    for key in config:
        if key not in parameters:
            hint = nearest(key, parameters)
            raise ValueError(f"{folder / CONFIG}: {key}: {kind.__name__} has no such option{hint}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in config:
            raise ValueError(f"{folder / CONFIG}: {key}: {kind.__name__} needs this option")


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _load_weights(model: Pretrained, path: Path) -> None:
    """Fill the model from a file that must hold exactly its tensors, all of them finite."""
    try:
        stored = safetensors.torch.load_file(path)
    except Exception as error:  # of any type, in a damaged file
        raise FileError(path, f"damaged or truncated: {_line(error)}") from error
    state = model.state_dict(keep_vars=True)
    tied, name = _tied(state), type(model).__name__
    missing = [key for key in state if not any(twin in stored for twin in tied[key])]
    extra = [key for key in stored if key not in state]
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(extra)} too many"] * bool(extra)
        raise ValueError(f"{path}: tensors are not those of {name} with this config: {'; '.join(parts)}")
    for key, value in stored.items():
        ours = state[key]
        if value.shape != ours.shape:
            raise ValueError(f"{path}: {key} has shape {tuple(value.shape)}; {name} expects {tuple(ours.shape)}")
        if value.is_floating_point() != ours.is_floating_point() or value.is_complex() != ours.is_complex():
            raise ValueError(f"{path}: {key} has type {value.dtype}; {name} expects {ours.dtype}")
        wrong = int((~torch.isfinite(value)).sum()) if isinstance(ours, nn.Parameter) else int(torch.isnan(value).sum())
        if wrong:  # a buffer may be infinite, as a mask that is added
            raise FileError(path, f"{key} has {wrong} of {value.numel()} values that are NaN or infinite")
        ours.data = ours.data.to(value.dtype)  # the file's precision, whatever the default is here
    model.load_state_dict({key: next(stored[twin] for twin in tied[key] if twin in stored) for key in state})


def _card(model: Pretrained, metadata: Mapping[str, Any]) -> str:
    """Model card: what the folder holds and how to load it."""
    kind = type(model)
    licence = metadata.get("license", metadata.get("licence"))
    about = (inspect.getdoc(kind) or "").partition("\n")[0]
    lines = ["---", "library_name: recurra", f"tags: [recurra, {kind.__name__}]"]
    lines += [f"license: {json.dumps(licence)}"] if isinstance(licence, str) else []
    count = sum(parameter.numel() for parameter in model.parameters())
    lines += [
        "---",
        "",
        f"# {kind.__name__}",
        "",
        about,
        "",
        f"{count:,} parameters; recurra {version('recurra-core')}.",
    ]
    lines += ["", "```python", f"from {kind.__module__} import {kind.__name__}", ""]
    lines += [f'model = {kind.__name__}.from_pretrained("path/to/this/folder")', "```"]
    for title, table in (("Options", model.config), ("About this checkpoint", metadata)):
        if table:
            lines += ["", f"## {title}", "", "| name | value |", "|---|---|"]
            lines += [f"| {key} | {_cell(value)} |" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """A value inside a Markdown table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")
