"""Several data sets, each by its name."""

from collections.abc import Mapping
from typing import Any

from .._core import check
from .._core.errors import ConfigError


class Named(dict[str, Any]):
    """What `named` makes: a dict is one data set of columns, and this is several data sets."""


def named(**sets: Any) -> Named:
    """Several data sets for `fit(..., validation_data=)`, each measured by itself.

    Args:
      **sets: data as `validation_data` takes it. `val` gives the columns `val_loss`, …, `shifted` gives
        `shifted_loss`, ….

    Raises:
      ConfigError: if there is none, or a name would take a column of something else.

    Examples:
      >>> import fntrain as ft, numpy as np
      >>> task = ft.Task(lambda p, b, ctx: ft.losses.mse(b * p["w"], b), ft.optimizers.sgd(0.1))
      >>> state = ft.init_state(task, {"w": np.float32(0)})
      >>> x = np.ones(8, np.float32)
      >>> _, history = ft.fit(task, state, x, epochs=1, validation_data=ft.named(val=x, shifted=2 * x), progress=False)
      >>> [name for name in history if name.endswith("_loss")]
      ['val_loss', 'shifted_loss']
    """
    if not sets:
        raise ConfigError("`named` needs at least one data set: `named(val=(x, y), shifted=(x2, y2))`")
    for name in sets:
        check.name("named", name)
        if name in ("train", "running", "best") or name.endswith("_averaged"):
            raise ConfigError(f"`named`: {name!r} is a name of something else in a run; choose another")
    return Named(sets)


def by_name(data: Any) -> Mapping[str, Any]:
    """The data sets of a `validation_data`: one of no name is `val`."""
    return data if isinstance(data, Named) else {"val": data}
