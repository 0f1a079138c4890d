"""Scales of panels of samples: as ReGENN's authors make them, which leaks the future, and from the training span.

The published scale is a maximum over one axis of the whole panel. A forecast is multiplied by the scale of the time
that it is for: over the variables (axis 2) that is the true maximum at each future step, over the samples (axis 0)
likewise, over the time (axis 1) it is the maximum of the whole series.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recurra.core.checks import one_of
from recurra.core.errors import UserError

Protocol = Literal["published", "honest"]
Normalization = Literal["linear", "maximum", "logarithm"]
Panel = Float[Tensor, "sample time variable"]
Scale = Float[Tensor, "_ _ _"]


@dataclass(frozen=True)
class ScaledPanel:
    """A panel on the model's scale.

    Attributes:
        values: (sample, time, variable), after log1p where the scale is logarithmic, over `scale`.
        scale: what they were divided by; an axis over which it was taken has length 1.
        logarithm: whether log1p came before.
    """

    values: Panel
    scale: Scale
    logarithm: bool

    def scale_of(self, samples: Tensor, start: int, steps: int) -> Scale:
        """The scale of some samples at some steps."""
        scale = self.scale[samples] if len(self.scale) > 1 else self.scale
        return scale[:, start : start + steps] if scale.shape[1] > 1 else scale

    def restored(self, values: Panel, scale: Scale) -> Panel:
        """Values in the units of the panel."""
        values = values * scale
        return values.expm1() if self.logarithm else values


def scaled(data: Panel, kind: Normalization, axis: int, *, training_steps: int | None = None) -> ScaledPanel:
    """The panel over its scale.

    Args:
        data: counts, or other values that are never below 0.
        kind: "linear" leaves it as it is; "maximum" divides by the largest value over the axis, 1 at least; "logarithm"
            takes log1p before that.
        axis: 0 for samples, 1 for time, 2 for variables.
        training_steps: honest: the maximum is taken over these first steps too, and so no step after them decides
            anything; None is published, where each future step brings a scale of its own.
    """
    one_of("normalization", kind, Normalization)
    one_of("axis", axis, (0, 1, 2))
    values = data.log1p() if kind == "logarithm" else data
    if kind == "linear":
        scale = torch.ones_like(values[:1, :1, :1])
    elif training_steps is None:
        scale = values.amax(axis, keepdim=True).clamp_min(1)
    else:
        scale = values[:, :training_steps].amax(sorted({axis, 1}), keepdim=True).clamp_min(1)
    return ScaledPanel(values / scale, scale, kind == "logarithm")


def duplicated(data: Panel) -> list[tuple[int, int]]:
    """Pairs of variables that are identical in all samples at all steps, the first before the second."""
    count = data.shape[-1]
    pairs = ((i, j) for i in range(count) for j in range(i + 1, count))
    return [(i, j) for i, j in pairs if torch.equal(data[..., i], data[..., j])]


def check_panel(data: Panel, variables: Sequence[str] | None = None, *, honest: bool) -> None:
    """Refuses what cannot be trained on, and for the honest protocol a variable that is another once more.

    Raises:
        UserError: the panel is not of three axes, has values that are not finite, or a duplicated variable.
    """
    if data.ndim != 3 or not data.is_floating_point():
        raise UserError(f"data has shape {tuple(data.shape)}; expected floats (sample, time, variable)")
    if not torch.isfinite(data).all():
        sample, step, variable = (int(i) for i in (~torch.isfinite(data)).nonzero()[0])
        raise UserError(f"data: sample {sample}, step {step}, variable {variable} is not finite; fill it first")
    for first, second in duplicated(data) if honest else []:
        names = [variables[i] if variables else f"variable {i}" for i in (first, second)]
        raise UserError(
            f"data: {names[0]} and {names[1]} are the same numbers, which counts one error twice; drop one of them"
        )
