"""What every domain of Recurra shares: units, checkpoints, recipes, training, inference, evaluation, commands."""

from typing import TYPE_CHECKING

from recurra.core.lazy import lazy

if TYPE_CHECKING:
    from recurra.core.checkpoint import Pretrained as Pretrained
    from recurra.core.checkpoint import read_container as read_container
    from recurra.core.checkpoint import read_foreign as read_foreign
    from recurra.core.errors import UserError as UserError
    from recurra.core.recipe import build as build
    from recurra.core.recipe import list_recipes as list_recipes
    from recurra.core.recipe import load_recipe as load_recipe
    from recurra.core.training import Report as Report
    from recurra.core.training import Task as Task
    from recurra.core.training import TrainSettings as TrainSettings
    from recurra.core.training import fit as fit

__getattr__, __dir__, __all__ = lazy(__name__)
