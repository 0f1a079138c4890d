"""Models in a form for inference alone: the same numbers, sooner.

A model's file knows nothing of its fast form: the file of the form registers it here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Form = Callable[..., Any]  # takes what the model's forward takes, and returns the same
_FORMS: dict[type[nn.Module], tuple[Callable[[Any], Form], Callable[[Any], str | None]]] = {}


class Prepared:
    """A model ready for inference, called like the model itself; results carry no gradients.

    Args:
        model: the plain form; its weights at the time of preparation are the ones that count.
        form: the prepared form, if there is one.
        reason: why there is none.
    """

    def __init__(self, model: nn.Module, form: Form | None, reason: str | None = None) -> None:
        self.model, self.form, self.reason = model, form, reason

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What the model's `forward` returns."""
        with torch.no_grad():
            # Under autocast a narrower type was asked for, which only the plain form has.
            if self.form is None or torch.is_autocast_enabled("cpu") or not _served(*inputs, *options.values()):
                return self.model(*inputs, **options)
            return self.form(*inputs, **options)


def _served(*values: object) -> bool:
    """Whether a prepared form may be given these: tensors are on the CPU and in no other precision than single."""
    return all(
        value.device.type == "cpu"
        and (value.dtype in (torch.float32, torch.complex64) or not (value.is_floating_point() or value.is_complex()))
        for value in values
        if isinstance(value, Tensor)
    )


def register(
    kind: type[nn.Module], make: Callable[[Any], Form], obstacle: Callable[[Any], str | None] = lambda model: None
) -> None:
    """Enter the prepared form of a class of models; those derived from it have none.

    Args:
        kind: the class.
        make: its prepared form, from a model whose parameters are float32 on the CPU.
        obstacle: why a model of this class has no prepared form, or None.
    """
    _FORMS[kind] = make, obstacle


def prepare(model: nn.Module) -> Prepared:
    """The model in the form for inference; it stays usable and unchanged.

    Weights are packed now: prepare again after changing them. Never raises; see `Prepared.reason`.
    """
    if type(model) not in _FORMS:
        return Prepared(model, None, f"{type(model).__name__} has no prepared form")
    make, obstacle = _FORMS[type(model)]
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
        return Prepared(model, None, "its parameters are not float32 on the CPU")
    reason = obstacle(model)
    with torch.no_grad():
        return Prepared(model, None if reason else make(model), reason)
