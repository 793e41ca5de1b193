"""The binlog archive under load: how long after a commit it is in the store, and how many bytes that takes.

A cluster is started with `mysql-service up`. sysbench's `oltp_read_write` and one prober work through the master's
port. A transaction is in the archive when the index object of its segment is there, by the time that the store's file
system gives it. On MariaDB the prober tells its transactions' GTIDs, and each is looked for; on MySQL the age of the
oldest transaction of each segment is taken, by its commit time in the binlog, so that the figures are upper bounds.

With `--switchovers` the roles move meanwhile, so that another server's binlogs are archived after each: what is put into the
store, by all archivers, is held against the bytes of the Master's binlogs.

Exit code 0: every promise was kept. 1: one was not; the cluster's directory stays. 2: bad options.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Iterator, NamedTuple

import ledger
from cluster import Cluster, find_binary, on_each_flavor
from load import Load

# From a commit until it is in a store on the same machine.
LAG_P99_SECONDS = 1.0

# What is written to the store, index and all, for a byte of binlog.
BYTES_RATIO = 1.05

# Between two of the prober's transactions.
PROBE_SECONDS = 0.02


class Probe(NamedTuple):
    """A transaction that was acknowledged."""

    committed: float
    gtid: str


class Prober(threading.Thread):
    """Writes small transactions and notes when each was acknowledged. Ends with the `with` block."""

    def __init__(self, document: dict):
        super().__init__(daemon=True)
        self.connection = ledger.connect(document["master"], document["app"])
        self.probes: list[Probe] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS probes (id INT AUTO_INCREMENT PRIMARY KEY, t DOUBLE)")
            cursor.execute("SELECT VERSION()")
            mariadb = "MariaDB" in cursor.fetchone()[0]
            while not self.ended.wait(PROBE_SECONDS):
                cursor.execute("INSERT INTO probes (t) VALUES (%s)", (time.time(),))
                self.connection.commit()
                committed = time.time()
                if mariadb:
                    cursor.execute("SELECT @@last_gtid")
                    self.probes.append(Probe(committed, cursor.fetchone()[0]))

    def __enter__(self) -> Prober:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()
        self.connection.close()


class Segment(NamedTuple):
    """A segment, as its index object tells."""

    stored_at: float
    document: dict

    def holds(self, gtid: str) -> bool:
        domain, server, sequence = gtid.split("-")
        for run in self.document["transactions"].get("mariadb", "").split(","):
            if run:
                first, last = run.split(":")
                run_domain, run_server, run_first = first.split("-")
                if (domain, server) == (run_domain, run_server) and int(run_first) <= int(sequence) <= int(last):
                    return True
        return False


def percentile(values: list[float], share: float) -> float:
    """By nearest rank: a value that really occurred."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def segments(store: Path) -> list[Segment]:
    """All of them, in the order in which they were stored."""
    found = [
        Segment(path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8")))
        for path in (store / "binlog" / "index").rglob("*.json")
    ]
    return sorted(found, key=lambda segment: segment.stored_at)


def lags(found: list[Segment], probes: list[Probe], begin: float) -> Iterator[float]:
    """Seconds from commits to the store."""
    small = [segment for segment in found if not segment.document.get("compacted")]
    if probes:
        for probe in probes:
            stored = [segment.stored_at for segment in small if segment.holds(probe.gtid)]
            yield min(stored, default=math.inf) - probe.committed
        return
    for segment in small:
        times = segment.document["commit_times"]
        if times and times[0] / 1e6 > begin:
            yield segment.stored_at - times[0] / 1e6


def archiver(status: dict) -> dict | None:
    """What the agent says that archives."""
    reports = [instance["agent"].get("archive") for instance in status["instances"]]
    return next((report for report in reports if report and report["archiving"]), None)


def wait_for_archiver(cluster: Cluster) -> dict:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        report = archiver(cluster.status() or {"instances": []})
        if report and report["source"]:
            return report
        time.sleep(0.2)
    raise SystemExit("nobody archives")


def largest_memory_bytes(cluster: Cluster) -> int:
    """The most memory that any agent has had."""
    peaks = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            arguments = (status.parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
            text = status.read_text(encoding="utf-8")
        except OSError:
            continue
        if "instance" in arguments and str(cluster.directory) in " ".join(arguments):
            peaks += [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM")]
    return max(peaks, default=0)


def binlog_bytes(document: dict) -> int:
    """Of the first instance, which has what everybody has."""
    binlogs = Path(document["instances"][0]["data_directory"]).parent / "binlog"
    return sum(path.stat().st_size for path in binlogs.iterdir() if path.suffix[1:].isdigit())


def stored_bytes(cluster: Cluster) -> tuple[int, int]:
    """Bytes of binlogs that all agents put into the store so far, and what they took there, index and all."""
    instances = cluster.status()["instances"]
    reports = [report for instance in instances if (report := instance["agent"].get("archive"))]
    return tuple(sum(report[key] for report in reports) for key in ("archived_bytes", "stored_bytes"))


def move_roles(cluster, options, before, began) -> Iterator[str]:
    """Switchovers under load; what is not as promised."""
    for _ in range(options.switchovers):
        time.sleep(options.seconds / options.switchovers)
        command = cluster.switchover()
        if command.exit_code != 0:
            raise SystemExit(f"switchover: {command.reason()}")
        if problem := cluster.wait_until_ok():
            raise SystemExit(problem)
    time.sleep(options.seconds / options.switchovers)
    command = cluster.run("backup", "incremental", "--dir", str(cluster.directory), "--yes", timeout_seconds=120)
    if command.exit_code != 0:
        raise SystemExit(f"backup incremental: {command.reason()}")
    (raw, stored), logged = stored_bytes(cluster), binlog_bytes(cluster.document()) - began
    raw, stored = raw - before[0], stored - before[1]
    print(
        f"{options.flavor}: {options.switchovers} switchovers, binlog {logged / 1e6:.1f} MB, archived {raw / 1e6:.1f} MB of it "
        f"(ratio {raw / logged:.3f}), written to the store {stored / 1e6:.1f} MB: ratio {stored / logged:.3f}"
    )
    if stored / logged > BYTES_RATIO:
        yield f"{options.flavor}: {stored / logged:.3f} bytes for a byte of binlog, promised {BYTES_RATIO}"


def run(options: argparse.Namespace, directory: Path) -> list[str]:
    cluster = Cluster(directory / "cluster", find_binary(options.binary), options.flavor, options.port_base)
    with cluster.running():
        document = cluster.document()
        store = Path(document["backup_store"].removeprefix("file://"))
        load = Load(document, directory, options.threads, options.tables, options.rows)
        load.prepare()
        before = wait_for_archiver(cluster)
        # What preparing wrote is none of the load's.
        begin = time.time() + 3
        began = binlog_bytes(document)
        stored_before = stored_bytes(cluster)
        with load:
            time.sleep(3)
            if options.switchovers:
                return [*move_roles(cluster, options, stored_before, began)]
            with Prober(document) as prober:
                time.sleep(options.seconds)
        probes = [probe for probe in prober.probes if probe.committed > begin]
        time.sleep(5)
        after = wait_for_archiver(cluster)
        memory = largest_memory_bytes(cluster)
        found = segments(store)
    wrong = []
    ages = list(lags(found, probes, begin))
    p50, p99 = (percentile(ages, share) for share in (0.5, 0.99))
    archived = after["archived_bytes"] - before["archived_bytes"]
    stored = after["stored_bytes"] - before["stored_bytes"]
    compacted = sum(
        sum(block["stored"] for block in segment.document["blocks"]) + len(json.dumps(segment.document))
        for segment in found
        if segment.document.get("compacted")
    )
    rate = sum(load.transactions_per_second) / max(1, len(load.transactions_per_second))
    what = "transactions of the prober" if probes else "segments, the oldest transaction of each"
    print(f"{options.flavor}: {rate:.0f} transactions/s of sysbench, {len(ages)} {what}")
    print(f"  commit to store: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, max {max(ages) * 1000:.0f} ms")
    print(f"  binlog {archived / 1e6:.1f} MB, written to the store {stored / 1e6:.1f} MB: ratio {stored / archived:.3f}")
    print(f"  compacted besides: {compacted / 1e6:.1f} MB (at most once more for each byte)")
    print(f"  most memory of an agent: {memory / 2**20:.0f} MiB")
    if p99 > LAG_P99_SECONDS:
        wrong.append(f"{options.flavor}: p99 is {p99 * 1000:.0f} ms, promised {LAG_P99_SECONDS * 1000:.0f}")
    if stored / archived > BYTES_RATIO:
        wrong.append(f"{options.flavor}: {stored / archived:.3f} bytes for a byte of binlog, promised {BYTES_RATIO}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/bench archive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", choices=["mariadb", "mysql", "both"], default="both")
    parser.add_argument("--seconds", type=int, default=30, help="of load (default: 30)")
    parser.add_argument("--threads", type=int, default=4, help="sysbench's connections (default: 4)")
    parser.add_argument("--tables", type=int, default=4)
    parser.add_argument("--rows", type=int, default=10000, help="rows in each table")
    parser.add_argument("--switchovers", type=int, default=0, help="in that time; only the bytes are measured then")
    parser.add_argument("--port-base", type=int, default=25300)
    parser.add_argument("--directory", help="where the clusters are made (default: the system's temporary directory)")
    parser.add_argument("--binary", help="the mysql-service to use (default: a release build of this checkout)")
    parser.add_argument("--keep", action="store_true", help="keep the directory in any case")
    options = parser.parse_args()
    if options.seconds < 5:
        parser.error("--seconds must be at least 5")
    return on_each_flavor(options, "archive", run)


if __name__ == "__main__":
    sys.exit(main())
