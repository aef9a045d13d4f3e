"""Transforms that look beyond the present parameters: averages over the past, a slow copy, a look uphill."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree, ScheduleLike
from .adapt import adapt
from .branch import either
from .folding import decay_at
from .scheduled import counted_init, counted_update, scheduled
from .types import (
    Averaging,
    Carrier,
    Transform,
    at_step,
    holds_gradients,
    increment,
    like,
    opt_state_of,
    transform,
)


class _Ema(NamedTuple):
    count: jax.Array  # int32, shape (): updates averaged
    average: PyTree  # float32 at least, the parameters' shapes
    scheduled: Any = ()  # the decay of the last update, where it is a schedule
    weight: Any = ()  # debiased: what the weights of all updates add up to


class EmaState(Averaging, _Ema):
    """The running average of the parameters."""

    def evaluation_params(self, params: Params) -> Params:
        """The average."""
        del params
        return self.average


@transform
def ema(decay: ScheduleLike, debias: bool = False, warmup: float = 0.0):
    r"""Keep an exponential moving average of the parameters, for evaluation.

    .. math::
        \bar p_0 &= p_0, \qquad \bar p_t = \beta\, \bar p_{t-1} + (1 - \beta)\, p_t \\
        \text{debiased:}\quad \bar p_t &= \frac{(1 - \beta) \sum_{i=1}^{t} \beta^{t-i} p_i}{1 - \beta^t}

    Updates pass through as they are; :math:`p_t` is the parameters they lead to. So it stands last in its chain,
    behind the learning rate, and inside what holds steps back: `MultiSteps(chain(tx, ema(0.999)), k)`,
    `skip_nonfinite(chain(tx, ema(0.999)))`. The average starts at the initial parameters, which
    after :math:`t` updates still have the weight :math:`\beta^t`: over few updates it is mostly they. Debiased, only
    what was trained is averaged, whatever the number of updates. With a warm-up w the decay is
    :math:`\min(\beta, (1 + t) / (w + t))` at update t, so that the average is at first over few updates, and the last
    ones: an average of a short run is not one of its beginning. Read it with `averaged`.

    Args:
      decay: β, in [0, 1), or a schedule of it over updates.
      debias: leave the initial parameters out of the average, as soon as there is an update.
      warmup: w, 0 for none, else >= 1; 10 is usual.

    Returns:
      A Transform; its `update` needs `params`. The average is float32 at least, whatever the parameters' dtype.

    Raises:
      ConfigError: if β or w is out of range, or `update` gets no `params`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.chain(ft.optimizers.sgd(1.0), ft.ema(0.75))
      >>> p = jnp.array([8.0])
      >>> p, state, _ = tx.apply(jnp.array([4.0]), tx.init(p), p)
      >>> p.tolist(), ft.averaged(state).tolist()
      ([4.0], [7.0])
      >>> tx = ft.chain(ft.optimizers.sgd(1.0), ft.ema(0.75, debias=True))
      >>> p = jnp.array([8.0])
      >>> p, state, _ = tx.apply(jnp.array([4.0]), tx.init(p), p)
      >>> ft.averaged(state).tolist()
      [4.0]

    References:
      Polyak, Juditsky, *Acceleration of stochastic approximation by averaging*, 1992.
    """
    check.number_or_schedule("decay", decay, at_least=0, below=1)
    if warmup != 0:
        check.number("warmup", warmup, at_least=1)
        decay = _warmed(decay, warmup)

    def init_fn(params):
        count = jnp.zeros((), jnp.int32)
        weight = jnp.zeros((), tree.widest(params)) if debias else ()
        return EmaState(count, _slow_copy(params), scheduled(count, ema_decay=decay), weight)

    def update_fn(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ConfigError("`params` is needed by ema: call `tx.update(grads, state, params)`")
        now, weight = decay_at(decay, state.count), ()
        gain = now.added
        if debias:
            weight = now.weigh(state.weight)
            gain = jnp.where(weight > 0, like(gain, weight) / weight, jnp.zeros((), weight.dtype))

        def draw(a, p):
            p, part = like(p, a), like(gain, a)
            new = a + part * (p - a)
            return (
                jnp.where(part == 1, p, new) if debias else new
            )  # the first, without a rounding of what was before

        average = jax.tree.map(draw, state.average, tree.add(params, updates))
        values = scheduled(state.count, ema_decay=decay)
        return updates, EmaState(increment(state.count), average, values, weight)

    return Transform(init_fn, update_fn, rescales=False, descends=False, observes=True)


def _warmed(decay: ScheduleLike, warmup: float) -> ScheduleLike:
    """A decay that is small at first, when there is little to average."""

    def schedule(count: jax.Array) -> jax.Array:
        t = count.astype(jnp.float32)
        return jnp.minimum(
            jnp.asarray(at_step(decay, count), jnp.float32), (1 + t) / (jnp.float32(warmup) + t)
        )

    return schedule


def averaged(state: Any, like: Params | None = None) -> Params:
    """The averaged parameters that an `ema` keeps.

    Args:
      state: a TrainState, or an optimizer state, or a part of one; it must hold one `ema`.
      like: parameters whose dtypes the result gets, and whose leaves stand where nothing was averaged (frozen
        or integer ones). None takes those of a TrainState, so that `state.replace(params=averaged(state))`
        evaluates the average without a recompile; and for an optimizer state the average as it is kept, in
        float32 at least. A schedule-free average is computed from those that are trained: they are needed then.

    Returns:
      A tree of arrays.

    Raises:
      ConfigError: if there is no average in the state, or more than one, or it needs parameters and has none.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.ema(0.5)
      >>> ft.averaged(tx.init({"w": jnp.ones(2)}))["w"].tolist()
      [1.0, 1.0]
    """
    params = state.params if isinstance(state, Carrier) else None
    like = params if like is None else like
    opt_state = opt_state_of(state)
    found = [(path, node) for path, node in tree.named_nodes(opt_state) if isinstance(node, Averaging)]
    if len(found) != 1:
        paths = tree.some([path for path, _ in found])
        raise ConfigError(
            f"`state` must hold one average, found {len(found)} ({paths}); pass the part that holds one"
            if found
            else "`state` holds no average: put `ema(decay)` last in the chain, `chain(tx, ema(0.999))`"
        )
    average = found[0][1].evaluation_params(like)

    def one(a, p):
        x = p if a is None else a
        # A copy: the next step consumes the state's own.
        return None if x is None else jnp.array(x, p.dtype, copy=True)

    return jax.tree.map(one, average, average if like is None else like, is_leaf=lambda x: x is None)


class LookaheadState(NamedTuple):
    """The slow parameters, and how far the fast ones are ahead."""

    count: jax.Array  # int32, shape (): updates since the last synchronisation
    slow: PyTree  # float32 at least, the parameters' shapes
    inner_state: Any
    rate: Any = ()  # the count of all updates and the slow step at the last one, where it is a schedule


@transform
def lookahead(tx: optax.GradientTransformation, sync_period: int = 5, slow_step: ScheduleLike = 0.5) -> Any:
    r"""Let `tx` explore for k updates, then go a part of the way it found, from where it started.

    .. math::
        f_t &= f_{t-1} + T(g_t) \\
        s \leftarrow s + \alpha\, (f_t - s), \quad f_t &\leftarrow s \qquad\text{every } k \text{ updates}

    The fast parameters f are the ones trained; the slow ones s are a copy in the state, float32 at least. The state of
    `tx` goes on across a synchronisation. Only updates that `tx` applies are counted.

    Args:
      tx: the inner transform.
      sync_period: k, >= 1.
      slow_step: α, in (0, 1], or a schedule of it over updates.

    Returns:
      A Transform; its `update` needs `params`, and applying what it returns gives the synchronised parameters
      up to rounding (`apply` gives them exactly). Around `MultiSteps` it costs memory traffic at every call;
      inside, `MultiSteps(lookahead(tx), k)`, it does not.

    Raises:
      ConfigError: if `tx` is no transform, or a number is out of range.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.lookahead(ft.optimizers.sgd(1.0), sync_period=2, slow_step=0.5)
      >>> p, g = jnp.array([8.0]), jnp.array([2.0])
      >>> p, state, _ = tx.apply(g, tx.init(p), p)
      >>> p.tolist(), tx.apply(g, state, p)[0].tolist()
      ([6.0], [6.0])

    References:
      Zhang et al., *Lookahead optimizer: k steps forward, 1 step back*, 2019.
    """
    tx = adapt(tx)
    sync_period = check.integer("sync_period", sync_period, at_least=1)
    check.number_or_schedule("slow_step", slow_step, above=0, at_most=1)

    own = _Lookahead(tx, sync_period, slow_step)
    return Transform(
        own.init,
        own.update,
        own.apply,
        {"inner": tx},
        own.flush if tx.holds_back else None,
        look=own.look if tx.looks else None,
        passed=lambda state: tx.passed(state.inner_state),
    )


@dataclasses.dataclass(frozen=True)
class _Lookahead:
    """The functions behind one lookahead."""

    tx: Transform
    sync_period: int
    slow_step: ScheduleLike

    def init(self, params: Params) -> LookaheadState:
        rate = counted_init(slow_step=self.slow_step)
        return LookaheadState(jnp.zeros((), jnp.int32), _slow_copy(params), self.tx.init(params), rate)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ConfigError("`params` is needed by lookahead: call `tx.update(grads, state, params)`")
        new, inner = self.tx.update(updates, state.inner_state, params, **extra)
        return self._finished(new, inner, state, params, self.tx.passed(inner))

    def apply(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Params, Any, jax.Array]:
        params, inner, applied = self.tx.apply(updates, state.inner_state, params, **extra)
        count, rate, sync, alpha = self._counted(state, applied)

        def back(fast: Params, slow: PyTree) -> tuple[Params, PyTree]:
            slow = _drawn(slow, fast, alpha)
            return tree.cast_like(slow, fast), slow

        params, slow = either(sync, back, lambda *same: same, params, state.slow)
        return params, LookaheadState(count, slow, inner, rate), applied

    def flush(self, state: Any, params: Params, **extra: Any) -> tuple[Any, Any]:
        new, inner = self.tx.flush(state.inner_state, params, **extra)
        return self._finished(new, inner, state, params, holds_gradients(state.inner_state))

    def look(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Any, dict[str, Any]]:
        return self.tx.look(updates, state.inner_state, params, **extra)

    def _counted(self, state: Any, applied: jax.Array) -> tuple[jax.Array, Any, jax.Array, Any]:
        """The counts after this call, whether it is time to synchronise, and how far to go then."""
        count = state.count + applied.astype(jnp.int32)
        sync = count >= self.sync_period
        values, rate = counted_update(state.rate, slow_step=self.slow_step)
        return jnp.where(sync, 0, count), tree.where(applied, rate, state.rate), sync, values["slow_step"]

    def _finished(
        self, new: Any, inner: Any, state: Any, params: Params, applied: jax.Array
    ) -> tuple[Any, Any]:
        """The updates of `tx`, or, where it is time, those that lead to the slow parameters."""
        count, rate, sync, alpha = self._counted(state, applied)

        def back(new: Any, slow: PyTree) -> tuple[Any, PyTree]:
            slow = _drawn(slow, tree.add(params, new), alpha)
            return jax.tree.map(lambda s, p, u: like(s - like(p, s), u), slow, params, new), slow

        new, slow = either(sync, back, lambda *same: same, new, state.slow)
        return new, LookaheadState(count, slow, inner, rate)


def _drawn(slow: PyTree, fast: Params, alpha: Any) -> PyTree:
    """The slow parameters, after a step towards the fast ones."""
    return jax.tree.map(lambda s, f: s + like(alpha, s) * (like(f, s) - s), slow, fast)


class SamState(NamedTuple):
    """The state of the inner transform and, where ρ is a schedule, the count of updates and the last ρ."""

    inner_state: Any
    rate: Any = ()


@transform
def sam(tx: optax.GradientTransformation, rho: ScheduleLike = 0.05) -> Any:
    r"""Sharpness-aware minimisation: `tx` gets the gradient at the worst place nearby.

    .. math:: \epsilon = \rho\, \frac{g}{\lVert g \rVert_2}, \qquad u = T\big(\nabla L(p + \epsilon)\big)

    Each update takes **two gradients**, so a step costs about twice its time. The second one comes from
    `value_and_grad_fn`, an extra argument that `train_step` passes: the same batch, the same random keys. Under
    `MultiSteps` put it outside, `sam(MultiSteps(tx, k))`, where each micro-batch looks for its own worst place;
    inside, it would see the last micro-batch alone.

    Args:
      tx: the inner transform; it gets the second gradient.
      rho: ρ, how far to look, > 0, or a schedule of it over updates.

    Returns:
      A Transform; its `update` needs `params` and `value_and_grad_fn`, a function
      `params -> (value, gradient)`.

    Raises:
      ConfigError: if `tx` is no transform, ρ is not positive, or `update` gets no `value_and_grad_fn`.

    Examples:
      >>> import fntrain as ft, jax, jax.numpy as jnp
      >>> tx = ft.sam(ft.optimizers.sgd(0.5), rho=1.0)
      >>> f = jax.value_and_grad(lambda p: jnp.sum(p**2))
      >>> p = jnp.array([3.0])
      >>> tx.update(f(p)[1], tx.init(p), p, value_and_grad_fn=f)[0].tolist()  # -0.5 · 2 · (3 + 1)
      [-4.0]

    References:
      Foret et al., *Sharpness-aware minimization for efficiently improving generalization*, 2021.
    """
    tx = adapt(tx)
    check.number_or_schedule("rho", rho, above=0)

    if tx.looks or tx.looks_late:
        raise ConfigError(
            f"`tx` {tx!r} takes a gradient of its own already: two `sam` in one another are none"
        )

    def look_fn(updates, state, params, **extra):
        """The gradient at the worst place nearby."""
        function = extra.get("value_and_grad_fn")
        if function is None or params is None:
            raise ConfigError(
                "`value_and_grad_fn` (and `params`) are needed by sam, which takes a second gradient; train_step "
                "passes them, or call `tx.update(grads, state, params, value_and_grad_fn=jax.value_and_grad(loss))`"
            )
        root, scale = tree.norm_parts(updates)
        length = jnp.where(root == 0, jnp.ones((), root.dtype), root)  # no gradient, no direction
        far = counted_update(state.rate, rho=rho)[0]["rho"]

        def uphill(g):
            wide = tree.wide(g)
            return like(far, wide) * (wide * like(scale, wide) / like(length, wide))

        moved = tree.add(params, jax.tree.map(uphill, updates))
        second = tree.cast_like(function(moved)[1], updates)
        return second, {**extra, "grad": second, _LOOKED: True}

    def looked(updates, state, params, extra):
        """The second gradient, unless a guard around has taken it already, and what `tx` is told."""
        if _LOOKED not in extra:
            updates, extra = look_fn(updates, state, params, **extra)
        return updates, {name: x for name, x in extra.items() if name != _LOOKED}

    def counted(state, inner):
        """The state after this call: an update that was held back or skipped counts for no schedule."""
        rate = counted_update(state.rate, rho=rho)[1]
        return SamState(inner, tree.where(tx.passed(inner), rate, state.rate))

    def init_fn(params):
        return SamState(tx.init(params), counted_init(rho=rho))

    def update_fn(updates, state, params=None, **extra):
        updates, extra = looked(updates, state, params, extra)
        updates, inner = tx.update(updates, state.inner_state, params, **extra)
        return updates, counted(state, inner)

    def apply_fn(updates, state, params, **extra):
        updates, extra = looked(updates, state, params, extra)
        params, inner, applied = tx.apply(updates, state.inner_state, params, **extra)
        return params, counted(state, inner), applied

    def flush_fn(state, params, **extra):
        updates, inner = tx.flush(state.inner_state, params, **extra)
        return updates, state._replace(inner_state=inner)

    return Transform(
        init_fn,
        update_fn,
        apply_fn if tx.owns_apply else None,
        {"inner": tx},
        flush_fn if tx.holds_back else None,
        look=look_fn,
        passed=lambda state: tx.passed(state.inner_state),
    )


_LOOKED = "_looked"  # an extra argument: the updates are the second gradient already


def _slow_copy(params: Params) -> PyTree:
    # A copy even where the dtype is right already: a state that shares the parameters' buffers can't be donated.
    return jax.tree.map(lambda p: jnp.array(p, tree.wide_dtype(p), copy=True), params)
