"""Planned switchovers under load, as a client sees them.

A cluster is started with `mysql-service up`. sysbench's `oltp_read_write` and the ledger's writers work through
the master's port while switchovers run one after the other, each asked for on the command line. Then some more are
given up because a step fails. Afterwards the load stops, every table and every acknowledged row is compared on every
instance, and the cluster is started once more.

Exit code 0: every promise was kept. 1: one was not; the cluster's directory stays. 2: bad options.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import ledger
import undone
from cluster import Cluster, Command, differing_checksums, find_binary, on_each_flavor, wait_until_replicated
from journal import Journal, Stall
from load import Load

# What is promised of a planned switchover under this load.
STALL_P50_SECONDS = 0.100
STALL_P99_SECONDS = 0.500
ERRORS_PER_CONNECTION = 1

# What is promised of `up`, until everything is OK: the first time, and later.
START_SECONDS = {"mariadb": (10, 5), "mysql": (20, 10)}

# A switchover's window ends this long after the command returned: late errors and stalls are its own too.
SETTLE_SECONDS = 1.0

# How long the load runs undisturbed first, to know what gaps the machine makes by itself.
QUIET_WINDOWS = 5


class Window(NamedTuple):
    """One switchover, or a time without one, as the clients saw it."""

    command: Command | None
    begin: float
    end: float
    leads: str


class Seen(NamedTuple):
    """What happened to the clients in a window."""

    stall: Stall
    ledger_errors: int
    """Of the ledger's connection that met most."""
    load_errors: int
    """Of sysbench's connection that met most."""


