//! A server of the replication protocol of both families: to a replica it is a source, to us a way to have a
//! server apply a piece of history with all that it has for that.
//!
//! ```text
//! replica ── greeting, TLS ────► certificate   nobody else listens
//!         ── login ────────────► handshake     who is there
//!         ── SELECT, SET, SHOW ► session       the questions before a dump
//!         ── COM_BINLOG_DUMP… ─► request       what it has
//!         ◄─ events ──────────── stream        what it lacks: from a History, through a Feed
//! ```
//!
//! What is served, from where to where and without what, is decided by the [`History`]; here is only the
//! protocol. The server ends no dump by itself: whoever drives the replica stops it there.

mod certificate;
mod event;
mod flow;
mod handshake;
mod packet;
mod request;
mod session;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use topology::gtid::{GtidPosition, GtidSet};
use topology::{Address, Flavor};

pub use certificate::Certificate;
pub use session::Identity;

use crate::credentials::Login;
use flow::Flow;
use handshake::LoginRequest;
use packet::{OK, Packets};
use request::DumpRequest;
use session::{Answer, Session};
use stream::{Dump, DumpEnd};

/// A login takes no longer than this, or it is none.
const LOGIN_LIMIT: Duration = Duration::from_secs(10);

/// What a replica says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    /// Everything in a set.
    Mysql(GtidSet),
    /// Everything up to a position.
    Mariadb(GtidPosition),
}

/// Who asks for a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its `@@server_id`.
    pub server_id: u32,
    /// What it has.
    pub owned: Owned,
}

/// What can be served.
pub trait History: Send + Sync + 'static {
    /// One reading of it.
    type Feed: Feed;

    /// What a replica is to be sent.
    fn open(&self, replica: Replica) -> impl Future<Output = Result<Self::Feed, HistoryError>> + Send;
}

/// One reading of a history, piece by piece.
pub trait Feed: Send {
    /// The next piece; `None` when everything was given.
    fn next(&mut self) -> impl Future<Output = Result<Option<Piece>, HistoryError>> + Send;
}

/// A piece of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// What follows is of this binlog file.
    File {
        /// The file's name, without a folder.
        name: String,
        /// Its first event.
        format_description: Bytes,
    },
    /// Whole events.
    Events(Bytes),
    /// The start, at least the header, of an event that comes in parts.
    LargeEvent {
        /// Of the whole event, in bytes.
        length: usize,
        /// Its first part.
        start: Bytes,
    },
    /// The next part of it.
    MoreOfEvent(Bytes),
}

/// Why a history cannot be read on: in a sentence, which the replica shows too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HistoryError(pub String);

/// How the serving goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Connections that asked for a dump so far.
    pub dumps: u64,
    /// The last dump has sent everything.
    pub complete: bool,
    /// Why the last dump could not go on: a refusal or a history that cannot be read. `None` while it can.
    pub failure: Option<String>,
}

/// A running server. Dropped, it is gone with all its connections.
#[derive(Debug)]
pub struct ReplicationServer {
    address: Address,
    progress: watch::Receiver<Progress>,
    flow: Arc<Flow>,
    _tasks: JoinSet<()>,
}

/// What is served to whom.
#[derive(Debug, Clone)]
pub struct Service {
    /// Who this server says it is.
    pub identity: Identity,
    /// The only login.
    pub login: Login,
    /// What the server proves who it is with: it lets nobody in without TLS.
    pub certificate: Certificate,
    /// Ids of the servers whose transactions are served: a replica with one of them skips those in silence, and is
    /// refused.
    pub served_ids: BTreeSet<u32>,
}

