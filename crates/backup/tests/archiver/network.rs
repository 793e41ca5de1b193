//! A network between an archiver and its store: it can be slow, and cut, so that nothing comes through and nobody is told.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Dropped, it is gone with all its connections.
pub(crate) struct Network {
    pub(crate) port: u16,
    cut: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Network {
    /// Leads to a port of this machine; what is sent there arrives after `delay`.
    pub(crate) async fn to(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let (cut, is_cut) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(relay(client, port, delay, is_cut.clone()));
            }
        });
        Self {
            port: own_port,
            cut,
            _tasks: tasks,
        }
    }

    /// From now on nothing comes through.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// What was held back arrives.
    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn relay(client: TcpStream, port: u16, delay: Duration, cut: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        forward(from_client, to_server, delay, cut.clone()),
        forward(from_server, to_client, Duration::ZERO, cut),
    );
}

/// Until either side closes. What is under way is at most some megabytes.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    mut cut: watch::Receiver<bool>,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let sending = async move {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let arrives = Instant::now() + delay;
            if sender.send((arrives, piece[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let arriving = async move {
        while let Some((at, piece)) = under_way.recv().await {
            tokio::time::sleep_until(at.into()).await;
            let open = cut.wait_for(|is_cut| !*is_cut).await.map(drop);
            if open.is_err() || to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _closed = to.shutdown().await;
    };
    tokio::join!(sending, arriving);
}
