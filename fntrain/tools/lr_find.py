"""lr_find: one sweep of the learning rate over all its magnitudes, and where the loss falls fastest."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import tree
from .._core import check
from .._core.errors import ConfigError, DataError
from .._core.typing import PyTree, ScheduleLike
from ..data.feed import first_met
from ..data.source import as_source
from ..sharding.place import mesh_of, place_stacked
from ..show import plots
from ..step import checks, programs
from ..step.state import TrainState, check_state
from ..step.step import compute_metrics, train_step
from ..step.task import Task
from ..transforms import Transform, scale_by_learning_rate
from ..transforms.decay import ScaleByLearningRateState
from ..transforms.hyperparams import WRAPPERS, HyperparamsState
from ..transforms.types import at_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING = 0.8  # of the exponential averages over steps
DIVERGED = 4.0  # times the first loss
FLOOR = 1e-4  # of the whole fall: what is nearer to the lowest loss is noise


@dataclasses.dataclass(frozen=True, eq=False)
class LRFinding:
    """What a sweep of the learning rate found.

    Attributes:
      learning_rates: the rates, increasing, float32, `[steps]`.
      losses: the loss after an update with each rate, on the next batch, float32, `[steps]`; not finite where the
        run had diverged.
      suggestion: the rate suggested; None if the loss fell at none.
      each: of a population, the losses of each member, float32, `[members, steps]`, of which `losses` are the median.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    each: np.ndarray | None = None

    def plot(self, path: str | PathLike[str] | None = None) -> "Figure":
        """Draw the losses over the rates, with the suggestion marked.

        Args:
          path: where to save it, as PNG or any format whose suffix Matplotlib knows.

        Returns:
          A Matplotlib figure.

        Raises:
          ConfigError: if Matplotlib is missing.
        """
        return plots.lr_finding(self.learning_rates, self.losses, self.suggestion, each=self.each, path=path)

    def __repr__(self) -> str:
        low, high = self.learning_rates[0], self.learning_rates[-1]
        found = "none" if self.suggestion is None else f"{self.suggestion:.3g}"
        return f"LRFinding(suggestion={found}, {len(self.losses)} rates from {low:.3g} to {high:.3g})"


def lr_find(
    task: Task,
    state: TrainState,
    data: Any,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    seed: int = 0,
) -> LRFinding:
    r"""Train for a few steps with a rate that grows from step to step, and suggest one.

    .. math:: \eta_i = \eta_0 \left(\frac{\eta_1}{\eta_0}\right)^{i / (n - 1)}, \qquad
              \ell_i = \overline{\log\big(L_i - L_{\min} + \epsilon\, (L_0 - L_{\min})\big)}, \qquad
              \eta^* = \arg\min_{\eta_i \in W} \ell_{i + 1} - \ell_{i - 1}

    The suggestion is where the smoothed loss, counted from the lowest one reached, falls most steeply in
    proportion. Only the rates W, 3 to 10 times below that of the curve's lowest point, are looked at: an unstable
    rate takes several steps to show, so the last ones before the loss turns are not safe. What comes after a loss
    that is not finite, or more than 4 times the first, does not count. The curve is smoothed by exponential
    averages, corrected for their start, from both sides, so that it is not moved; ε is 1e-4.

    The whole sweep is one program on the device. It goes through the data in batches, as often as that takes. A
    schedule does not take part: its place is taken by the sweep. Where parts of the parameters have rates of their
    own, these keep their ratios, and the largest of them is the one that is swept and suggested.

    Args:
      task: the Task; its optimizer one of `fntrain.optimizers`, or any chain with `scale_by_learning_rate`, or
        made by `with_hyperparams(factory, learning_rate=...)`.
      state: the TrainState to start from; it stays usable and keeps every bit. That of a population sweeps with all
        its members at once, and goes by the median of their losses: a rate for more than one seed.
      data: as for `fit`.
      lowest: :math:`\eta_0`, > 0.
      highest: :math:`\eta_1`, > `lowest`.
      steps: n, >= 10.
      batch_size: rows of a batch, where `data` is arrays.
      seed: of the order of the data.

    Returns:
      An LRFinding.

    Raises:
      ConfigError: if a number is out of range, or the optimizer's learning rate cannot be set.
      DataError: if the data is empty, runs out (a generator), or gives a scalar loss no whole batch.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> task = ft.Task(lambda p, b, ctx: b * 0.5 * p["x"] ** 2, ft.optimizers.sgd(0.1))  # 1 / curvature is 1
      >>> found = ft.tools.lr_find(task, ft.init_state(task, {"x": jnp.float32(3)}), jnp.ones(32))
      >>> found.suggestion is not None and 1 / 3 < found.suggestion < 3
      True

    References:
      Smith, *Cyclical learning rates for training neural networks*, 2017.
    """
    checks.check_task(task, "(task, state, data)")
    check_state(state, "lr_find")
    check.number("lowest", lowest, above=0)
    check.number("highest", highest, above=lowest)
    steps = check.integer("steps", steps, at_least=10)
    batch_size = check.integer("batch_size", batch_size, at_least=1)
    knobs = _knobs(task.tx, state.opt_state)
    batches, weights = _batches(task, state, data, batch_size, seed, steps + 1)
    rates = np.geomspace(lowest, highest, steps).astype(np.float32)
    # One more step than rates: a rate shows in the loss of the batch after it.
    losses = _sweep(task, knobs, state, jax.device_put(np.append(rates, rates[-1])), batches, weights)
    losses = np.array(jax.device_get(losses))[1:]
    if losses.ndim == 1:
        return LRFinding(rates, losses, suggestion(rates, losses))
    each = losses.T
    with np.errstate(invalid="ignore"):  # between two that have diverged
        median = np.median(np.where(np.isnan(each), np.inf, each), axis=0)
    return LRFinding(rates, median, suggestion(rates, median), each)


