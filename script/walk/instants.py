"""Any instant restored: numbered rows with their commit times, and what restores to random targets hold of them.

A cluster is started with `mysql-service up`. Writers insert numbered rows through the master's port and note when each
was begun and acknowledged and which GTID the server told for it. Meanwhile, for so many minutes, servers, agents, the
monitor and once everything at once are killed, the roles move, binlogs are rotated, full backups are made. Then a Slave
is unregistered, and its data is restored again and again through the product's own commands: a full backup, and the
binlog archive up to a random target, by GTID (with it, before it) and by time; a part of the targets goes on from the one
before. Each must hold exactly the rows that it should, by the history that the families' own tools print of the Master's
binlog files, which is itself held against what the writers noted.

Exit code 0: every target held exactly its rows. 1: one did not; the cluster's directory stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, NamedTuple

import pymysql

import ledger
from chaos import ORPHAN_SECONDS, Fault, alive, kill_agent, kill_daemon, kill_server, processes
from cluster import Cluster, Command, find_binary, on_each_flavor, wait_until_replicated
from history import MILLION, History, Note, against_notes, read
from journal import Row
from switchover import roles

# Between two writes of one writer.
PAUSE_SECONDS = 0.02

# Between two disturbances, once the cluster is OK again.
CALM_SECONDS = (0.5, 6.0)

# So many full backups are made while it is written, besides the one at the begin.
LATER_BACKUPS = 3

# How likely a target goes on from the restored one before it, rather than from a full backup.
GOES_ON = 0.5

# A restore of some minutes of history.
RESTORE_SECONDS = 900

# What the archive was lately told off for may stay in `status` so long.
PASSING_PROBLEM_SECONDS = 60

# PyMySQL does not know it: the server tells what changed in the session, its GTID on MySQL.
CLIENT_SESSION_TRACK = 1 << 23

# Of the pieces of session state in an OK packet's end, the one with GTIDs.
SESSION_TRACK_GTIDS = 3


# Writing --------------------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes rows one after the other, now and then several in a transaction. A write that failed is never repeated
    under its number."""

    def __init__(self, writer: int, document: dict, journal: Path, stop: threading.Event):
        super().__init__(name=f"writer-{writer}")
        self.writer = writer
        self.document = document
        self.stop = stop
        self.notes: list[Note] = []
        self.failures = 0
        self.journal = open(journal / f"writer-{writer}.notes", "w", encoding="utf-8", buffering=1)

    def run(self) -> None:
        number = 0
        connection = None
        while not self.stop.is_set():
            first = number + 1
            number += 5 if first % 10 == 0 else 1
            begun = time.time_ns() // 1000
            try:
                if connection is None:
                    connection = connect(self.document)
                    begun = time.time_ns() // 1000
                acknowledged, gtid = self.write(connection, first, number)
            except (pymysql.MySQLError, OSError):
                self.failures += 1
                if connection is None:
                    self.stop.wait(ledger.RECONNECT_PAUSE_SECONDS)
                else:
                    ledger.close_quietly(connection)
                    connection = None
                continue
            note = Note(self.writer, first, number, begun, acknowledged, gtid)
            self.notes.append(note)
            self.journal.write("\t".join(str(value) for value in vars(note).values()) + "\n")
            self.stop.wait(PAUSE_SECONDS)
        if connection is not None:
            ledger.close_quietly(connection)
        self.journal.close()

    def write(self, connection: pymysql.Connection, first: int, last: int) -> tuple[int, str]:
        """Commits the rows; when that was acknowledged, and the GTID."""
        rows = ", ".join(f"({self.writer}, {number})" for number in range(first, last + 1))
        with connection.cursor() as cursor:
            if self.writer % 2 == 1:
                connection.begin()
                cursor.execute(f"INSERT INTO ledger (writer, number) VALUES {rows}")
                cursor.execute("COMMIT")
            else:
                cursor.execute(f"INSERT INTO ledger (writer, number) VALUES {rows}")
            acknowledged = time.time_ns() // 1000
            try:
                return acknowledged, own_gtid(connection, cursor)
            except (pymysql.MySQLError, OSError):
                # It is committed all the same; the next write finds the connection broken.
                return acknowledged, ""


def connect(document: dict) -> pymysql.Connection:
    connection = ledger.connect(document["master"], document["app"], autocommit=True, client_flag=CLIENT_SESSION_TRACK)
    connection.server_is_mariadb = "MariaDB" in connection.get_server_info()
    if not connection.server_is_mariadb:
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION session_track_gtids = OWN_GTID")
    return connection


