"""The training of ReGENN's authors, step by step, and the same with an honest scale.

An epoch goes over all positions of the training time with parts of the samples, one optimiser step each. Every score is
of one part at one position, right after the step on it; what is reported are means of such scores, which for an RMSE is
not the RMSE of all elements. Published, the scale of a forecast comes from the steps that are forecast (see
`recurra.forecast.protocols.scaling`): for parity only. Honest, it comes from the training time alone.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from recurra.core.checks import at_least_one, one_of
from recurra.core.errors import UserError
from recurra.forecast.losses import LOSSES, r2_score
from recurra.forecast.models.regenn import ReGENN
from recurra.forecast.protocols.scaling import Normalization, Panel, Protocol, ScaledPanel, check_panel, scaled

Samples = Int[Tensor, "_"]
Shuffle = Callable[[Samples], Samples]
Scores = NDArray[np.float64]
Score = Callable[[Tensor, Tensor], Tensor]
SCORES: dict[str, Callable[[], Score]] = {**LOSSES, "R2Score": lambda: r2_score}


@dataclass(frozen=True)
class RegennSettings:
    """Options of the authors' command, and the protocol.

    Attributes:
        validation_stride: steps of the development window's forecast; at most the horizon.
        protocol: "published" leaks the scale of the future; "honest" does not.
        batch_size: samples of a step; there are as many parts as fit, at least one, of nearly the same size.
        clip_norm: largest norm of the gradient.
        costs: names of the scores, of `SCORES`.
        criterion: name of the loss.
        early_stop: epochs without improvement after which the training ends.
        epochs: passes over the training data.
        iterator: "time" takes all positions of a part first, "batch" all parts of a position.
        learning_rate: of Adam.
        normalization_axis: 0 samples, 1 time, 2 variables; see `scaled`.
        normalization_type: linear, maximum or logarithm.
        scheduler_factor: what the rate is multiplied by on a plateau of the watched loss.
        scheduler_min_lr: smallest rate.
        scheduler_patience: epochs of a plateau.
        scheduler_threshold: least relative improvement.
        seed: of the shuffles.
        test_every: epochs between scores of the test window.
        validation_samples: share of the samples that is not trained on.
        watch_axis: what decides: 0 training samples in the training time, 1 development samples in it, 2 training
            samples at the development time, 3 development samples at it.
    """

    validation_stride: int
    protocol: Protocol = "published"
    batch_size: int = 32
    clip_norm: float = 10.0
    costs: tuple[str, ...] = ("MAE", "RMSE", "MSLE")
    criterion: str = "MAE"
    early_stop: int = 250
    epochs: int = 2500
    iterator: Literal["time", "batch"] = "time"
    learning_rate: float = 1e-3
    normalization_axis: int = 2
    normalization_type: Normalization = "maximum"
    scheduler_factor: float = 0.95
    scheduler_min_lr: float = 0.0
    scheduler_patience: int = 25
    scheduler_threshold: float = 0.1
    seed: int = 0
    test_every: int = 5
    validation_samples: float = 0.0
    watch_axis: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: a value is out of range.
        """
        at_least_one(validation_stride=self.validation_stride, batch_size=self.batch_size, epochs=self.epochs)
        at_least_one(early_stop=self.early_stop, test_every=self.test_every)
        one_of("protocol", self.protocol, Protocol)
        one_of("iterator", self.iterator, ("time", "batch"))
        one_of("watch_axis", self.watch_axis, (0, 1, 2, 3))
        for name in (self.criterion, *self.costs):
            one_of("criterion and costs", name, SCORES)
        if not 0 <= self.validation_samples < 1:
            raise ValueError(f"validation_samples must be from 0 to below 1; got {self.validation_samples}")
        if self.watch_axis in (1, 3) and not self.validation_samples:
            raise ValueError(f"watch_axis {self.watch_axis} needs development samples; validation_samples is 0")


@dataclass(frozen=True)
class Times:
    """Positions of windows in a panel.

    Attributes:
        train: training windows start at 0 ... train - 1.
        dev: where the development window starts.
        test: where the test window starts.
        trained: steps that training sees, targets included; the target of the development window begins there.
    """

    train: int
    dev: int
    test: int
    trained: int

    @classmethod
    def of(cls, steps: int, window: int, horizon: int, stride: int) -> "Times":
        """Of a panel of so many steps.

        Raises:
            UserError: it is too short, or the stride is longer than the horizon.
        """
        if stride > horizon:
            raise UserError(f"validation_stride is {stride}; expected at most the horizon, {horizon}")
        if steps < (needed := window + stride + 2 * horizon):
            raise UserError(
                f"data has {steps} steps; window {window}, horizon {horizon} and stride {stride} need {needed}"
            )
        test = steps - window - horizon
        dev = test - stride
        return cls(dev - horizon + 1, dev, test, dev + window)


