"""Data sets of examples, one for each position: Hugging Face's, torch's, and whatever has their form."""

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import tree
from .._core.digest import crc32
from .._core.errors import DataError
from .._core.typing import Batch, PyTree
from .alike import together
from .tensors import at, column, is_column, is_leaf


class Examples:
    """A data set that is read by position, `len(data)` and `data[i]`, an example at a time.

    The examples of a batch are stacked when the batch is made. All are like the first in structure, shapes and
    dtypes. What can read several at once is asked for them at once: torch's `__getitems__`, and Hugging Face's
    `data[[3, 1]]`, which gives a dict of columns. A `TensorDataset` of torch is read in the memory of its tensors, a
    copy where that is not the host's.

    Args:
      data: the data set.
      name: the argument's name in messages.

    Attributes:
      form: shape and dtype of each leaf of an example, in its structure.

    Raises:
      DataError: if it is empty, or an example holds something else than numbers.
    """

    def __init__(self, data: Any, name: str):
        self.data = data
        self.name = name
        self.rows = len(data)
        if self.rows == 0:
            raise DataError(f"`{name}` must hold at least one example, got a {type(data).__name__} of none")
        self._of_columns = False
        first = self._first()
        if not jax.tree.leaves(first, is_leaf=is_leaf):
            raise DataError(f"`{name}`: example 0 holds nothing, got {first!r}")
        self.form: PyTree = _mapped(self._form, first)
        self._kinds: PyTree = jax.tree.map(type, first, is_leaf=is_leaf)
        self._tensors: tuple[Any, ...] | None = None
        # A class derived from it may do more than index its tensors.
        if type(data) is _torchs("TensorDataset"):
            self._tensors = tuple(column(x, f"`{name}`") for x in data.tensors)

    def read(self, rows: np.ndarray) -> Batch:
        """The examples at some positions, stacked: a tree of NumPy arrays `[len(rows), …]`.

        Raises:
          DataError: if one is unlike the first, naming it and its leaf.
        """
        if self._tensors is not None:
            return tuple(at(x, rows) for x in self._tensors)
        at_rows = rows.tolist()
        if self._of_columns:
            given = self._asked(lambda: self.data[at_rows], at_rows)
            if (
                isinstance(given, Mapping)
                and isinstance(self.form, dict)
                and given.keys() == self.form.keys()
            ):
                return {key: self._column(key, given[key], at_rows) for key in self.form}
        return self._stacked(self._examples(at_rows), self.form, self._kinds, at_rows)

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a resumed run to see the same data; the content, if it is the same each time."""
        sample = np.unique(np.linspace(0, self.rows - 1, 8).astype(np.int64))
        digests = {
            functools.reduce(lambda digest, x: crc32(x, digest), jax.tree.leaves(self.read(sample)), 0)
            for _ in range(2)
        }
        return {
            "kind": "examples",
            "rows": self.rows,
            "leaves": {path: f"{x.dtype.name}{list(x.shape)}" for path, x in tree.items(self.form)},
            "sample_crc32": digests.pop() if len(digests) == 1 else None,
        }

    def _first(self) -> Any:
        """The first example, read as those of a batch will be."""
        failed: Exception | None = None
        if not hasattr(self.data, "column_names"):
            try:
                return self._examples([0])[0]
            except (TypeError, KeyError, ValueError) as error:  # it may take lists of positions alone
                failed = error
        try:
            given = self.data[[0]]
        except Exception:
            given = None
        if isinstance(given, Mapping):
            self._of_columns = True
            return {key: column[0] for key, column in given.items()}
        if failed is not None:
            raise failed
        return self._examples([0])[0]

    def _examples(self, rows: list[int]) -> list[Any]:
        many = getattr(self.data, "__getitems__", None)
        if many is None:
            return self._one_by_one(rows)
        given = self._asked(lambda: many(rows), rows)
        if not isinstance(given, Sequence) or len(given) != len(rows):
            raise DataError(
                f"`{self.name}`: `__getitems__` must give a list of {len(rows)} examples, got {tree.describe(given)}"
            )
        return list(given)

    def _asked(self, read: Any, rows: list[int]) -> Any:
        try:
            return read()
        except Exception as error:
            self._note(error, rows)
            raise

    def _one_by_one(self, rows: list[int]) -> list[Any]:
        examples: list[Any] = []
        try:
            for row in rows:
                examples.append(self.data[row])
        except Exception as error:
            self._note(error, [rows[len(examples)]])
            raise
        return examples

    def _note(self, error: Exception, rows: list[int]) -> None:
        error.add_note(f"while reading {_which(rows)} of `{self.name}`, of which `len` says {self.rows}")

    def _form(self, path: str, x: Any) -> jax.ShapeDtypeStruct:
        where = f"`{self.name}`: example 0" + f" leaf `{path}`" * bool(path)
        try:
            x = at(column(x, where))
        except DataError as error:
            if self._of_columns and path:
                error.add_note(
                    f"to leave it out, give `{self.name}.remove_columns([{path.split('/')[0]!r}])`"
                )
            raise
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    def _column(self, key: Any, given: Any, rows: list[int]) -> Any:
        """A column of a batch: an array where its library made one, else one value a row."""
        form = self.form[key]
        if is_column(given) and str(getattr(given, "dtype", None)) != "object":
            array = at(column(given, f"`{self.name}` column `{key}`"))
            expected = form if isinstance(form, jax.ShapeDtypeStruct) else None
            if expected is not None and (array.shape, array.dtype) == (
                (len(rows), *expected.shape),
                expected.dtype,
            ):
                return array
        return self._stacked(list(given), form, self._kinds[key], rows, str(key))

    def _stacked(
        self, examples: list[Any], form: PyTree, kinds: PyTree, rows: list[int], path: str = ""
    ) -> Batch:
        batch = together(examples, form, kinds)
        return self._looked_at(examples, form, rows, path) if batch is None else batch

    def _looked_at(self, examples: list[Any], form: PyTree, rows: list[int], path: str) -> Batch:
        """Each example by itself, and so what is wrong with one by its name."""
        forms, structure = jax.tree.flatten(form)
        parts: list[list[Any]] = []
        for example, row in zip(examples, rows, strict=True):
            leaves, own = jax.tree.flatten(example, is_leaf=is_leaf)
            if own != structure:
                raise self._unlike(row, path, f"has the structure {own}, and the first {structure}")
            parts.append(leaves)
        names = [tree.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(form)]
        columns = [
            self._array([leaves[i] for leaves in parts], like, rows, "/".join(filter(None, (path, names[i]))))
            for i, like in enumerate(forms)
        ]
        return jax.tree.unflatten(structure, columns)

    def _array(self, values: list[Any], like: jax.ShapeDtypeStruct, rows: list[int], path: str) -> np.ndarray:
        out = np.empty((len(values), *like.shape), like.dtype)
        for place, (x, row) in enumerate(zip(values, rows)):
            x = at(column(x, f"`{self.name}`: example {row}" + f" leaf `{path}`" * bool(path)))
            if x.shape != like.shape:
                way = "pad examples to one shape, and mark what is padding with weights in the loss"
                raise self._unlike(
                    row, path, f"has shape {list(x.shape)}, and the first {list(like.shape)}: {way}"
                )
            if x.dtype != like.dtype:
                way = f"give every example that dtype, `np.asarray(x, np.{like.dtype.name})`"
                raise self._unlike(row, path, f"is {x.dtype.name}, and the first {like.dtype.name}: {way}")
            out[place] = x
        return out

    def _unlike(self, row: int, path: str, how: str) -> DataError:
        return DataError(f"`{self.name}`: example {row}" + f" leaf `{path}`" * bool(path) + f" {how}")


def is_examples(data: Any) -> bool:
    """Whether this is a data set of examples by position, and not a sequence of batches.

    Hugging Face's and torch's are; so is what has `__len__` and `__getitem__` and cannot be iterated over, and
    what can, if its first item can be no batch: one that has a number where a batch has rows.
    """
    kind = type(data)
    if not (hasattr(kind, "__len__") and hasattr(kind, "__getitem__")) or callable(data):
        return False
    if isinstance(data, list | tuple | Mapping | str | bytes | bytearray | memoryview) or is_column(data):
        return False
    if _is_torchs(data, "IterableDataset") or hasattr(data, "on_epoch_end"):
        return False
    if hasattr(data, "__getitems__") or hasattr(data, "column_names") or _is_torchs(data, "Dataset"):
        return True
    if not isinstance(data, Iterable):
        return True
    try:
        leaves = jax.tree.leaves(kind.__getitem__(data, 0), is_leaf=is_leaf)
    except Exception:  # whatever it raises where it is empty, or goes by other than positions
        return False
    return any(np.ndim(x) == 0 for x in leaves if is_column(x) or isinstance(x, int | float))


def refuse_others(data: Any, name: str) -> None:
    """Refuse by name what looks like a data set of examples and is another thing.

    Raises:
      DataError: with what to give instead.
    """
    if isinstance(data, Mapping):
        inside = [str(key) for key, part in data.items() if is_examples(part)]
        if inside:
            raise DataError(
                f"`{name}` is a {type(data).__name__} of several data sets, {tree.some(inside)}: give one of them, "
                f"`{name}[{inside[0]!r}]`"
            )
    if isinstance(data, tuple) and any(is_examples(part) for part in data):
        raise DataError(
            f"`{name}` is a tuple with a data set of examples in it: give the data set alone, whose examples have all "
            f"that a batch has"
        )
    if _is_torchs(data, "Dataset") and not isinstance(data, Iterable) and not hasattr(type(data), "__len__"):
        raise DataError(
            f"`{name}` is a {type(data).__name__}, whose examples are read by position, and must say how many it has: "
            f"give it a `__len__`"
        )
    if hasattr(data, "on_epoch_end") and hasattr(data, "__getitem__") and not isinstance(data, Iterable):
        raise DataError(
            f"`{name}` is a {type(data).__name__}, which gives batches by number: give a function, `lambda epoch: "
            f"(data[i] for i in range(len(data)))`"
        )


def batch_them(example: Any, name: str) -> str:
    """How to give examples that came in the place of batches, in words."""
    if isinstance(example, Mapping):
        way = f"{{key: np.stack([x[key] for x in {name}]) for key in {list(example)}}}"
    elif isinstance(example, tuple | list):
        way = f"tuple(np.stack(column) for column in zip(*{name}))"
    else:
        way = f"np.stack({name})"
    return (
        f"what can be iterated over gives batches, and `batch_size` is not for them: make columns of the examples, "
        f"`{way}`, or give what has `len` and `[i]` (a data set of torch or Hugging Face), which is batched here; an "
        f"`IterableDataset` is batched by torch, `DataLoader({name}, 32)`"
    )


def is_shuffled_loader(data: Any) -> bool:
    """Whether this is a torch `DataLoader` (or what has its form) that draws an order of its own."""
    if not (hasattr(data, "dataset") and hasattr(data, "sampler") and hasattr(data, "batch_size")):
        return False
    orders = [getattr(data, "sampler", None)]
    orders.append(getattr(getattr(data, "batch_sampler", None), "sampler", None))
    return any("Random" in type(order).__name__ for order in orders)


def _is_torchs(data: Any, name: str) -> bool:
    kind = _torchs(name)
    return kind is not None and isinstance(data, kind)


def _torchs(name: str) -> type | None:
    torch: Any = sys.modules.get("torch")  # who has one has imported it
    kind = getattr(getattr(getattr(torch, "utils", None), "data", None), name, None)
    return kind if isinstance(kind, type) else None


def _mapped(function: Any, example: Any) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: function(tree.path_name(path), x), example, is_leaf=is_leaf
    )


def _which(rows: list[int]) -> str:
    return (
        f"example {rows[0]}"
        if len(rows) == 1
        else f"examples {', '.join(map(str, rows[:4]))}" + ", …" * (len(rows) > 4)
    )
