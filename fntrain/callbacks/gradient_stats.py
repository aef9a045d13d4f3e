"""GradientStats: norms and histograms of gradients and updates, layer by layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.made import Made
from .._core.typing import PyTree
from ..run.context import Histogram, LoopContext
from ..run.events import last_of
from ..run.history import EACH
from ..step import members
from ..step.step import compute_gradients, train_step
from ..step.task import Task

BINS = 64


class GradientStats(Made):
    r"""Measure gradients and updates of each layer, at the end of epochs.

    What is measured is the step that the epoch's last batch would give from the parameters as they are then: a
    second pass over that batch in a program of its own, run only when it is due, that changes nothing. The
    epoch's row gets

    - `gradient_norm`: :math:`\lVert g \rVert`, before any transform;
    - `update_ratio`: :math:`\lVert \Delta p \rVert / \lVert p \rVert`, 0 where an accumulation window stays
      open, NaN or infinite where :math:`p` is zero;
    - `layer_gradient_norm` and `layer_update_ratio`: the same for each layer, as a dict. A layer is all trained
      leaves that share their path but for its last part: `layers/0` of `layers/0/kernel`.

    Of a population each has the mean over its members, and in `gradient_norm_each` and so on that of each.

    Args:
      every: measure every so many epochs, >= 1.
      histograms: also form, in the same pass, the histograms of each layer's gradients and parameters, in 64 bins
        from the smallest to the largest. They are no part of the row: a `TensorBoardLogger` that stands after this
        one writes them.

    Raises:
      ConfigError: if `every` is no integer >= 1; by `fit`, for `histograms` of a population.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], 0 * b), ft.optimizers.sgd(0.25))
      >>> state = ft.init_state(task, {"w": np.float32(2)})
      >>> stats = ft.callbacks.GradientStats()
      >>> data = np.ones(4, np.float32)
      >>> history = ft.fit(task, state, data, epochs=1, callbacks=[stats], progress=False).history
      >>> history["gradient_norm"], history["update_ratio"], history["layer_gradient_norm"]
      ([2.0], [0.5], [{'w': 2.0}])
    """

    wants_batch = True

    def __init__(self, every: int = 1, histograms: bool = False):
        self.every: int = check.integer("every", every, at_least=1)
        self.histograms: bool = check.flag("histograms", histograms)

    def on_fit_begin(self, ctx: LoopContext) -> None:
        """Refuse histograms of many runs."""
        if self.histograms and members.count(ctx.state) is not None:
            raise ConfigError(
                "`GradientStats(histograms=True)` draws one run, and the state is a population's: leave `histograms` "
                "out, or train one member, `population.member(states, i)`"
            )

    def on_epoch_end(self, ctx: LoopContext) -> None:
        """Measure, if that is due."""
        if ctx.epoch % self.every or ctx.last_batch is None:
            return
        batch, weight, stacked = ctx.last_batch
        if stacked:
            batch, weight = last_of((batch, weight))
        values, histograms = jax.device_get(_measured(ctx.task, self.histograms, ctx.state, batch, weight))
        if isinstance(values, members.Spread):
            ctx.logs.update({name + EACH: x for name, x in values.each.items()})
            values = values.value
        ctx.logs.update(jax.tree.map(float, values))
        for name, (counts, low, high, *sums) in histograms.items():
            if counts.any():
                edges = np.linspace(float(low), float(high), BINS + 1)
                ctx.histograms[name] = Histogram(counts, edges, *map(float, sums))


@partial(jax.jit, static_argnums=(0, 1))
def _measured(
    task: Task, histograms: bool, state: Any, batch: PyTree, weight: Any
) -> tuple[Any, dict[str, Any]]:
    values, drawn = members.over_members(partial(_of_one_run, histograms))(task, state, batch, weight)
    return values if members.count(state) is None else members.spread(values), drawn


def _of_one_run(
    histograms: bool, task: Task, state: Any, batch: PyTree, weight: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    _, grads = compute_gradients(task, state, batch, weight)
    after, _ = train_step(task, state, batch, weight)
    before = tree.split(state.params)[0]
    change = jax.tree.map(
        lambda new, old: tree.wide(new) - tree.wide(old), tree.split(after.params)[0], before
    )
    gradient, update, size = map(_by_layer, (grads, change, before))
    values = {
        "gradient_norm": tree.norm(gradient),
        "update_ratio": tree.norm(update) / tree.norm(size),
        "layer_gradient_norm": {layer: tree.norm(x) for layer, x in gradient.items()},
        "layer_update_ratio": {layer: tree.norm(x) / tree.norm(size[layer]) for layer, x in update.items()},
    }
    drawn = {"gradients": gradient, "params": size} if histograms else {}
    return values, {
        f"{kind}/{layer}".rstrip("/"): _histogram(x)
        for kind, layers in drawn.items()
        for layer, x in layers.items()
    }


def _histogram(leaves: list[jax.Array]) -> tuple[jax.Array, ...]:
    """Counts in equal bins, the ends of these, and the sums of the finite numbers and of their squares."""
    x = jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])
    finite = jnp.isfinite(x)
    low = jnp.min(x, where=finite, initial=jnp.inf)
    high = jnp.max(x, where=finite, initial=-jnp.inf)
    half = jnp.where(
        high > low, jnp.float32(0), jnp.float32(0.5)
    )  # numbers that are all equal stand in the middle
    low, high = low - half, high + half
    x = jnp.where(finite, x, low)
    # Halved before they are subtracted: the range of finite numbers may be infinite.
    place = (x / 2 - low / 2) / (high / 2 - low / 2) * BINS
    index = jnp.clip(place.astype(jnp.int32), 0, BINS - 1)
    counts = jnp.zeros(BINS, jnp.int32).at[index].add(finite.astype(jnp.int32))
    x = jnp.where(finite, x, jnp.float32(0))
    return counts, low, high, jnp.sum(x), jnp.sum(jnp.square(x))


def _by_layer(params: PyTree) -> dict[str, list[jax.Array]]:
    layers: dict[str, list[jax.Array]] = {}
    for path, leaf in tree.items(params):
        layers.setdefault(path.rpartition("/")[0] or path, []).append(leaf)
    return layers
