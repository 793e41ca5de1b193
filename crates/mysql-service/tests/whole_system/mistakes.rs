//! Bad input: a clear error, the exit code of its kind, and nothing changed.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use sandbox::layout::INSTANCE_DIRECTORIES;
use sandbox::ports::PortRange;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use topology::Flavor;

use crate::command::{run, run_with};
use crate::harness::{PORTS, TestCluster};
use crate::on_both_flavors;
use crate::walk::Place;

on_both_flavors! {
    a_monitor_takes_no_nonsense;
    secrets_that_do_not_fit_stop_a_start_with_exit_code_2;
    half_a_data_directory_stops_a_start_and_is_left_as_it_is;
}

#[tokio::test]
async fn words_that_make_no_sense_are_usage_errors() {
    for words in [
        &["statsu"][..],
        &["status", "--monitor", "ftp://x"],
        &["status", "--monitor", "http://x", "--dir", "y"],
        &["register", "a", "--as", "king", "--monitor", "http://127.0.0.1:1"],
        &[
            "register",
            "../a",
            "--as",
            "slave",
            "--monitor",
            "http://127.0.0.1:1",
        ],
        &["up", "--instances", "0"],
        &["up", "--port-base", "70000"],
        &["proxy", "-p", "1", "-m", "king"],
        &["monitor", "--config", "/nonexistent/monitor.toml"],
        &["instance", "--set", "nonsense=1"],
        &["monitor", "--log-filter", "a=b=c"],
    ] {
        let ran = run(words).await.expect(2);
        assert!(ran.stdout.is_empty(), "{words:?} printed data: {}", ran.stdout);
        assert!(!ran.stderr.is_empty(), "{words:?} explained nothing");
    }
}

#[tokio::test]
async fn nobody_at_the_monitors_address_is_exit_code_4() {
    let ports = PortRange::take(1).unwrap();
    let url = format!("http://127.0.0.1:{}", ports.first());
    for words in [
        &["status"][..],
        &["topology"],
        &["events"],
        &["register", "a", "--as", "slave"],
        &["switchover", "--yes"],
        &["failover"],
        &["role", "a"],
    ] {
        let ran = run(words.iter().copied().chain(["--monitor", &url]))
            .await
            .expect(4);
        assert!(
            ran.stderr.contains("no answer from the monitor"),
            "{}",
            ran.stderr
        );
    }
    // A question is answered by no.
    run(["role", "a", "--require", "master", "--monitor", &url])
        .await
        .expect(1);
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_refused_and_left_alone() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let thesis = directory.path().join("thesis.txt");
    std::fs::write(&thesis, "words").unwrap();
    let dir = directory.path().display().to_string();
    for words in [&["up", "--dir", &dir][..], &["up", "--detach", "--dir", &dir]] {
        run(words).await.expect(2).explains("is not empty");
    }
    assert_eq!(names(directory.path()), ["thesis.txt"]);
    run(["down", "--dir", &dir]).await.expect(2);
    run(["status", "--dir", &dir]).await.expect(2);
    run(["doctor", "--dir", &dir]).await.expect(1);
    assert_eq!(names(directory.path()), ["thesis.txt"]);

    // Names that ours have, too; a file; settings that are none.
    let log = TempDir::with_prefix("mistakes-").unwrap();
    std::fs::create_dir(log.path().join("log")).unwrap();
    std::fs::write(log.path().join("log/thesis.txt"), "words").unwrap();
    let lock = TempDir::with_prefix("mistakes-").unwrap();
    std::fs::write(lock.path().join("lock"), "words").unwrap();
    for somebodys in [&log, &lock] {
        let before = names(somebodys.path());
        let dir = somebodys.path().display().to_string();
        run(["up", "--dir", &dir])
            .await
            .expect(2)
            .explains("is not empty");
        assert_eq!(names(somebodys.path()), before);
    }
    let file = thesis.display().to_string();
    run(["up", "--dir", &file]).await.expect(2).explains(&file);
    let settings = TempDir::with_prefix("mistakes-").unwrap();
    std::fs::write(settings.path().join("mysql-service.json"), "words").unwrap();
    let dir = settings.path().display().to_string();
    for command in ["up", "down"] {
        let ran = run([command, "--dir", &dir]).await.expect(2);
        ran.explains("is not what mysql-service writes");
    }
    run(["status", "--dir", &dir]).await.expect(2);
}

