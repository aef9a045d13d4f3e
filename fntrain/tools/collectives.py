"""The collectives of a compiled program, and the bytes they move."""

import math
import re
from typing import NamedTuple


class Collective(NamedTuple):
    """The collectives of one kind that a step runs."""

    count: int  # how many run, those in loops as often as the loop runs
    bytes: int  # of their larger side (what an all-gather gives, a reduce-scatter takes), on one device, together


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"


_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")


_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


_CALLED = re.compile(r"(?:body|to_apply|calls|\w+_computations?)=\{?([^,}\s]+(?:, [^,}\s]+)*)")


_BITS = re.compile(r"\d+")


def collectives(hlo: str) -> dict[str, Collective]:
    """The collectives of a compiled program, by kind, from its text; of a conditional, its costliest branch."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if line[:1] not in ("", " ", "}") and line.rstrip().endswith("{"):
            words = line.split()
            name = words[words[0] == "ENTRY"].lstrip("%")
            entry = name if words[0] == "ENTRY" else entry
        lines.setdefault(name, []).append(line)

    def inside(name: str) -> dict[str, Collective]:
        found: dict[str, Collective] = {}
        for line in lines.get(name, ()):
            match = _COLLECTIVE.search(line)
            if match:
                _count(found, {match[2]: Collective(1, _size(match, line))})
                continue
            called = [other.lstrip("%") for m in _CALLED.finditer(line) for other in m[1].split(", ")]
            if not called:
                continue
            parts = [inside(other) for other in called]
            if " conditional(" in line:
                parts = [max(parts, key=lambda part: sum(c.bytes for c in part.values()))]
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for part in parts:
                _count(found, part, int(trips[1]) if trips else 1)
        return found

    return inside(entry)


def _count(found: dict[str, Collective], more: dict[str, Collective], times: int = 1) -> None:
    for kind, (count, n) in more.items():
        have = found.get(kind, Collective(0, 0))
        found[kind] = Collective(have.count + times * count, have.bytes + times * n)


def _size(match: re.Match[str], line: str) -> int:
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * _width(dtype)
        for dtype, dims in _ARRAY.findall(match[1])
    ]
    if match[3] and match[2] in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :]  # an operation under way holds what it takes, then what it gives
    total = sum(sizes)
    if match[2] == "reduce-scatter":
        groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])", line)
        if groups:
            total *= int(groups[2]) if groups[2] else len(groups[1].split(","))
    return total


def _width(dtype: str) -> int:
    if dtype == "pred":
        return 1
    bits = _BITS.search(dtype)
    return max(1, int(bits[0]) // 8) if bits else 1
