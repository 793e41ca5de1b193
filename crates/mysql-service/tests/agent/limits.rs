//! A disk that fills up, and a memory that many clients want: told, survived, and nothing is lost by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mysql_client::{Error, Server};
use rustix::process::Signal;
use topology::Flavor;
use topology::observation::ServerState;

use crate::harness::{LIMIT, Setup, TestAgent, until};
use crate::on_both_flavors;
use crate::starts::fails;

on_both_flavors! {
    a_full_disk_is_told_and_nothing_is_corrupt_afterwards;
    a_server_that_is_full_of_clients_stays_within_its_memory;
}

/// A file system in memory of its own; gone with this value.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where nothing can be mounted.
    pub(crate) fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(path)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(path.to_path_buf()))
    }

    fn free_mebibytes(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        (found.f_bavail * found.f_frsize) >> 20
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a server there.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

async fn a_full_disk_is_told_and_nothing_is_corrupt_afterwards(flavor: Flavor) {
    let place = tempfile::TempDir::with_prefix("disk-").unwrap();
    let Some(disk) = SmallDisk::mount(place.path(), 400) else {
        eprintln!("not tested: this user can mount nothing");
        return;
    };
    let mut setup = Setup::of(flavor);
    setup.more.push_str("disk_minimum_mebibytes = 64\n");
    let mut agent = TestAgent::prepare(setup).await;
    let config = agent.path("instance.toml");
    let mut text = fs::read_to_string(&config).unwrap();
    for name in ["data", "binlog", "relay_log"] {
        text = text.replace(
            &format!("{name}_directory = \"{}\"", agent.path(name).display()),
            &format!("{name}_directory = \"{}\"", disk.0.join(name).display()),
        );
    }
    fs::write(&config, text).unwrap();

    // Too little from the beginning: the server is not started on it.
    let ballast = disk.0.join("ballast");
    fill(&ballast, disk.free_mebibytes() - 40);
    fails(&mut agent, "less than disk_minimum_mebibytes = 64").await;
    fs::remove_file(&ballast).unwrap();
    agent.launch();
    agent.until_running().await;
    agent.allow_writes().await;
    let login = agent.application().await;
    let mut root = agent.root().await;
    root.execute("CREATE TABLE app.filler (id INT PRIMARY KEY, filler LONGBLOB) ENGINE=InnoDB")
        .await
        .unwrap();

    // It fills up below the server.
    fill(&ballast, disk.free_mebibytes() - 48);
    until("it is nearly full", LIMIT, async || {
        let report = agent.report().await.unwrap();
        report.detail.contains("nearly full") && report.disk_free_bytes >> 20 < 64
    })
    .await;
    let mut application = agent.connect(&login).await.unwrap();
    application.set_deadline(Duration::from_secs(3));
    let (mut acknowledged, mut unanswered) = (0, 0);
    for id in 0.. {
        let insert = format!("INSERT INTO app.filler VALUES ({id}, REPEAT('x', 2000000))");
        let answer = application.execute(&insert).await;
        match answer {
            Ok(()) => acknowledged += 1,
            // One that is only slow says nothing of the disk.
            Err(Error::Deadline { .. }) if disk.free_mebibytes() >= 8 => {
                unanswered += 1;
                application = agent.connect(&login).await.unwrap();
                application.set_deadline(Duration::from_secs(3));
            }
            Err(_) => {
                unanswered += 1;
                break;
            }
        }
        assert!(id < 100, "the disk is never full");
    }
    assert!(acknowledged > 0);
    fill(&ballast, 0);
    fill_up(&ballast);
    until("it is full", LIMIT, async || {
        agent.report().await.unwrap().detail.contains("is full")
    })
    .await;

    // The worst moment for a crash. It is not started again until there is space, and says so.
    if let Some(pid) = agent.report().await.unwrap().server_pid {
        sandbox::process::ProcessMark::of(pid).map(|server| server.signal(Signal::KILL));
    }
    until("it says why it is not started", LIMIT, async || {
        let report = agent.report().await.unwrap();
        report.state == ServerState::Crashed && report.detail.contains("disk_minimum_mebibytes = 64")
    })
    .await;
    fs::remove_file(&ballast).unwrap();
    agent.until_running().await;
    let mut root = agent.root().await;
    let rows = root
        .query_value("SELECT COUNT(*) FROM app.filler WHERE LENGTH(filler) = 2000000")
        .await
        .unwrap()
        .and_then(|count| count.parse::<i32>().ok())
        .unwrap();
    // Those that were not answered may be there.
    assert!(
        (acknowledged..=acknowledged + unanswered).contains(&rows),
        "{rows} rows, {acknowledged} were acknowledged, {unanswered} not answered"
    );
    for table in ["app.filler", "app.t"] {
        let checked = root
            .query(&format!("CHECK TABLE {table} EXTENDED"))
            .await
            .unwrap();
        assert_eq!(checked.last().unwrap().value(3), Some("OK"), "{table}");
    }
    agent.allow_writes().await;
    root.execute("INSERT INTO app.t VALUES (1)").await.unwrap();
    drop(root);
    assert_eq!(agent.terminate().await, Some(0));
}

/// Appends so much.
fn fill(path: &Path, mebibytes: u64) {
    use std::io::Write as _;
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    let block = vec![0; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&block).unwrap();
    }
}

