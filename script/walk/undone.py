"""Switchovers in whose way something stands: how soon everything is as it was.

Somebody's lock makes one step before the point of no return fail. From then until the old master takes writes again, and
that is noted, no more than the promised time goes by.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Iterator, NamedTuple

import pymysql

from cluster import Cluster

# What is promised, from the failure of a step on.
UNDONE_SECONDS = 2.0

# How often a lock is asked for, and the servers' error when it was not to be had.
ATTEMPTS = 20
LOCK_WAIT_TIMEOUT = 1205

# Of the application's database: an event, and a table that nobody else uses.
PREPARATIONS = (
    "CREATE TABLE IF NOT EXISTS in_the_way (id INT NOT NULL PRIMARY KEY)",
    "CREATE EVENT IF NOT EXISTS in_the_way ON SCHEDULE EVERY 1 HOUR STARTS NOW() + INTERVAL 1 HOUR"
    " DO DELETE FROM in_the_way",
)


class Obstacle(NamedTuple):
    """What somebody with every right does, and which step it makes fail."""

    step: str
    """How its sentence begins."""
    role: str
    """Of the instance at which it is done."""
    statement: str


OBSTACLES = (
    # The target lacks what the acker has.
    Obstacle("have", "Standby", "LOCK TABLES ledger READ"),
    Obstacle("remember and disable the scheduled events", "Master", "FLUSH TABLES WITH READ LOCK"),
    Obstacle("stop writes", "Master", "LOCK TABLES in_the_way WRITE"),
)


class Undone(NamedTuple):
    """A switchover that was given up."""

    step: str
    seconds: float
    """From the failure of the step to the end."""


@contextmanager
def root_at(instance: dict, document: dict) -> Iterator[pymysql.cursors.Cursor]:
    """A session of root at the instance's socket, in the application's database."""
    secrets = Path(document["secret_conf"]).read_text(encoding="utf-8").splitlines()
    password = next(line.partition("=")[2] for line in secrets if line.startswith("root_passwd="))
    connection = pymysql.connect(
        unix_socket=instance["socket"],
        user="root",
        password=password.encode("utf-8"),
        database=document["app"]["database"],
        autocommit=True,
    )
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def instance_with(cluster: Cluster, document: dict, role: str) -> dict:
    """The entry in `cluster.json` of the instance that has the role now."""
    status = cluster.status()
    if status is None:
        raise SystemExit("the monitor does not answer; see the log in the cluster's directory")
    name = next(one["id"] for one in status["instances"] if one["role"] == role)
    return next(one for one in document["instances"] if one["id"] == name)


def put_in_the_way(cursor: pymysql.cursors.Cursor, statement: str) -> None:
    """Gives up early and tries again: a statement at work may wait for a row of a transaction whose commit waits for this
    lock, which the server does not see as a deadlock."""
    cursor.execute("SET SESSION lock_wait_timeout = 1")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            cursor.execute(statement)
            return
        except pymysql.err.OperationalError as error:
            if error.args[0] != LOCK_WAIT_TIMEOUT or attempt == ATTEMPTS:
                raise


def give_up(cluster: Cluster, document: dict, obstacle: Obstacle) -> Undone | str:
    """A switchover with the obstacle in its way; a sentence when it did not end as it should."""
    with root_at(instance_with(cluster, document, obstacle.role), document) as cursor:
        put_in_the_way(cursor, obstacle.statement)
        command = cluster.switchover()
    if command.exit_code != 1 or not command.stdout:
        return f"`{obstacle.statement}` at the {obstacle.role}: exit code {command.exit_code}: {command.reason()}"
    operation = json.loads(command.stdout)
    steps = operation["steps"]
    failed = next((position for position, step in enumerate(steps) if step["state"] == "failed"), None)
    if operation["state"] != "undone" or failed is None:
        return f"`{obstacle.statement}` at the {obstacle.role}: {operation['state']}: {operation['outcome']}"
    if not steps[failed]["title"].startswith(obstacle.step):
        return f"`{obstacle.statement}` at the {obstacle.role}: another step failed: {operation['outcome']}"
    before = timedelta(milliseconds=sum(step["milliseconds"] for step in steps[: failed + 1]))
    whole = datetime.fromisoformat(operation["ended"]) - datetime.fromisoformat(operation["started"])
    # What is between the steps is left out, so the failure is taken to be earlier than it was.
    return Undone(steps[failed]["title"], (whole - before).total_seconds())


def measure(cluster: Cluster, document: dict) -> list[str]:
    """Gives up one switchover after the other, while applications write; what was not as promised, a sentence each."""
    with root_at(instance_with(cluster, document, "Master"), document) as cursor:
        for statement in PREPARATIONS:
            cursor.execute(statement)
    wrong = []
    print("\nswitchovers that were given up: ms from the failed step until all was as before")
    for obstacle in OBSTACLES:
        if problem := cluster.wait_until_ok():
            return [*wrong, f"before `{obstacle.statement}`: {problem}"]
        undone = give_up(cluster, document, obstacle)
        if isinstance(undone, str):
            wrong.append(undone)
            continue
        print(f"{undone.seconds * 1000:8.0f} ms  {undone.step}", flush=True)
        if undone.seconds > UNDONE_SECONDS:
            wrong.append(
                f"{undone.step}: undone after {undone.seconds:.1f} s, promised are {UNDONE_SECONDS:.0f} s"
            )
    return wrong
