"""How large updates are beside what they change, leaf by leaf, as the step reports it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import tree
from .._core import check
from .._core.errors import ConfigError
from .types import Recording, Transform, transform


class _RecordUpdates(NamedTuple):
    ratios: dict[str, jax.Array]  # by path: float32, shape ()


class RecordUpdatesState(Recording, _RecordUpdates):
    """The ratios of the last update."""

    def recorded(self) -> dict[str, jax.Array]:
        """Each under its path, and the largest alone."""
        each = {f"update_ratio/{path}": ratio for path, ratio in self.ratios.items()}
        largest = jnp.max(jnp.stack([jnp.zeros((), jnp.float32), *self.ratios.values()]))
        return {"update_ratio": largest, **each}


@transform
def record_updates(eps: float = 1e-8):
    r"""Record how large the update of each leaf is beside the leaf, and let the updates through as they are.

    .. math:: r_\ell = \frac{\lVert u_\ell \rVert_2}{\max(\lVert p_\ell \rVert_2, \epsilon)}

    It stands last in the chain, behind the learning rate, where the updates are what is added to the parameters; they
    are looked at as they pass, and nothing is computed a second time. About 1e-3 is usual while weights are learned;
    below the dtype's half unit in the last place (2e-3 in bfloat16, 6e-8 in float32) an update rounds to nothing.

    Args:
      eps: ε, > 0: the least norm of a leaf, so that zeros may move.

    Returns:
      A Transform that records `update_ratio/<path>` of each leaf, and the largest as `update_ratio`. float32.

    Raises:
      ConfigError: if `eps` is out of range, or `update` gets no `params`.

    Examples:
      >>> import fntrain as ft, jax.numpy as jnp
      >>> tx = ft.chain(ft.optimizers.sgd(0.5), ft.transforms.record_updates())
      >>> task = ft.Task(lambda p, b, ctx: b @ p["w"], tx)
      >>> state = ft.init_state(task, {"w": jnp.array([3.0, 4.0])})
      >>> state, metrics = ft.train_step(task, state, jnp.array([[0.0, 1.0]]))
      >>> float(ft.compute_metrics(task, metrics)["update_ratio/w"])
      0.10000000149011612
    """
    check.number("eps", eps, above=0)

    def init_fn(params):
        zero = jnp.zeros((), jnp.float32)
        return RecordUpdatesState({path: zero for path, _ in tree.items(params)})

    def update_fn(updates, state, params=None, **extra):
        del state, extra
        if params is None:
            raise ConfigError("`params` is needed by record_updates: call `tx.update(grads, state, params)`")
        ratios = {}
        for (path, u), p in zip(tree.items(updates), jax.tree.leaves(params)):
            size = jnp.maximum(tree.norm(p).astype(jnp.float32), eps)
            ratios[path] = tree.norm(u).astype(jnp.float32) / size
        return updates, RecordUpdatesState(ratios)

    return Transform(init_fn, update_fn, rescales=False, descends=False, observes=True)
