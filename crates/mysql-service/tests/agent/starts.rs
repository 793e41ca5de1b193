//! The kinds of start, and everything that is refused before a server touches the files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use mysql_client::Depth;
use rustix::process::Signal;
use topology::Flavor;
use topology::gtid::Transactions;

use crate::harness::{FakeMonitor, LIMIT, Setup, TestAgent, needs_root, until};
use crate::on_both_flavors;

on_both_flavors! {
    an_empty_directory_is_initialised_and_kept;
    an_interrupted_initialisation_is_begun_again;
    what_is_unclear_is_refused_and_left_alone;
    an_instance_that_had_data_is_not_made_anew;
    settings_of_ones_own_win_unless_they_are_protected;
    the_server_of_a_root_agent_runs_as_mysql;
}

/// Passwords with everything that a quoting could get wrong.
pub(crate) fn strange_secrets() -> String {
    let strange = r#"'";\%_`$(){}[]<>|&#!~^*?=+-,./@: é漢😀 -- /* "#;
    let password = |name: &str| {
        let mut password: String = format!("{name}{strange}").repeat(8);
        password.truncate(password.char_indices().nth(200).unwrap().0);
        // An end that is not a blank: nobody can see that one.
        password.push('x');
        password
    };
    format!(
        "# secrets\n\nroot_passwd={}\nrepl_passwd={}\ndba_passwd={}",
        password("root"),
        // A replica's password for its source has at most 32 characters.
        r#"'"\%;é`$ x"#,
        password("dba")
    )
}

fn has_nothing(transactions: &Transactions) -> bool {
    transactions.to_string().is_empty()
}

async fn an_empty_directory_is_initialised_and_kept(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    setup.from_template = false;
    setup.secrets = Some(strange_secrets());
    // A setting that cannot be changed any more later.
    setup
        .more
        .push_str("server_arguments = [\"--lower-case-table-names=1\", \"--max-connections=77\"]\n");
    let mut agent = TestAgent::start(setup).await;
    let identity = agent.identity();
    let report = agent.report().await.unwrap();
    assert_eq!(report.incarnation.as_ref(), Some(&identity.incarnation));
    assert_eq!(report.server_id, Some(identity.server_id));

    // It is read-only, follows nobody and has no transaction; the service's users are its only ones.
    let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
    assert!(seen.read_only && seen.replication.is_none() && !seen.event_scheduler);
    assert_eq!(seen.server_id, identity.server_id);
    assert!(has_nothing(&seen.transactions), "{}", seen.transactions);
    agent.connect(&agent.secrets.repl().unwrap()).await.unwrap();
    let mut root = agent.root().await;
    let users = root
        .query_value(
            "SELECT GROUP_CONCAT(User, '@', Host ORDER BY User) FROM mysql.user \
             WHERE User NOT IN ('mariadb.sys', 'mysql.sys', 'mysql.session', 'mysql.infoschema')",
        )
        .await
        .unwrap();
    assert_eq!(users.as_deref(), Some("dba@%,repl@%,root@localhost"));
    let test = root
        .query_value("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = 'test'")
        .await
        .unwrap();
    assert_eq!(test.as_deref(), Some("0"));
    let names = root.query_value("SELECT @@lower_case_table_names").await.unwrap();
    assert_eq!(names.as_deref(), Some("1"));

    // The log of a first start is a story of ten lines. A busy machine may have a word to say about itself.
    let log = agent.log();
    let lines = log.lines().filter(|line| line.contains(" INFO ")).count();
    assert!((5..=10).contains(&lines), "{lines} lines:\n{log}");

    // A restart keeps data and identity, and is read-only again.
    agent.allow_writes().await;
    agent.application().await;
    drop(root);
    assert_eq!(agent.terminate().await, Some(0));
    assert!(!agent.path("run/mysqld.sock").exists());
    agent.launch();
    agent.until_running().await;
    assert_eq!(agent.identity(), identity);
    let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
    assert!(seen.read_only && !has_nothing(&seen.transactions));
    let mut root = agent.root().await;
    assert_eq!(
        root.query_value("SELECT COUNT(*) FROM app.t")
            .await
            .unwrap()
            .as_deref(),
        Some("0")
    );
}

