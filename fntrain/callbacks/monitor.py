"""The watched column: what several callbacks share."""

import numbers

from .._core import check
from .._core.errors import ConfigError
from ..run.context import LoopContext


def check_name(monitor: str) -> str:
    """The name of a column, as it is; anything else is refused."""
    if not isinstance(monitor, str):
        raise ConfigError(f"`monitor` must be the name of a logged column, got {monitor!r}")
    return monitor


def check_column(ctx: LoopContext, monitor: str) -> None:
    """Refuse, before anything runs, a column that no epoch will have."""
    if ctx.columns is not None and monitor not in (known := ctx.columns()):
        raise _missing(monitor, known)


def read(ctx: LoopContext, monitor: str) -> float:
    """The column's value in this epoch.

    Raises:
      ConfigError: if there is none; the columns there are are listed.
    """
    value = ctx.logs.get(monitor)
    if not isinstance(value, numbers.Real):
        known = [name for name, x in ctx.logs.items() if isinstance(x, numbers.Real)]
        raise _missing(monitor, [name for name in known if name not in ("epoch", "step")])
    return float(value)


def _missing(monitor: str, known: list[str]) -> ConfigError:
    hint = check.did_you_mean(monitor, known)
    if monitor.startswith("val_") and not any(name.startswith("val_") for name in known):
        hint = "; pass `validation_data` to `fit`"
    return ConfigError(
        f"`monitor` must be a number that an epoch logs, one of {', '.join(map(repr, known))}, got {monitor!r}{hint}"
    )