/// Appends until there is no byte left.
fn fill_up(path: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::options().append(true).open(path).unwrap();
    for size in [1 << 20, 1 << 12] {
        let block = vec![0; size];
        while file.write(&block).is_ok_and(|written| written > 0) {}
    }
}

/// What the server of this test may use.
const MEMORY_MEBIBYTES: u64 = 512;
const CLIENTS: usize = 400;
/// Where there is no cgroup: what each process may allocate (`RLIMIT_DATA`, setrlimit(2)).
const DATA_LIMIT_MEBIBYTES: u64 = MEMORY_MEBIBYTES * 2;

async fn a_server_that_is_full_of_clients_stays_within_its_memory(flavor: Flavor) {
    // More than that, and the kernel kills somebody in the group. It outlives the agent: only an empty one can be removed.
    let group = Group::make(flavor, MEMORY_MEBIBYTES + 64);
    let mut agent = TestAgent::prepare(Setup::of(flavor)).await;
    let config = agent.path("instance.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(
        "memory = \"256M\"\n",
        &format!("memory = \"{MEMORY_MEBIBYTES}M\"\n"),
    );
    fs::write(&config, text).unwrap();
    if let Some(group) = &group {
        agent.launch_after(&format!("echo $$ > '{}/cgroup.procs'", group.0.display()));
    } else {
        // The next best thing, which counts what is asked for and not what is used: stacks, arenas, unused pages.
        agent.launch_after(&format!("ulimit -d {}", DATA_LIMIT_MEBIBYTES << 10));
    }
    agent.until_running().await;
    agent.allow_writes().await;
    let login = agent.application().await;
    let server = agent.server().await;
    fill_pool(&mut agent.root().await).await;

    // As many as are let in, all of them at once: each with a sort, a join and a temporary table.
    let endpoint = mysql_client::Endpoint::Tcp(agent.address.clone());
    let mut let_in = Vec::new();
    for number in 0..CLIENTS {
        match Server::connect(&endpoint, &login, LIMIT).await {
            Ok(client) => let_in.push(client),
            // Some do not even hear the reason.
            Err(Error::TooManyConnections { .. } | Error::Unreachable { .. }) => {}
            Err(error) => panic!("client {number}: {error}"),
        }
    }
    let clients_let_in = let_in.len();
    let mut clients = tokio::task::JoinSet::new();
    for mut client in let_in {
        clients.spawn(async move {
            for sql in [
                "SELECT COUNT(*) FROM (SELECT filler, id FROM app.wide WHERE id < 3000 ORDER BY filler) s",
                "SELECT COUNT(*) FROM (SELECT filler, COUNT(*) c FROM app.wide WHERE id < 3000 GROUP BY filler) g",
                "SELECT COUNT(*) FROM app.wide a JOIN app.wide b ON a.hash = b.hash WHERE a.id < 300 AND b.id < 300",
            ] {
                client.query(sql).await.unwrap();
            }
            client
        });
    }
    // They stay connected until the last one is done.
    let done = clients.join_all().await;
    let (peak, data) = (mebibytes(server.pid, "VmHWM:"), mebibytes(server.pid, "VmData:"));
    let limited_by = if group.is_some() { "a cgroup" } else { "ulimit" };
    eprintln!(
        "{flavor}, limited by {limited_by}: {clients_let_in} clients at once, the server took {peak} MiB of {MEMORY_MEBIBYTES}, and has asked for {data}"
    );
    drop(done);
    // The server notices one by one that they are gone, and until then it is full for root as well.
    let (socket, root) = (agent.path("run/mysqld.sock"), agent.secrets.root().unwrap());
    let mut session = None;
    until("the server has room again", LIMIT, async || {
        let endpoint = mysql_client::Endpoint::Socket(socket.clone());
        session = Server::connect(&endpoint, &root, LIMIT).await.ok();
        session.is_some()
    })
    .await;
    let mut session = session.unwrap();
    let allowed = session
        .query_value("SELECT @@global.max_connections")
        .await
        .unwrap()
        .and_then(|count| count.parse::<usize>().ok())
        .unwrap();
    assert!(
        clients_let_in + 5 >= allowed,
        "{clients_let_in} clients were let in, {allowed} are allowed"
    );
    assert!(server.is_alive(), "the server was killed");
    assert!(peak <= MEMORY_MEBIBYTES, "the server took {peak} MiB");
    assert!(session.query_value("SELECT 1").await.is_ok());
}

/// More than the buffer pool holds.
async fn fill_pool(root: &mut Server) {
    root.set_deadline(LIMIT);
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
    for _ in 0..17 {
        root.execute(&format!("{insert} SELECT {values} FROM app.wide"))
            .await
            .unwrap();
    }
    let rows = root
        .query_value("SELECT COUNT(filler) FROM app.wide")
        .await
        .unwrap();
    assert_eq!(rows.as_deref(), Some("131072"));
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
