"""What every domain of Recurra shares: units, checkpoints, recipes, the training engine, parts of the command line.

Names are imported when first used, so that a command's `--help` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recurra.core.checkpoint import Pretrained, read_container, read_foreign
    from recurra.core.errors import UserError
    from recurra.core.recipe import build, list_recipes, load_recipe
    from recurra.core.training import Report, Task, TrainSettings, fit

__version__ = version("recurra-core")

__all__ = [
    "Pretrained",
    "Report",
    "Task",
    "TrainSettings",
    "UserError",
    "__version__",
    "build",
    "fit",
    "list_recipes",
    "load_recipe",
    "read_container",
    "read_foreign",
]

_HOME = {
    "Pretrained": "checkpoint",
    "read_container": "checkpoint",
    "read_foreign": "checkpoint",
    "UserError": "errors",
    "build": "recipe",
    "list_recipes": "recipe",
    "load_recipe": "recipe",
    "Report": "training",
    "Task": "training",
    "TrainSettings": "training",
    "fit": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
