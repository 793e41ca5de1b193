"""What the ledger's writers noted down, and how an instance is held against it. Pure: no server, no clock."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, NamedTuple


class Row(NamedTuple):
    """What identifies a row of the ledger."""

    writer: int
    number: int


class Failure(NamedTuple):
    """An error that a writer saw. Times are of the machine's monotonic clock, in seconds."""

    at: float
    writer: int
    code: int
    message: str


@dataclass
class Journal:
    """What the writers noted down."""

    acknowledged: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    attempted: dict[int, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @staticmethod
    def load(directory: Path) -> Journal:
        """Reads every writer's file. A last line that was cut off by a kill is no acknowledgement."""
        journal = Journal()
        for path in sorted(directory.glob("writer-*.journal")):
            writer = int(path.stem.removeprefix("writer-"))
            acknowledged = journal.acknowledged.setdefault(writer, [])
            journal.attempted[writer] = 0
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):
                    break
                kind, at, number, *rest = line.rstrip("\n").split("\t")
                journal.attempted[writer] = max(journal.attempted[writer], int(number))
                if kind == "acknowledged":
                    acknowledged.append((float(at), int(number)))
                else:
                    journal.failures.append(Failure(float(at), writer, int(rest[0]), rest[1]))
        return journal

    def rows(self) -> set[Row]:
        """Every acknowledged row."""
        return {Row(writer, number) for writer, notes in self.acknowledged.items() for _, number in notes}

    def longest_gap_seconds(self, writers: Iterable[int], begin: float, end: float) -> float:
        """The longest time between two acknowledged writes of these writers taken together, of the gaps that
        touch the window. A window without any write on one side counts up to the window's own end."""
        times = sorted(at for writer in writers for at, _ in self.acknowledged[writer])
        first = max(bisect.bisect_left(times, begin) - 1, 0)
        last = bisect.bisect_right(times, end) + 1
        touched = times[first:last]
        edges = ([begin] if not touched or touched[0] > begin else []) + touched
        edges += [end] if edges[-1] < end else []
        return max(later - earlier for earlier, later in zip(edges, edges[1:]))

    def stall(self, begin: float, end: float) -> Stall:
        """How long writing stood still in the window."""
        each = [self.longest_gap_seconds([writer], begin, end) for writer in self.acknowledged]
        return Stall(self.longest_gap_seconds(self.acknowledged, begin, end), max(each))

    def errors_per_connection(self, begin: float, end: float) -> Counter[int]:
        """How many errors each writer saw in the window."""
        return Counter(failure.writer for failure in self.failures if begin <= failure.at < end)


class Stall(NamedTuple):
    """Longest gaps between acknowledged writes, in seconds."""

    service: float
    """With all writers taken together: for how long the service took no write."""
    worst_connection: float
    """Of the writer that waited longest."""


class Difference(NamedTuple):
    """How one instance's ledger differs from what was acknowledged."""

    missing: list[Row]
    doubled: list[Row]
    unknown: list[Row]
    """Rows that nobody tried to write."""

    def is_empty(self) -> bool:
        return not (self.missing or self.doubled or self.unknown)


def compare(journal: Journal, found: Iterable[Row]) -> Difference:
    """Holds the rows of one instance against the journal."""
    counts = Counter(found)
    return Difference(
        missing=sorted(row for row in journal.rows() if row not in counts),
        doubled=sorted(row for row, count in counts.items() if count > 1),
        unknown=sorted(row for row in counts if row.number > journal.attempted.get(row.writer, 0)),
    )