#[tokio::test]
async fn a_cluster_without_its_servers_program_is_not_begun() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let dir = directory.path().display().to_string();
    let nowhere = |command: &mut Command| {
        command
            .env("PATH", "")
            .env("MYSQL_SERVICE_MYSQL_DIR", directory.path().join("nothing"));
    };
    run_with(["up", "--flavor", "mysql", "--dir", &dir], nowhere)
        .await
        .expect(2)
        .explains("install-mysql");
    assert!(!directory.path().join("mysql-service.json").exists());
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let ports = PortRange::take(PORTS).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", ports.first() + 11)).unwrap();
    let (dir, base) = (directory.path().display().to_string(), ports.first().to_string());
    let words = ["up", "--dir", &dir, "--port-base", &base];
    let taken = listener.local_addr().unwrap().port().to_string();
    let ran = run(words).await.expect(2).explains(&taken);
    assert!(
        ran.stderr.contains("--port-base") && ran.stderr.contains("mysql-server-1"),
        "{}",
        ran.stderr
    );
    // Nothing was decided: other ports may be chosen for the same directory.
    assert!(!directory.path().join("mysql-service.json").exists());
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_on_ends_a_daemon_with_exit_code_2() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let secrets = format!("secret_file={}", write_secrets(directory.path()));
    let state = format!("state_directory={}", directory.path().join("state").display());
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    // The second is no address of this machine: it is reserved for documentation.
    for address in [&taken, "192.0.2.1:3300"] {
        let listen = format!("listen={address}");
        for words in [
            &[
                "monitor",
                "--set",
                &secrets,
                "--set",
                &state,
                "--set",
                "name=x",
                "--set",
                &listen,
                "--set",
                "allow_remote_without_login=true",
            ][..],
            &[
                "proxy",
                "-m",
                "master",
                "--set",
                "id=x",
                "--set",
                "monitors=[\"http://127.0.0.1:1\"]",
                "--set",
                &listen,
            ],
        ] {
            run(words).await.expect(2).explains(address).explains("listen");
        }
    }
}

#[tokio::test]
async fn a_missing_server_binary_is_named_with_what_to_do() {
    a_missing_binary_of("mysql", "install-mysql").await;
    a_missing_binary_of("mariadb", "apt-get install mariadb-server").await;
}

async fn a_missing_binary_of(flavor: &str, words_of_it: &str) {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let ports = PortRange::take(2).unwrap();
    let mut words = vec!["instance".to_owned()];
    for setting in [
        "id=mysql-server-1".to_owned(),
        format!("flavor={flavor}"),
        format!("address=127.0.0.1:{}", ports.first()),
        format!("agent_listen=127.0.0.1:{}", ports.first() + 1),
        format!("binaries={}", directory.path().display()),
        format!("run_directory={}", directory.path().join("run").display()),
        format!("data_directory={}", directory.path().join("data").display()),
        format!("secret_file={}", write_secrets(directory.path())),
    ] {
        words.extend(["--set".to_owned(), setting]);
    }
    run(words).await.expect(2).explains(words_of_it);
    let data = std::fs::read_dir(directory.path().join("data"));
    assert!(
        data.is_err() || data.unwrap().next().is_none(),
        "something was put into the data directory"
    );
}

fn write_secrets(directory: &Path) -> String {
    let file = directory.join("good.conf");
    std::fs::write(&file, "root_passwd=a\nrepl_passwd=b\ndba_passwd=c\n").unwrap();
    file.display().to_string()
}