impl ReplicationServer {
    /// Listens on a free port of this machine's loopback and serves `history` from then on.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start<H: History>(service: Service, history: H) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let port = listener.local_addr()?.port();
        let address = Address::new("127.0.0.1", port).map_err(std::io::Error::other)?;
        let (sender, progress) = watch::channel(Progress::default());
        let flow = Arc::new(Flow::new());
        let shared = Arc::new(Shared {
            service,
            history,
            progress: sender,
            flow: Arc::clone(&flow),
            connections: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, shared));
        Ok(Self {
            address,
            progress,
            flow,
            _tasks: tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How it goes, and a way to wait for news.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Bytes of events that were sent, about, to all replicas together.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.flow.sent()
    }

    /// From now on no more than so many bytes are sent altogether; at first there is no bound.
    pub fn allow(&self, bytes: u64) {
        self.flow.allow(bytes);
    }
}

struct Shared<H> {
    service: Service,
    history: H,
    progress: watch::Sender<Progress>,
    flow: Arc<Flow>,
    /// A way to end each connection, by its number.
    connections: Mutex<BTreeMap<u32, oneshot::Sender<()>>>,
}

impl<H> Shared<H> {
    fn connections(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, oneshot::Sender<()>>> {
        self.connections
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn accept<H: History>(listener: TcpListener, shared: Arc<Shared<H>>) {
    let mut connections = JoinSet::new();
    let mut last = 0;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or the client was gone again: the next one may be luckier.
            tokio::task::yield_now().await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        last += 1;
        let (end, ended) = oneshot::channel();
        shared.connections().insert(last, end);
        let shared = Arc::clone(&shared);
        let number = last;
        connections.spawn(async move {
            tokio::select! {
                // What goes wrong on a connection is its replica's to report: it connects again.
                _result = serve(stream, number, &shared) => {}
                Ok(()) = ended => {}
            }
            shared.connections().remove(&number);
        });
    }
}

async fn serve<H: History>(stream: TcpStream, number: u32, shared: &Shared<H>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let let_in = tokio::time::timeout(LOGIN_LIMIT, let_in(stream, number, shared)).await;
    let Some(mut connection) = let_in.unwrap_or(Ok(None))? else {
        return Ok(());
    };
    connection.obey().await?;
    connection.packets.shutdown().await
}

/// Greets a client, goes on encrypted, and asks who it is. `None` when it may not go on.
async fn let_in<H: History>(
    stream: TcpStream,
    number: u32,
    shared: &Shared<H>,
) -> std::io::Result<Option<Connection<'_, H>>> {
    let Identity { flavor, version, .. } = &shared.service.identity;
    let scramble = scramble()?;
    let mut packets = Packets::new(stream);
    packets.put(&handshake::greeting(*flavor, version, number, &scramble));
    packets.flush().await?;
    let Some(first) = packets.read_alone().await? else {
        return Ok(None);
    };
    if !handshake::asks_for_tls(*flavor, &first) {
        let message = "Connections using insecure transport are prohibited";
        packets.put(&packet::error(3159, "HY000", message));
        packets.flush().await?;
        return Ok(None);
    }
    let stream = shared.service.certificate.accept(packets.into_stream()).await?;
    let mut connection = Connection {
        packets: Packets::new(stream),
        shared,
        session: Session::default(),
        query_attributes: false,
        deprecate_eof: false,
    };
    Ok(connection.log_in(&scramble).await?.then_some(connection))
}

struct Connection<'server, H> {
    packets: Packets<TlsStream<TcpStream>>,
    shared: &'server Shared<H>,
    session: Session,
    query_attributes: bool,
    deprecate_eof: bool,
}

impl<H: History> Connection<'_, H> {
    /// Returns whether the client may go on.
    async fn log_in(&mut self, scramble: &[u8; handshake::SCRAMBLE_BYTES]) -> std::io::Result<bool> {
        let service = &self.shared.service;
        let flavor = service.identity.flavor;
        let Some(packet) = self.packets.read().await? else {
            return Ok(false);
        };
        let Some(mut request) = LoginRequest::parse(flavor, &packet) else {
            self.refuse(1043, "08S01", "Bad handshake").await?;
            return Ok(false);
        };
        if !request.is_of_our_plugin(flavor) {
            self.packets.put(&handshake::switch(flavor, scramble));
            self.packets.flush().await?;
            let Some(proof) = self.packets.read().await? else {
                return Ok(false);
            };
            request.proof = proof.to_vec();
        }
        self.query_attributes = request.query_attributes;
        self.deprecate_eof = request.deprecate_eof;
        if !handshake::is_right(flavor, &service.login, &request.user, &request.proof, scramble) {
            let message = format!("Access denied for user '{}'", request.user);
            self.refuse(1045, "28000", &message).await?;
            return Ok(false);
        }
        if let Some(more) = handshake::acceptance(flavor) {
            self.packets.put(more);
        }
        self.packets.put(OK);
        self.packets.flush().await?;
        Ok(true)
    }

    /// Does what the client says until it leaves.
    async fn obey(&mut self) -> std::io::Result<()> {
        while let Some(packet) = self.packets.read().await? {
            let Some((&command, body)) = packet.split_first() else {
                return Ok(());
            };
            match command {
                request::COM_QUIT => return Ok(()),
                request::COM_PING => self.packets.put(OK),
                request::COM_QUERY => self.query(body),
                request::COM_REGISTER_SLAVE => match request::registration(body) {
                    Some(id) if !self.is_served(id) => self.packets.put(OK),
                    Some(id) => self.refuse_id(id),
                    None => return self.refuse(1047, "08S01", "Malformed registration").await,
                },
                request::COM_BINLOG_DUMP => return self.dump(request::dump(body)).await,
                request::COM_BINLOG_DUMP_GTID => return self.dump(request::dump_gtid(body)).await,
                _ => self.packets.put(&packet::error(1047, "08S01", "Unknown command")),
            }
            self.packets.flush().await?;
        }
        Ok(())
    }

