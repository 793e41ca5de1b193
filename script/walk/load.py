"""sysbench's `oltp_read_write` through the master's port, with every connection's errors counted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent

# What two transactions do to each other on any server: deadlock, lock wait timeout, record changed, and the
# duplicate key that a restarted delete and insert meets.
OWN_CONFLICTS = (1213, 1205, 1020, 1062)

SECOND = re.compile(r"^\[ \d+s \] thds: \d+ tps: ([\d.]+)")
ERROR = re.compile(r"^connection (\d+) error (\d+)")


class LoadError(NamedTuple):
    """An error that one connection of the load met."""

    at: float
    connection: int
    code: int


class Load:
    """A running sysbench. Ends with the `with` block."""

    def __init__(self, document: dict, directory: Path, threads: int, tables: int, rows: int):
        if shutil.which("sysbench") is None:
            raise SystemExit("sysbench is not installed: apt-get install sysbench")
        self.options_file = directory / "sysbench.options"
        self.log_file = directory / "sysbench.log"
        self.errors: list[LoadError] = []
        self.transactions_per_second: list[float] = []
        host, _, port = document["master"].rpartition(":")
        app = document["app"]
        options = {
            "db-driver": "mysql",
            "mysql-host": host,
            "mysql-port": port,
            "mysql-user": app["user"],
            "mysql-password": app["password"],
            "mysql-db": app["database"],
            "mysql-ignore-errors": ",".join(str(code) for code in OWN_CONFLICTS),
            # Statements as text: prepared ones cannot be closed without the connection they were made on.
            "db-ps-mode": "disable",
            "threads": threads,
            "tables": tables,
            "table-size": rows,
            "time": 0,
            "events": 0,
            "report-interval": 1,
        }
        # In a file, since the password would be in the arguments otherwise.
        text = "".join(f"{name}={value}\n" for name, value in options.items())
        descriptor = os.open(self.options_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    def prepare(self) -> None:
        """Makes the tables."""
        done = subprocess.run(self.command("prepare"), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"sysbench prepare failed: {done.stdout}{done.stderr}")

    def command(self, verb: str) -> list[str]:
        return ["sysbench", f"--config-file={self.options_file}", str(HERE / "oltp_counted.lua"), verb]

    def __enter__(self) -> Load:
        self.process = subprocess.Popen(
            self.command("run"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.started = threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        try:
            if not self.started.wait(30):
                raise SystemExit(f"sysbench does not start; see {self.log_file}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def read(self) -> None:
        """Follows what it prints. An error gets the time at which it was read."""
        with open(self.log_file, "w", encoding="utf-8") as log:
            for line in self.process.stdout:
                log.write(line)
                if match := ERROR.match(line):
                    self.errors.append(LoadError(time.monotonic(), int(match[1]), int(match[2])))
                elif match := SECOND.match(line):
                    self.transactions_per_second.append(float(match[1]))
                    self.started.set()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.reader.join()

    def failure(self) -> str | None:
        """Why it ended before it was told to, if it did."""
        if self.process.poll() is None:
            return None
        return f"sysbench ended by itself with exit code {self.process.returncode}; see {self.log_file}"

    def errors_per_connection(self, begin: float, end: float) -> Counter[int]:
        """How many errors each connection met in the window, the workload's own conflicts left out."""
        return Counter(error.connection for error in self.errors if begin <= error.at < end)
