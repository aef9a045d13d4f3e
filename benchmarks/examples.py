"""What reading a data set of examples costs a row: `python -m benchmarks.examples [--rounds N]`.

One shuffled epoch of 20,000 rows, 16 numbers and a label each, in batches of 256. Beside it what asking the data set
for those rows costs, with nothing made of them; the same rows as arrays; and torch's own shuffled DataLoader, whose
rows are missing where torch is.
"""

import argparse
import datetime
import importlib
import importlib.util
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import fntrain as ft
from benchmarks._measure import interleaved, table

ROWS, WIDTH, BATCH = 20_000, 16, 256
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
Y = np.arange(ROWS)
LISTS = {"x": X.tolist(), "y": Y.tolist()}
ORDER = np.random.default_rng(1).permutation(ROWS)


class Made:
    """`data[i]` of a function."""

    def __init__(self, example: Callable[[int], Any]):
        self.example = example

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        return self.example(i)


class OfLists:
    """As Hugging Face's: a list of positions gives a dict of columns, which are lists."""

    column_names = ("x", "y")

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, rows: list[int]) -> dict[str, list[Any]]:
        return {key: [column[i] for i in rows] for key, column in LISTS.items()}


def read(data: Any) -> Callable[[], None]:
    def epoch() -> None:
        for _ in ft.data_loader(data, BATCH, seed=0):
            pass

    return epoch


def asked(data: Any) -> Callable[[], None]:
    """The rows alone, a batch at a time."""

    def epoch() -> None:
        for start in range(0, ROWS, BATCH):
            rows = ORDER[start : start + BATCH].tolist()
            _ = data[rows] if isinstance(data, OfLists) else [data[i] for i in rows]

    return epoch


def contenders() -> dict[str, Callable[[], Any]]:
    sets: dict[str, Any] = {
        "dicts of NumPy": Made(lambda i: {"x": X[i], "y": Y[i]}),
        "tuples of NumPy and an int": Made(lambda i: (X[i], int(Y[i]))),
        "columns of lists": OfLists(),
    }
    runs = {"arrays": read((X, Y))}
    if importlib.util.find_spec("torch") is not None:
        torch: Any = importlib.import_module("torch")
        x, y = torch.from_numpy(X), torch.from_numpy(Y)
        whole = torch.utils.data.TensorDataset(x, y)
        sets |= {
            "TensorDataset": whole,
            "a Subset of it": torch.utils.data.Subset(whole, list(range(ROWS))),
            "tuples of tensors": Made(lambda i: (x[i], y[i])),
        }
        loader = torch.utils.data.DataLoader(whole, BATCH, shuffle=True)
        runs["DataLoader of a TensorDataset"] = lambda: list(loader)
    for name, data in sets.items():
        runs |= {name: read(data), f"{name}, asked alone": asked(data)}
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"medians of {rounds} interleaved rounds\n"
    )
    medians = interleaved(contenders(), rounds=rounds)
    print(table([[name, f"{1e6 * s / ROWS:.2f}"] for name, s in medians.items()], ["", "µs a row"]))


if __name__ == "__main__":
    main()
