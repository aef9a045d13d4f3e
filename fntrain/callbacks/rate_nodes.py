"""The learning rates that a callback can set."""

from .._core.errors import ConfigError
from ..sharding.processes import to_host
from ..step.state import TrainState
from ..transforms.decay import ScaleByLearningRateState
from ..transforms.hyperparams import replace_nodes


def nodes(state: TrainState) -> list[ScaleByLearningRateState]:
    """The states of all `scale_by_learning_rate` in the optimizer, on the host.

    Raises:
      ConfigError: if there is none.
    """
    found: list[ScaleByLearningRateState] = []
    replace_nodes(state.opt_state, ScaleByLearningRateState, found.append)
    if not found:
        raise ConfigError(
            "the optimizer has no learning rate that a callback can set: use one of `fntrain.optimizers`, or end the "
            "chain in `fntrain.transforms.scale_by_learning_rate(rate)`, which optax's transforms go with: "
            "`fntrain.chain(optax.scale_by_adam(), fntrain.transforms.scale_by_learning_rate(1e-3))`"
        )
    return to_host(found)
