"""Graph soft evolution: a graph of variables, learned from how they occur together (Spadon et al. 2022, TPAMI 44(9)).

The adjacency of a batch counts what one variable carries while another is positive; layers of this kind accumulate it,
or take the graph of the layer before. It is a constant to the gradient, and holds sums of 1e4 to 1e6: everything here
runs in float32 at least, also inside autocast regions, because cosines of such sums in half precision are noise.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from recurra.core.checks import one_of

Matrix = Float[Tensor, "variable variable"]

# Activations without weights, under torch's names; None is no activation.
ACTIVATIONS: dict[str | None, type[nn.Module]] = {
    None: nn.Identity,
    **{kind.__name__: kind for kind in (nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish)},
    **{kind.__name__: kind for kind in (nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU)},
    **{kind.__name__: kind for kind in (nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink)},
    **{kind.__name__: kind for kind in (nn.Softsign, nn.Tanh, nn.Tanhshrink)},
}
_FIXED = -1
"""Count of merged batches of a graph that grows no more."""


def co_occurrence(x: Float[Tensor, "sample time variable"], batch_size: int = 32) -> Matrix:
    """The adjacency of a batch: A[i, j] = sum of x[s, t, i] where x[s, t, j] > 0, with its diagonal rule.

    The diagonal becomes max(0, 2 A[i, i] - sum_j A[i, j]). Parts of `batch_size` samples have their diagonals set one
    by one and are then added, so that the split changes the result. As X^T [X > 0] it takes one product and the memory
    of the batch; the authors repeat the batch once for each variable.
    """
    total = x.new_zeros(x.shape[-1], x.shape[-1])
    for part in torch.split(x, batch_size):
        flat = part.flatten(0, 1)  # (sample x time, variable)
        adjacency = flat.T @ (flat > 0).to(flat.dtype)
        diagonal = adjacency.diagonal()
        diagonal.copy_((2 * diagonal - adjacency.sum(1)).clamp_min(0))
        total += adjacency
    return total


class GraphSoftEvolution(nn.Module):
    """Variables mixed by the cosines of their rows in a graph, then, for a source, time steps mixed:

        H = A W_a + b_a,  C_ab = <H_a, H_b> / (|H_a| |H_b|),  E = C ⊙ W_c + B_c
        y_sta = sum_b E_ab x_stb,  y ← activation(dropout(y)),  y_sov ← sum_i W_t[i, o] y_siv + b_t[o]

    Args:
        variables: of a sample.
        in_time: steps of the input.
        out_time: steps of the output; those of the input where time is not mixed.
        time_dot: mix the time steps.
        activation: one of `ACTIVATIONS`.
        dropout: before the activation; of the kind that keeps the moments of SELU before that one.
        batch_size: samples of a part of a batch, see `co_occurrence`.
        bias: learn the biases; without, they are zeros that stay.

    Attributes:
        adjacency: A, stored; `shared_adjacency` is the running sum that a source makes it of.
        merged: batches in that sum; -1 if the graph grows no more. The authors do not save it, and so add the data
            again when a training is resumed.
    """

    adjacency: Tensor
    shared_adjacency: Tensor
    merged: Tensor

    def __init__(
        self,
        variables: int,
        in_time: int,
        out_time: int,
        *,
        time_dot: bool = True,
        activation: str | None = None,
        dropout: float = 0.0,
        batch_size: int = 32,
        bias: bool = True,
    ) -> None:
        super().__init__()
        one_of("activation", activation, ACTIVATIONS)
        square = (variables, variables)
        self.time_dot, self.batch_size = time_dot, batch_size
        self.adjacency_weights = nn.Parameter(nn.init.xavier_uniform_(torch.empty(square)))
        self.adjacency_bias = nn.Parameter(torch.zeros(variables, 1), requires_grad=bias)
        self.cosine_weights = nn.Parameter(nn.init.xavier_uniform_(torch.empty(square)))
        self.cosine_bias = nn.Parameter(torch.zeros(square), requires_grad=bias)
        weights = nn.init.xavier_uniform_(torch.empty(in_time, out_time))
        self.time_weights = nn.Parameter(weights, requires_grad=time_dot)
        self.time_bias = nn.Parameter(torch.zeros(out_time, 1), requires_grad=time_dot and bias)
        self.register_buffer("adjacency", torch.zeros(square))
        self.register_buffer("shared_adjacency", torch.zeros(square))
        self.register_buffer("merged", torch.tensor(0))
        self.dropout = nn.AlphaDropout(dropout) if activation == "SELU" else nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]()

    def forward(
        self,
        x: Float[Tensor, "sample time variable"],
        step: int | None = None,
        graph: Matrix | None = None,
        *,
        stored: bool = True,
    ) -> tuple[Float[Tensor, "sample out variable"], Matrix]:
        """The evolved batch, and the graph H for the next layer, without gradient.

        Args:
            x: the batch.
            step: number of the training step within the epoch, from 0: in training the batch joins the sum if it is the
                next in the count.
            graph: of the layer before; in training it replaces the stored one.
            stored: in evaluation, use the stored graph even where `graph` is given, as the authors do.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.cosine_weights.dtype)
            hidden, evolution = self.matrices(self._adjacency(x, step, graph, stored))
            y = self.activation(self.dropout(x @ evolution.T))
            if self.time_dot:
                y = torch.einsum("siv,io->sov", y, self.time_weights) + self.time_bias
            return y, hidden.detach()

    def matrices(self, adjacency: Matrix | None = None) -> tuple[Matrix, Matrix]:
        """H and E of an adjacency; by default of the stored one."""
        adjacency = self.adjacency if adjacency is None else adjacency
        hidden = adjacency @ self.adjacency_weights + self.adjacency_bias
        rows = F.normalize(hidden, dim=1, eps=1e-12)
        return hidden, (rows @ rows.T) * self.cosine_weights + self.cosine_bias

    def preset_adjacency(self, adjacency: Matrix) -> None:
        """Takes this graph for good."""
        if adjacency.shape != self.adjacency.shape:
            expected = tuple(self.adjacency.shape)
            raise ValueError(f"adjacency has shape {tuple(adjacency.shape)}; expected {expected}")
        self.adjacency.copy_(adjacency)
        self.shared_adjacency.copy_(adjacency)
        self.merged.fill_(_FIXED)

    @torch.no_grad()
    def _adjacency(self, x: Tensor, step: int | None, graph: Tensor | None, stored: bool) -> Tensor:
        if not self.training:
            return self.adjacency if graph is None or stored else graph
        if step is not None:
            if step == int(self.merged):
                self.shared_adjacency += co_occurrence(x, self.batch_size)
                self.adjacency.copy_(self.shared_adjacency)
                self.merged += 1
            # The sum grows in place, while the gradient of the step before may still need what it was.
            return self.adjacency.clone()
        if graph is not None:
            self.adjacency.copy_(graph)
            return graph
        return self.adjacency if int(self.merged) else co_occurrence(x, self.batch_size)
