"""MultiSteps: gradients accumulated over several calls, one update for all of them."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .._core.typing import Params, PyTree
from .._core.value import Call
from .adapt import adapt
from .branch import either
from .types import Transform, Window, increment, like


class _MultiSteps(NamedTuple):
    mini_step: jax.Array  # int32, shape (): micro-steps in the open window
    gradient_step: jax.Array  # int32, shape (): windows closed by an update
    inner_opt_state: Any
    acc_grads: PyTree  # accumulator_dtype: the open window's weighted sum; stale while mini_step is 0
    skip_state: Any  # what should_skip_update_fn reported
    weight: jax.Array  # float32, shape (): the open window's total weight; stale while mini_step is 0
    applied: jax.Array  # bool, shape (): whether the last call closed a window with an update


class MultiStepsState(Window, _MultiSteps):
    """State of MultiSteps: optax's fields, then ours."""

    records: ClassVar[tuple[str, ...]] = ("mini_step",)

    def is_open(self) -> jax.Array:
        """Whether the window holds anything that a flush would apply."""
        return (self.mini_step > 0) & (self.weight > 0)


class MultiSteps(Transform):
    r"""Accumulate gradients over `every_k_schedule` calls, then update once with their mean.

    .. math:: \bar g = \frac{\sum_{j=1}^k w_j\, g_j}{\sum_{j=1}^k w_j}, \qquad u = T(\bar g)

    A drop-in for `optax.MultiSteps`, with the same names and the same results where all weights are equal.
    What is different: each call may say how much it weighs (`update(..., weight=w)`, which `train_step` passes),
    so unequal token counts and padded batches give exactly the gradient of the whole; the inner transform
    runs only when a window closes; a call that closes none touches the accumulator and nothing else; and a
    short last window can be closed by `flush`.

    An instance is a transform: it can be `tx`, or stand in a chain.

    Args:
      opt: the inner transform.
      every_k_schedule: k, an integer >= 1, or a function from the count of updates (int32) to it.
      use_grad_mean: True divides by the window's weight; False sums the gradients as they come, and refuses
        weights.
      should_skip_update_fn: `(updates, gradient_step, params) -> (skip, skip_state)`; a skipped call leaves
        nothing behind but `skip_state`.
      accumulator_dtype: dtype of the accumulated sum; float32, as it is by default, is float64 for float64 leaves.

    Raises:
      ConfigError: if an argument is of the wrong kind, or weights meet `use_grad_mean=False`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.MultiSteps(ft.optimizers.sgd(1.0), 2)
      >>> p = jnp.array([0.0])
      >>> state = tx.init(p)
      >>> u, state = tx.update(jnp.array([1.0]), state, p, weight=1.0)
      >>> u, state = tx.update(jnp.array([5.0]), state, p, weight=3.0)
      >>> u.tolist()
      [-4.0]

    References:
      optax.MultiSteps.
    """

    def __new__(
        cls,
        opt: optax.GradientTransformation,
        every_k_schedule: int | Callable[[jax.Array], Any],
        use_grad_mean: bool = True,
        should_skip_update_fn: Callable[..., tuple[jax.Array, Any]] | None = None,
        accumulator_dtype: Any = jnp.float32,
    ) -> Self:
        """Make one; see the class for the arguments."""
        opt = adapt(opt, "opt")
        if opt.evaluates:
            raise ConfigError(
                f"`opt` {opt!r} evaluates the loss at parameters of its own choice, and in a window of several batches "
                f"there is no one loss to evaluate: give it the whole batch, `Task(..., microbatches=k)`"
            )
        if not callable(every_k_schedule):
            check.integer("every_k_schedule", every_k_schedule, at_least=1)
        if should_skip_update_fn is not None:
            check.function(
                "should_skip_update_fn",
                should_skip_update_fn,
                "(updates, gradient_step, params) -> (skip, state)",
            )
        if not jnp.issubdtype(accumulator_dtype, jnp.floating):
            raise ConfigError(
                f"`accumulator_dtype` must be a floating-point dtype, got {accumulator_dtype!r}"
            )
        check.flag("use_grad_mean", use_grad_mean)
        rule = _Accumulation(opt, every_k_schedule, use_grad_mean, should_skip_update_fn, accumulator_dtype)
        self = super().__new__(
            cls,
            rule.init,
            rule.update,
            rule.apply,
            {"inner": opt},
            rule.flush,
            passed=rule.passed,
            gates=True,
        )
        arguments = dict(
            opt=opt,
            every_k_schedule=every_k_schedule,
            use_grad_mean=use_grad_mean,
            should_skip_update_fn=should_skip_update_fn,
            accumulator_dtype=accumulator_dtype,
        )
        self.call = Call(cls, _SIGNATURE, arguments)
        return self

    @property
    def inner_opt(self) -> Transform:
        """The inner transform."""
        return self.stages["inner"]

    def has_updated(self, state: MultiStepsState) -> jax.Array:
        """Whether the call that returned `state` applied an update."""
        return state.applied

    def gradient_transformation(self) -> "MultiSteps":
        """The transform itself; optax needs this call, here an instance already is one."""
        return self