#[tokio::test]
async fn malformed_configuration_and_secrets_end_a_daemon_with_exit_code_2() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let ports = PortRange::take(2).unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown = write("unknown.toml", "name = 'x'\nlissten = '127.0.0.1:1'\n");
    run(["monitor", "--config", &unknown])
        .await
        .expect(2)
        .explains("lissten");
    let syntax = write("syntax.toml", "name = \n");
    run(["monitor", "--config", &syntax])
        .await
        .expect(2)
        .explains("line 1");

    let secrets = write("secret.conf", "root_passwd=a\nrepl_passwd = b-secret-word\n");
    let state = directory.path().join("state");
    let listen = format!("listen=127.0.0.1:{}", ports.first());
    let words = [
        "monitor".to_owned(),
        "--set".to_owned(),
        format!("secret_file={secrets}"),
        "--set".to_owned(),
        format!("state_directory={}", state.display()),
        "--set".to_owned(),
        listen,
    ];
    let ran = run(words.clone()).await.expect(2).explains("line 2");
    assert!(
        !ran.stderr.contains("b-secret-word"),
        "a secret is shown: {}",
        ran.stderr
    );

    // A key of the backup store that is none.
    let good = "root_passwd=a\nrepl_passwd=b\ndba_passwd=c\nbackup_catalogue_identity=b-secret-word\n";
    std::fs::write(&secrets, good).unwrap();
    let store = format!("backup.store=file://{}", directory.path().join("store").display());
    let words = words.into_iter().chain(["--set".to_owned(), store]);
    let ran = run(words).await.expect(2).explains("backup_catalogue_identity");
    assert!(!ran.stderr.contains("b-secret-word"), "{}", ran.stderr);
}

