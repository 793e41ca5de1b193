//! Has a server apply a history, up to its end and no further, and leaves it as it was but for that.
//!
//! Every step looks before it acts and may be done again: a replay that was interrupted goes on where the server is.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mysql_client::credentials::{Login, Password};
use mysql_client::replay::{Durability, ReplayState, Settings, replay_settings};
use mysql_client::replication_server::{Certificate, History, Identity, Owned, ReplicationServer, Service};
use mysql_client::{Error, Server};
use topology::gtid::Transactions;
use topology::{Flavor, ServerId};

use super::joined::MaybeJoined;

/// The user that the replay's source knows: it exists nowhere else.
const USER: &str = "mysql_service_replay";

/// How often the server is asked how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// So many relay log files may lie on the disk, of which one is being written: a file goes when it is applied and the next
/// one has begun.
const RELAY_LOG_FILES: u64 = 2;

/// Where relay log files are smaller than this: less at a time would only be slow.
const LEAST_RELAY_LOG_FILE_BYTES: u64 = 1 << 20;

/// In so many parts of that the server is sent more, as it applies what it has.
const PORTIONS: u64 = 4;

/// A receiver that has not connected after this long says why in its error.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// How a server is before a replay, which is so again afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// Those of its settings that a replay changes.
    pub settings: Settings,
    /// Whether small transactions may be joined to one; see [`Server::takes_joined_transactions`].
    pub joins: bool,
    /// Whether its binlogs are emptied at the end, since they may hold joined transactions, which have the GTIDs of the
    /// last of several.
    pub empties_binlogs: bool,
}

impl Before {
    /// Of a replay that goes on after one that did not come to its end: what that one found is what counts. Nothing is
    /// joined any more: what was asked then may have changed since.
    #[must_use]
    pub fn after(mut self, interrupted: Self) -> Self {
        self.settings.extend(interrupted.settings);
        self.joins = false;
        self.empties_binlogs |= interrupted.empties_binlogs;
        self
    }
}

/// What is to be applied.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What the server has when everything is applied.
    pub reached: Owned,
    /// The ids of the servers whose transactions are in the history.
    pub served_ids: BTreeSet<u32>,
    /// What the server runs with meanwhile, such as [`replay_settings`](mysql_client::replay::replay_settings).
    pub settings: Settings,
    /// Where the certificate of the replay's source is put meanwhile: the server's user must be able to read it.
    pub certificate_file: PathBuf,
}

