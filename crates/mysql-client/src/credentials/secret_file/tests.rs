//! What `secret.conf` may look like, and what it may not.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};

use super::*;

const WHOLE: &str = "root_passwd=r\nrepl_passwd=p\ndba_passwd=d\nclient_id=c\nsecret=s";

fn parse(text: &str) -> Result<SecretFile, SecretError> {
    SecretFile::parse(text.as_bytes(), "secret.conf")
}

fn line_of(text: &str) -> (usize, &'static str) {
    match parse(text) {
        Err(SecretError::Line { line, problem, .. }) => (line, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_plain_file_is_read() {
    let file = parse(WHOLE).unwrap();
    assert_eq!(file.root().unwrap(), Login::new("root", Password::new("r")));
    assert_eq!(file.dba().unwrap().password.expose(), "d");
    assert_eq!(file.repl().unwrap().user, "repl");
    let own = file.replication(topology::AccountNumber(2)).unwrap();
    assert_eq!(own, Login::new("repl_2", Password::new("p")));
    assert_eq!(file.client_id().unwrap().expose(), "c");
    assert_eq!(file.client_secret().unwrap().expose(), "s");
    assert_eq!(file.sso_url(), None);
}

#[test]
fn blank_lines_comments_and_odd_line_ends_are_fine() {
    let file = parse("\n# passwords\n\nroot_passwd=a=b#c\r\n   \nrepl_passwd='\"\\`é\n").unwrap();
    assert_eq!(file.root().unwrap().password.expose(), "a=b#c");
    assert_eq!(file.repl().unwrap().password.expose(), "'\"\\`é");
    assert!(parse("").is_ok());
}

#[test]
fn a_bad_line_is_named_by_its_number_and_never_shown() {
    assert_eq!(line_of("root_passwd=r\n\nhunter2").0, 3);
    assert_eq!(line_of("# c\npassword=hunter2"), (2, "unknown key"));
    assert_eq!(line_of("root_passwd =hunter2"), (1, "spaces around the key"));
    assert_eq!(line_of("root_passwd= hunter2"), (1, "spaces around the value"));
    assert_eq!(line_of("root_passwd="), (1, "the value is empty"));
    assert_eq!(
        line_of("root_passwd=a\nroot_passwd=b"),
        (2, "this key was there before")
    );
    assert_eq!(line_of("root_passwd=a\0b").0, 1);
    for text in ["hunter2", "password=hunter2", "root_passwd= hunter2", "hunter2=x"] {
        let error = parse(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
    let error = SecretFile::parse(b"dba_passwd=\xff\xfe", "f").unwrap_err();
    assert_eq!(error.to_string(), "f, line 1: not UTF-8");
}

#[test]
fn a_missing_secret_says_where_to_put_it() {
    let error = parse("root_passwd=r").unwrap().dba().unwrap_err();
    assert_eq!(
        error.to_string(),
        "no `dba_passwd`: put `dba_passwd=…` into secret.conf, or set MYSQL_SERVICE_DBA_PASSWD"
    );
}

#[test]
fn the_agent_token_is_given_or_derived() {
    let given = parse("agent_token=t\nroot_passwd=r").unwrap();
    assert_eq!(given.agent_token().unwrap().expose(), "t");
    // HKDF-SHA256 without salt of `r`, by Python's hmac: extract, then the first block of expand.
    let derived = parse("root_passwd=r").unwrap().agent_token().unwrap();
    assert_eq!(
        derived.expose(),
        "46dc3e2552ec84c6a366838d6004ba0bd1e39e9f2ab10a6ba01198bd15b8f1d7"
    );
    assert!(parse("repl_passwd=p").unwrap().agent_token().is_err());
}

#[test]
fn nothing_secret_is_printed() {
    let file = parse("root_passwd=hunter2").unwrap();
    let printed = format!("{file:?} {file:#?}");
    assert!(printed.contains("root_passwd"));
    assert!(!printed.contains("hunter2"), "{printed}");
}

fn load(
    path: Option<&Path>,
    environment: &[(&str, &str)],
) -> Result<(SecretFile, Vec<SecretWarning>), SecretError> {
    let environment: HashMap<String, OsString> = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
        .collect();
    SecretFile::load_with(path, |name| environment.get(name).cloned())
}

#[test]
fn the_environment_wins_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret.conf");
    fs::write(&path, WHOLE).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let secret = directory.path().join("dba");
    fs::write(&secret, "from-a-file\n\n").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o640)).unwrap();
    let (file, warnings) = load(
        Some(&path),
        &[
            ("MYSQL_SERVICE_ROOT_PASSWD", "from-outside"),
            ("MYSQL_SERVICE_DBA_PASSWD_FILE", secret.to_str().unwrap()),
        ],
    )
    .unwrap();
    assert_eq!(file.root().unwrap().password.expose(), "from-outside");
    assert_eq!(file.dba().unwrap().password.expose(), "from-a-file\n");
    assert_eq!(file.repl().unwrap().password.expose(), "p");
    assert_eq!(
        warnings,
        [SecretWarning::Exposed {
            path: secret,
            mode: 0o640
        }]
    );
}

#[test]
fn a_secret_named_twice_in_the_environment_is_an_error() {
    let error = load(
        None,
        &[
            ("MYSQL_SERVICE_REPL_PASSWD", "hunter2"),
            ("MYSQL_SERVICE_REPL_PASSWD_FILE", "/nowhere"),
        ],
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "both MYSQL_SERVICE_REPL_PASSWD and MYSQL_SERVICE_REPL_PASSWD_FILE are set: unset one of them"
    );
}

#[test]
fn what_cannot_work_well_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret.conf");
    fs::write(&path, "repl_passwd=x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = load(Some(&path), &[]).unwrap();
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1);
    assert!(
        texts[0].contains("mode 0644") && texts[0].contains("chmod 600"),
        "{texts:?}"
    );
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let error = load(Some(Path::new("/nowhere/secret.conf")), &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot read the secret file /nowhere/secret.conf")
    );
    assert!(load(None, &[("MYSQL_SERVICE_SECRET", "")]).is_err());
}

#[test]
fn a_password_that_mysql_replicates_with_no_more_is_refused_for_mysql_alone() {
    let secrets = |length: usize| {
        let text = format!(
            "root_passwd=a\nrepl_passwd={}\ndba_passwd=c\n",
            "é".repeat(length / 2)
        );
        SecretFile::parse(text.as_bytes(), "x").unwrap()
    };
    secrets(32).check_for(Flavor::Mysql).unwrap();
    secrets(34).check_for(Flavor::Mariadb).unwrap();
    let error = secrets(34).check_for(Flavor::Mysql).unwrap_err().to_string();
    assert!(error.contains("34 bytes") && !error.contains('é'), "{error}");
}

#[test]
fn the_official_images_name_of_roots_password_is_enough() {
    let load = |path: Option<&Path>, set: &[(&str, &str)]| {
        SecretFile::load_with(path, |name| {
            let found = set.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        })
    };
    let (one, _) = load(None, &[("MYSQL_ROOT_PASSWORD", "secret")]).unwrap();
    assert_eq!(one.root().unwrap().password.expose(), "secret");
    let repl = one.repl().unwrap().password;
    assert_eq!(repl.expose().len(), 32);
    assert_ne!(repl, one.dba().unwrap().password);
    // The same on every machine, whatever the image is called; ours is the stronger name.
    let (same, _) = load(None, &[("MARIADB_ROOT_PASSWORD", "secret")]).unwrap();
    assert_eq!(same.repl().unwrap().password, repl);
    let both = [
        ("MYSQL_ROOT_PASSWORD", "x"),
        ("MYSQL_SERVICE_ROOT_PASSWD", "secret"),
    ];
    assert_eq!(load(None, &both).unwrap().0.repl().unwrap().password, repl);
    let twice = [("MYSQL_ROOT_PASSWORD", "x"), ("MYSQL_ROOT_PASSWORD_FILE", "/x")];
    assert!(matches!(load(None, &twice), Err(SecretError::Both { .. })));

    // A file is complete or an error: a line that was forgotten is not made up.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret.conf");
    fs::write(&path, "root_passwd=of the file\n").unwrap();
    let (file, _) = load(Some(&path), &[("MYSQL_ROOT_PASSWORD", "secret")]).unwrap();
    assert_eq!(file.root().unwrap().password.expose(), "of the file");
    assert!(matches!(file.repl(), Err(SecretError::Missing { .. })));

    // systemd's credentials: used where no file is named, and nobody is warned of their mode.
    let credentials = [("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap())];
    let (found, warnings) = load(None, &credentials).unwrap();
    assert_eq!(found.root().unwrap().password.expose(), "of the file");
    assert_eq!(warnings, []);
}
