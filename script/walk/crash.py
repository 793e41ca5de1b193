"""How soon the monitor knows that a server has crashed.

A cluster is started with `mysql-service up`. The servers of its replicas are killed (SIGKILL) from outside, one after
the other, and the stream of the monitor's events is read as any client of the API reads it. The kernel takes back a
server's memory before anybody hears of its end, the longer the more that is; then the agent reports, and the monitor
writes an event down, durably. Both parts are told. What is promised is the second: from the end of the process to the
event.

Exit code 0: every promise was kept. 1: one was not; the cluster's directory stays. 2: bad options.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster import HEAL_SECONDS, Cluster, end_on_signals, find_binary, new_directory
from switchover import milliseconds, percentile

# What is promised, from the end of the process on.
TOLD_P99_SECONDS = 0.100

# A crash that is not told by then is not told.
GIVE_UP_SECONDS = 30


class Told(NamedTuple):
    """An event, and when it was read."""

    at: float
    event: dict


class Killed(NamedTuple):
    """One kill. In seconds from the signal."""

    instance: str
    gone: float
    """Until the kernel had ended the process."""
    told: float


class Listener(threading.Thread):
    """Reads the monitor's events as they come. Ends with the `with` block."""

    def __init__(self, monitor: str):
        super().__init__(name="events", daemon=True)
        self.connection = http.client.HTTPConnection(urlsplit(monitor).netloc)
        self.condition = threading.Condition()
        self.events: list[Told] = []

    def __enter__(self) -> Listener:
        self.connection.request("GET", "/api/v1/events/stream")
        self.answer = self.connection.getresponse()
        if self.answer.status != 200:
            raise SystemExit(f"the monitor does not tell its events: {self.answer.status}")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Whoever reads is woken by the end of the connection.
        self.connection.sock.shutdown(2)
        self.join()

    def run(self) -> None:
        for line in self.answer:
            at = time.monotonic()
            name, _, value = line.decode().partition(": ")
            if name == "data":
                with self.condition:
                    self.events.append(Told(at, json.loads(value)))
                    self.condition.notify()

    def crash_of(self, instance: str, since: float) -> float | None:
        """When a crash of that instance was told; None: not in time."""

        def found() -> float | None:
            times = (
                told.at
                for told in self.events
                if told.at >= since
                and told.event["kind"] == "instance_crashed"
                and told.event["instance"] == instance
            )
            return next(times, None)

        with self.condition:
            return self.condition.wait_for(found, timeout=GIVE_UP_SECONDS)


def kill(listener: Listener, instance: str, pid: int) -> Killed:
    """Kills a server, and sees its end and the news of it."""
    handle = os.pidfd_open(pid)
    try:
        struck = time.monotonic()
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        # Readable when the process has ended.
        select.select([handle], [], [])
        gone = time.monotonic()
    finally:
        os.close(handle)
    told = listener.crash_of(instance, struck)
    if told is None:
        raise SystemExit(f"nobody told within {GIVE_UP_SECONDS} s that the server of {instance} had crashed")
    return Killed(instance, gone - struck, told - struck)


def wait_for_server(cluster: Cluster, instance: str) -> int:
    """Waits until the instance is OK; its server's process. After several crashes an agent waits before it starts its
    server again."""
    deadline = time.monotonic() + HEAL_SECONDS
    while time.monotonic() < deadline:
        status = cluster.status()
        for one in status["instances"] if status else []:
            if one["id"] == instance and one["status"] == "OK" and one["server_pid"]:
                return one["server_pid"]
        time.sleep(0.1)
    raise SystemExit(f"{instance} is not OK within {HEAL_SECONDS} s")


def print_table(killed: list[Killed]) -> None:
    print("milliseconds after the signal              p50    p99    max")
    for name, values in (
        ("the process has ended", [one.gone for one in killed]),
        ("the monitor's event is read", [one.told for one in killed]),
        ("from the one to the other", [one.told - one.gone for one in killed]),
    ):
        line = "".join(
            f"{milliseconds(value):>7}" for value in (percentile(values, 0.5), percentile(values, 0.99), max(values))
        )
        print(f"  {name:36}{line}")


def run(options: argparse.Namespace, directory: Path) -> list[str]:
    """The whole of it; what was not as promised, a sentence each."""
    cluster = Cluster(
        directory / "cluster", find_binary(options.binary), options.flavor, options.port_base, options.instances
    )
    killed = []
    with cluster.running() as started:
        print(f"{options.flavor}: cluster of {cluster.instances} up and OK in {started.seconds:.1f} s", flush=True)
        status = cluster.status()
        if status is None:
            return ["the monitor does not answer"]
        replicas = [one["id"] for one in status["instances"] if one["role"] in ("Standby", "Slave")]
        with Listener(cluster.document()["monitor"]) as listener:
            for instance in itertools.islice(itertools.cycle(replicas), options.kills):
                killed.append(kill(listener, instance, wait_for_server(cluster, instance)))
        left = cluster.wait_until_ok()
    print_table(killed)
    wrong = []
    found = percentile([one.told - one.gone for one in killed], 0.99)
    if found > TOLD_P99_SECONDS:
        promised = milliseconds(TOLD_P99_SECONDS)
        wrong.append(
            f"the p99 from a server's end to the event is {milliseconds(found)} ms, promised are {promised} ms"
        )
    if left:
        wrong.append(f"after the kills: {left}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="script/bench crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flavor", choices=["mariadb", "mysql", "both"], default="both")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--instances", type=int, default=5, help="of the cluster: the more, the shorter the pauses (default: 5)"
    )
    parser.add_argument("--port-base", type=int, default=26300)
    parser.add_argument("--directory", help="where the clusters are made (default: the system's temporary directory)")
    parser.add_argument("--binary", help="the mysql-service to use (default: a release build of this checkout)")
    parser.add_argument("--keep", action="store_true", help="keep the directory in any case")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills must be at least 1")
    if options.instances < 2:
        parser.error("--instances must be at least 2")
    end_on_signals()
    failed = False
    for flavor in ["mariadb", "mysql"] if options.flavor == "both" else [options.flavor]:
        directory = new_directory(f"crash-{flavor}-", options.directory)
        wrong = run(argparse.Namespace(**{**vars(options), "flavor": flavor}), directory)
        for sentence in wrong:
            print(f"NOT AS PROMISED: {sentence}")
        if wrong or options.keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory)
        failed |= bool(wrong)
        print()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
