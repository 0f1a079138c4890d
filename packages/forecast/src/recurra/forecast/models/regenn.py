"""ReGENN, the recurrent graph evolution neural network (Spadon et al., TPAMI 44(9), 2022, arXiv:2008.12833).

One model forecasts all variables of all samples (countries, stations, patients): a graph of the variables evolves, time
is encoded and reduced by a recurrence that runs over the variables, a second one runs over the forecast's steps, and
the graph evolves again. From the equations; the authors' code (gabrielspadon/ReGENN) was not a source of this one.

Where it differs: `attend_over="variables"` and `target_graph="current"`, the defaults, make a forecast depend on its
own sample and on its own graph alone; "samples" and "stored" are what the authors compute. Their ReLU output dies
easily (whole steps of a forecast stay at zero, without a gradient): "Softplus" and "Residual" do not.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recurra.core.checks import at_least_one, one_of
from recurra.forecast.models.forecaster import Forecaster, Layout
from recurra.forecast.models.graph_evolution import ACTIVATIONS, GraphSoftEvolution, Matrix

Gate = Literal["RNN", "GRU", "LSTM"]
AttendOver = Literal["variables", "samples"]
TargetGraph = Literal["current", "stored"]
_GATES: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


class Autoregression(nn.Module):
    """A linear map of the window to the horizon that all variables share: y_sov = sum_i W[i, o] x_siv + b[o]."""

    def __init__(self, window: int, horizon: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weights = nn.Parameter(nn.init.xavier_uniform_(torch.empty(window, horizon)))
        self.bias = nn.Parameter(torch.zeros(horizon, 1), requires_grad=bias)

    def forward(self, x: Float[Tensor, "sample window variable"]) -> Float[Tensor, "sample horizon variable"]:
        """The linear forecast."""
        return torch.einsum("siv,io->sov", x, self.weights) + self.bias


class ReGENN(Forecaster):
    """x → graph evolution → encoder → recurrence over variables → recurrence over steps → graph evolution → forecast.

    Args:
        window: steps that it sees.
        horizon: steps that it forecasts.
        variables: of a sample.
        gate: recurrence over the variables, whose features are time steps.
        sequencer: recurrence over the forecast's steps, beside a shortcut; None for none.
        bidirectional_gate: run the gate in both directions, and add them.
        bidirectional_sequencer: likewise the sequencer.
        encoder: a transformer layer before the gate, whose features are time steps.
        autoregression: add a linear forecast before the output function.
        evolution_function: activation of the first graph evolution.
        output_function: activation of the forecast; "Residual" has none and adds the last value, as which an untrained
            network then begins, unless `ablation` leaves out what is silenced at first.
        dropout: of encoder, evolution and recurrences.
        bias: of everything but the encoder.
        ablation: leave both graph evolutions out.
        attend_over: what the encoder attends over: the variables of a sample or, as the authors', the samples of the
            batch, which makes a forecast depend on the samples beside it.
        target_graph: of the second evolution, in evaluation: the one that the first has just made or, as the authors',
            the one of the last training step.
        batch_size: samples of a part of a batch that has its own diagonal rule in the graph.
        calibration: see `Forecaster`.

    Attributes:
        step_of_epoch: number of the training step within the epoch, from 0, which the training sets before every step:
            the graph takes each batch of the first epoch once. None leaves the graph as it is.
    """

    layout: ClassVar[Layout] = "samples"

    def __init__(
        self,
        *,
        window: int,
        horizon: int,
        variables: int,
        gate: Gate = "LSTM",
        sequencer: Gate | None = "LSTM",
        bidirectional_gate: bool = False,
        bidirectional_sequencer: bool = False,
        encoder: bool = True,
        autoregression: bool = False,
        evolution_function: str | None = None,
        output_function: str | None = "ReLU",
        dropout: float = 0.1,
        bias: bool = True,
        ablation: bool = False,
        attend_over: AttendOver = "variables",
        target_graph: TargetGraph = "current",
        batch_size: int = 32,
        calibration: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(window=window, horizon=horizon, calibration=calibration)
        at_least_one(variables=variables, batch_size=batch_size)
        one_of("gate", gate, Gate)
        one_of("sequencer", sequencer, (None, *_GATES))
        one_of("output_function", output_function, ("Residual", *ACTIVATIONS))
        one_of("attend_over", attend_over, AttendOver)
        one_of("target_graph", target_graph, TargetGraph)
        self.variables, self.attend_over, self.target_graph = variables, attend_over, target_graph
        self.residual = output_function == "Residual"
        self.step_of_epoch: int | None = None
        # Names of the parts are the authors', so that their weights fit.
        self.SourceEvolution = self.TargetEvolution = None
        if not ablation:
            self.SourceEvolution = GraphSoftEvolution(
                variables,
                window,
                window,
                activation=evolution_function,
                dropout=dropout,
                batch_size=batch_size,
                bias=bias,
            )
            self.TargetEvolution = GraphSoftEvolution(
                variables, horizon, horizon, time_dot=False, batch_size=batch_size, bias=bias
            )
        self.TimeEncoder = nn.TransformerEncoderLayer(window, 1, 2048, dropout) if encoder else None
        self.TimeGate = _GATES[gate](window, horizon, bias=bias, batch_first=True, bidirectional=bidirectional_gate)
        self.VariableSequencer = sequencer and _GATES[sequencer](
            variables, variables, bias=bias, batch_first=True, bidirectional=bidirectional_sequencer
        )
        self.Autoregression = Autoregression(window, horizon, bias=bias) if autoregression else None
        self.dropout = nn.Dropout(dropout)
        self.output = ACTIVATIONS[None if self.residual else output_function]()
        if self.residual:
            self._begin_as_last_value()

    SourceEvolution: GraphSoftEvolution | None
    TargetEvolution: GraphSoftEvolution | None

    def forward(
        self,
        past: Float[Tensor, "batch window variate"],
        marks: Float[Tensor, "batch steps mark"] | None = None,
        covariates: Float[Tensor, "batch steps covariate"] | None = None,
    ) -> Float[Tensor, "batch horizon variate"]:
        """The forecast of all variables of a batch of samples; see `Forecaster.forward`."""
        self.check(past, marks, covariates)
        if past.shape[2] != self.variables:
            raise ValueError(f"past has {past.shape[2]} variables; expected {self.variables}")
        x, graph = past, None
        if self.SourceEvolution is not None:
            if self.training and self.step_of_epoch is None and not int(self.SourceEvolution.merged):
                raise ValueError(
                    "step_of_epoch is None in training; set it to the number of the step, or preset a graph"
                )
            x, graph = self.SourceEvolution(x, self.step_of_epoch)
        y = self._recurrences(self._encode(x.transpose(1, 2)))
        if self.TargetEvolution is not None:
            y, _ = self.TargetEvolution(y, graph=graph, stored=self.target_graph == "stored")
        if self.Autoregression is not None:
            y = y + self.Autoregression(past)
        return self.output(y + past[:, -1:] if self.residual else y)  # type: ignore[no-any-return]

    def graphs(self) -> dict[str, Matrix]:
        """The six stored matrices of the graph evolution; none under ablation.

        "source" and "target" adjacency, hidden graph (A W_a + b_a) and evolution (the mixing of the variables), as
        "source adjacency" and so on, each (variable, variable). The target's adjacency is the source's hidden graph:
        the present one, or with `target_graph="stored"` that of the last training step.
        """
        if self.SourceEvolution is None or self.TargetEvolution is None:
            return {}
        with torch.no_grad():
            hidden, evolution = self.SourceEvolution.matrices()
            target = self.TargetEvolution.adjacency if self.target_graph == "stored" else hidden
            last, mixing = self.TargetEvolution.matrices(target)
            names = (
                f"{layer} {what}" for layer in ("source", "target") for what in ("adjacency", "hidden", "evolution")
            )
            matrices = (self.SourceEvolution.adjacency, hidden, evolution, target, last, mixing)
            return {name: matrix.clone() for name, matrix in zip(names, matrices, strict=True)}

    def preset_adjacency(self, adjacency: Matrix) -> None:
        """Takes this graph of the variables for good, instead of one that the training data make.

        Raises:
            ValueError: the model has no graph, or it has another size.
        """
        if self.SourceEvolution is None:
            raise ValueError("ablation leaves the graph out; there is none to preset")
        self.SourceEvolution.preset_adjacency(adjacency)

    @torch.no_grad()
    def _begin_as_last_value(self) -> None:
        """Silences what is added to the last value: first weights would add noise of the size of the values."""
        if self.TargetEvolution is not None:
            self.TargetEvolution.cosine_weights.zero_()
        if self.Autoregression is not None:
            self.Autoregression.weights.zero_()

    def _encode(self, x: Float[Tensor, "batch variable window"]) -> Float[Tensor, "batch variable window"]:
        if self.TimeEncoder is None:
            return x
        # The layer attends over its first axis.
        if self.attend_over == "samples":
            return self.TimeEncoder(x)  # type: ignore[no-any-return]
        return self.TimeEncoder(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]

    def _recurrences(self, x: Float[Tensor, "batch variable window"]) -> Float[Tensor, "batch horizon variable"]:
        t: Tensor = self.dropout(_summed(self.TimeGate, x).transpose(1, 2))
        if self.VariableSequencer is None:
            return t
        return t + self.dropout(_summed(self.VariableSequencer, t))  # type: ignore[no-any-return]


def _summed(recurrence: nn.RNNBase, x: Tensor) -> Tensor:
    """Output of a recurrence, the sum of its directions."""
    y: Tensor = recurrence(x)[0]
    return torch.stack(y.chunk(2, dim=-1)).sum(0) if recurrence.bidirectional else y