/// Why a replay did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It was not begun: in a sentence.
    #[error("{0}")]
    Refused(String),
    /// The server stopped at a transaction, or what it was to be sent cannot be read: in a sentence. What was applied
    /// stays; the same command goes on from there.
    #[error("{0}")]
    Stopped(String),
    /// A call to the server failed.
    #[error(transparent)]
    Server(#[from] Error),
    /// The source of the replay could not be set up.
    #[error("cannot serve the binlogs to the server")]
    Source(#[source] std::io::Error),
}

/// Applies `history` at `server`, a session of a user with all rights.
///
/// `before` is what [`state_before`] said, which the caller has stored: should this process end, [`leave`] brings it back.
/// `look` is told what the server has, now and then.
///
/// # Errors
/// See [`ReplayError`]. The server is left following nobody, with its settings as before, in every case in which it
/// answers.
pub async fn apply<H: History>(
    server: &mut Server,
    history: H,
    wish: &Wish,
    before: &Before,
    mut look: impl FnMut(&Transactions),
) -> Result<(), ReplayError> {
    refuse_own_id(server, &wish.served_ids).await?;
    let service = Service {
        identity: identity(server, &wish.served_ids).await?,
        login: Login::new(USER, Password::new(random_text()?)),
        certificate: Certificate::new().map_err(ReplayError::Source)?,
        served_ids: wish.served_ids.clone(),
    };
    let login = service.login.clone();
    publish(&service.certificate, &wish.certificate_file).map_err(ReplayError::Source)?;
    let relay_log_file_bytes = server.relay_log_file_bytes().await?;
    let relay_log_limit_bytes = RELAY_LOG_FILES * relay_log_file_bytes.max(LEAST_RELAY_LOG_FILE_BYTES);
    let joins = Arc::new(AtomicBool::new(before.joins));
    let history = MaybeJoined {
        history,
        joins: Arc::clone(&joins),
    };
    let source = ReplicationServer::start(service, history)
        .await
        .map_err(ReplayError::Source)?;
    source.allow(relay_log_limit_bytes / PORTIONS);
    let replayed = async {
        detach(server).await?;
        server.set_global_settings(&wish.settings).await?;
        loop {
            server
                .point_at_replay(source.address(), &login, &wish.certificate_file)
                .await?;
            server.start_replication().await?;
            let followed = follow(server, &source, &wish.reached, relay_log_limit_bytes, &mut look).await;
            match followed {
                // Which of several it was is not known, nor whether it stops by itself, too.
                Err(ReplayError::Stopped(why))
                    if applier_failed(server).await? && joins.swap(false, Ordering::Relaxed) =>
                {
                    tracing::warn!("{why}; from here on each transaction is applied by itself");
                    detach(server).await?;
                }
                followed => return followed,
            }
        }
    };
    let replayed = replayed.await;
    let left = leave(server, before).await;
    // Nobody follows that source any more; what stays is replaced by the next replay.
    let _removed = std::fs::remove_file(&wish.certificate_file);
    replayed.and(left)
}

/// Puts the certificate where the server reads it.
fn publish(certificate: &Certificate, file: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The server's user can write to this directory: what it may have put there is not written through.
    let mut new = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file)?;
    new.write_all(certificate.pem().as_bytes())?;
    new.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// How the server is now, while nothing is replayed into it.
///
/// # Errors
/// When the server does not answer.
pub async fn state_before(server: &mut Server) -> Result<Before, Error> {
    let relaxed = replay_settings(server.flavor(), Durability::Relaxed, 1);
    let joins = server.takes_joined_transactions().await?;
    Ok(Before {
        settings: server.global_settings(relaxed.keys().map(String::as_str)).await?,
        joins,
        empties_binlogs: joins,
    })
}

/// Ends a replay, come to its end or not: the server follows nobody, its settings are as before, what it has is on the
/// disk, and its binlogs hold no joined transactions.
///
/// # Errors
/// When the server does not answer, or a setting is not what it was set to.
pub async fn leave(server: &mut Server, before: &Before) -> Result<(), ReplayError> {
    // Whomever it follows by now, what it commits goes to the disk. The number of appliers can only be changed while
    // none runs.
    let durable: Settings = before
        .settings
        .iter()
        .filter(|(name, _)| !name.contains("parallel"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    server.set_global_settings(&durable).await?;
    server.flush_to_disk().await?;
    detach(server).await?;
    if before.empties_binlogs {
        server.forget_binlogs().await?;
    }
    server.set_global_settings(&before.settings).await?;
    Ok(())
}

/// Refuses a server that follows somebody, unless it is a replay's source.
///
/// # Errors
/// [`ReplayError::Refused`] then; or when the server does not answer.
pub async fn refuse_follower(server: &mut Server) -> Result<(), ReplayError> {
    replay_of(server).await.map(drop)
}

/// The replay that a server is in, if it follows anybody; any other source is refused.
async fn replay_of(server: &mut Server) -> Result<Option<ReplayState>, ReplayError> {
    let state = server.replay_state().await?;
    match state {
        Some(state) if !state.source.is_loopback() || state.user != USER => Err(ReplayError::Refused(
            format!("the server follows {}: detach it before a replay", state.source),
        )),
        state => Ok(state),
    }
}

/// Ends the following of a replay's source; of any other it is refused.
async fn detach(server: &mut Server) -> Result<(), ReplayError> {
    let Some(state) = replay_of(server).await? else {
        return Ok(());
    };
    if state.receiver_started {
        server.stop_receiver().await?;
    }
    server.stop_replication().await?;
    server.forget_replay().await?;
    Ok(())
}

/// ▲ A replica skips in silence what bears its own id.
async fn refuse_own_id(server: &mut Server, served_ids: &BTreeSet<u32>) -> Result<(), ReplayError> {
    let own = own_id(server).await?;
    if served_ids.contains(&own) {
        return Err(ReplayError::Refused(format!(
            "the server's id {own} is that of a server whose transactions are to be replayed, and it would skip them \
             in silence: give it another server_id"
        )));
    }
    Ok(())
}

async fn own_id(server: &mut Server) -> Result<u32, ReplayError> {
    let text = server.query_value("SELECT @@global.server_id").await?;
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| ReplayError::Refused("the server does not tell its server_id".to_owned()))
}

/// An id that nobody has whose transactions are served, nor the server itself.
async fn identity(server: &mut Server, served_ids: &BTreeSet<u32>) -> Result<Identity, ReplayError> {
    let own = own_id(server).await?;
    let version = server.query_value("SELECT VERSION()").await?.unwrap_or_default();
    let mut server_id = u32::from_le_bytes(random()?).max(1);
    while server_id == own || served_ids.contains(&server_id) {
        server_id = server_id.checked_add(1).unwrap_or(1);
    }
    let uuid = u128::from_le_bytes(random()?);
    let digits = format!("{uuid:032x}");
    let groups = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    let server_uuid = groups
        .join("-")
        .parse()
        .map_err(|error| ReplayError::Source(std::io::Error::other(error)))?;
    Ok(Identity {
        flavor: server.flavor(),
        version,
        server_id: ServerId(server_id),
        server_uuid,
    })
}

fn random<const N: usize>() -> Result<[u8; N], ReplayError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| ReplayError::Source(std::io::Error::other(error)))?;
    Ok(bytes)
}

