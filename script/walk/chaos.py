"""Faults under load: the walk of `script/bench switchover`, with processes killed and frozen at random moments.

Each round starts a load, chooses a fault by the seed (at rest, or in the middle of a switchover), waits until the
cluster is OK again, stops the load, and compares every table and every row ever acknowledged on every instance.
All the while a watcher asks the servers whether two of them are writable at once. The same seed chooses the same
faults; when exactly they hit is up to the machine.

Exit code 0: nothing was lost. 1: something was, or the cluster did not heal; its directory stays.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Callable, NamedTuple

import pymysql

import ledger
from cluster import Cluster, differing_checksums, end_on_signals, find_binary, new_directory, wait_until_replicated
from journal import Journal
from load import Load
from switchover import Ledger, roles

# The latest moment of a fault, counted from the start of a switchover: a little longer than one takes.
FAULT_WITHIN_SECONDS = 0.6

# How long a process stays frozen. Longer than any probe's deadline.
FREEZE_SECONDS = 4.0

# How long processes may outlive the parent that was killed. A Master whose ackers were told to end at the same moment
# has commits that wait, is not shut down over them, and is killed when its grace time of 30 s is over.
ORPHAN_SECONDS = 45.0


class Process(NamedTuple):
    """A process of the cluster, as /proc shows it."""

    pid: int
    parent: int
    arguments: list[str]

    def is_server(self) -> bool:
        return any(Path(word).name in ("mariadbd", "mysqld") for word in self.arguments[:3])

    def runs(self, command: str) -> bool:
        """Whether it is `mysql-service COMMAND`."""
        program, *rest = self.arguments or [""]
        return Path(program).name == "mysql-service" and command in rest[:2]

    def mentions(self, text: str) -> bool:
        """Whether a path in its arguments has this as a component or a file's stem."""
        return any(
            text in (part, Path(part).stem) for word in self.arguments for part in word.replace("=", "/").split("/")
        )


def processes(root: int) -> list[Process]:
    """That process and all that descend from it; empty when it is gone."""
    found: dict[int, Process] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            # The name in parentheses may hold anything; the parent is the second field after it.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(entry.name)] = Process(int(entry.name), int(parent), arguments)
    family = [root] if root in found else []
    for pid in family:
        family += [process.pid for process in found.values() if process.parent == pid]
    return [found[pid] for pid in family]


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Faults ---------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """Something bad that is done to a cluster."""

    name: str
    strike: Callable[[Cluster, dict], str]
    """Does it. Gets the status from before; returns what was hit."""


def find(cluster: Cluster, what: str, wanted: Callable[[Process], bool]) -> Process:
    """The one process that is meant."""
    for process in processes(cluster.document()["pid"]):
        if wanted(process):
            return process
    raise LookupError(f"the cluster has no process that is {what}")


def server_of(cluster: Cluster, instance: str) -> Process:
    return find(cluster, f"the server of {instance}", lambda one: one.is_server() and one.mentions(instance))


def kill_server(role: str) -> Fault:
    def strike(cluster: Cluster, status: dict) -> str:
        instance = roles(status)[role]
        os.kill(server_of(cluster, instance).pid, signal.SIGKILL)
        return instance

    return Fault(f"kill -9 of the {role}'s server", strike)


def freeze_server(role: str) -> Fault:
    def strike(cluster: Cluster, status: dict) -> str:
        instance = roles(status)[role]
        pid = server_of(cluster, instance).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(FREEZE_SECONDS)
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
        return instance

    return Fault(f"the {role}'s server frozen for {FREEZE_SECONDS:.0f} s", strike)


def kill_agent(role: str) -> Fault:
    def strike(cluster: Cluster, status: dict) -> str:
        instance = roles(status)[role]
        agent = find(cluster, f"the agent of {instance}", lambda one: one.runs("instance") and one.mentions(instance))
        os.kill(agent.pid, signal.SIGKILL)
        return instance

    return Fault(f"kill -9 of the {role}'s agent", strike)


def kill_daemon(command: str, name: str) -> Fault:
    def strike(cluster: Cluster, status: dict) -> str:
        daemon = find(cluster, name, lambda one: one.runs(command) and (command == "monitor" or one.mentions(name)))
        os.kill(daemon.pid, signal.SIGKILL)
        return name

    return Fault(f"kill -9 of {name}", strike)


def kill_everything(cluster: Cluster, _: dict) -> str:
    """Ends the parent of all, sees everything gone, and starts the cluster again."""
    parent = cluster.document()["pid"]
    family = [process.pid for process in processes(parent)]
    os.kill(parent, signal.SIGKILL)
    deadline = time.monotonic() + ORPHAN_SECONDS
    while left := [pid for pid in family if alive(pid)]:
        if time.monotonic() > deadline:
            raise LookupError(f"processes {left} outlived the parent of all by {ORPHAN_SECONDS:.0f} s")
        time.sleep(0.05)
    cluster.up()
    return f"{len(family)} processes"


FAULTS = [
    *(kill_server(role) for role in ("Master", "Standby", "Slave")),
    *(freeze_server(role) for role in ("Master", "Standby", "Slave")),
    *(kill_agent(role) for role in ("Master", "Standby", "Slave")),
    kill_daemon("monitor", "monitor"),
    kill_daemon("proxy", "proxy-master"),
    kill_daemon("proxy", "proxy-slave"),
    Fault("kill -9 of the parent of all, then `up`", kill_everything),
]


