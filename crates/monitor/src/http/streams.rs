//! Server-sent events: `/routes` for our proxies, `/servers` for the original service's, events for people.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::operation::EventDocument;
use api::routes::Service;
use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use topology::ProxyId;

use super::App;
use super::problem::{ProblemResponse, Query};
use crate::proxies::OpenStream;
use crate::store::Store;

/// A comment goes out when nothing else did for so long. A reader gives a stream up after 15 s of silence.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How many events are read from the store at once.
const EVENTS_AT_ONCE: usize = 500;

type Item = Result<sse::Event, Infallible>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoutesQuery {
    proxy: Option<ProxyId>,
    service: Option<Service>,
}

/// The routes now, and whenever they change: events `routes`.
pub(super) async fn routes<S: Store>(
    State(app): State<Arc<App<S>>>,
    Query(query): Query<RoutesQuery>,
) -> Result<Sse<impl Stream<Item = Item>>, ProblemResponse> {
    let open = match (query.proxy, query.service) {
        (Some(proxy), Some(service)) => Some(app.proxies.open(proxy, service)),
        (None, None) => None,
        _ => {
            return Err(ProblemResponse::bad_request(
                "a proxy says both who it is and what it serves: `?proxy=ID&service=mysql-master`",
            ));
        }
    };
    let event =
        |routes: &api::routes::Routes, _: bool| json_event(sse::Event::default().event("routes"), routes);
    Ok(sse(changes(
        app.shutdown.clone(),
        app.published.routes.subscribe(),
        open,
        event,
    )))
}

/// As the original service's monitor: fields in the order id, event, data; the id is always 1; the first event is
/// `init`, the others `update`; the data is one line. Whatever is in the query is ignored.
pub(super) async fn servers<S: Store>(State(app): State<Arc<App<S>>>) -> Sse<impl Stream<Item = Item>> {
    let event = |servers: &api::routes::Servers, first: bool| {
        let name = if first { "init" } else { "update" };
        json_event(sse::Event::default().id("1").event(name), servers)
    };
    sse(changes(
        app.shutdown.clone(),
        app.published.servers.subscribe(),
        None,
        event,
    ))
}

fn sse<T: Stream<Item = Item> + Send + 'static>(stream: T) -> Sse<sse::KeepAliveStream<T>> {
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("ping"))
}

fn json_event(event: sse::Event, value: &impl Serialize) -> sse::Event {
    match serde_json::to_string(value) {
        Ok(text) => event.data(text),
        // Our documents have string keys and finite numbers: they can always be written.
        Err(error) => event.comment(format!("cannot be written: {error}")),
    }
}

/// The value of a channel now, and whenever it changes, until the monitor stops.
fn changes<T: Send + Sync + 'static>(
    shutdown: watch::Receiver<bool>,
    mut values: watch::Receiver<Option<Arc<T>>>,
    open: Option<OpenStream>,
    event: impl Fn(&T, bool) -> sse::Event + Send + 'static,
) -> impl Stream<Item = Item> + Send + 'static {
    values.mark_changed();
    unfold(
        (values, shutdown, open, event, true),
        async |(mut values, mut shutdown, open, event, first)| {
            loop {
                tokio::select! {
                    biased;
                    () = stopped(&mut shutdown) => return None,
                    changed = values.changed() => changed.ok()?,
                }
                let value = values.borrow_and_update().clone();
                if let Some(value) = value {
                    let item = event(&value, first);
                    return Some((Ok(item), (values, shutdown, open, event, false)));
                }
            }
        },
    )
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that whoever stops the monitor is gone, and the monitor with it.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Events after this one are sent first; without it only new ones are.
    after: Option<u64>,
}

/// What happens, as it happens: the id of each is its number, so that a reader that comes back can say where it
/// was.
pub(super) async fn events<S: Store>(
    State(app): State<Arc<App<S>>>,
    Query(query): Query<EventsQuery>,
    headers: axum::http::HeaderMap,
) -> Sse<impl Stream<Item = Item>> {
    let last_seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok())
        .or(query.after);
    // Listening begins before the store is read, so that nothing between the two is missed.
    let listener = app.new_events.subscribe();
    let reader = Reader {
        shutdown: app.shutdown.clone(),
        listener,
        last_seen,
        behind: last_seen.is_some(),
        ready: VecDeque::new(),
        app,
    };
    sse(unfold(reader, async |mut reader| {
        let event = reader.next().await?;
        let name = sse::Event::default().id(event.id.to_string()).event("event");
        Some((Ok(json_event(name, &event)), reader))
    }))
}

/// Somebody who follows the events.
struct Reader<S> {
    app: Arc<App<S>>,
    shutdown: watch::Receiver<bool>,
    listener: broadcast::Receiver<EventDocument>,
    last_seen: Option<u64>,
    /// The store has events that were not sent.
    behind: bool,
    ready: VecDeque<EventDocument>,
}

impl<S: Store> Reader<S> {
    async fn next(&mut self) -> Option<EventDocument> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last_seen = Some(event.id);
                return Some(event);
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            tokio::select! {
                biased;
                () = stopped(&mut self.shutdown) => return None,
                received = self.listener.recv() => match received {
                    Ok(event) if self.last_seen.is_some_and(|last| event.id <= last) => {}
                    Ok(event) => self.ready.push_back(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            }
        }
    }

    /// Reads from the store what was missed.
    async fn catch_up(&mut self) -> Option<()> {
        let after = self.last_seen.unwrap_or(0);
        match self.app.store.events(after, EVENTS_AT_ONCE).await {
            Ok(events) => {
                self.behind = events.len() == EVENTS_AT_ONCE;
                self.ready.extend(events);
                Some(())
            }
            Err(error) => {
                tracing::error!(%error, "a stream of events ends");
                None
            }
        }
    }
}
