"""Pictures of graphs of variables: the six matrices of ReGENN's graph evolution as heat maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from recurra.core.figures import INK, color_bar, heading, new_figure, save, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

PANEL = 2.6  # inches, side of one heat map
_NAMED = 24
"""The most variables whose names are written at the axes."""


def graphs_png(
    path: Path, graphs: Mapping[str, Tensor], variables: Sequence[str] = (), *, title: str | None = None
) -> Path:
    """Writes the graphs as heat maps, three a row, each on its own scale.

    Adjacencies and what is made of them have values from 1 to 1e6, so that a colour is sign(a) log(1 + |a|); the
    evolutions, which mix the variables, are drawn as they are.

    Args:
        path: the PNG file.
        graphs: name to (variable, variable), as `ReGENN.graphs` gives them.
        variables: names, along the axes if there are few.
        title: written above everything.

    Returns:
        `path`.

    Raises:
        ValueError: there is no graph, one is not square, or the names do not fit.
    """
    if not graphs:
        raise ValueError("graphs is empty; the model has none (ablation)")
    for name, graph in graphs.items():
        if graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
            raise ValueError(f"{name} has shape {tuple(graph.shape)}; expected (variable, variable)")
        if variables and len(variables) != len(graph):
            raise ValueError(f"{len(variables)} names for {len(graph)} variables of {name}")
    rows, margin, top = -(-len(graphs) // 3), 1.7, 0.6 if title else 0.2
    size = (3 * (PANEL + margin), rows * (PANEL + 0.9) + top)
    figure = new_figure(size)
    for place, (name, graph) in enumerate(graphs.items()):
        row, column = divmod(place, 3)
        left, bottom = column * (PANEL + margin) + 0.8, (rows - 1 - row) * (PANEL + 0.9) + 0.5
        box = (left / size[0], bottom / size[1], PANEL / size[0], PANEL / size[1])
        linear = name.endswith("evolution")
        drawn = _draw(titled(figure.add_axes(box), name), graph.detach().cpu().numpy(), variables, linear=linear)
        bar = figure.add_axes(((left + PANEL + 0.55) / size[0], box[1], 0.06 / size[0], box[3]))
        color_bar(figure, bar, drawn, "" if linear else "sign · log(1 + |value|)")
    heading(figure, title, 0.1)
    return save(figure, path)


def _draw(axes: "Axes", graph: np.ndarray, variables: Sequence[str], *, linear: bool) -> "AxesImage":
    values = graph if linear else np.sign(graph) * np.log1p(np.abs(graph))
    limit = float(np.abs(values).max()) or 1.0
    named = list(variables) if len(variables) <= _NAMED else []
    axes.set_xticks(range(len(named)), named, rotation=90)
    axes.set_yticks(range(len(named)), named)
    axes.tick_params(colors=INK, labelsize=6, length=0)
    return axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