def own_gtid(connection: pymysql.Connection, cursor) -> str:
    """The GTID of what a connection of `connect` has just committed."""
    if connection.server_is_mariadb:
        cursor.execute("SELECT @@last_gtid")
        return cursor.fetchone()[0]
    return told_gtid(cursor._result.message or b"")


def told_gtid(message: bytes) -> str:
    """The GTID in what follows the warnings of an OK packet: the information, then pieces of session state."""

    def piece(data: bytes) -> tuple[bytes, bytes]:
        # All of these are short: their length is one byte.
        return data[1 : 1 + data[0]], data[1 + data[0] :]

    if not message:
        return ""
    _, rest = piece(message)
    state, _ = piece(rest) if rest else (b"", b"")
    while state:
        kind = state[0]
        data, state = piece(state[1:])
        if kind == SESSION_TRACK_GTIDS:
            gtid, _ = piece(data[1:])
            return gtid.decode()
    return ""


class Strangers(threading.Thread):
    """Other content beside the ledger, on a connection that comes back: tables made, changed and dropped, temporary
    ones, user variables, long rows, rows moved between tables."""

    STATEMENTS = [
        "CREATE TABLE IF NOT EXISTS strange (id INT AUTO_INCREMENT PRIMARY KEY, text LONGTEXT, KEY (text(20)))",
        "INSERT INTO strange (text) VALUES (REPEAT('long', 200000)), ('short')",
        "SET @text = CONCAT('variable ', RAND())",
        "INSERT INTO strange (text) VALUES (@text), (UUID())",
        "CREATE TEMPORARY TABLE IF NOT EXISTS passing (id INT, text LONGTEXT)",
        "INSERT INTO passing SELECT id, text FROM strange LIMIT 5",
        "INSERT INTO strange (text) SELECT LEFT(text, 100) FROM passing",
        "DROP TEMPORARY TABLE passing",
        "UPDATE strange SET text = CONCAT('x', LEFT(text, 50)) WHERE id % 3 = 0",
        "CREATE TABLE IF NOT EXISTS strange_copy (id INT PRIMARY KEY, text LONGTEXT)",
        "REPLACE INTO strange_copy SELECT * FROM strange WHERE id % 7 = 0",
        "ALTER TABLE strange_copy ADD COLUMN more INT NOT NULL DEFAULT 7",
        "TRUNCATE TABLE strange_copy",
        "DROP TABLE strange_copy",
        "DELETE FROM strange WHERE id % 2 = 0",
    ]

    def __init__(self, document: dict, stop: threading.Event):
        super().__init__(name="strangers")
        self.document = document
        self.stop = stop
        self.done = 0

    def run(self) -> None:
        connection = None
        while True:
            for statement in self.STATEMENTS:
                if self.stop.wait(0.15):
                    if connection is not None:
                        ledger.close_quietly(connection)
                    return
                try:
                    connection = connection or connect(self.document)
                    with connection.cursor() as cursor:
                        cursor.execute(statement)
                    self.done += 1
                except (pymysql.MySQLError, OSError):
                    if connection is not None:
                        ledger.close_quietly(connection)
                    connection = None


# Disturbing -----------------------------------------------------------------------------------------------


def switchover(to_slave: bool) -> Fault:
    def strike(cluster: Cluster, status: dict) -> str:
        slave = roles(status).get("Slave")
        command = cluster.switchover(*(["--to", slave] if to_slave and slave else []))
        return "done" if command.exit_code == 0 else f"exit code {command.exit_code}: {command.reason()}"

    return Fault(f"switchover to the {'Slave' if to_slave else 'Standby'}", strike)


def rotate(cluster: Cluster, _: dict) -> str:
    """A new binlog file on every instance, as `dba`."""
    document = cluster.document()
    for instance in document["instances"]:
        with dba(document, instance["address"]) as connection, connection.cursor() as cursor:
            cursor.execute("FLUSH LOCAL BINARY LOGS")
    return "all"


def incremental(cluster: Cluster, _: dict) -> str:
    command = cluster.run("backup", "incremental", "--dir", str(cluster.directory), "--yes", timeout_seconds=120)
    return "done" if command.exit_code == 0 else f"exit code {command.exit_code}: {command.reason()}"


def full_backup(cluster: Cluster) -> str | None:
    command = cluster.run("backup", "full", "--dir", str(cluster.directory), "--yes", timeout_seconds=300)
    return None if command.exit_code == 0 else f"backup full: exit code {command.exit_code}: {command.reason()}"


