"""Binlogs applied by our replay beside `mysqlbinlog | client`, on the same server, transactions per second.

For each family a source writes row binlogs of small transactions (200 MB unless --megabytes says less), of updates of
one hot row, and of large transactions. In every round each way starts on a copy of the same data and the rounds
interleave. A way that needs longer than --seconds is stopped there, and its rate is that of what it applied.

  client durable / relaxed   mysqlbinlog FILES | client; the server with sync_binlog=1 and flush_log=1, or 0 and 2
  ours durable / relaxed     our replay, with the server's settings kept, or relaxed and put back by itself

Exit code 1 when a promise is broken: small transactions >= 3 x with durable settings, >= 8 x with relaxed ones, >= 10 x
as a person would run each (ours relaxed, the client durable); never slower on a hot row or on large transactions; at most
256 MiB of memory.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LARGEST_MEMORY_KIBIBYTES = 256 * 1024
DURABLE = {"sync_binlog": "1", "innodb_flush_log_at_trx_commit": "1"}
RELAXED = {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "2"}
# Ours sets it when it relaxes: equal settings are equal in this too.
RELAXED_MARIADB = {"innodb_log_file_buffering": "ON"}
WAYS = ["client durable", "ours durable", "client relaxed", "ours relaxed"]
PROMISES = {
    "small": [("ours durable", "client durable", 3), ("ours relaxed", "client relaxed", 8), ("ours relaxed", "client durable", 10)],
    "hot": [("ours durable", "client durable", 1), ("ours relaxed", "client relaxed", 1)],
    "large": [("ours durable", "client durable", 1), ("ours relaxed", "client relaxed", 1)],
}


class Family:
    def __init__(self, name):
        self.name = name
        if name == "mariadb":
            self.server, self.client, self.binlog = "mariadbd", "mariadb", "mariadb-binlog"
            self.template = [
                "log_slave_updates=ON", "binlog_format=ROW", "gtid_strict_mode=ON", "skip_slave_start=ON",
                "slave_parallel_threads=4", "slave_parallel_mode=optimistic",
            ]
        else:
            home = pathlib.Path(os.environ["MYSQL_SERVICE_MYSQL_DIR"]) / "bin"
            self.server, self.client, self.binlog = (str(home / name) for name in ("mysqld", "mysql", "mysqlbinlog"))
            self.template = [
                "gtid_mode=ON", "enforce_gtid_consistency=ON", "skip_replica_start=ON", "mysqlx=OFF",
                "replica_parallel_workers=4", "replica_preserve_commit_order=ON", "secure_file_priv=NULL",
                "innodb_redo_log_capacity=512M",
            ]

    def initialise(self, data):
        if self.name == "mariadb":
            command = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db",
                       "--auth-root-authentication-method=normal"]
        else:
            command = [self.server, "--no-defaults", "--initialize-insecure", "--user=root", f"--datadir={data}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Server:
    def __init__(self, family, home, settings, server_id):
        self.family, self.home = family, home
        self.socket = home / "s.sock"
        lines = ["[mysqld]", "user=root", f"datadir={home}/data", f"socket={self.socket}", "skip_networking=OFF",
                 "port=0", f"pid_file={home}/pid", f"log_error={home}/error.log", f"tmpdir={home}",
                 f"log_bin={home}/binlog", f"relay_log={home}/relay", f"server_id={server_id}",
                 "innodb_buffer_pool_size=512M", "max_allowed_packet=64M", "max_binlog_size=128M", "sync_relay_log=1",
                 *family.template, *(f"{name}={value}" for name, value in settings.items())]
        if family.name == "mariadb":
            lines.append("innodb_log_file_size=512M")
        lines = [line for line in lines if line not in ("skip_networking=OFF", "port=0")]
        lines.append("bind_address=127.0.0.1")
        lines.append(f"port={free_port()}")
        (home / "my.cnf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.process = subprocess.Popen([family.server, f"--defaults-file={home}/my.cnf"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while self.run("SELECT 1", check=False).returncode != 0:
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"the server does not start: see {home}/error.log\n" + (home / "error.log").read_text()[-2000:])
            time.sleep(0.05)

    def client(self):
        return [self.family.client, "--no-defaults", f"--socket={self.socket}", "--user=root"]

    def run(self, sql, check=True):
        return subprocess.run([*self.client(), "-N", "-e", sql], check=check, stdout=subprocess.PIPE,
                              stderr=None if check else subprocess.DEVNULL, text=True)

    def applied(self):
        """Transactions in its binlog."""
        if self.family.name == "mariadb":
            position = self.run("SELECT @@gtid_binlog_pos").stdout.strip()
            return int(position.rsplit("-", 1)[1]) if position else 0
        executed = self.run("SELECT @@gtid_executed").stdout.strip().replace("\\n", "")
        return sum(int(part.split("-")[-1]) - int(part.split("-")[0]) + 1
                   for source in executed.split(",") if source for part in source.split(":")[1:])

    def stop(self, kill=False):
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait()


def free_port():
    import socket
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fill(server, kind, megabytes):
    """Writes binlogs of that kind until there are enough bytes."""
    server.run("CREATE DATABASE bench; CREATE TABLE bench.t (id INT PRIMARY KEY, k INT, c CHAR(120), pad CHAR(60), KEY (k))")
    server.run("USE bench; INSERT INTO bench.t SELECT seq, seq, REPEAT('c', 120), REPEAT('p', 60) FROM "
               + ("seq_1_to_20000" if server.family.name == "mariadb" else
                  "(WITH RECURSIVE s AS (SELECT 1 AS seq UNION ALL SELECT seq + 1 FROM s WHERE seq < 20000) "
                  "SELECT /*+ SET_VAR(cte_max_recursion_depth = 30000) */ seq FROM s) AS s"))
    body = {
        "small": "UPDATE bench.t SET k = k + 1, c = REPEAT(CHAR(97 + n % 26), 120) WHERE id = 1 + MOD(n * 7919 + w * 5003, 20000);",
        "hot": "UPDATE bench.t SET k = k + 1, c = REPEAT(CHAR(97 + n % 26), 120) WHERE id = 1;",
        "large": "UPDATE bench.t SET k = k + 1 WHERE id BETWEEN 1 + w * 5000 AND (w + 1) * 5000;",
    }[kind]
    procedure = ("CREATE PROCEDURE bench.work(w INT, times INT) BEGIN DECLARE n INT DEFAULT 0; "
                 f"WHILE n < times DO {body} SET n = n + 1; END WHILE; END")
    subprocess.run([*server.client(), "--delimiter=//", "-e", procedure], check=True)
    wanted, writers = megabytes * 1_000_000, 4
    times = {"small": 4000, "hot": 4000, "large": 3}[kind]
    while sum(path.stat().st_size for path in binlogs(server.home, all_of_them=True)) < wanted:
        sessions = [subprocess.Popen([*server.client(), "-e", f"CALL bench.work({w}, {times})"]) for w in range(writers)]
        for session in sessions:
            session.wait()
    server.run("FLUSH BINARY LOGS")


def binlogs(home, all_of_them=False):
    files = sorted(path for path in home.glob("binlog.*") if path.suffix[1:].isdigit())
    return files if all_of_them else files[:-1]


def measure(way, family, base, files, seconds, scratch):
    """Transactions per second, and kibibytes of memory of ours."""
    who, how = way.split()
    home = scratch / "run"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    shutil.copytree(base, home / "data", symlinks=True)
    (home / "data" / "auto.cnf").unlink(missing_ok=True)
    settings = dict(DURABLE if (how == "durable" or who == "ours") else RELAXED)
    if settings["sync_binlog"] == "0" and family.name == "mariadb":
        settings.update(RELAXED_MARIADB)
    server = Server(family, home, settings, server_id=2)
    try:
        began = time.monotonic()
        if who == "ours":
            program = ROOT / "target/release/examples/replay_files"
            command = [program, server.socket, how, *files]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                answer = json.loads(process.communicate(timeout=seconds)[0])
                # As a person waits for it: planning and putting back included.
                return answer["transactions"] / (answer["seconds"] + answer["plan_seconds"]), answer["peak_kibibytes"]
            except subprocess.TimeoutExpired:
                memory = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                peak = next(int(line.split()[1]) for line in memory.splitlines() if line.startswith("VmHWM"))
                rate = server.applied() / (time.monotonic() - began)
                process.kill()
                process.wait()
                return rate, peak
        reader = subprocess.Popen([family.binlog, "--no-defaults", *files], stdout=subprocess.PIPE)
        writer = subprocess.Popen([*server.client(), "--binary-mode"], stdin=reader.stdout, stdout=subprocess.DEVNULL)
        reader.stdout.close()
        try:
            if writer.wait(timeout=seconds) != 0:
                sys.exit(f"the client failed on {family.name}")
        except subprocess.TimeoutExpired:
            pass
        rate = server.applied() / (time.monotonic() - began)
        for process in (writer, reader):
            process.kill()
            process.wait()
        return rate, 0
    finally:
        server.stop(kill=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flavor", choices=["mariadb", "mysql"], action="append")
    parser.add_argument("--kind", choices=list(PROMISES), action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--directory", help="where the servers' data lies (default: the temporary directory)")
    options = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "-p", "backup", "--example", "replay_files"],
                   cwd=ROOT, check=True)
    kept = True
    for name in options.flavor or ["mariadb", "mysql"]:
        family = Family(name)
        for kind in options.kind or list(PROMISES):
            with tempfile.TemporaryDirectory(prefix="bench-replay-", dir=options.directory) as directory:
                kept &= compare(family, kind, options, pathlib.Path(directory))
    return 0 if kept else 1


def compare(family, kind, options, scratch):
    base, source = scratch / "base", scratch / "source"
    source.mkdir()
    family.initialise(base)
    shutil.copytree(base, source / "data", symlinks=True)
    (source / "data" / "auto.cnf").unlink(missing_ok=True)
    server = Server(family, source, {"sync_binlog": "0", "innodb_flush_log_at_trx_commit": "0"}, server_id=1)
    fill(server, kind, options.megabytes if kind == "small" else options.megabytes // 4)
    written = server.applied()
    server.stop()
    files = binlogs(source)
    size = sum(path.stat().st_size for path in files)
    print(f"{family.name}, {kind}: {written} transactions, {size / 1e6:.0f} MB in {len(files)} files", flush=True)
    rates, memory = {way: [] for way in WAYS}, 0
    for number in range(options.rounds):
        for way in WAYS[number % 4:] + WAYS[:number % 4]:
            rate, peak = measure(way, family, base, files, options.seconds, scratch)
            rates[way].append(rate)
            memory = max(memory, peak)
    for way in WAYS:
        print(f"  {way:16} {statistics.median(rates[way]):9.0f} transactions/s")
    kept = memory <= LARGEST_MEMORY_KIBIBYTES
    for ours, theirs, promise in PROMISES[kind]:
        ratios = [mine / other for mine, other in zip(rates[ours], rates[theirs])]
        ratio = statistics.median(ratios)
        # Never slower is judged with the spread of the rounds: a tie is no loss.
        good = ratio >= promise if promise > 1 else max(ratios) >= 1
        kept &= good
        print(f"  {ours} / {theirs}: {ratio:5.1f} x ({min(ratios):.1f}-{max(ratios):.1f}), promised {promise} x"
              + ("" if good else "  NOT KEPT"))
    print(f"  most memory of ours: {memory / 1024:.0f} MiB", flush=True)
    return kept


if __name__ == "__main__":
    sys.exit(main())
