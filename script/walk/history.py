"""The history of a cluster as the families' own tools print it, and what of it a point in time holds. Pure.

`mariadb-binlog` and `mysqlbinlog` (with `--base64-output=decode-rows --verbose`, in the time zone UTC) print every
transaction of a server's binlog files in order: its GTID, its commit time, and the rows that it inserted. That shares
nothing with the service's own reading of binlogs.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Iterable, Iterator

from journal import Row

MILLION = 1_000_000

# `#261122 13:45:06 server id 7  end_log_pos 328 CRC32 0x…  GTID 0-7-12 trans`
MARIADB_GTID = re.compile(r"^#(\d{6} +\d+:\d\d:\d\d) server id .*\tGTID (\d+-\d+-\d+)")
MYSQL_TIME = re.compile(r"^# original_commit_timestamp=(\d+)")
MYSQL_GTID = re.compile(r"^SET @@SESSION\.GTID_NEXT= ?'([0-9a-f-]{36}:[^']+)'")
INSERT = re.compile(r"^### INSERT INTO `(\w+)`\.`(\w+)`")
COLUMN = re.compile(r"^###   @(\d+)=(-?\d+)")


@dataclass
class Transaction:
    """One transaction of the history."""

    gtid: str
    microseconds: int
    """Its commit, since 1970: MySQL's original commit time, MariaDB's event time, which is of whole seconds."""
    rows: list[Row] = field(default_factory=list)
    """Rows of the ledger that it inserted."""


def read(lines: Iterable[str], table: str = "ledger") -> Iterator[Transaction]:
    """The transactions that a tool printed. What has rows and no end (a crash cut it off) is none."""
    current: Transaction | None = None
    time = 0
    in_table, columns = False, {}
    open_rows = False

    def ended() -> Iterator[Transaction]:
        if current is not None and not open_rows:
            yield current

    for line in lines:
        if line.startswith("###"):
            if match := INSERT.match(line):
                in_table, columns = match[2] == table, {}
                open_rows = True
            elif in_table and (match := COLUMN.match(line)):
                columns[int(match[1])] = int(match[2])
                if len(columns) == 3 and current is not None:
                    current.rows.append(Row(columns[2], columns[3]))
                    in_table = False
        elif line.startswith(("COMMIT", "XA COMMIT")):
            open_rows = False
        elif match := MARIADB_GTID.match(line):
            yield from ended()
            moment = datetime.strptime(" ".join(match[1].split()), "%y%m%d %H:%M:%S").replace(tzinfo=timezone.utc)
            current, open_rows = Transaction(match[2], int(moment.timestamp()) * MILLION), False
        elif match := MYSQL_TIME.match(line):
            time = int(match[1])
        elif match := MYSQL_GTID.match(line):
            yield from ended()
            current, open_rows = Transaction(match[1], time), False
    yield from ended()


class History:
    """Transactions in their order."""

    def __init__(self, transactions: Iterable[Transaction]):
        self.transactions = list(transactions)
        self.places = {transaction.gtid: place for place, transaction in enumerate(self.transactions)}

    def up_to_gtid(self, gtid: str) -> int:
        """How many transactions there are up to this one, and it too."""
        return self.places[gtid] + 1

    def up_to_time(self, microseconds: int) -> int:
        """The longest prefix in which none is later."""
        for count, transaction in enumerate(self.transactions):
            if transaction.microseconds > microseconds:
                return count
        return len(self.transactions)

    def rows(self, count: int) -> list[Row]:
        """The ledger after so many transactions."""
        return [row for transaction in self.transactions[:count] for row in transaction.rows]

    def prefix_of(self, rows: list[Row], least: int, most: int) -> int | None:
        """The first prefix of so many transactions, at least and at most, that has exactly these rows."""
        wanted = Counter(rows)
        wanted.subtract(self.rows(least))
        for count in range(least, most + 1):
            if not any(wanted.values()):
                return count
            if count < most:
                wanted.subtract(self.transactions[count].rows)
        return None

    def base(self, position: str) -> int:
        """How many transactions a full backup with this position has. Its set must be a beginning of the history; only what
        has no rows may be absent from it: a clone of MySQL lacks a `FLUSH STATUS` that was logged while it was made, of which
        InnoDB has nothing."""
        if ":" not in position:
            return max((self.up_to_gtid(gtid) for gtid in position.split(",") if gtid in self.places), default=0)
        intervals = parse_set(position)
        has = [contains(intervals, transaction.gtid) for transaction in self.transactions]
        count = max((place + 1 for place, one in enumerate(has) if one), default=0)
        if any(not one and transaction.rows for one, transaction in zip(has[:count], self.transactions)):
            raise ValueError(f"{position} is not a beginning of the history")
        return count


def parse_set(text: str) -> dict[str, list[tuple[int, int]]]:
    """A MySQL GTID set without tags."""
    found: dict[str, list[tuple[int, int]]] = {}
    for part in text.replace("\n", "").split(","):
        uuid, *ranges = part.strip().split(":")
        for one in ranges:
            first, _, last = one.partition("-")
            found.setdefault(uuid, []).append((int(first), int(last or first)))
    return found


def contains(intervals: dict[str, list[tuple[int, int]]], gtid: str) -> bool:
    uuid, _, number = gtid.rpartition(":")
    return any(first <= int(number) <= last for first, last in intervals.get(uuid, []))


@dataclass
class Note:
    """A write that the client was told is committed. Times are of the wall clock, in microseconds since 1970."""

    writer: int
    first: int
    last: int
    begun: int
    acknowledged: int
    gtid: str


def against_notes(history: History, notes: list[Note], unit_microseconds: int) -> list[str]:
    """Holds the history against what the client saw; what differs, a sentence each. Times of the history are of whole
    units."""
    wrong = []
    by_row = {row: transaction for transaction in history.transactions for row in transaction.rows}
    rows = sum(len(transaction.rows) for transaction in history.transactions)
    if rows != len(by_row):
        wrong.append(f"the history has {rows - len(by_row)} rows twice")
    begun: dict[str, Note] = {}
    for note in notes:
        for number in range(note.first, note.last + 1):
            transaction = by_row.get(Row(note.writer, number))
            if transaction is None:
                wrong.append(f"row {note.writer}/{number} was acknowledged ({note.gtid}) and is not in the history")
                continue
            if note.gtid and transaction.gtid != note.gtid:
                wrong.append(f"row {note.writer}/{number}: {note.gtid} was told, the history has {transaction.gtid}")
            earliest = note.begun // unit_microseconds * unit_microseconds
            if not earliest <= transaction.microseconds <= note.acknowledged:
                wrong.append(
                    f"row {note.writer}/{number} was committed at {transaction.microseconds}, not between "
                    f"{note.begun} and {note.acknowledged}"
                )
            begun[transaction.gtid] = note
    # What was acknowledged before another was begun comes before it.
    earliest_acknowledged = None
    for transaction in reversed(history.transactions):
        note = begun.get(transaction.gtid)
        if note is None:
            continue
        if earliest_acknowledged is not None and earliest_acknowledged < note.begun:
            wrong.append(f"{transaction.gtid} comes before a transaction that was acknowledged before it was begun")
        if earliest_acknowledged is None or note.acknowledged < earliest_acknowledged:
            earliest_acknowledged = note.acknowledged
    return wrong