# Watching -------------------------------------------------------------------------------------------------


class WritableWatcher(threading.Thread):
    """Asks every server again and again whether it is writable. Two are, when one is seen writable both before
    and after another was."""

    def __init__(self, document: dict):
        super().__init__(name="writable-watcher", daemon=True)
        self.app = document["app"]
        self.addresses = {instance["id"]: instance["address"] for instance in document["instances"]}
        self.connections: dict[str, pymysql.Connection] = {}
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.looks = 0

    def run(self) -> None:
        while not self.stop.wait(0.02):
            writable = [name for name in self.addresses if self.is_writable(name)]
            self.looks += 1
            if len(writable) > 1 and self.is_writable(writable[0]):
                self.wrong.append(f"{' and '.join(writable)} were writable at once")

    def is_writable(self, name: str) -> bool:
        """A server that does not answer counts as not writable: this watcher misses rather than invents."""
        try:
            if name not in self.connections:
                self.connections[name] = ledger.connect(self.addresses[name], self.app, True, limit_seconds=2)
            with self.connections[name].cursor() as cursor:
                cursor.execute("SELECT @@global.read_only")
                return str(cursor.fetchone()[0]).upper() in ("0", "OFF")
        except (pymysql.MySQLError, OSError):
            if connection := self.connections.pop(name, None):
                ledger.close_quietly(connection)
            return False

    def __enter__(self) -> WritableWatcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.join()


# Rounds ---------------------------------------------------------------------------------------------------


def round_of_faults(cluster: Cluster, choice: random.Random, number: int, options: argparse.Namespace) -> list[str]:
    """One round; what went wrong, a sentence each."""
    directory = cluster.directory.parent
    journal = directory / "journal"
    document = cluster.document()
    status = cluster.status()
    if status is None:
        return ["the monitor does not answer"]
    fault = choice.choice(FAULTS)
    in_switchover = choice.random() < 0.5
    delay = choice.uniform(0, FAULT_WITHIN_SECONDS)
    load = Load(document, directory, options.threads, options.tables, options.rows)
    first_writer = number * 100 + 1
    with WritableWatcher(document) as watcher, load:
        with Ledger(cluster.directory / "cluster.json", journal, options.writers, first_writer):
            time.sleep(1)
            switching = threading.Thread(target=cluster.switchover)
            if in_switchover:
                switching.start()
            time.sleep(delay)
            began = time.monotonic()
            try:
                hit = fault.strike(cluster, status)
            except (LookupError, KeyError) as error:
                return [f"{fault.name}: {error}"]
            finally:
                if in_switchover:
                    switching.join()
            problem = cluster.wait_until_ok()
            healed = time.monotonic() - began
            time.sleep(1)
    moment = f"{delay * 1000:.0f} ms into a switchover" if in_switchover else "at rest"
    print(f"round {number:3}: {fault.name} ({hit}), {moment}: OK after {healed:.1f} s", flush=True)
    wrong = [problem] if problem else []
    wrong += watcher.wrong[:1]
    if watcher.looks == 0:
        wrong.append("the watcher never looked whether two servers are writable")
    if not problem:
        noted = Journal.load(journal)
        problem = wait_until_replicated(document)
        wrong += [problem] if problem else differing_checksums(document) + ledger.check(document, noted)
    return [f"{fault.name}, {moment}: {sentence}" for sentence in wrong]


def run(options: argparse.Namespace, flavor: str, directory: Path) -> list[str]:
    """All rounds on one flavor; ends with the first that goes wrong, so that its traces stay."""
    choice = random.Random(f"{options.seed} {flavor}")
    cluster = Cluster(directory / "cluster", find_binary(options.binary), flavor, options.port_base)
    with cluster.running():
        document = cluster.document()
        Load(document, directory, options.threads, options.tables, options.rows).prepare()
        for number in range(1, options.rounds + 1):
            if wrong := round_of_faults(cluster, choice, number, options):
                return [f"round {number}: {sentence}" for sentence in wrong]
        rows = len(Journal.load(directory / "journal").rows())
        print(f"{flavor}: {options.rounds} rounds, {rows} acknowledged rows, none lost")
        return []


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", choices=["mariadb", "mysql", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=100, help="faults on each flavor (default: 100)")
    parser.add_argument("--seed", type=int, help="chooses the faults (default: a new one, printed)")
    parser.add_argument("--threads", type=int, default=4, help="sysbench's connections (default: 4)")
    parser.add_argument("--tables", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2000, help="rows in each table")
    parser.add_argument("--writers", type=int, default=4, help="the ledger's connections (default: 4)")
    parser.add_argument("--port-base", type=int, default=24600)
    parser.add_argument("--directory", help="where the clusters are made (default: the system's temporary directory)")
    parser.add_argument("--binary", help="the mysql-service to use (default: a release build of this checkout)")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {options.seed}")
    end_on_signals()
    failed = False
    for flavor in ["mariadb", "mysql"] if options.flavor == "both" else [options.flavor]:
        directory = new_directory(f"chaos-{flavor}-", options.directory)
        wrong = run(options, flavor, directory)
        for sentence in wrong:
            print(f"NOT AS PROMISED: {sentence}")
        if wrong:
            print(f"kept: {directory}; again: script/chaos --flavor {flavor} --seed {options.seed}")
            failed = True
        else:
            shutil.rmtree(directory)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
