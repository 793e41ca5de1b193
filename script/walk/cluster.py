"""A whole cluster, used as a person uses it: through the `mysql-service` command and nothing else."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import pymysql

import ledger

ROOT = Path(__file__).resolve().parents[2]

# How long `up` may take. The promise is much stricter; it is checked by the tests, not here.
START_SECONDS = 120

# How long a cluster may take to be OK again after faults have ended.
HEAL_SECONDS = 120

# What went wrong, of one cluster: nobody reads thousands of lines.
MOST_SENTENCES = 20


class Command(NamedTuple):
    """How a command went. Times are of the monotonic clock, in seconds."""

    began: float
    ended: float
    exit_code: int
    stdout: str
    stderr: str

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def reason(self) -> str:
        """What it said when it failed, on one line."""
        return " ".join((self.stderr or self.stdout).split()) or "no output"


@dataclass
class Cluster:
    """A cluster in a directory."""

    directory: Path
    binary: Path
    flavor: str
    port_base: int
    instances: int = 3

    @contextmanager
    def running(self) -> Iterator[Command]:
        """Starts it, tells how that went, and stops it however the `with` block ends."""
        try:
            yield self.up()
        finally:
            stopped = self.down()
            if stopped.exit_code != 0:
                print(f"down failed: {stopped.reason()}", file=sys.stderr)

    def up(self) -> Command:
        """Starts it, new or with the data it has, and returns when it is OK."""
        with undisturbed():
            command = self.run(
                "up",
                *("--dir", str(self.directory)),
                *("--instances", str(self.instances)),
                *("--flavor", self.flavor),
                *("--port-base", str(self.port_base)),
                "--detach",
                timeout_seconds=START_SECONDS,
            )
        if command.exit_code != 0:
            raise SystemExit(f"the cluster does not start: exit code {command.exit_code}: {command.reason()}")
        return command

    def down(self) -> Command:
        """Stops it, cleanly."""
        return self.run("down", "--dir", str(self.directory), timeout_seconds=START_SECONDS)

    def document(self) -> dict:
        """`cluster.json`."""
        return json.loads((self.directory / "cluster.json").read_text(encoding="utf-8"))

    def status(self) -> dict | None:
        """What `status -o json` says; None while the monitor does not answer."""
        command = self.run("status", "-o", "json", "--dir", str(self.directory), timeout_seconds=30)
        return json.loads(command.stdout) if command.exit_code == 0 else None

    def switchover(self, *arguments: str) -> Command:
        """A switchover, waited for."""
        return self.run(
            "switchover", "--dir", str(self.directory), "--yes", "-o", "json", *arguments, timeout_seconds=120
        )

    def wait_until_ok(self, limit_seconds: float = HEAL_SECONDS) -> str | None:
        """Waits until every instance is OK. Returns what is wrong when the time is over."""
        deadline = time.monotonic() + limit_seconds
        wrong = "the monitor does not answer"
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None:
                bad = [
                    f"{instance['id']} ({instance['role']}) is {instance['status']}: {instance['reason']}"
                    for instance in status["instances"]
                    if instance["status"] != "OK"
                ]
                masters = [instance["id"] for instance in status["instances"] if instance["role"] == "Master"]
                if len(masters) != 1:
                    bad.append(f"there are {len(masters)} masters")
                if not bad and status.get("operation") is None:
                    return None
                wrong = "; ".join(bad) or f"operation {status['operation']} still runs"
            time.sleep(0.1)
        return f"not OK after {limit_seconds:.0f} s: {wrong}"

    def run(self, *arguments: str, timeout_seconds: float) -> Command:
        """Runs the binary."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                [self.binary, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            shown = " ".join(arguments)
            output = (expired.stderr or b"").decode(errors="replace")
            return Command(began, time.monotonic(), -1, "", f"`{shown}` took over {timeout_seconds} s: {output}")
        return Command(began, time.monotonic(), done.returncode, done.stdout, done.stderr)


def end_on_signals() -> None:
    """SIGTERM and SIGINT end the program through every `with` and `finally`, so that what it started is stopped."""

    def end(number: int, _: object) -> None:
        # A second one would interrupt the stopping.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        print(f"{signal.Signals(number).name}: stopping what was started", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)