/// Kills the agent when something is there that an initialisation makes, and sees that the next one ends well.
async fn an_interrupted_initialisation_is_begun_again(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    setup.from_template = false;
    setup.secrets = Some(strange_secrets());
    let mut agent = TestAgent::prepare(setup).await;
    let sign_of_users = match flavor {
        Flavor::Mariadb => "data/mysql_upgrade_info",
        Flavor::Mysql => "data/mysql_upgrade_history",
    };
    let marker = agent.path("data/.mysql-service-initialising");
    let identity = agent.path("data/mysql-service.json");
    for sign in [
        "data/.mysql-service-initialising",
        "data/ibdata1",
        "run/mysqld.sock",
        sign_of_users,
    ] {
        let launched = std::time::SystemTime::now();
        agent.launch();
        let path = agent.path(sign);
        // What an earlier attempt left does not count.
        let is_new = || {
            let modified = fs::metadata(&path).and_then(|file| file.modified());
            modified.is_ok_and(|at| at >= launched)
        };
        until(sign, LIMIT, async || is_new() || identity.exists()).await;
        agent.agent().kill();
        assert!(marker.exists() || identity.exists(), "killed at {sign}");
    }
    agent.launch();
    agent.until_running().await;
    assert!(!agent.path("data/.mysql-service-initialising").exists());
    let seen = agent.dba().await.observe(Depth::Ordinary).await.unwrap();
    assert!(seen.read_only && has_nothing(&seen.transactions));
    assert!(
        agent.log().contains("an initialisation was interrupted"),
        "{}",
        agent.log()
    );
}

/// An agent that gives up with these words, for a person to change something: starting it again cannot help.
pub(crate) async fn refused(agent: &mut TestAgent, words: &str) {
    assert_eq!(gives_up(agent, words).await, Some(2), "{words}");
}

/// An agent that gives up with these words, which may be otherwise when it is started again.
pub(crate) async fn fails(agent: &mut TestAgent, words: &str) {
    assert_eq!(gives_up(agent, words).await, Some(1), "{words}");
}

async fn gives_up(agent: &mut TestAgent, words: &str) -> Option<i32> {
    let before = fs::read(agent.path("agent.log")).unwrap_or_default().len();
    agent.launch();
    let code = agent.until_ended().await;
    let log = agent.log();
    assert!(
        log[before..].contains(words),
        "`{words}` is not in:\n{}",
        &log[before..]
    );
    code
}

async fn what_is_unclear_is_refused_and_left_alone(flavor: Flavor) {
    let mut agent = TestAgent::prepare(Setup::of(flavor)).await;
    let data = agent.path("data");
    // Somebody else's files.
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("letter.txt"), "dear").unwrap();
    refused(&mut agent, "letter.txt").await;
    assert_eq!(fs::read_to_string(data.join("letter.txt")).unwrap(), "dear");
    fs::remove_file(data.join("letter.txt")).unwrap();
    // Binlogs without data.
    let binlog = agent.path("binlog/binlog.000001");
    fs::write(&binlog, "x").unwrap();
    refused(&mut agent, "Is its volume mounted?").await;
    fs::remove_file(&binlog).unwrap();
    // A backup that cannot be restored: an empty server is not what was asked for.
    let backup = agent.path("backup/full/2026_11_22_03_00_00_bak");
    fs::create_dir_all(&backup).unwrap();
    fs::write(backup.join("manifest.json"), "{}").unwrap();
    fails(&mut agent, "2026_11_22_03_00_00_bak").await;
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    fs::remove_dir_all(&backup).unwrap();

    agent.launch();
    agent.until_running().await;
    // A second agent on the same data.
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_mysql-service"))
        .args(["instance", "--config"])
        .arg(agent.path("instance.toml"))
        .output()
        .unwrap();
    // The first may end.
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("another agent"),
        "{second:?}"
    );
    assert_eq!(agent.terminate().await, Some(0));

    // The binlogs' volume is not mounted.
    fs::rename(agent.path("binlog"), agent.path("elsewhere")).unwrap();
    refused(&mut agent, "the binlog directory is not the one").await;
    fs::remove_dir_all(agent.path("binlog")).unwrap();
    fs::rename(agent.path("elsewhere"), agent.path("binlog")).unwrap();
    // Another instance's data; half of it; a newer format; a newer server's.
    let file = data.join("mysql-service.json");
    let right = fs::read_to_string(&file).unwrap();
    for (from, to, words) in [
        (
            "mysql-server-1",
            "mysql-server-2",
            "belongs to the instance `mysql-server-2`",
        ),
        ("\"format\": 1", "\"format\": 2", "use a newer mysql-service"),
        (
            "\"version\": \"",
            "\"version\": \"9",
            "going back is not possible",
        ),
        ("{", "[", "damaged"),
    ] {
        fs::write(&file, right.replacen(from, to, 1)).unwrap();
        refused(&mut agent, words).await;
    }
    fs::write(&file, &right).unwrap();
    fs::rename(data.join("ibdata1"), agent.path("ibdata1")).unwrap();
    refused(&mut agent, "not complete").await;
    fs::rename(agent.path("ibdata1"), data.join("ibdata1")).unwrap();
    // A port that somebody has.
    let taken = std::net::TcpListener::bind(agent.address.to_string()).unwrap();
    refused(&mut agent, "is taken by another process").await;
    drop(taken);

    agent.launch();
    agent.until_running().await;
}

