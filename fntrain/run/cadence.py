"""How often something is due: every so many steps, or every so much time."""

import re
from typing import Any

from .._core import check
from .._core.errors import ConfigError

_UNITS = {"s": 1, "min": 60, "h": 3600}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h)")


def cadence(name: str, value: Any) -> int | float | None:
    """A number of steps, as an int; a time such as `"10min"`, as seconds, a float; None as it is.

    Raises:
      ConfigError: if it is none of these.

    Examples:
      >>> cadence("checkpoint_every", 500), cadence("checkpoint_every", "1.5h")
      (500, 5400.0)
    """
    if value is None:
        return None
    if not isinstance(value, str):
        return check.integer(name, value, at_least=1)
    match = _TIME.fullmatch(value.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(
            f'`{name}` must be an integer >= 1 of steps, or a time > 0 such as "30s", "10min" or "2h", got {value!r}'
        )
    return float(match[1]) * _UNITS[match[2]]
