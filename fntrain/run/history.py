"""History: what a run measured, one row an epoch."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .._core.errors import ConfigError, DataError
from .._core.ranking import Direction, best_of
from ..metrics import Metric
from ..show.notebook import MOST_ROWS, Cell, page
from ..show.text import is_number, number_text
from ..step.members import Spread

EACH = "_each"
"""What stands behind a column's name where it has the values of a population's members, an array."""

UNFINISHED = "unfinished"
"""The column of rows that were measured inside an epoch: True there, and no other row has it."""


class History(Mapping[Any, Any]):
    """A mapping from column to list, one entry an epoch; epochs are counted from 1.

    Columns: `epoch`, `step`, `loss`, the task's metrics, `val_…` of each, what the transforms recorded. A value
    that a row has not is None.

    A validation inside an epoch has a row of its own, with the means of the epoch up to its step, and so has an
    epoch that a run was stopped in; such a row says `unfinished`.

    Attributes:
      metrics: the task's, by name, which know of their columns which values are better.
      prefixes: what stands before the names of metrics in the columns of validations.

    Examples:
      >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
      >>> history["loss"]
      [0.5, 0.25]
    """

    def __init__(self, rows: list[dict[str, Any]] | None = None, metrics: Mapping[str, Metric] | None = None):
        self._rows: list[dict[str, Any]] = []
        self._columns: dict[str, None] = {}
        self._epochs = 0
        self._best: dict[tuple[str, Direction], tuple[int, Any]] = {}  # rows looked at, and the best of them
        self.metrics: dict[str, Metric] = dict(metrics or {})
        self.prefixes: tuple[str, ...] = ("val_",)
        for row in rows or []:
            self.append(row)

    @property
    def epochs(self) -> int:
        """How many have ended."""
        return self._epochs

    @property
    def length(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    @property
    def last(self) -> dict[str, Any]:
        """The last row; empty if there is none."""
        return dict(self._rows[-1]) if self._rows else {}

    def inside(self, epoch: int) -> list[int]:
        """The steps of an epoch's rows that were measured inside it."""
        rows = itertools.takewhile(lambda row: row.get(UNFINISHED), reversed(self._rows))
        return [row["step"] for row in rows if row["epoch"] == epoch]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(dict(row))
        self._columns.update(dict.fromkeys(row))
        self._epochs += not row.get(UNFINISHED)

    def best(self, column: str, direction: Direction) -> float | None:
        """The best finite value of a column, whose rows are looked at once each; None if there is none."""
        seen, best = self._best.get((column, direction), (0, None))
        values: dict[int, Any] = {-1: best}
        values.update({i: self._rows[i].get(column) for i in range(seen, len(self._rows))})
        found = best_of(values, direction)
        best = None if found is None else values[found]
        self._best[column, direction] = len(self._rows), best
        return best

    def direction(self, column: str) -> Direction | None:
        """`"min"` or `"max"`, whichever values of a column are better; None if that is not known."""
        return direction(self.metrics, column, self.prefixes)

    def rows(self) -> list[dict[str, Any]]:
        """One dict an epoch."""
        return [dict(row) for row in self._rows]

    def to_pandas(self) -> Any:
        """A pandas DataFrame, one row an epoch (pandas is not a dependency of ours).

        Raises:
          ConfigError: if pandas is not installed.
        """
        try:
            import pandas  # type: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                "`to_pandas()` needs pandas, which is not installed: `pip install pandas`; `rows()` gives the same as "
                "a list of dicts"
            ) from error
        return pandas.DataFrame(self._rows)

    def __getitem__(self, column: str) -> list[Any]:
        if column not in self._columns:
            raise KeyError(f"no column {column!r}; there are {list(self._columns)}")
        return [row.get(column) for row in self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        inside = len(self._rows) - self._epochs
        more = f" and {inside} row{'s' * (inside > 1)} inside epochs" if inside else ""
        return f"History({self._epochs} epochs{more}, columns {list(self._columns)})"

    def _repr_html_(self) -> str:
        """The last epochs as a table, for a notebook."""
        columns, rows = list(self._columns), self._rows[-MOST_ROWS:]
        cells = [[Cell(_cell_text(row.get(column))) for column in columns] for row in rows]
        return page("History", None, f"{len(self._rows)} epochs", columns, cells, len(self._rows) - len(rows))


def _cell_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return number_text(value) if value is None or is_number(value) else str(value)


def plain(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Computed metrics as Python numbers: scalars as floats, counts as integers, arrays as NumPy arrays.

    A value with a bound (`roc_auc`) becomes two entries, `name` and `name_bound`; a dict one a key; a population's the
    mean over its members and, as `name_each`, an array with the value of each.

    Raises:
      DataError: if an exact metric was given more than it keeps, which compiled code can only say by its bound.
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        name = prefix + name
        fields = getattr(value, "_fields", None)
        if isinstance(value, Spread):
            out.update(plain({name: value.value}))
            out.update({f"{key}{EACH}": x for key, x in plain({name: value.each}).items()})
        elif fields is not None:
            if fields == ("value", "bound") and np.any(np.isnan(value[0]) & np.isinf(value[1])):
                raise DataError(
                    f"metric `{name}` was given more rows than its `capacity`, so its value would not be exact; raise "
                    f"`capacity`, or leave out `exact=True` for a value with a bound"
                )
            out.update(plain({name if f == "value" else f"{name}_{f}": v for f, v in zip(fields, value)}))
        elif isinstance(value, Mapping):
            out.update(plain(value, f"{name}/"))
        else:
            out[name] = _number(value)
    return out


def direction(
    metrics: Mapping[str, Metric], column: str, prefixes: Sequence[str] = ("val_",)
) -> Direction | None:
    """Which values of a column are better: what the metric says that it comes from; None where that is not known.

    A part of a loss is not known: its coefficient may be negative.
    """
    return declared({name: metric.better for name, metric in metrics.items()}, column, prefixes)


def declared(betters: Mapping[str, Any], column: str, prefixes: Sequence[str]) -> Direction | None:
    """The same by what metrics have said, as `config.json` keeps it: `Metric.better` by the metric's name."""
    prefix = max((p for p in prefixes if column.startswith(p)), key=len, default="")
    path = column.removeprefix(prefix).split("/")
    for i in range(len(path), 0, -1):
        name = "/".join(path[:i])
        if name in betters:
            better: Any = betters[name]
            for key in path[i:]:
                better = better.get(key) if isinstance(better, Mapping) else None
            return better if isinstance(better, str) else None  # type: ignore[return-value]
    return None


def plain_rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`plain`, of values that share a leading axis: one dict a row."""
    columns = plain(values)
    return [
        dict(zip(columns, row)) for row in zip(*(x.tolist() if x.ndim == 1 else x for x in columns.values()))
    ]


def _number(x: Any) -> Any:
    if x is None:  # a metric that means nothing for this task
        return None
    x = np.asarray(x)
    if x.ndim:
        return x
    return int(x) if np.issubdtype(x.dtype, np.integer) else float(x)