@dataclass
class History:
    """What came of a training.

    Attributes:
        protocol: published or honest.
        samples: training and development samples.
        times: positions of the windows.
        panel: the scaled data.
        train: scores (set, epoch, position, part, cost) in the training time; set 0 are the training samples, each
            right after the step on it, set 1 the development samples, after the same steps. 0 where there are none.
        dev: likewise at the development time; one position.
        test: likewise at the test time; 0 in epochs that were not tested.
        watched: loss that decides, an epoch.
        best: its smallest value; the model has the weights of that epoch.
        best_epoch: that epoch.
        final_state: weights after the last epoch.
    """

    protocol: Protocol
    samples: tuple[Samples, Samples]
    times: Times
    panel: ScaledPanel
    train: Scores
    dev: Scores
    test: Scores
    watched: list[float] = field(default_factory=list)
    best: float = math.inf
    best_epoch: int = -1
    final_state: dict[str, Tensor] = field(default_factory=dict)


def train_regenn(
    model: ReGENN,
    data: Panel,
    settings: RegennSettings,
    *,
    variables: Sequence[str] | None = None,
    samples: tuple[Samples, Samples] | None = None,
    shuffle: Shuffle | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> History:
    """Trains the model by the authors' protocol, or the honest one; it ends with the weights of the best epoch.

    Args:
        model: trained in place.
        data: (sample, time, variable), in original units.
        settings: options of the authors' command.
        variables: names, for messages.
        samples: training and development samples, instead of a drawn split.
        shuffle: the next order of some samples, instead of one drawn with the seed.
        on_epoch: told each epoch and its watched loss.

    Raises:
        UserError: the data are too short, not finite or, honestly, have a variable twice; or the loss is not finite.
    """
    check_panel(data, variables, honest=settings.protocol == "honest")
    training = _Training(model, data, settings, samples, shuffle)
    for epoch in range(settings.epochs):
        watched = training.epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch, watched)
        if epoch - training.history.best_epoch >= settings.early_stop:
            break
    training.history.final_state = copy.deepcopy(model.state_dict())
    model.load_state_dict(training.best_state)
    model.eval()
    return training.history