/// A password: MySQL takes up to 32 characters for replication.
fn random_text() -> Result<String, ReplayError> {
    Ok(format!("{:032x}", u128::from_le_bytes(random()?)))
}

/// Waits until the server has everything, or stops.
async fn follow(
    server: &mut Server,
    source: &ReplicationServer,
    reached: &Owned,
    relay_log_limit_bytes: u64,
    look: &mut impl FnMut(&Transactions),
) -> Result<(), ReplayError> {
    let progress = source.progress();
    let began = Instant::now();
    loop {
        if has_reached(server, reached).await? {
            return Ok(());
        }
        look(&server.transactions().await?);
        if let Some(failure) = &progress.borrow().failure {
            return Err(ReplayError::Stopped(failure.clone()));
        }
        let connected = progress.borrow().dumps > 0;
        let Some(state) = server.replay_state().await? else {
            let sentence = "somebody reset the server's replication during the replay";
            return Err(ReplayError::Stopped(sentence.to_owned()));
        };
        check(&state, connected || began.elapsed() < CONNECT_LIMIT)?;
        // A transaction may be larger than the limit: then the applier waits for the rest of it.
        if state.relay_log_bytes < relay_log_limit_bytes || state.applier_waits {
            source.allow(source.sent_bytes() + relay_log_limit_bytes / PORTIONS);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether a transaction could not be applied.
async fn applier_failed(server: &mut Server) -> Result<bool, Error> {
    let state = server.replay_state().await?;
    Ok(state.is_some_and(|state| !state.applier_running && !state.applier_error.is_empty()))
}

fn check(state: &ReplayState, may_still_connect: bool) -> Result<(), ReplayError> {
    let stopped = |what: &str, error: &str| {
        let error = if error.is_empty() {
            "somebody stopped it"
        } else {
            error
        };
        Err(ReplayError::Stopped(format!(
            "the server's {what} stopped: {error}"
        )))
    };
    if !state.applier_running {
        return stopped("applier", &state.applier_error);
    }
    if !state.receiver_started {
        return stopped("receiver", &state.receiver_error);
    }
    if !may_still_connect {
        return stopped("receiver cannot connect and", &state.receiver_error);
    }
    Ok(())
}

/// Whether the server has everything up to the end. On MariaDB where `gtid_slave_pos` stands: its binlog may be behind
/// what it was restored with.
async fn has_reached(server: &mut Server, reached: &Owned) -> Result<bool, ReplayError> {
    let sql = match (server.flavor(), reached) {
        (Flavor::Mysql, Owned::Mysql(set)) => {
            format!("SELECT GTID_SUBSET('{set}', @@global.gtid_executed)")
        }
        (Flavor::Mariadb, Owned::Mariadb(_)) => "SELECT @@global.gtid_slave_pos".to_owned(),
        _ => {
            let sentence = "the history is of the other family than the server";
            return Err(ReplayError::Refused(sentence.to_owned()));
        }
    };
    let answer = server.query_value(&sql).await?.unwrap_or_default();
    Ok(match reached {
        Owned::Mysql(_) => answer == "1",
        Owned::Mariadb(wanted) => {
            let now: topology::gtid::GtidPosition = answer
                .parse()
                .map_err(|error| ReplayError::Refused(format!("gtid_slave_pos: {error}")))?;
            wanted.iter().all(|gtid| {
                now.get(gtid.domain)
                    .is_some_and(|own| own.sequence >= gtid.sequence)
            })
        }
    })
}
