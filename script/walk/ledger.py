"""A ledger of acknowledged writes, kept by a client that shares no code with the service.

Writers insert numbered rows through the master's port, each on a connection of its own, and note down in a
journal what the server acknowledged and when. Afterwards every acknowledged row must be on every instance,
once. A write that failed is never repeated under its number: whether it happened is not known, and either is
right.

    ledger.py write --cluster cluster.json --journal DIR [--writers 4]     until SIGTERM
    ledger.py check --cluster cluster.json --journal DIR                   exit code 1: something is missing
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from pathlib import Path

import pymysql

from journal import Journal, Row, compare

# Between two writes of one writer. Short beside the stalls to be measured (tens of milliseconds), long enough
# that the ledger takes little of the machine from the load it runs beside.
PAUSE_SECONDS = 0.002

# After a failed attempt to connect: a service that refuses connections must show as errors, not as a busy loop. A
# connection that breaks is made anew at once.
RECONNECT_PAUSE_SECONDS = 0.02

# A write may wait long for its acknowledgement. Past this it counts as an error.
READ_TIMEOUT_SECONDS = 60

TABLE = """
CREATE TABLE IF NOT EXISTS ledger (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  writer INT NOT NULL,
  number BIGINT NOT NULL,
  KEY (writer, number)
)
"""


# Writing --------------------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """One connection's worth of writes. Even writers commit by themselves, odd ones in a transaction, since a
    server that becomes read-only treats the two differently."""

    def __init__(self, writer: int, cluster: dict, journal: Path, stop: threading.Event):
        super().__init__(name=f"writer-{writer}")
        self.writer = writer
        self.cluster = cluster
        self.stop = stop
        # One write call a line, so that a killed ledger still holds what it was told.
        self.journal = open(journal / f"writer-{writer}.journal", "a", encoding="utf-8", buffering=1)

    def run(self) -> None:
        number = 0
        connection = None
        while not self.stop.is_set():
            number += 1
            try:
                if connection is None:
                    connection = connect(self.cluster["master"], self.cluster["app"], autocommit=True)
                self.write(connection, number)
            except (pymysql.MySQLError, OSError) as error:
                self.note_failure(number, error)
                if connection is None:
                    self.stop.wait(RECONNECT_PAUSE_SECONDS)
                else:
                    close_quietly(connection)
                    connection = None
                continue
            self.note("acknowledged", number)
            self.stop.wait(PAUSE_SECONDS)
        if connection is not None:
            close_quietly(connection)
        self.journal.close()

    def write(self, connection: pymysql.Connection, number: int) -> None:
        with connection.cursor() as cursor:
            if self.writer % 2 == 1:
                connection.begin()
            cursor.execute("INSERT INTO ledger (writer, number) VALUES (%s, %s)", (self.writer, number))
            if self.writer % 2 == 1:
                connection.commit()

    def note(self, kind: str, number: int, *rest: object) -> None:
        fields = [kind, f"{time.monotonic():.6f}", number, *rest]
        self.journal.write("\t".join(str(value) for value in fields) + "\n")

    def note_failure(self, number: int, error: Exception) -> None:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        message = " ".join(str(error).split())
        self.note("failed", number, code, message)


def connect(
    address: str,
    app: dict,
    autocommit: bool = False,
    limit_seconds: float = READ_TIMEOUT_SECONDS,
    client_flag: int = 0,
) -> pymysql.Connection:
    """Logs in as the application. Every wait for the server, then and later, has the limit."""
    host, _, port = address.rpartition(":")
    return pymysql.connect(
        host=host.strip("[]"),
        port=int(port),
        user=app["user"],
        # As bytes: PyMySQL would send the text in Latin-1.
        password=app["password"].encode("utf-8"),
        database=app["database"],
        connect_timeout=limit_seconds,
        read_timeout=limit_seconds,
        write_timeout=limit_seconds,
        autocommit=autocommit,
        # PyMySQL would read the system's certificates for each connection: 25 ms of processor time, which an
        # application spends once, and which would be measured as a stall of the service.
        ssl_disabled=True,
        client_flag=client_flag,
    )


def close_quietly(connection: pymysql.Connection) -> None:
    """Closes a connection that may be broken already."""
    try:
        connection.close()
    except (pymysql.MySQLError, OSError):
        pass


def write(cluster: dict, journal: Path, numbers: range) -> None:
    """Writes until a signal comes."""
    journal.mkdir(parents=True, exist_ok=True)
    for writer in numbers:
        if (journal / f"writer-{writer}.journal").exists():
            raise SystemExit(f"ledger: writer {writer} has a journal in {journal} already; give an empty directory")
    connection = connect(cluster["master"], cluster["app"], autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute(TABLE)
        cursor.execute("SELECT COUNT(*) FROM ledger WHERE writer BETWEEN %s AND %s", (numbers[0], numbers[-1]))
        (count,) = cursor.fetchone()
        if count:
            raise SystemExit(f"ledger: the table ledger holds {count} rows of these writers; drop it first")
    connection.close()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threads = [Writer(writer, cluster, journal, stop) for writer in numbers]
    for thread in threads:
        thread.start()
    print("writing", flush=True)
    for thread in threads:
        thread.join()


# Checking -------------------------------------------------------------------------------------------------


def rows_at(address: str, app: dict) -> list[Row]:
    """Every row of the ledger at one instance, in the order in which they were written."""
    connection = connect(address, app)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT writer, number FROM ledger ORDER BY id")
            return [Row(*row) for row in cursor.fetchall()]
    finally:
        connection.close()


def check(cluster: dict, journal: Journal) -> list[str]:
    """What is wrong, a sentence each; nothing when every promise was kept."""
    wrong = []
    acknowledged = journal.rows()
    if not acknowledged:
        wrong.append("no write was acknowledged at all: nothing was checked")
    for instance in cluster["instances"]:
        found = rows_at(instance["address"], cluster["app"])
        difference = compare(journal, found)
        for name, rows in difference._asdict().items():
            if rows:
                shown = ", ".join(f"{row.writer}/{row.number}" for row in rows[:5])
                wrong.append(f"{instance['id']}: {len(rows)} {name} rows (writer/number {shown})")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "check"])
    parser.add_argument("--cluster", type=Path, required=True, help="cluster.json, as `mysql-service up` writes it")
    parser.add_argument("--journal", type=Path, required=True, help="where the writers' journals are")
    parser.add_argument("--writers", type=int, default=4, help="connections that write (default: 4)")
    parser.add_argument("--first-writer", type=int, default=1, help="the number of the first one (default: 1)")
    options = parser.parse_args()
    cluster = json.loads(options.cluster.read_text(encoding="utf-8"))
    if options.command == "write":
        write(cluster, options.journal, range(options.first_writer, options.first_writer + options.writers))
        return 0
    journal = Journal.load(options.journal)
    wrong = check(cluster, journal)
    for sentence in wrong:
        print(f"ledger: {sentence}", file=sys.stderr)
    if not wrong:
        print(f"ledger: all {len(journal.rows())} acknowledged rows are on each of the instances, once")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