class _Training:
    """One training: what it is made of, and its epochs."""

    def __init__(
        self,
        model: ReGENN,
        data: Panel,
        settings: RegennSettings,
        samples: tuple[Samples, Samples] | None,
        shuffle: Shuffle | None,
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.times = Times.of(data.shape[1], model.window, model.horizon, settings.validation_stride)
        random = np.random.RandomState(settings.seed)
        self.shuffle = shuffle or (lambda order: order[torch.from_numpy(random.permutation(len(order)))])
        self.sets = list(samples or _split(len(data), settings, random))
        if not len(self.sets[0]):
            raise UserError(f"validation_samples {settings.validation_samples} leaves no sample to train on")
        self.parts = max(len(self.sets[0]) // settings.batch_size, 1)
        self.criterion = SCORES[settings.criterion]()
        self.costs = [SCORES[name]() for name in settings.costs]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=settings.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer,
            factor=settings.scheduler_factor,
            patience=settings.scheduler_patience,
            threshold=settings.scheduler_threshold,
            min_lr=settings.scheduler_min_lr,
            eps=1e-12,
        )
        self.best_state = copy.deepcopy(model.state_dict())

    @cached_property
    def history(self) -> History:
        """Empty scores."""
        protocol, times = self.settings.protocol, self.times
        panel = scaled(
            self.data,
            self.settings.normalization_type,
            self.settings.normalization_axis,
            training_steps=times.trained if protocol == "honest" else None,
        )
        train, once = (np.zeros((2, 0, count, self.parts, len(self.costs))) for count in (times.train, 1))
        return History(protocol, (self.sets[0], self.sets[1]), times, panel, train, once, once)

    def epoch(self, epoch: int) -> float:
        """Trains and scores an epoch; the watched loss."""
        history, horizon, stride = self.history, self.model.horizon, self.settings.validation_stride
        watch = []
        train, losses = self._pass(range(self.times.train), horizon, train=True)
        watch += losses
        dev, losses = self._pass(range(self.times.dev, self.times.dev + 1), stride)
        watch += losses
        test = np.zeros_like(dev)
        if epoch % self.settings.test_every == 0:
            test, _ = self._pass(range(self.times.test, self.times.test + 1), horizon)
        history.train = np.concatenate([history.train, train[:, None]], axis=1)
        history.dev = np.concatenate([history.dev, dev[:, None]], axis=1)
        history.test = np.concatenate([history.test, test[:, None]], axis=1)
        watched = watch[self.settings.watch_axis]
        self.scheduler.step(watched)
        history.watched.append(watched)
        if watched < history.best:
            history.best, history.best_epoch = watched, epoch
            self.best_state = copy.deepcopy(self.model.state_dict())
        return watched

    def _pass(self, positions: range, steps: int, *, train: bool = False) -> tuple[Scores, list[float]]:
        """Scores (set, position, part, cost) of both sets of samples, and their mean criterion."""
        self.sets = [self.shuffle(members) if len(members) else members for members in self.sets]
        scores = np.zeros((2, len(positions), self.parts, len(self.costs)))
        parts = [members.tensor_split(self.parts) for members in self.sets]
        losses: tuple[list[float], list[float]] = [], []
        order = [(at, part) for part in range(self.parts) for at in range(len(positions))]
        for number, (at, part) in enumerate(order if self.settings.iterator == "time" else sorted(order)):
            if train:
                self._step(number, parts[0][part], positions[at])
            for index in (0, 1):
                if len(members := parts[index][part]):
                    loss, scores[index, at, part] = self._score(members, positions[at], steps)
                    losses[index].append(loss)
        return scores, [float(np.mean(found)) if found else math.nan for found in losses]

    def _step(self, number: int, members: Samples, start: int) -> None:
        """One step of the optimiser."""
        self.model.train()
        self.model.step_of_epoch = number
        self.optimizer.zero_grad()
        loss = self.criterion(*self._compared(members, start, self.model.horizon))
        if not torch.isfinite(loss):
            raise UserError(
                f"loss is {float(loss)} at step {number} (window {start}); lower the rate or scale the data"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        _clip(self.optimizer, self.settings.clip_norm)
        self.optimizer.step()
        self.model.step_of_epoch = None

    @torch.no_grad()
    def _score(self, members: Samples, start: int, steps: int) -> tuple[float, list[float]]:
        """Criterion and costs of a part, in evaluation."""
        self.model.eval()
        compared = self._compared(members, start, steps)
        return float(self.criterion(*compared)), [float(cost(*compared)) for cost in self.costs]

    def _compared(self, members: Samples, start: int, steps: int) -> tuple[Panel, Panel]:
        """Forecast and target of a part in original units."""
        panel, target = self.history.panel, start + self.model.window
        forecast = self.model(panel.values[members, start:target])[:, :steps]
        scale = panel.scale_of(members, target, steps)
        return panel.restored(forecast, scale), panel.restored(panel.values[members, target : target + steps], scale)


def _split(count: int, settings: RegennSettings, random: np.random.RandomState) -> tuple[Samples, Samples]:
    """Training and development samples."""
    order = torch.from_numpy(random.permutation(count))
    held = int(count * settings.validation_samples)
    return order[held:], order[:held]


def _clip(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scales the gradients down to this norm, without the 1e-6 that torch adds."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    factor = norm / torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    if factor < 1:
        for grad in grads:
            grad *= factor


def forecast_last(
    model: ReGENN, history: History, steps: int | None = None
) -> Float[Tensor, "sample horizon variable"]:
    """The model's forecast of the last steps of the panel that it was trained on, in original units.

    The samples go in as many parts as in training, in order; published, with the scale of the very steps forecast.
    """
    panel, start = history.panel, history.times.test
    target, steps = start + model.window, steps or model.horizon
    samples = torch.arange(len(panel.values))
    forecasts = []
    with torch.no_grad():
        for members in samples.tensor_split(history.train.shape[3]):
            forecast = model.eval()(panel.values[members, start:target])[:, :steps]
            forecasts.append(panel.restored(forecast, panel.scale_of(members, target, steps)))
    return torch.cat(forecasts)