def new_directory(prefix: str, parent: str | None) -> Path:
    """A new directory in that one, which is made when it is not there, or in the system's temporary one."""
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    # The servers run as another user when this one is root.
    directory.chmod(0o755)
    return directory


def on_each_flavor(
    options: argparse.Namespace,
    name: str,
    run: Callable[[argparse.Namespace, Path], list[str]],
    right: str = "",
) -> int:
    """Runs on each wanted family, in a directory that stays when something was not as promised; the exit code."""
    end_on_signals()
    failed = False
    for flavor in ["mariadb", "mysql"] if options.flavor == "both" else [options.flavor]:
        directory = new_directory(f"{name}-{flavor}-", options.directory)
        wrong = run(argparse.Namespace(**{**vars(options), "flavor": flavor}), directory)
        for sentence in wrong[:MOST_SENTENCES]:
            print(f"NOT AS PROMISED: {sentence}")
        if len(wrong) > MOST_SENTENCES:
            print(f"NOT AS PROMISED: and {len(wrong) - MOST_SENTENCES} more")
        if not wrong and right:
            print(f"{flavor}: {right}", flush=True)
        if wrong or options.keep:
            print(f"kept: {directory}", flush=True)
        else:
            shutil.rmtree(directory)
        failed |= bool(wrong)
        print(flush=True)
    return 1 if failed else 0


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal that comes meanwhile is acted upon at the end: an `up` that is cut off leaves nobody to ask what it
    has started."""
    came: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: came.append(number)) for each in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


# The same data everywhere ---------------------------------------------------------------------------------


def wait_until_replicated(document: dict, limit_seconds: float = HEAL_SECONDS) -> str | None:
    """Writes one last row through the master's port and waits until every instance shows it: since replicas
    commit in the master's order, they then have everything before it too. Returns who does not show it."""
    app = document["app"]
    mark = time.time_ns()
    connection = ledger.connect(document["master"], app, autocommit=True)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS mark (id BIGINT NOT NULL PRIMARY KEY)")
        cursor.execute("INSERT INTO mark VALUES (%s)", (mark,))
    connection.close()
    deadline = time.monotonic() + limit_seconds
    waiting = [instance["address"] for instance in document["instances"]]
    while waiting and time.monotonic() < deadline:
        waiting = [address for address in waiting if not shows_mark(address, app, mark)]
        if waiting:
            time.sleep(0.05)
    return f"{', '.join(waiting)} did not receive the last row in {limit_seconds:.0f} s" if waiting else None


def shows_mark(address: str, app: dict, mark: int) -> bool:
    """Whether that instance has the row."""
    try:
        connection = ledger.connect(address, app, autocommit=True)
    except pymysql.MySQLError:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM mark WHERE id = %s", (mark,))
            return cursor.fetchone()[0] == 1
    except pymysql.err.ProgrammingError:
        return False
    finally:
        connection.close()


def differing_checksums(document: dict) -> list[str]:
    """Compares CHECKSUM TABLE of every table of the application on every instance; what differs, a sentence
    each."""
    app = document["app"]
    sums: dict[str, dict[str, object]] = {}
    for instance in document["instances"]:
        connection = ledger.connect(instance["address"], app, autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute("SHOW TABLES")
            tables = [row[0] for row in cursor.fetchall()]
            for table in tables:
                cursor.execute(f"CHECKSUM TABLE `{table}`")
                sums.setdefault(table, {})[instance["id"]] = cursor.fetchone()[1]
        connection.close()
    names = [instance["id"] for instance in document["instances"]]
    wrong = []
    for table, found in sorted(sums.items()):
        values = [found.get(name, "no such table") for name in names]
        if len(set(values)) != 1 or values[0] is None:
            wrong.append(f"table {table} differs: " + ", ".join(f"{n}: {v}" for n, v in zip(names, values)))
    if not sums:
        wrong.append("there is no table at all: nothing was compared")
    return wrong


# The binary -----------------------------------------------------------------------------------------------


def find_binary(given: str | None) -> Path:
    """The binary to test: the one given, or a release build of this checkout."""
    if given:
        return Path(given).resolve(strict=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    subprocess.run(
        ["cargo", "build", "--release", "--quiet", "--package", "mysql-service"],
        cwd=ROOT,
        stdout=sys.stderr,
        check=True,
    )
    return target / "release" / "mysql-service"