    fn query(&mut self, body: &[u8]) {
        // With query attributes agreed, the text comes after the number of parameters and of their sets.
        let text = match body {
            [0, 1, text @ ..] if self.query_attributes => text,
            text => text,
        };
        let text = String::from_utf8_lossy(text);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match self.session.answer(&self.shared.service.identity, &text, now) {
            Answer::Done => self.packets.put(OK),
            Answer::Rows { columns, rows } => {
                let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                for payload in packet::rows(&columns, &rows, self.deprecate_eof) {
                    self.packets.put(&payload);
                }
            }
            Answer::Error { code, state, message } => self.packets.put(&packet::error(code, state, &message)),
            Answer::Kill(number) => {
                // Who is gone already needs no end.
                if let Some(end) = self.shared.connections().remove(&number) {
                    let _gone = end.send(());
                }
                self.packets.put(OK);
            }
        }
    }

    async fn dump(&mut self, request: Option<DumpRequest>) -> std::io::Result<()> {
        let Some(request) = request else {
            return self.refuse(1236, "HY000", "Malformed request for a dump").await;
        };
        if self.is_served(request.server_id) {
            self.refuse_id(request.server_id);
            return self.packets.flush().await;
        }
        let owned = match self.owned(&request) {
            Ok(owned) => owned,
            Err(message) => return self.refuse(1236, "HY000", &message).await,
        };
        self.shared.progress.send_modify(|progress| {
            progress.dumps += 1;
            progress.complete = false;
            progress.failure = None;
        });
        let replica = Replica {
            server_id: request.server_id,
            owned,
        };
        let failure = match self.shared.history.open(replica).await {
            Ok(feed) => {
                let (service, progress) = (&self.shared.service, &self.shared.progress);
                let dump = Dump::new(
                    &mut self.packets,
                    &service.identity,
                    progress,
                    &self.shared.flow,
                    &self.session,
                    &request,
                );
                match dump.run(feed).await? {
                    DumpEnd::Left | DumpEnd::Complete => return Ok(()),
                    DumpEnd::Failed(failure) => failure,
                }
            }
            Err(failure) => {
                self.refuse(1236, "HY000", &failure.to_string()).await?;
                failure
            }
        };
        self.shared
            .progress
            .send_modify(|progress| progress.failure = Some(failure.to_string()));
        Ok(())
    }

    /// What the replica has; an error in a sentence when it does not say.
    fn owned(&self, request: &DumpRequest) -> Result<Owned, String> {
        match (self.shared.service.identity.flavor, &request.owned) {
            (Flavor::Mysql, Some(set)) => Ok(Owned::Mysql(set.clone())),
            (Flavor::Mysql, None) => Err("this server is followed with SOURCE_AUTO_POSITION = 1".to_owned()),
            (Flavor::Mariadb, _) => {
                let position = self
                    .session
                    .slave_connect_state()
                    .ok_or("this server is followed with MASTER_USE_GTID = slave_pos")?;
                position
                    .parse()
                    .map(Owned::Mariadb)
                    .map_err(|error| format!("{error}"))
            }
        }
    }

    fn is_served(&self, id: u32) -> bool {
        let service = &self.shared.service;
        service.served_ids.contains(&id) || service.identity.server_id.0 == id
    }

    fn refuse_id(&mut self, id: u32) {
        let message = format!(
            "transactions of server id {id} are among those to be replayed: a server with the same id would skip \
             them in silence, so give this one another server_id"
        );
        self.packets.put(&packet::error(1236, "HY000", &message));
        self.shared
            .progress
            .send_modify(|progress| progress.failure = Some(message));
    }

    async fn refuse(&mut self, code: u16, state: &str, message: &str) -> std::io::Result<()> {
        self.packets.put(&packet::error(code, state, message));
        self.packets.flush().await
    }
}

/// A challenge: printable, for some clients end it at a zero.
fn scramble() -> std::io::Result<[u8; handshake::SCRAMBLE_BYTES]> {
    let mut bytes = [0; handshake::SCRAMBLE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    for byte in &mut bytes {
        *byte = b'0' + *byte % 64;
    }
    Ok(bytes)
}
