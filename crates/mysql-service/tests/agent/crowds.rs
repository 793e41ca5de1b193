//! A memory that many clients want at once: the server stays within it.

use std::fs;
use std::path::{Path, PathBuf};

use mysql_client::credentials::Login;
use mysql_client::{Endpoint, Error, Server};
use topology::Flavor;

use crate::harness::{LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;

on_both_flavors! {
    as_many_clients_as_a_small_server_lets_in_stay_within_its_memory;
}

/// More than a small server lets in.
const CLIENTS: usize = 400;

async fn as_many_clients_as_a_small_server_lets_in_stay_within_its_memory(flavor: Flavor) {
    fill_with_clients(flavor, 512, CLIENTS).await;
}

/// Minutes, and a memory that a machine may not have beside the other tests: `script/chaos clients`.
mod four_hundred_clients_stay_within_the_memory_of_their_server {
    use topology::Flavor;

    use super::{CLIENTS, fill_with_clients};

    #[tokio::test]
    #[ignore = "run by script/chaos clients"]
    async fn mariadb() {
        assert!(fill_with_clients(Flavor::Mariadb, 2200, CLIENTS).await >= CLIENTS);
    }

    #[tokio::test]
    #[ignore = "run by script/chaos clients"]
    async fn mysql() {
        assert!(fill_with_clients(Flavor::Mysql, 2600, CLIENTS).await >= CLIENTS);
    }
}

/// Up to so many clients at a server whose buffer pool is full, each with a sort, a join and a temporary table, which all
/// of them hold at the same time; how many were let in.
async fn fill_with_clients(flavor: Flavor, memory_mebibytes: u64, clients: usize) -> usize {
    // More than that, and the kernel kills somebody in the group. It outlives the agent: only an empty one can be removed.
    let group = Group::make(flavor, memory_mebibytes + 64);
    let mut agent = TestAgent::prepare(Setup::of(flavor)).await;
    let config = agent.path("instance.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(
        "memory = \"256M\"\n",
        &format!("memory = \"{memory_mebibytes}M\"\n"),
    );
    fs::write(&config, text).unwrap();
    if let Some(group) = &group {
        agent.launch_after(&format!("echo $$ > '{}/cgroup.procs'", group.0.display()));
    } else {
        // The next best thing (RLIMIT_DATA, setrlimit(2)), which counts what is asked for and not what is used: stacks,
        // arenas, unused pages.
        agent.launch_after(&format!("ulimit -d {}", (memory_mebibytes * 2) << 10));
    }
    agent.until_running().await;
    agent.allow_writes().await;
    let login = agent.application().await;
    let server = agent.server().await;
    let mut root = agent.root().await;
    fill_pool(&mut root).await;

    let mut working = let_in(&agent, &login, clients).await;
    let clients_let_in = working.len();
    let queries = Queries::at(&mut root).await;
    // They wait for this with full hands.
    root.execute("SELECT GET_LOCK('gate', 0)").await.unwrap();
    let mut holding = tokio::task::JoinSet::new();
    for mut client in working.drain(..) {
        let queries = queries.clone();
        holding.spawn(async move {
            client.set_deadline(LIMIT * 3);
            client.query(&queries.held).await.unwrap();
            for sql in &queries.spilling {
                client.query(sql).await.unwrap();
            }
            client
        });
    }
    until("every client holds its memory", LIMIT * 2, async || {
        let waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock'";
        let waiting = root.query_value(waiting).await.unwrap();
        waiting == Some(clients_let_in.to_string())
    })
    .await;
    let held = mebibytes(server.pid, "VmRSS:");
    root.execute("SELECT RELEASE_LOCK('gate')").await.unwrap();
    // They stay connected until the last one is done.
    let done = holding.join_all().await;
    let (peak, data) = (mebibytes(server.pid, "VmHWM:"), mebibytes(server.pid, "VmData:"));
    let limited_by = if group.is_some() { "a cgroup" } else { "ulimit" };
    let allowed = number(&mut root, "@@global.max_connections").await;
    eprintln!(
        "{flavor}, limited by {limited_by}: {clients_let_in} clients at once, {allowed} are allowed; the server took \
         {held} MiB of {memory_mebibytes} while all of them held theirs, {peak} at most, and has asked for {data}"
    );
    drop(done);
    assert!(
        clients_let_in == clients || clients_let_in + 5 >= allowed,
        "{clients_let_in} clients were let in, {allowed} are allowed"
    );
    assert!(server.is_alive(), "the server was killed");
    assert!(peak <= memory_mebibytes, "the server took {peak} MiB");
    // The server notices one by one that they are gone.
    until("the server has room again", LIMIT, async || {
        agent.connect(&login).await.is_ok()
    })
    .await;
    clients_let_in
}

/// As many as are let in, all of them at once.
async fn let_in(agent: &TestAgent, login: &Login, clients: usize) -> Vec<Server> {
    let endpoint = Endpoint::Tcp(agent.address.clone());
    let mut let_in = Vec::new();
    for number in 0..clients {
        match Server::connect(&endpoint, login, LIMIT).await {
            Ok(client) => let_in.push(client),
            // Some do not even hear the reason.
            Err(Error::TooManyConnections { .. } | Error::Unreachable { .. }) => {}
            Err(error) => panic!("client {number}: {error}"),
        }
    }
    let_in
}

#[derive(Clone)]
struct Queries {
    /// Waits at the gate with as much as stays in memory of a temporary table and of a sort, and with a join.
    held: String,
    /// What is larger goes to the disk.
    spilling: [&'static str; 3],
}

impl Queries {
    async fn at(root: &mut Server) -> Self {
        // A row of the table has 1280 bytes of text; in memory MariaDB gives it 1500. Nearly as many as there is room for:
        // a table that is full goes to the disk.
        let table_rows = number(root, "@@global.tmp_table_size").await * 9 / 10 / 1500;
        let sort_rows = number(root, "@@global.sort_buffer_size").await * 9 / 10 / 1400;
        let held = format!(
            "SELECT GET_LOCK('gate', 1000) + RELEASE_LOCK('gate') \
             FROM (SELECT filler, COUNT(*) c FROM app.wide WHERE id < {table_rows} GROUP BY filler) g \
             JOIN (SELECT hash, filler FROM app.wide WHERE id < {sort_rows} ORDER BY filler LIMIT {sort_rows}) s \
             ON LEFT(g.filler, 2) = LEFT(s.hash, 2) JOIN app.wide a ON a.hash = s.hash WHERE a.id < {sort_rows} LIMIT 1"
        );
        Self {
            held,
            spilling: [
                "SELECT COUNT(*) FROM (SELECT filler, id FROM app.wide WHERE id < 3000 ORDER BY filler) s",
                "SELECT COUNT(*) FROM (SELECT filler, COUNT(*) c FROM app.wide WHERE id < 3000 GROUP BY filler) g",
                "SELECT COUNT(*) FROM app.wide a JOIN app.wide b ON a.hash = b.hash WHERE a.id < 300 AND b.id < 300",
            ],
        }
    }
}

async fn number(server: &mut Server, expression: &str) -> usize {
    let value = server.query_value(&format!("SELECT {expression}")).await;
    value.unwrap().unwrap().parse().unwrap()
}

/// More than the buffer pool holds.
async fn fill_pool(root: &mut Server) {
    root.set_deadline(LIMIT * 3);
    root.execute("SET SESSION sql_log_bin = 0").await.unwrap();
    root.execute(
        "CREATE TABLE app.wide (id INT PRIMARY KEY AUTO_INCREMENT, hash CHAR(64), filler VARCHAR(1500)) \
         ENGINE=InnoDB CHARACTER SET latin1",
    )
    .await
    .unwrap();
    let values = "SHA2(RAND(), 256), REPEAT(SHA2(RAND(), 256), 20)";
    let insert = "INSERT INTO app.wide (hash, filler)";
    root.execute(&format!("{insert} VALUES ({values})"))
        .await
        .unwrap();
    // What a row takes in a page.
    let pool_rows = number(root, "@@global.innodb_buffer_pool_size").await / 1400;
    let mut rows = 1;
    while rows < pool_rows {
        // The numbers of automatic keys have gaps.
        let again = format!(
            "{insert} SELECT {values} FROM app.wide LIMIT {}",
            pool_rows + 10 - rows
        );
        root.execute(&again).await.unwrap();
        rows = number(root, "COUNT(filler) FROM app.wide").await;
    }
}

/// A line of a process's status: the most memory that it has had so far, what it has allocated.
fn mebibytes(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

/// A cgroup with a limit of its memory; gone with this value.
struct Group(PathBuf);

impl Group {
    fn make(flavor: Flavor, mebibytes: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let (root, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => return None,
            };
            let name = format!("mysql-service-test-{flavor}-{}", std::process::id());
            let group = Path::new(root).join(path.trim_start_matches('/')).join(name);
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            // Where a plain directory was made, nobody limits anything.
            if !group.0.join(file).exists() {
                return None;
            }
            fs::write(group.0.join(file), (mebibytes << 20).to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty once its processes are gone, which the agent's end sees to; a group that stays does no harm.
        let _ = fs::remove_dir(&self.0);
    }
}