class Ledger:
    """The ledger's writers, as a process of their own. Ends with the `with` block."""

    def __init__(self, cluster_file: Path, journal: Path, writers: int, first_writer: int = 1):
        self.command = [
            sys.executable,
            str(Path(ledger.__file__).resolve()),
            "write",
            *("--cluster", str(cluster_file)),
            *("--journal", str(journal)),
            *("--writers", str(writers)),
            *("--first-writer", str(first_writer)),
        ]

    def __enter__(self) -> Ledger:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        try:
            if self.process.stdout.readline() != "writing\n":
                raise SystemExit("the ledger does not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def percentile(values: list[float], share: float) -> float:
    """By nearest rank: a value that really occurred."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def roles(status: dict) -> dict[str, str]:
    """Who has the roles that one instance has."""
    return {instance["role"]: instance["id"] for instance in status["instances"]}


def quiet(seconds: float) -> Window:
    """A time without a switchover."""
    begin = time.monotonic()
    time.sleep(seconds)
    return Window(None, begin, time.monotonic(), "")


def switch(cluster: Cluster, number: int, rotate: bool) -> Window:
    """One switchover: to the Standby, or every second time to a Slave."""
    before = cluster.status()
    if before is None:
        raise SystemExit("the monitor does not answer; see the log in the cluster's directory")
    slave = roles(before).get("Slave")
    target = ["--to", slave] if rotate and slave and number % 2 == 0 else []
    command = cluster.switchover(*target)
    time.sleep(SETTLE_SECONDS)
    after = cluster.status() or before
    leads = f"{roles(before).get('Master')} → {roles(after).get('Master')}"
    return Window(command, command.began, time.monotonic(), leads)


def look(window: Window, journal: Journal, load: Load) -> Seen:
    """What the clients noted in the window."""
    own = journal.errors_per_connection(window.begin, window.end)
    others = load.errors_per_connection(window.begin, window.end)
    return Seen(
        journal.stall(window.begin, window.end), max(own.values(), default=0), max(others.values(), default=0)
    )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


def print_table(windows: list[Window], seen: list[Seen]) -> None:
    """A line per switchover. Stalls: with all writers taken together, and of the writer that waited longest.
    Errors: of the connection that met most."""
    print("   #  master                                  command   stall ms        errors a connection")
    print("                                                   ms   all   longest   ledger  sysbench")
    for number, (window, one) in enumerate(zip(windows, seen), start=1):
        failed = "" if window.command.exit_code == 0 else f"   exit code {window.command.exit_code}"
        print(
            f"{number:4}  {window.leads:36} {milliseconds(window.command.seconds):>10}"
            f"{milliseconds(one.stall.service):>6}{milliseconds(one.stall.worst_connection):>10}"
            f"{one.ledger_errors:>9}{one.load_errors:>10}{failed}"
        )


def print_steps(windows: list[Window]) -> None:
    """Where the time goes: every step that took a millisecond, with the median over the switchovers."""
    took = defaultdict(list)
    for window in windows:
        if window.command.exit_code != 0:
            continue
        for position, step in enumerate(json.loads(window.command.stdout).get("steps", [])):
            if step.get("milliseconds") is not None:
                took[position].append((step["milliseconds"], step["title"]))
    slow = {position: each for position, each in took.items() if percentile([ms for ms, _ in each], 0.5) >= 1}
    if slow:
        print("\nsteps of at least 1 ms (median; the title is of the last switchover)")
    for _, each in sorted(slow.items()):
        print(f"{percentile([ms for ms, _ in each], 0.5):8} ms  {each[-1][1]}")


def judge(windows: list[Window], seen: list[Seen]) -> list[str]:
    """The promises about the switchovers themselves that were not kept."""
    wrong = []
    for number, (window, one) in enumerate(zip(windows, seen), start=1):
        if window.command.exit_code != 0:
            wrong.append(f"switchover {number}: exit code {window.command.exit_code}: {window.command.reason()}")
        for whose, errors in (("ledger", one.ledger_errors), ("sysbench", one.load_errors)):
            if errors > ERRORS_PER_CONNECTION:
                wrong.append(f"switchover {number}: a connection of the {whose} met {errors} errors")
    stalls = [one.stall.worst_connection for one in seen]
    for share, limit in ((0.5, STALL_P50_SECONDS), (0.99, STALL_P99_SECONDS)):
        if percentile(stalls, share) > limit:
            found, allowed = milliseconds(percentile(stalls, share)), milliseconds(limit)
            wrong.append(f"the stall's p{share * 100:.0f} is {found} ms, promised are {allowed} ms")
    return wrong


def print_summary(quiet_seen: list[Seen], seen: list[Seen], load: Load) -> None:
    print("\nlongest gap between acknowledged writes, ms      p50    p99    max")
    for name, which in (("without a switchover", quiet_seen), ("switchover", seen)):
        for view, field in (("all writers together", 0), ("writer that waited longest", 1)):
            values = [one.stall[field] for one in which]
            line = "".join(f"{milliseconds(value):>7}" for value in (
                percentile(values, 0.5), percentile(values, 0.99), max(values)
            ))
            print(f"  {name + ', ' + view:48}{line}")
    rates = load.transactions_per_second
    print(f"sysbench: {percentile(rates, 0.5):.0f} transactions a second (median), {len(load.errors)} errors in all")


def run(options: argparse.Namespace, directory: Path) -> list[str]:
    """The whole walk; what was not as promised, a sentence each."""
    cluster = Cluster(
        directory / "cluster", find_binary(options.binary), options.flavor, options.port_base, options.instances
    )
    with cluster.running() as started:
        print(f"{options.flavor}: cluster of {cluster.instances} up and OK in {started.seconds:.1f} s", flush=True)
        document = cluster.document()
        load = Load(document, directory, options.threads, options.tables, options.rows)
        load.prepare()
        journal_directory = directory / "journal"
        windows: list[Window] = []
        wrong: list[str] = []
        with load, Ledger(cluster.directory / "cluster.json", journal_directory, options.writers):
            time.sleep(2)
            quiet_windows = [quiet(1 + SETTLE_SECONDS) for _ in range(QUIET_WINDOWS)]
            for number in range(1, options.switchovers + 1):
                if problem := cluster.wait_until_ok() or load.failure():
                    wrong.append(f"before switchover {number}: {problem}")
                    break
                windows.append(switch(cluster, number, options.rotate))
            if not wrong:
                wrong += undone.measure(cluster, document)
            if problem := load.failure():
                wrong.append(problem)
        journal = Journal.load(journal_directory)
        seen = [look(window, journal, load) for window in windows]
        if seen:
            print_table(windows, seen)
            print_steps(windows)
            print_summary([look(window, journal, load) for window in quiet_windows], seen, load)
            wrong += judge(windows, seen)
        return wrong + compare(cluster, document, journal) + start_again(cluster, started)


def compare(cluster: Cluster, document: dict, journal: Journal) -> list[str]:
    """Holds every instance against the others and against the ledger, once all is quiet."""
    if problem := cluster.wait_until_ok():
        return [f"after the load: {problem}"]
    if problem := wait_until_replicated(document):
        return [problem]
    wrong = differing_checksums(document) + ledger.check(document, journal)
    if not wrong:
        rows = len(journal.rows())
        print(f"CHECKSUM TABLE is equal on all instances; all {rows} acknowledged rows are on each of them, once")
    return wrong


def start_again(cluster: Cluster, first: Command) -> list[str]:
    """Stops the cluster and starts it on its data. Whether that, and the first start, took longer than promised."""
    stopped = cluster.down()
    if stopped.exit_code != 0:
        return [f"down failed: {stopped.reason()}"]
    later = cluster.up()
    print(f"stopped in {stopped.seconds:.1f} s, up and OK again in {later.seconds:.1f} s")
    limits = START_SECONDS[cluster.flavor]
    return [
        f"the {which} start took {start.seconds:.1f} s, promised are {limit} s"
        for which, start, limit in zip(("first", "later"), (first, later), limits)
        if start.seconds > limit
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/bench switchover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", choices=["mariadb", "mysql", "both"], default="both")
    parser.add_argument("--switchovers", type=int, default=20)
    parser.add_argument("--instances", type=int, default=3, help="of the cluster, two or more (default: 3)")
    parser.add_argument("--rotate", action="store_true", help="every second switchover goes to a Slave by name")
    parser.add_argument("--threads", type=int, default=8, help="sysbench's connections (default: 8)")
    parser.add_argument("--tables", type=int, default=4)
    parser.add_argument("--rows", type=int, default=10000, help="rows in each table")
    parser.add_argument("--writers", type=int, default=4, help="the ledger's connections (default: 4)")
    parser.add_argument("--port-base", type=int, default=24300)
    parser.add_argument("--directory", help="where the clusters are made (default: the system's temporary directory)")
    parser.add_argument("--binary", help="the mysql-service to use (default: a release build of this checkout)")
    parser.add_argument("--keep", action="store_true", help="keep the directory in any case")
    options = parser.parse_args()
    if options.switchovers < 1:
        parser.error("--switchovers must be at least 1")
    return on_each_flavor(options, "walk", run)


if __name__ == "__main__":
    sys.exit(main())