_SIGNATURE = inspect.Signature(list(inspect.signature(MultiSteps.__new__).parameters.values())[1:])
jax.tree_util.register_static(MultiSteps)


@dataclasses.dataclass(frozen=True)
class _Accumulation:
    """The functions behind one MultiSteps."""

    opt: Transform
    every_k: Any
    mean: bool
    should_skip: Callable[..., Any] | None
    dtype: Any

    def init(self, params: Params) -> MultiStepsState:
        zero = jnp.zeros((), jnp.int32)
        return MultiStepsState(
            mini_step=zero,
            gradient_step=jnp.zeros((), jnp.int32),  # not the same buffer twice: it could not be donated
            inner_opt_state=self.opt.init(params),
            acc_grads=self._zeros(params),
            skip_state=self._skip(tree.zeros_like(params), zero, params)[1],
            weight=jnp.zeros((), jnp.float32),
            applied=jnp.asarray(False),
        )

    def _zeros(self, params: Params) -> PyTree:
        return tree.wide_zeros(params) if self.dtype == jnp.float32 else tree.zeros_like(params, self.dtype)

    def _skip(self, updates: Any, gradient_step: jax.Array, params: Any) -> tuple[jax.Array | None, Any]:
        if self.should_skip is None:
            return None, ()
        skip, skip_state = self.should_skip(updates, gradient_step, params)
        skip = jnp.asarray(skip)
        if skip.shape != () or skip.dtype != jnp.bool_:
            raise ConfigError(
                f"`should_skip_update_fn` must return a scalar bool array first, "
                f"got {skip.dtype.name}{list(skip.shape)}"
            )
        return skip, skip_state

    def _accumulate(
        self, updates: Any, state: MultiStepsState, params: Any, weight: Any
    ) -> tuple[MultiStepsState, Any]:
        """The state with this call's gradient in its window, and whether the window closes with an update."""
        k = jnp.asarray(
            self.every_k(state.gradient_step) if callable(self.every_k) else self.every_k, jnp.int32
        )
        skip, skip_state = self._skip(updates, state.gradient_step, params)
        weight = jnp.asarray(1.0 if weight is None else weight, jnp.float32)
        # The window is emptied here, at its first call, and not when it closes: that would be one more pass
        # over the accumulator. By `where`: what is left in it may be anything, NaN times zero included.
        fresh = state.mini_step == 0
        new_weight = jnp.where(fresh, jnp.float32(0), state.weight) + weight
        mini_step, closing = state.mini_step + 1, state.mini_step + 1 >= k
        if skip is not None:
            new_weight = jnp.where(skip, state.weight, new_weight)
            mini_step, closing = jnp.where(skip, state.mini_step, mini_step), closing & ~skip
        applied = closing & (new_weight > 0)
        # The one division happens in the same pass as the last addition, so the inner transform finds the mean
        # in the accumulator's own memory; dividing by 1 in all other calls changes no bit.
        factor = weight if self.mean else jnp.float32(1)
        divisor = jnp.where(applied, new_weight, jnp.float32(1)) if self.mean else jnp.float32(1)

        def add(acc, g):
            start = tree.wide(jnp.where(fresh, jnp.zeros((), acc.dtype), acc))
            # What weighs nothing may be anything: zero times NaN is NaN.
            weighed = jnp.where(factor == 0, jnp.zeros((), start.dtype), like(g, start) * like(factor, start))
            new = like((start + weighed) / like(divisor, start), acc)
            return jnp.where(skip, acc, new) if skip is not None else new

        state = state._replace(
            mini_step=jnp.where(closing, 0, mini_step),
            gradient_step=jnp.where(applied, increment(state.gradient_step), state.gradient_step),
            acc_grads=jax.tree.map(add, state.acc_grads, updates),
            skip_state=skip_state,
            weight=new_weight,
            applied=applied,
        )
        return state, applied

    def passed(self, state: MultiStepsState) -> jax.Array:
        return state.applied & self.opt.passed(state.inner_opt_state)

    def _inner_extra(self, state: MultiStepsState, extra: dict[str, Any]) -> dict[str, Any]:
        """What the inner transform is told: the window's gradient and weight, and not the last call's."""
        told = {**extra, "grad": state.acc_grads} if "grad" in extra else extra
        return {**told, "weight": state.weight} if self.mean else told

    def update(self, updates: Any, state: Any, params: Params | None = None, **extra: Any) -> tuple[Any, Any]:
        weight = extra.pop("weight", None)
        if weight is not None and not self.mean:
            raise _weights_refused()
        state, applied = self._accumulate(updates, state, params, weight)

        def close(inner):
            mean = jax.tree.map(_wider, state.acc_grads, updates, updates if params is None else params)
            return self.opt.update(mean, inner, params, **self._inner_extra(state, extra))

        # What the inner transform returns is returned as it is: rounded to the gradients' dtype, it could be nothing.
        shapes = jax.eval_shape(close, state.inner_opt_state)[0]

        def stay(inner):
            return tree.zeros_like(shapes), inner

        updates, inner = either(applied, close, stay, state.inner_opt_state, rarely=True)
        return updates, state._replace(inner_opt_state=inner)

    def apply(self, updates: Any, state: Any, params: Params, **extra: Any) -> tuple[Params, Any, jax.Array]:
        weight = extra.pop("weight", None)
        if not self.mean:
            # A plain number says that all rows count alike; an array, that somebody weighted them.
            if isinstance(weight, jax.Array):
                raise _weights_refused()
            weight = None
        state, applied = self._accumulate(updates, state, params, weight)

        def close(params, inner):
            told = self._inner_extra(state, extra)
            if self.opt.owns_apply:
                return self.opt.apply(state.acc_grads, inner, params, **told)
            new, after = self.opt.update(state.acc_grads, inner, params, **told)
            return tree.add(params, new), after, self.opt.passed(after)

        def stay(params, inner):
            return params, inner, jnp.asarray(False)

        # The branches hold only what a closing window changes, and the accumulator stays outside: a call that
        # closes none reads the gradients, adds them in place, and touches nothing else.
        params, inner, applied = either(applied, close, stay, params, state.inner_opt_state, rarely=True)
        return params, state._replace(inner_opt_state=inner), applied

    def flush(self, state: Any, params: Params, **extra: Any) -> tuple[Any, Any]:
        applied = state.is_open()

        def close(inner):
            divisor = state.weight if self.mean else jnp.float32(1)
            mean = jax.tree.map(lambda a: tree.wide(a) / like(divisor, tree.wide(a)), state.acc_grads)
            new, inner = self.opt.update(mean, inner, params, **self._inner_extra(state, extra))
            return tree.cast_like(new, tree.wide_zeros(params)), inner

        def stay(inner):
            return tree.wide_zeros(params), inner

        updates, inner = either(applied, close, stay, state.inner_opt_state, rarely=True)
        gradient_step = jnp.where(applied, increment(state.gradient_step), state.gradient_step)
        return updates, state._replace(
            mini_step=jnp.zeros((), jnp.int32),
            gradient_step=gradient_step,
            inner_opt_state=inner,
            applied=applied,
        )


def _wider(x: jax.Array, g: jax.Array, p: jax.Array) -> jax.Array:
    """`x` in the wider one of two dtypes."""
    return x.astype(g.dtype if jnp.finfo(g.dtype).bits > jnp.finfo(p.dtype).bits else p.dtype)


def _weights_refused() -> ConfigError:
    return ConfigError(
        "`weight` has no meaning with `use_grad_mean=False`: a sum of gradients counts each as it comes; "
        "use `MultiSteps(..., use_grad_mean=True)` for the weighted mean, or leave the weights out"
    )