async fn a_monitor_takes_no_nonsense(flavor: Flavor) {
    let cluster = TestCluster::start(flavor).await;
    // A body of 10 MB, and what is no HTTP at all, are errors of who sends them.
    let monitor = cluster.cluster.settings().monitor();
    for (request, status) in [
        (format!(
            "POST /api/v1/switchover HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            10_000_000,
            " ".repeat(10_000_000)
        ), "413"),
        ("POST /api/v1/switchover HTTP/1.1\r\nHost: m\r\nContent-Length: 2\r\n\r\n{}".to_owned(), "415"),
        ("POST /api/v1/switchover HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{".to_owned(), "400"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
        ("GET /api/v1/nothing HTTP/1.1\r\nHost: m\r\n\r\n".to_owned(), "404"),
    ] {
        let mut stream = tokio::net::TcpStream::connect((monitor.host(), monitor.port())).await.unwrap();
        // The monitor may answer, and close, before it has read everything.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
    cluster.wait_until_ok().await;

    // A wrong password of the service's users is named by `doctor`.
    let wrong = cluster.cluster.layout().directory().join("wrong.conf");
    std::fs::write(&wrong, "root_passwd=a\nrepl_passwd=b\ndba_passwd=c\n").unwrap();
    let wrong = wrong.display().to_string();
    let ran = cluster.run(&["doctor", "--secret-file", &wrong]).await.expect(1);
    assert!(
        ran.stdout.contains("FAIL") && ran.stdout.contains("dba"),
        "{}",
        ran.stdout
    );
}

/// The first start is one without a `PATH`, which the scripts of a server's package would not find their tools with.
async fn secrets_that_do_not_fit_stop_a_start_with_exit_code_2(flavor: Flavor) {
    let place = Place::new(flavor);
    let dir = place.dir();
    let up = || place.up_with(&["--instances", "1"], |_| ());
    place
        .up_with(&["--instances", "1"], |command| {
            command.env("PATH", "");
        })
        .await
        .expect(0);
    run(["down", "--dir", &dir]).await.expect(0);

    let file = place.directory.path().join("secret.conf");
    let right = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{right}dba_passwd = a-secret-word\n")).unwrap();
    let ran = up().await.expect(2).explains("secret.conf, line");
    assert!(
        !ran.stderr.contains("a-secret-word"),
        "a secret is shown: {}",
        ran.stderr
    );
    let wrong: String = right
        .lines()
        .map(|line| match line.split_once('=') {
            Some(("root_passwd", _)) => "root_passwd=another\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect();
    std::fs::write(&file, wrong).unwrap();
    up().await.expect(2).explains("root_passwd");

    // The data is as it was.
    std::fs::write(&file, right).unwrap();
    up().await.expect(0);
    run(["down", "--dir", &dir]).await.expect(0);
}

async fn half_a_data_directory_stops_a_start_and_is_left_as_it_is(flavor: Flavor) {
    let place = Place::new(flavor);
    let dir = place.dir();
    place.up().await.expect(0);
    run(["down", "--dir", &dir]).await.expect(0);

    let data = place.directory.path().join("mysql-server-2/data");
    let elsewhere = place.directory.path().join("elsewhere");
    for (missing, words) in [
        ("ibdata1", "not complete"),
        ("mysql-service.json", "did not make"),
    ] {
        std::fs::rename(data.join(missing), &elsewhere).unwrap();
        let before = names(&data);
        place
            .up()
            .await
            .expect(2)
            .explains(words)
            .explains("mysql-server-2");
        assert_eq!(names(&data), before);
        std::fs::rename(&elsewhere, data.join(missing)).unwrap();
    }

    // With everything in its place it is the same cluster as before.
    place.up().await.expect(0);
    run(["down", "--dir", &dir]).await.expect(0);
}

/// Nobody can replicate with it, so nothing is made that would have to be thrown away.
#[tokio::test]
async fn a_replication_password_that_mysql_cannot_use_is_refused_before_anything_is_made() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let ports = PortRange::take(2).unwrap();
    let file = directory.path().join("long.conf");
    let long = "p".repeat(33);
    std::fs::write(
        &file,
        format!("root_passwd=a\nrepl_passwd={long}\ndba_passwd=c\n"),
    )
    .unwrap();
    let ran = run(agent_words(
        directory.path(),
        &ports,
        &["flavor=mysql", &format!("secret_file={}", file.display())],
    ))
    .await
    .expect(2)
    .explains("33 bytes");
    assert!(!ran.stderr.contains(&long), "a secret is shown: {}", ran.stderr);
    assert_eq!(names(&directory.path().join("data")), Vec::<String>::new());
}

#[tokio::test]
async fn a_servers_argument_that_the_service_depends_on_is_refused_by_name() {
    let directory = TempDir::with_prefix("mistakes-").unwrap();
    let ports = PortRange::take(2).unwrap();
    let secrets = format!("secret_file={}", write_secrets(directory.path()));
    let mut words = agent_words(directory.path(), &ports, &[&secrets]);
    words.extend(["--", "--max-connections=500", "--sync-binlog=0", "--log-bin"].map(str::to_owned));
    run(words)
        .await
        .expect(2)
        .explains("--sync-binlog is the service's own (a commit must be on the disk)")
        .explains("--log-bin");
    assert!(!directory.path().join("data").exists());
}

/// The command line of an agent of this directory.
fn agent_words(directory: &Path, ports: &PortRange, more: &[&str]) -> Vec<String> {
    let mut settings = vec![
        "id=mysql-server-1".to_owned(),
        format!("address=127.0.0.1:{}", ports.first()),
        format!("agent_listen=127.0.0.1:{}", ports.first() + 1),
    ];
    for name in INSTANCE_DIRECTORIES {
        let path = directory.join(name);
        settings.push(format!("{name}_directory={}", path.display()));
    }
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    let settings = settings
        .into_iter()
        .flat_map(|setting| ["--set".to_owned(), setting]);
    std::iter::once("instance".to_owned()).chain(settings).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
