"""Where and in which precision a network computes."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from recurra.core.errors import UserError

if TYPE_CHECKING:
    import torch

PrecisionName = Literal["32", "bf16", "fp16"]


def choose_device(name: str = "auto") -> "torch.device":
    """The device of this name; "auto" is the first GPU, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device must be auto, cpu, cuda or cuda:INDEX; got {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name.startswith("cuda"):
        if not count:
            raise UserError(f"--device {name}: no GPU found; use --device cpu")
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise UserError(f"--device {name}: no such GPU; this machine has {known}")
    return torch.device(name)


def in_precision(call: Callable[..., Any], device: "torch.device", precision: PrecisionName) -> Callable[..., Any]:
    """The network, or a function, under autocast, unless precision is 32.

    Raises:
        UserError: the device cannot compute in this precision.
    """
    import torch

    if precision == "32":
        return call
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; use --precision bf16 or --precision 32")
    kind = torch.bfloat16 if precision == "bf16" else torch.float16

    def run(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device.type, dtype=kind):
            return call(*arguments, **named)

    return run
