"""One transaction larger than any buffer, through the archive and back, and what memory that takes.

A cluster of two is started with `mysql-service up` and backed up. One transaction of 1.5 GB of bytes that do not compress
is committed through the master's port, replicated and archived. Then the Standby's data is thrown away and restored: to
just before that transaction, and to the end. The table must be empty there, and the Master's here. Meanwhile no agent,
which holds archiver, backup and binlog server, may have more memory than promised.

Exit code 0: every promise was kept. 1: one was not; the cluster's directory stays. 2: bad options.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Iterator

import ledger
from cluster import Cluster, find_binary, on_each_flavor, wait_until_replicated
from instants import connect, own_gtid
from switchover import roles

# Of one agent, at any moment.
MEMORY_BYTES = 256 * 2**20

ROW_BYTES = 8 * 1024

# Of one statement: the transaction is made of several.
STATEMENT_ROWS = 8192

# Of a command: a restore applies the transaction.
LIMIT_SECONDS = 1800


def agents(cluster: Cluster) -> Iterator[Path]:
    """The process folder of each agent."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            arguments = (status.parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "instance" in arguments and str(cluster.directory) in " ".join(arguments):
            yield status.parent


def forget_peaks(cluster: Cluster) -> None:
    """From now on the kernel counts the most memory anew."""
    for agent in agents(cluster):
        (agent / "clear_refs").write_text("5", encoding="ascii")


def peak_bytes(cluster: Cluster) -> int:
    """The most memory that any agent has had since."""
    peaks = [0]
    for agent in agents(cluster):
        lines = (agent / "status").read_text(encoding="utf-8").splitlines()
        peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return max(peaks)


def write(cluster: Cluster, transaction_bytes: int) -> str:
    """Commits the transaction. Returns its GTID."""
    document = cluster.document()
    with connect(document) as connection:
        connection._read_timeout = LIMIT_SECONDS
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE large (id INT AUTO_INCREMENT PRIMARY KEY, body BLOB)")
            cursor.execute("CREATE TABLE numbers (n INT PRIMARY KEY)")
            cursor.execute(
                f"INSERT INTO numbers SELECT * FROM (WITH RECURSIVE n AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM n "
                f"WHERE n < 1000) SELECT (a.n - 1) * 1000 + b.n AS n FROM n AS a JOIN n AS b WHERE a.n <= 9) AS many "
                f"WHERE n <= {STATEMENT_ROWS}"
            )
            body = ", ".join(["RANDOM_BYTES(1024)"] * (ROW_BYTES // 1024))
            connection.begin()
            for _ in range(-(-transaction_bytes // (ROW_BYTES * STATEMENT_ROWS))):
                cursor.execute(f"INSERT INTO large (body) SELECT CONCAT({body}) FROM numbers")
            cursor.execute("COMMIT")
            # Not what was logged last: the service may have freed waiting commits by a small write since.
            gtid = own_gtid(connection, cursor)
    assert gtid, "nothing was logged"
    return gtid


def content(cluster: Cluster, address: str) -> tuple:
    """How many rows there are, and their checksum."""
    app = cluster.document()["app"]
    with ledger.connect(address, app, autocommit=True) as connection, connection.cursor() as cursor:
        connection._read_timeout = LIMIT_SECONDS
        cursor.execute("SELECT COUNT(*) FROM large")
        count = cursor.fetchone()[0]
        cursor.execute("CHECKSUM TABLE large")
        return count, cursor.fetchone()[1]


class Phases:
    """Steps that are timed, and the memory that each takes."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.wrong: list[str] = []

    def do(self, name: str, *arguments: str) -> None:
        self.begin()
        command = self.cluster.run(*arguments, "--dir", str(self.cluster.directory), "--yes", timeout_seconds=LIMIT_SECONDS)
        if command.exit_code != 0:
            raise SystemExit(f"{name}: exit code {command.exit_code}: {command.reason()}")
        self.end(name)

    def begin(self) -> None:
        forget_peaks(self.cluster)
        self.began = time.monotonic()

    def end(self, name: str) -> None:
        peak = peak_bytes(self.cluster)
        print(f"  {name}: {time.monotonic() - self.began:.0f} s, at most {peak / 2**20:.0f} MiB in an agent", flush=True)
        if peak > MEMORY_BYTES:
            self.wrong.append(f"{name}: an agent had {peak / 2**20:.0f} MiB, promised {MEMORY_BYTES / 2**20:.0f}")


def run(options: argparse.Namespace, directory: Path) -> list[str]:
    flavor = options.flavor
    cluster = Cluster(directory / "cluster", find_binary(options.binary), flavor, options.port_base, instances=2)
    print(f"{flavor}: a transaction of {options.megabytes} MB", flush=True)
    with cluster.running():
        phases = Phases(cluster)
        phases.do("full backup", "backup", "full")
        phases.begin()
        gtid = write(cluster, options.megabytes * 10**6)
        if problem := wait_until_replicated(cluster.document(), LIMIT_SECONDS):
            return [problem]
        phases.end("committed, replicated and being archived")
        phases.do("archived", "backup", "incremental")
        status = cluster.status()
        standby = roles(status)["Standby"]
        address = next(each["address"] for each in status["instances"] if each["id"] == standby)
        expected = content(cluster, cluster.document()["master"])
        for verb in ("detach", "unregister"):
            phases.do(verb, verb, standby)
        for name, target, wanted in [
            ("restored to before it", ["--before-gtid", gtid], (0, 0)),
            ("restored to the end", [], expected),
        ]:
            incarnation = next(each["incarnation"] for each in cluster.status()["instances"] if each["id"] == standby)
            phases.do(name, "restore", "incremental", *target, "--instance", standby, "--discard", incarnation)
            found = content(cluster, address)
            if found != wanted:
                phases.wrong.append(f"{name}: (rows, checksum) are {found} and not {wanted}")
        return phases.wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/chaos large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", choices=["mariadb", "mysql", "both"], default="both")
    parser.add_argument("--megabytes", type=int, default=1500, help="of the transaction (default: 1500)")
    parser.add_argument("--port-base", type=int, default=26700)
    parser.add_argument("--directory", help="where the clusters are made: eight times the transaction (default: the system's temporary directory)")
    parser.add_argument("--binary", help="the mysql-service to use (default: a release build of this checkout)")
    parser.add_argument("--keep", action="store_true", help="keep the directory in any case")
    options = parser.parse_args()
    if options.megabytes < 70:
        parser.error("--megabytes must be at least 70")
    return on_each_flavor(options, "large", run, f"right, within {MEMORY_BYTES / 2**20:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