async fn an_instance_that_had_data_is_not_made_anew(flavor: Flavor) {
    let monitor = FakeMonitor::start().await;
    let known = "0f0e8400-e29b-41d4-a716-446655440000";
    monitor.answer(|reply| reply.registered_incarnation = Some(known.parse().unwrap()));
    let mut setup = Setup::of(flavor);
    setup.monitor = Some(monitor.port);
    let mut agent = TestAgent::prepare(setup).await;
    let began = std::time::Instant::now();
    refused(&mut agent, "--force-new").await;
    assert_eq!(fs::read_dir(agent.path("data")).unwrap().count(), 0);
    // The monitor was told why.
    let (_, last) = monitor
        .heard(began, "the refusal", |report| report.detail.contains(known))
        .await;
    assert_eq!(last.state, topology::observation::ServerState::Stopped);

    let file = agent.path("instance.toml");
    let text = fs::read_to_string(&file).unwrap();
    agent.launch_with(|command| {
        command.args(["--force-new", "--memory", "300M"]);
    });
    agent.until_running().await;
    let rendered = fs::read_to_string(agent.path("run/my.cnf")).unwrap();
    assert!(rendered.contains("Memory: 300 MiB"), "{rendered}");
    // It is somebody else than whom the cluster knows, and says so.
    monitor
        .heard(began, "another incarnation", |report| {
            report.detail.contains("another data directory")
        })
        .await;
    let expected = format!("Bearer {}", agent.secrets.agent_token().unwrap().expose());
    assert_eq!(monitor.token(), Some(expected));

    // Without a monitor that could say it is made anew, and not silently.
    assert_eq!(agent.terminate().await, Some(0));
    agent.wipe();
    let nobody = text.replace(&format!("127.0.0.1:{}", monitor.port), "127.0.0.1:1");
    assert_ne!(nobody, text);
    fs::write(&file, nobody).unwrap();
    agent.launch();
    until("it says so", LIMIT, async || {
        agent
            .log()
            .contains("it is not known whether this instance had data")
    })
    .await;
    agent.until_running().await;
}

async fn settings_of_ones_own_win_unless_they_are_protected(flavor: Flavor) {
    let mut setup = Setup::of(flavor);
    let extra = tempfile::TempDir::new().unwrap();
    setup.more = format!(
        "server_dies_with_agent = true\nextra_configuration_directory = \"{}\"\n\
         server_arguments = [\"--max-connections=78\"]\n",
        extra.path().display()
    );
    let own = extra.path().join("own.cnf");
    fs::write(&own, "[mysqld]\nmax_connections = 77\nsync_binlog = 0\n").unwrap();
    let mut agent = TestAgent::prepare(setup).await;
    refused(&mut agent, "own.cnf:3: sync_binlog").await;
    // An argument is stronger than a file.
    fs::write(&own, "[mysqld]\nmax_connections = 77\nmax_connect_errors = 55\n").unwrap();
    agent.launch();
    agent.until_running().await;
    let mut dba = agent.dba().await;
    for (name, value) in [
        ("max_connections", "78"),
        ("max_connect_errors", "55"),
        ("sync_binlog", "1"),
        ("sync_relay_log", "1"),
    ] {
        let is = dba.query_value(&format!("SELECT @@global.{name}")).await.unwrap();
        assert_eq!(is.as_deref(), Some(value), "{name}");
    }
}

async fn the_server_of_a_root_agent_runs_as_mysql(flavor: Flavor) {
    if !rustix::process::geteuid().is_root() {
        return needs_root("become another user");
    }
    let agent = TestAgent::prepare(Setup::of(flavor)).await;
    let file = agent.path("instance.toml");
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("user = \"root\"\n", "");
    fs::write(&file, text).unwrap();
    fs::set_permissions(agent.home(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut agent = agent;
    agent.launch();
    agent.until_running().await;
    let server = agent.server().await;
    let owner = fs::metadata(format!("/proc/{}", server.pid)).unwrap().uid();
    assert_ne!(owner, 0);
    assert_eq!(fs::metadata(agent.path("data/ibdata1")).unwrap().uid(), owner);
    // Killed with its agent even so: the change of user came first.
    agent.agent().signal(Signal::KILL).unwrap();
    agent.until_ended().await;
    assert!(server.wait_until_ended(LIMIT));
}
