//! One small client for the HTTP interfaces of the monitor and of the agents.
//!
//! It is given one or more base URLs of equals (several monitors) and stays with the one that answered last.
//! A request goes to the next one only when the connection could not be made: what may have been done is
//! never asked for twice.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use topology::{InstanceId, JobId, OperationId, Role};

use crate::backup::{BackupsDocument, CancelRequest};
use crate::cluster::{ClusterDocument, InstanceDocument};
use crate::job::{JobDocument, JobRequest, Jobs};
use crate::operation::{
    ChangeRequest, EventDocument, OperationDocument, RegisterRequest, StopRequest, SwitchoverRequest,
};

mod answer;
mod event_stream;

pub(crate) use answer::chain;
pub use answer::{Answer, Error};
use answer::{check_status, read_body, read_change, read_json};
pub use event_stream::{EventStream, STREAM_SILENCE_SECONDS};

/// The header of a change that may be asked for again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A client; cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub(crate) bases: Arc<[String]>,
    current: Arc<AtomicUsize>,
    token: Option<Arc<str>>,
    actor: Option<Arc<str>>,
    deadline: Duration,
}

/// Makes ring the TLS implementation of this process, which an HTTP client needs even where it speaks without TLS.
pub fn use_ring() {
    // It refuses only when there is one already, and that is what is wanted.
    let _already = rustls::crypto::ring::default_provider().install_default();
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("bases", &self.bases)
            .finish_non_exhaustive()
    }
}

/// Where it asks.
impl fmt::Display for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.bases.join(", "))
    }
}

impl Client {
    /// A client of the service at `bases` (such as `http://127.0.0.1:3300`), with a deadline for each request.
    ///
    /// # Errors
    /// [`Error::BadUrl`] when there is no base or one is not an `http://` URL.
    pub fn new(bases: &[String], deadline: Duration) -> Result<Self, Error> {
        let bases: Vec<String> = bases
            .iter()
            .map(|base| check_base(base))
            .collect::<Result<_, _>>()?;
        if bases.is_empty() {
            return Err(Error::BadUrl { url: String::new() });
        }
        use_ring();
        let http = reqwest::Client::builder()
            // A proxy of the environment has no business between the parts of a cluster.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(deadline)
            .tcp_nodelay(true)
            .read_timeout(Duration::from_secs(STREAM_SILENCE_SECONDS))
            .build()
            .map_err(|error| Error::Malformed {
                url: bases[0].clone(),
                reason: chain(&error),
            })?;
        Ok(Self {
            http,
            bases: bases.into(),
            current: Arc::default(),
            token: None,
            actor: None,
            deadline,
        })
    }