class Knob(NamedTuple):
    """A place in the optimizer's state that a learning rate hangs on."""

    path: str
    count: int  # where its schedule is read
    rate: float  # what it says there


def _knobs(tx: optax.GradientTransformation, opt_state: PyTree) -> tuple[Knob, ...]:
    """All places, each with a rate above zero to start from."""
    stages = dict(_stage_rates(tx))
    knobs = []
    for path, node in _nodes(opt_state):
        if isinstance(node, HyperparamsState):
            rate = np.ravel(jax.device_get(node.hyperparams["learning_rate"]))[
                0
            ]  # a member's, in a population
            knobs.append(Knob(path, 0, float(rate)))
            continue
        stage = "/".join(part for part in path.split("/") if part not in WRAPPERS)
        if stage not in stages:
            raise _foreign(
                tx, f"the learning rate at `{path}` of its state belongs to no stage that can be seen"
            )
        knobs.append(Knob(path, *_peak(stages[stage])))
    if not knobs:
        raise _foreign(tx, "its state holds no learning rate")
    for knob in knobs:
        if not knob.rate > 0:
            raise ConfigError(
                f"the learning rate of `tx` is zero wherever it is looked at (`{knob.path}` of its state), so no "
                f"multiple of it can be tried: give it any positive rate"
            )
    return tuple(knobs)


def _foreign(tx: Any, why: str) -> ConfigError:
    return ConfigError(
        f"`lr_find` cannot set the learning rate of {tx!r}: {why}. Take an optimizer of `fntrain.optimizers` or a "
        f"`fntrain.chain` with `scale_by_learning_rate`, or keep another library's rate in the state, "
        f"`with_hyperparams(optax.adam, learning_rate=1e-3)`"
    )


def _stage_rates(tx: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ScheduleLike]]:
    """The rate of every `scale_by_learning_rate` a transform is made of, by its path in the state."""
    if not isinstance(tx, Transform):
        return
    if tx.call is not None and tx.call.factory is scale_by_learning_rate:
        yield "/".join(path), tx.call.arguments["learning_rate"]
    for name, stage in tx.stages.items():
        yield from _stage_rates(stage, path if name == "inner" else (*path, name))


def _peak(rate: ScheduleLike) -> tuple[int, float]:
    """`(count, value)` where a schedule is largest, as far as a look at each power of two shows."""
    counts = [0, *(2**i for i in range(31)), *getattr(rate, "boundaries", ())]
    if not callable(rate):
        counts = [0]
    values = np.array([float(at_step(rate, jnp.int32(count))) for count in counts])
    best = int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    return counts[best], float(values[best])


def _is_knob(node: Any) -> bool:
    if isinstance(node, HyperparamsState):
        return "learning_rate" in node.hyperparams
    return isinstance(node, ScaleByLearningRateState)


