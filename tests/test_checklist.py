"""The project's ledger: what was wished for, and the tests that hold it.

Ids are those of the wish list: a design (000 to 004, or the base contract) and its number; C are conflicts between the
designs, as they were resolved, S are meanings that no design gave. `checklist.txt` has a line for each.
"""

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ITEMS = {"base-": 7, "000-": 19, "001-": 26, "002-": 29, "003-": 23, "004-": 17, "C": 19, "S": 25}
"""How many items each part of the wish list has."""
NOT_YET = "not yet: "


def entries(text):
    """`{id: (wording, what is under it)}`; an id that stands twice is an error."""
    out, item = {}, None
    for line in text.splitlines():
        if line.startswith("    "):
            out[item][1].append(line.strip())
        elif line and not line.startswith("#"):
            item, words = line.split(maxsplit=1)
            assert item not in out, item
            out[item] = (words, [])
    return out


LEDGER = entries((TESTS / "checklist.txt").read_text())


@functools.cache
def functions_of(file):
    if not file.exists():
        return set()
    tree = ast.parse(file.read_text(), str(file))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def faults(under):
    """What is wrong with what stands under an item."""
    if not under:
        return ["nothing ticks it"]
    if any(line.startswith(NOT_YET) for line in under):
        return [] if len(under) == 1 else ["it is ticked, and said to be still to come"]
    out = []
    for line in under:
        where, _, name = line.partition("::")
        folder, _, file = where.rpartition("/")
        if f"test_{name}" not in functions_of(TESTS / folder / f"test_{file}.py"):
            out.append(f"there is no test {line}")
    return out


def test_every_item_has_its_line():
    assert list(LEDGER) == [f"{part}{n}" for part, many in ITEMS.items() for n in range(1, many + 1)]


@pytest.mark.parametrize("item", LEDGER)
def test_what_ticks_an_item_is_there(item):
    words, under = LEDGER[item]
    assert words
    assert faults(under) == []


@pytest.mark.parametrize(
    ("under", "fault"),
    [
        ([], "nothing ticks it"),
        (["scores::golden_example", "scores::golden_exampel"], "there is no test scores::golden_exampel"),
        (["score::golden_example"], "there is no test score::golden_example"),
        (["not yet: later", "scores::golden_example"], "it is ticked, and said to be still to come"),
    ],
)
def test_a_fault_is_found(under, fault):
    assert faults(under) == [fault]
