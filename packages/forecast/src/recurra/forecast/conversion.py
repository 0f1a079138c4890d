"""Authors' checkpoint files, turned into ours: one function a source.

tpgn    checkpoint.pth: a plain state dict; everything but the normalisation follows from its shapes
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recurra.core import conversion
from recurra.core.checkpoint import read_foreign
from recurra.core.conversion import Found, Source, ask, some
from recurra.forecast.models.tpgn import TPGN

State = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]

# --- TPGN

# Calendar features of each frequency of the authors.
_FEATURES = {"s": 6, "t": 5, "min": 5, "h": 4, "d": 3, "b": 3, "w": 2, "m": 1}
_HIE, _LONG, _ROW = "TPGN.LNN_dim.hidden_MLP", "TPGN.LNN_dim.fc", "TPGN.s_t_p_e.fc_row"


def from_tpgn(state: State, given: Mapping[str, Any]) -> Converted:
    """Arguments and weights of `TPGN` from the authors' weights, which keep their names.

    Args:
        state: weights, each name with `module.` before it where they were trained on several GPUs.
        given: `norm`, which no weight tells; `period` where there is no short-term branch that tells it; `freq`, which
            must agree with the number of calendar features.

    Raises:
        ValueError: the weights are none of a TPGN, or `given` lacks something.
    """
    weights = {re.sub(r"^module\.", "", key): value for key, value in state.items()}
    needed = (f"{_HIE}.weight", f"{_HIE}.bias", f"{_LONG}.weight", "TPGN.fc.bias")
    if missing := [key for key in needed if key not in weights]:
        raise ValueError(f"holds no TPGN: lacks {some(missing)}; there is {some(weights)}")
    short = f"{_ROW}.weight" in weights
    hints = {"norm": "true if it was trained with norm 1, false if with norm 0"}
    ask(hints if short else hints | {"period": "steps of a row; there is no short-term branch that tells it"}, given)
    period = weights[f"{_ROW}.weight"].shape[2] if short else int(given["period"])
    hidden, rows = weights[f"{_LONG}.weight"].shape[1:]
    variates = weights[f"{_HIE}.bias"].shape[0] // hidden
    features = weights[f"{_HIE}.weight"].shape[1] - 1
    freq = given.get("freq")
    if freq is not None and _FEATURES.get(str(freq).lower()) != features:
        known = ", ".join(name for name, count in _FEATURES.items() if count == features) or "none of the authors'"
        raise ValueError(f"freq: the weights are for {features} calendar features ({known}); got {freq!r}")
    arguments = {
        "window": rows * period,
        "horizon": weights["TPGN.fc.bias"].shape[0] // variates * period,
        "period": period,
        "variates": variates,
        "features": features,
        "hidden": hidden,
        "short": short,
    }
    return arguments, weights


def _read_tpgn(path: Path, given: Mapping[str, Any]) -> Found:
    content = read_foreign(path)
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong or not content:
        raise ValueError(f"expected TPGN's checkpoint.pth, a state dict of tensors alone; got {some(wrong)}")
    arguments, weights = from_tpgn(content, given)
    return Found(TPGN, arguments, weights, {"freq": given["freq"]} if "freq" in given else {})


# --- the sources

SOURCES = {
    "tpgn": Source("https://github.com/Water2sea/TPGN", "its repository states none", _read_tpgn, frozenset({"freq"})),
}


def convert(
    path: str | Path, source: str, out: str | Path, overrides: Sequence[str] = (), *, overwrite: bool = False
) -> Path:
    """As the verb: the folder of the converted checkpoint."""
    return conversion.convert(path, SOURCES, source, out, overrides, example="norm=true", overwrite=overwrite)