def _nodes(opt_state: PyTree) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_knob)
    return [(tree.path_name(path), node) for path, node in found if _is_knob(node)]


def _with_rate(opt_state: PyTree, knobs: tuple[Knob, ...], rate: jax.Array) -> PyTree:
    """The state of an optimizer whose largest rate is `rate`."""
    by_path = {knob.path: knob for knob in knobs}
    largest = max(knob.rate for knob in knobs)

    def one(path: Any, node: Any) -> Any:
        if isinstance(node, ScaleByLearningRateState) and tree.path_name(path) in by_path:
            knob = by_path[tree.path_name(path)]
            return node._replace(
                count=jnp.full_like(node.count, knob.count),
                multiplier=jnp.full_like(node.multiplier, rate / jnp.float32(largest)),
            )
        if isinstance(node, ScaleByLearningRateState):  # inside a HyperparamsState, which says the rate
            return node._replace(multiplier=jnp.ones_like(node.multiplier))
        if not _is_knob(node):
            return node
        share = rate * jnp.float32(by_path[tree.path_name(path)].rate / largest)
        share = jnp.full_like(node.hyperparams["learning_rate"], share)
        return HyperparamsState({**node.hyperparams, "learning_rate": share}, mapped(node.inner_state))

    def mapped(x: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(one, x, is_leaf=_is_knob)

    return mapped(opt_state)


@partial(jax.jit, static_argnums=(0, 1))
def _sweep(
    task: Task, knobs: tuple[Knob, ...], state: TrainState, rates: Any, batches: Any, weights: Any
) -> Any:
    """The loss of every step, `[steps]`."""

    def body(state: TrainState, x: Any) -> tuple[TrainState, jax.Array]:
        rate, batch, weight = x
        state = state.replace(opt_state=_with_rate(state.opt_state, knobs, rate))
        state, metrics = train_step(task, state, batch, weight)
        return state, compute_metrics(task, metrics)["loss"]

    return jax.lax.scan(body, state, (rates, batches, weights))[1]


def _batches(
    task: Task, state: TrainState, data: Any, batch_size: int, seed: int, number: int
) -> tuple[Any, Any]:
    """So many batches, stacked, on the device: epoch after epoch of the data."""
    source = as_source(data, batch_size, shuffle=True, seed=seed)
    per_example = first_met(
        source, "data", lambda batch, weight: programs.takes_weights(task, state, batch, train=True)
    )
    pairs: list[Any] = []
    for epoch in itertools.count():
        # A scalar loss cannot tell padding from examples, so it sees whole batches only.
        new = [pair for pair in source.epoch(epoch) if per_example or pair[1].all()]
        if not new:
            raise DataError(
                f"`data` gave {len(pairs)} whole batches of the {number} that `lr_find` needs, and no more: give "
                f"arrays, a list, or a smaller `batch_size`"
            )
        pairs += new
        if len(pairs) >= number:
            break
    pairs = [(batch, weight if per_example else None) for batch, weight in pairs[:number]]
    return place_stacked(pairs, mesh_of(state))


def suggestion(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate of the steepest fall, as `lr_find` defines it; None if the loss falls nowhere."""
    values = losses.astype(np.float64)
    bad = ~np.isfinite(values)
    if not bad[0]:
        bad |= values > values[0] + (DIVERGED - 1) * abs(values[0])
    values = values[: int(np.argmax(bad))] if bad.any() else values
    if len(values) < 3:
        return None
    excess = values - values.min()
    if excess[0] == 0:
        return None
    curve = smoothed(np.log(excess + FLOOR * excess[0]))
    lowest = int(np.argmin(curve))
    if lowest == 0:
        return None
    inside = (rates[: len(curve)] >= rates[lowest] / 10) & (rates[: len(curve)] <= rates[lowest] / 3)
    if not inside.any():  # the lowest loss is at the beginning of the range
        inside = np.arange(len(curve)) < lowest
    return float(rates[np.argmin(np.where(inside, np.gradient(curve), np.inf))])


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of two exponential averages, one from each side, each corrected for its start."""
    return (_average(values) + _average(values[::-1])[::-1]) / 2


def _average(values: np.ndarray) -> np.ndarray:
    out, mean = np.empty_like(values), 0.0
    for i, x in enumerate(values):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * x
        out[i] = mean / (1 - SMOOTHING ** (i + 1))
    return out