def kill_everything(cluster: Cluster) -> None:
    """Ends every process at once, as a machine that goes down does, and starts the cluster again."""
    family = [process.pid for process in processes(cluster.document()["pid"])]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    cluster.up()
    print(f"  {len(family)} processes killed at once, and started again", flush=True)


def dba(document: dict, address: str) -> pymysql.Connection:
    lines = Path(document["secret_conf"]).read_text(encoding="utf-8").splitlines()
    secrets = dict(line.split("=", 1) for line in lines if "=" in line)
    login = {"user": "dba", "password": secrets["dba_passwd"], "database": None}
    return ledger.connect(address, login, autocommit=True, limit_seconds=20)


DISTURBANCES = [
    *(kill_server(role) for role in ("Master", "Standby", "Slave")),
    *(kill_agent(role) for role in ("Master", "Standby", "Slave")),
    kill_daemon("monitor", "monitor"),
    switchover(to_slave=False),
    switchover(to_slave=False),
    switchover(to_slave=True),
    Fault("FLUSH BINARY LOGS", rotate),
    Fault("FLUSH BINARY LOGS", rotate),
    Fault("backup incremental", incremental),
]


def disturb(cluster: Cluster, choice: random.Random, minutes: float) -> list[str]:
    """Until the time is over; what does not heal, a sentence each."""
    begin = time.monotonic()
    end = begin + minutes * 60
    special: list[tuple[float, Callable[[], str | None]]] = [
        (begin + minutes * 60 * number / (LATER_BACKUPS + 1), lambda: full_backup(cluster))
        for number in range(1, LATER_BACKUPS + 1)
    ]
    special.append((begin + minutes * 30, lambda: kill_everything(cluster)))
    special.sort(key=lambda each: each[0])
    # In a short run some of these come when the time is over; they come all the same.
    while special or time.monotonic() < end:
        time.sleep(choice.uniform(*CALM_SECONDS))
        if problem := cluster.wait_until_ok():
            return [problem]
        now = time.monotonic()
        if special and (now >= special[0][0] or now >= end):
            if problem := special.pop(0)[1]():
                return [problem]
            continue
        status = cluster.status()
        if status is None:
            continue
        disturbance = choice.choice(DISTURBANCES)
        began = time.monotonic()
        try:
            hit = disturbance.strike(cluster, status)
        except (LookupError, pymysql.MySQLError, OSError) as error:
            hit = f"not done: {error}"
        print(f"  {began - begin:6.1f} s: {disturbance.name}: {hit}", flush=True)
    problem = cluster.wait_until_ok()
    return [problem] if problem else []


# The reference --------------------------------------------------------------------------------------------


