"""Execute the notebooks, and leave nothing in them of when, where and how fast that was.

Usage: python notebooks/execute.py [NOTEBOOK ...] [--into DIR]
"""

import argparse
import itertools
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(source: Path, target: Path) -> None:
    """Execute one notebook in a fresh kernel, in the folder of `target`, and write it there."""
    os.environ.pop("MPLBACKEND", None)  # a notebook draws into itself
    notebook = nbformat.read(source, as_version=4)
    folder = {"metadata": {"path": str(target.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells, 1):
        cell.metadata, cell.id = {}, f"cell-{number}"
        if cell.cell_type == "code":
            cell.outputs = list(joined(cell.outputs))
    nbformat.validate(notebook)
    nbformat.write(notebook, target)


def joined(outputs: list) -> itertools.chain:
    """What a cell printed in one piece: a kernel cuts it where it pleases."""

    def piece(kind: tuple, group: list) -> list:
        if kind[0] != "stream":
            return group
        return [{**group[0], "text": "".join(output["text"] for output in group)}]

    groups = itertools.groupby(outputs, key=lambda output: (output.output_type, output.get("name")))
    return itertools.chain.from_iterable(
        map(nbformat.from_dict, piece(kind, list(group))) for kind, group in groups
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--into", type=Path, metavar="DIR", help="write there instead of in place")
    args = parser.parse_args()
    for path in args.notebooks:
        execute(path, (args.into or path.parent) / path.name)
        print(path.name)