    /// The same client with a bearer token on every request.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The same client, saying who asks.
    #[must_use]
    pub fn with_actor(mut self, actor: &str) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// `GET` a JSON document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let response = self.send(Method::GET, path, |request| request, true).await?;
        read_json(response).await
    }

    /// `GET` a text.
    pub async fn get_text(&self, path: &str) -> Result<String, Error> {
        let response = self.send(Method::GET, path, |request| request, true).await?;
        let url = response.url().to_string();
        let body = read_body(response).await?;
        String::from_utf8(body).map_err(|_| Error::Malformed {
            url,
            reason: "it is not UTF-8".to_owned(),
        })
    }

    /// `POST` a document and read one.
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Error> {
        let response = self
            .send(Method::POST, path, |request| request.json(body), true)
            .await?;
        read_json(response).await
    }

    /// `POST` a document whose answer has no body.
    pub async fn post_empty<B: Serialize + Sync>(&self, path: &str, body: &B) -> Result<(), Error> {
        self.send(Method::POST, path, |request| request.json(body), true)
            .await
            .map(drop)
    }

    /// Opens a stream of server-sent events. It has no deadline of its own: whoever reads it decides how long
    /// silence is borne (the monitor sends a comment every few seconds).
    pub async fn events(&self, path: &str) -> Result<EventStream, Error> {
        let response = self
            .send(
                Method::GET,
                path,
                |request| request.header("accept", "text/event-stream"),
                false,
            )
            .await?;
        Ok(EventStream::new(response))
    }

    /// Everything about the cluster.
    pub async fn cluster(&self) -> Result<ClusterDocument, Error> {
        self.get("/api/v1/cluster").await
    }

    /// One instance.
    pub async fn instance(&self, id: &InstanceId) -> Result<InstanceDocument, Error> {
        self.get(&format!("/api/v1/instances/{id}")).await
    }

    /// The newest operations, newest first.
    pub async fn operations(&self) -> Result<Vec<OperationDocument>, Error> {
        self.get("/api/v1/operations").await
    }

    /// One operation.
    pub async fn operation(&self, id: &OperationId) -> Result<OperationDocument, Error> {
        self.get(&format!("/api/v1/operations/{id}")).await
    }

    /// Events with an id above `after`, oldest first.
    pub async fn events_after(&self, after: u64) -> Result<Vec<EventDocument>, Error> {
        self.get(&format!("/api/v1/events?after={after}")).await
    }

    /// The role of the instance at an address, as the original service's `/role` tells it.
    pub async fn role(&self, host: &str, port: u16) -> Result<String, Error> {
        self.get_text(&format!("/role?host={}&port={port}", percent_encode(host)))
            .await
    }

    /// Gives an instance a role.
    pub async fn register(&self, id: &InstanceId, role: Role, dry_run: bool) -> Result<Answer, Error> {
        self.change(
            &format!("/api/v1/instances/{id}/register"),
            &RegisterRequest { role, dry_run },
        )
        .await
    }

    /// `unregister`, `activate`, `detach`, `pause` or `resume` of an instance.
    pub async fn change_instance(&self, id: &InstanceId, what: &str, dry_run: bool) -> Result<Answer, Error> {
        self.change(
            &format!("/api/v1/instances/{id}/{what}"),
            &ChangeRequest { dry_run },
        )
        .await
    }

    /// Makes another instance the master.
    pub async fn switchover(&self, request: &SwitchoverRequest) -> Result<Answer, Error> {
        self.change("/api/v1/switchover", request).await
    }

    /// The same, safe to ask again while it is not known whether it was heard: one key is one switchover.
    pub async fn switchover_once(&self, request: &SwitchoverRequest, key: &str) -> Result<Answer, Error> {
        let keyed = |http: RequestBuilder| http.json(request).header(IDEMPOTENCY_KEY, key);
        let response = self.send(Method::POST, "/api/v1/switchover", keyed, true).await?;
        read_change(response).await
    }

    /// Stops all writes and sees them replicated, so that every server can be stopped.
    pub async fn stop(&self, dry_run: bool) -> Result<Answer, Error> {
        self.change("/api/v1/stop", &StopRequest { dry_run }).await
    }

    /// The full backups that there are, and how the work on them goes.
    pub async fn backups(&self) -> Result<BackupsDocument, Error> {
        self.get("/api/v1/backups").await
    }

    /// Ends an operation that agents work on.
    pub async fn cancel_operation(&self, id: &OperationId) -> Result<(), Error> {
        self.post_empty(
            &format!("/api/v1/operations/{id}/cancel"),
            &CancelRequest::default(),
        )
        .await
    }

    /// Asks an agent for long work.
    pub async fn start_job(&self, request: &JobRequest) -> Result<JobDocument, Error> {
        self.post("/api/v1/jobs", request).await
    }

    /// An agent's long work.
    pub async fn jobs(&self) -> Result<Jobs, Error> {
        self.get("/api/v1/jobs").await
    }

    /// One job of an agent.
    pub async fn job(&self, id: &JobId) -> Result<JobDocument, Error> {
        self.get(&format!("/api/v1/jobs/{id}")).await
    }

    /// Ends an agent's job.
    pub async fn cancel_job(&self, id: &JobId) -> Result<(), Error> {
        self.post_empty(&format!("/api/v1/jobs/{id}/cancel"), &CancelRequest::default())
            .await
    }

    /// `POST` of a change: `202` with an operation, or `200` with a plan.
    pub async fn change<B: Serialize + Sync>(&self, path: &str, body: &B) -> Result<Answer, Error> {
        let response = self
            .send(Method::POST, path, |request| request.json(body), true)
            .await?;
        read_change(response).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        shape: impl Fn(RequestBuilder) -> RequestBuilder,
        deadline_for_all: bool,
    ) -> Result<Response, Error> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last_error = None;
        for offset in 0..self.bases.len() {
            let index = (first + offset) % self.bases.len();
            let url = format!("{}{path}", self.bases[index]);
            let mut request = self.http.request(method.clone(), &url);
            if deadline_for_all {
                request = request.timeout(self.deadline);
            }
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            if let Some(actor) = &self.actor {
                request = request.header(crate::ACTOR_HEADER, actor.as_ref());
            }
            match shape(request).send().await {
                Ok(response) => {
                    self.current.store(index, Ordering::Relaxed);
                    return check_status(response).await;
                }
                Err(error) => {
                    let try_next = error.is_connect() || method == Method::GET;
                    let error = Error::Unreachable {
                        url,
                        reason: chain(&error.without_url()),
                    };
                    if !try_next {
                        return Err(error);
                    }
                    last_error = Some(error);
                }
            }
        }
        Err(last_error.unwrap_or_else(|| Error::BadUrl { url: String::new() }))
    }
}

fn check_base(base: &str) -> Result<String, Error> {
    let bad = || Error::BadUrl { url: base.to_owned() };
    let trimmed = base.trim_end_matches('/');
    let authority = trimmed.strip_prefix("http://").ok_or_else(bad)?;
    if authority.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
        return Err(bad());
    }
    reqwest::Url::parse(trimmed).map_err(|_| bad())?;
    Ok(trimmed.to_owned())
}

/// A value for a query string: everything but letters, digits, `-`, `_` and `.` becomes `%XX`.
fn percent_encode(text: &str) -> String {
    use fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_checked_at_the_door() {
        for good in ["http://127.0.0.1:3300", "http://[::1]:3300/", "http://monitor"] {
            assert!(
                Client::new(&[good.to_owned()], Duration::from_secs(1)).is_ok(),
                "{good}"
            );
        }
        for bad in [
            "",
            "127.0.0.1:3300",
            "https://x",
            "http://",
            "http://a b",
            "http://x/path",
            "http://u:p@x",
        ] {
            assert!(
                matches!(
                    Client::new(&[bad.to_owned()], Duration::from_secs(1)),
                    Err(Error::BadUrl { .. })
                ),
                "{bad}"
            );
        }
        assert!(Client::new(&[], Duration::from_secs(1)).is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_the_next_url_is_tried() {
        // A port that was just free: bound, and closed again.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dead = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(std::slice::from_ref(&dead), Duration::from_secs(2)).unwrap();
        assert!(matches!(client.cluster().await, Err(Error::Unreachable { .. })));

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nMaster")
                .await
                .unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let client = Client::new(&[dead, alive], Duration::from_secs(2))
            .unwrap()
            .with_token("secret-token");
        assert_eq!(client.role("::1", 3311).await.unwrap(), "Master");
        let request = server.await.unwrap();
        assert!(
            request.starts_with("GET /role?host=%3A%3A1&port=3311 "),
            "{request}"
        );
        assert!(
            request.contains("authorization: Bearer secret-token"),
            "{request}"
        );
        assert!(!format!("{client:?}").contains("secret-token"));
    }
}