def reference(cluster: Cluster) -> History:
    """What the real tool prints of all binlog files of the Master."""
    document, status = cluster.document(), cluster.status()
    master = roles(status)["Master"]
    instance = next(each for each in document["instances"] if each["id"] == master)
    binlogs = Path(instance["data_directory"]).parent / "binlog"
    files = sorted(
        (path for path in binlogs.iterdir() if path.suffix[1:].isdigit()), key=lambda path: int(path.suffix[1:])
    )
    tool = "mariadb-binlog"
    if cluster.flavor == "mysql":
        tool = str(Path(os.environ["MYSQL_SERVICE_MYSQL_DIR"]) / "bin" / "mysqlbinlog")
    process = subprocess.Popen(
        [tool, "--no-defaults", "--base64-output=decode-rows", "--verbose", *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TZ": "UTC"},
    )
    complaints: list[str] = []
    listener = threading.Thread(target=lambda: complaints.extend(process.stderr))
    listener.start()
    history = History(read(process.stdout))
    listener.join()
    if process.wait() != 0:
        raise SystemExit(f"{tool} failed: {' '.join(complaints)}")
    return history


# Restoring ------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A point in time, and how many transactions the history may have up to it."""

    option: str
    value: str
    least: int
    most: int


def iso(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds // MILLION, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{microseconds % MILLION:06}Z"


def choose(choice: random.Random, history: History, from_count: int, slack: int) -> Target:
    """A random target after the first full backup. See `slack_of`."""
    while (target := any_target(choice, history, from_count, slack)).least <= from_count:
        pass
    return target


def slack_of(flavor: str) -> int:
    """By how many microseconds the servers of a cluster may disagree about a transaction's time.

    MySQL hands the time of the original commit on. A MariaDB server writes its own: where the transaction was made that
    of its commit, at a replica that of its last statement, which is a second earlier for about one in a thousand.
    """
    return MILLION if flavor == "mariadb" else 0


def any_target(choice: random.Random, history: History, from_count: int, slack: int) -> Target:
    place = choice.randrange(from_count + 1, len(history.transactions))
    transaction = history.transactions[place]
    kind = choice.choice(["to-gtid", "before-gtid", "to-time", "to-time"])
    if kind == "to-gtid":
        return Target("--to-gtid", transaction.gtid, place + 1, place + 1)
    if kind == "before-gtid":
        return Target("--before-gtid", transaction.gtid, place, place)
    # Exactly a transaction's time, just before one, or any: on MariaDB all of these are of whole seconds.
    shift = choice.choice([0, -1, choice.randrange(MILLION)])
    newest = max(each.microseconds for each in history.transactions)
    microseconds = min(transaction.microseconds + shift, newest)
    bounds = (history.up_to_time(microseconds - slack), history.up_to_time(microseconds + slack))
    return Target("--to-time", iso(microseconds), *bounds)


class Restores:
    """Restores on one instance that has no role."""

    def __init__(self, cluster: Cluster, history: History, instance: str):
        self.cluster = cluster
        self.history = history
        self.instance = instance
        self.backups = self.list_backups()

    def list_backups(self) -> list[tuple[int, str]]:
        """How many transactions each full backup has, and its name."""
        listed = self.do("backup", "list", "-o", "json")
        if listed.exit_code != 0:
            raise SystemExit(f"backup list: {listed.reason()}")
        return sorted((self.history.base(each["gtid"]), each["id"]) for each in json.loads(listed.stdout)["backups"])

    def do(self, *arguments: str) -> Command:
        return self.cluster.run(*arguments, "--dir", str(self.cluster.directory), timeout_seconds=RESTORE_SECONDS)

    def incarnation(self) -> str:
        status = self.cluster.status() or {"instances": []}
        found = {each["id"]: each.get("incarnation") for each in status["instances"]}
        if not found.get(self.instance):
            raise SystemExit(f"the incarnation of {self.instance} is not known")
        return found[self.instance]

    def full(self, count: int) -> str | None:
        """The newest full backup with no more than so many transactions."""
        name = max(each for each in self.backups if each[0] <= count)[1]
        discard = ("--discard", self.incarnation())
        command = self.do("restore", "full", name, "--instance", self.instance, *discard, "--yes")
        return None if command.exit_code == 0 else f"restore full {name}: {command.reason()}"

    def incremental(self, target: Target) -> str | None:
        arguments = [target.option, target.value]
        command = self.do("restore", "incremental", *arguments, "--instance", self.instance, "--yes")
        return None if command.exit_code == 0 else f"restore incremental {' '.join(arguments)}: {command.reason()}"

    def compare(self, target: Target) -> tuple[int, str | None]:
        """Of how many transactions exactly the instance has the rows; or what is wrong with them."""
        document = self.cluster.document()
        address = next(each["address"] for each in document["instances"] if each["id"] == self.instance)
        found = ledger.rows_at(address, document["app"])
        count = self.history.prefix_of(found, target.least, target.most)
        if count is not None:
            return count, None
        expected = self.history.rows(target.least)
        missing, extra = set(expected) - set(found), set(found) - set(self.history.rows(target.most))
        return 0, (
            f"{len(expected)} rows expected, {len(found)} found; missing {shown(missing)}, too many {shown(extra)}"
        )


def shown(rows: set[Row]) -> str:
    text = ", ".join(f"{row.writer}/{row.number}" for row in sorted(rows)[:4])
    return f"{len(rows)} ({text})" if rows else "none"


def restore_all(restores: Restores, targets: list[Target], choice: random.Random) -> list[str]:
    """Every target; what is not as it should be, a sentence each."""
    wrong = []
    number = 0
    for group in in_groups(targets, choice):
        began = time.monotonic()
        if problem := restores.full(group[0].least):
            return [*wrong, problem]
        for target in group:
            number += 1
            count, problem = 0, restores.incremental(target)
            if not problem:
                count, problem = restores.compare(target)
            print(
                f"  target {number:3} of {len(targets)}: {target.option} {target.value}: "
                f"{problem or f'{count} transactions, exactly'} ({time.monotonic() - began:.1f} s)",
                flush=True,
            )
            if problem:
                wrong.append(f"{target.option} {target.value}: {problem}")
                break
            began = time.monotonic()
    return wrong


def in_groups(targets: list[Target], choice: random.Random) -> list[list[Target]]:
    """In each group the next one goes on from the one before, so it is later."""
    groups: list[list[Target]] = []
    left = list(targets)
    while left:
        group = [left.pop(choice.randrange(len(left)))]
        while left and choice.random() < GOES_ON:
            later = [each for each in left if each.least > group[-1].most]
            if not later:
                break
            group.append(choice.choice(later))
            left.remove(group[-1])
        groups.append(group)
    return groups


# The whole ------------------------------------------------------------------------------------------------


def write_and_disturb(
    cluster: Cluster, choice: random.Random, options: argparse.Namespace
) -> tuple[list[Note], list[str]]:
    document = cluster.document()
    journal = cluster.directory.parent / "notes"
    journal.mkdir()
    with ledger.connect(document["master"], document["app"], autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute(ledger.TABLE)
    stop = threading.Event()
    writers = [Writer(number, document, journal, stop) for number in range(1, options.writers + 1)]
    strangers = Strangers(document, stop)
    threads = [*writers, strangers]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        problem = full_backup(cluster)
        wrong = [problem] if problem else disturb(cluster, choice, options.minutes)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    notes = [note for writer in writers for note in writer.notes]
    failures = sum(writer.failures for writer in writers)
    print(f"{len(notes)} writes acknowledged, {failures} failed, {strangers.done} other statements", flush=True)
    return notes, wrong


def archived_bytes(cluster: Cluster, history: History) -> str:
    """What is in the store, for the record."""
    store = Path(cluster.document()["backup_store"].removeprefix("file://")) / "binlog"
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in (store / "index").rglob("*.json")]
    raw = sum(block["length"] for each in documents for block in each["blocks"])
    stored = sum(block["stored"] for each in documents for block in each["blocks"])
    sources = len({each["source"] for each in documents})
    return (
        f"the archive has {len(documents)} segments of {sources} sources, {raw / 1e6:.1f} MB of binlogs in "
        f"{stored / 1e6:.1f} MB, for {len(history.transactions)} transactions"
    )


def archive_problems(cluster: Cluster) -> list[str]:
    """What the cluster says is wrong with its archive and does not pass: what was so lately stays until the next look."""
    deadline = time.monotonic() + PASSING_PROBLEM_SECONDS
    while True:
        told = (cluster.status() or {}).get("problems", ["the monitor does not answer, so nothing is known of the archive"])
        found = [problem for problem in told if "archive" in problem]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def run(options: argparse.Namespace, directory: Path) -> list[str]:
    flavor = options.flavor
    choice = random.Random(f"{options.seed} {flavor}")
    cluster = Cluster(directory / "cluster", find_binary(options.binary), flavor, options.port_base)
    with cluster.running():
        notes, wrong = write_and_disturb(cluster, choice, options)
        if wrong:
            return wrong
        if problem := wait_until_replicated(cluster.document()):
            return [problem]
        if (said := incremental(cluster, {})) != "done":
            return [f"backup incremental: {said}"]
        history = reference(cluster)
        if wrong := against_notes(history, notes, MILLION if flavor == "mariadb" else 1):
            return wrong
        print(f"the history has {len(history.transactions)} transactions, and agrees with every note", flush=True)
        print(archived_bytes(cluster, history), flush=True)
        if missing := archive_problems(cluster):
            return missing
        instance = roles(cluster.status())["Slave"]
        for verb in ("detach", "unregister"):
            command = cluster.run(verb, instance, "--dir", str(cluster.directory), "--yes", timeout_seconds=120)
            if command.exit_code != 0:
                return [f"{verb} {instance}: {command.reason()}"]
        restores = Restores(cluster, history, instance)
        begin = restores.backups[0][0]
        targets = [choose(choice, history, begin, slack_of(flavor)) for _ in range(options.targets - 1)]
        targets.append(Target("--to-gtid", history.transactions[-1].gtid, *[len(history.transactions)] * 2))
        return restore_all(restores, targets, choice)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/chaos ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", choices=["mariadb", "mysql", "both"], default="both")
    parser.add_argument("--minutes", type=float, default=30, help="of writing and faults (default: 30)")
    parser.add_argument("--targets", type=int, default=50, help="that are restored (default: 50)")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, help="chooses faults and targets (default: a new one, printed)")
    parser.add_argument("--port-base", type=int, default=26300)
    parser.add_argument("--directory", help="where the clusters are made (default: the system's temporary directory)")
    parser.add_argument("--binary", help="the mysql-service to use (default: a release build of this checkout)")
    parser.add_argument("--keep", action="store_true", help="keep the directory in any case")
    options = parser.parse_args()
    if options.targets < 1:
        parser.error("--targets must be at least 1")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {options.seed}", flush=True)
    return on_each_flavor(options, "ledger", run, f"{options.targets} targets, each with exactly its rows")


if __name__ == "__main__":
    sys.exit(main())
