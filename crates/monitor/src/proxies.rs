//! Which proxies listen to the routes, and what they last acknowledged.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::routes::{Phase, ProxyAck, Service};
use tokio::sync::Notify;
use tokio::time::Instant;
use topology::{Generation, ProxyId};

/// The proxies whose stream of routes is open.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    streams: Mutex<Streams>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    /// By a number of ours: a proxy that reconnects has two for a moment.
    open: BTreeMap<u64, (ProxyId, Service)>,
    acks: BTreeMap<ProxyId, ProxyAck>,
}

/// One open stream; it is over when this is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    proxies: std::sync::Arc<Proxies>,
    number: u64,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut streams = self.proxies.streams();
        if let Some((proxy, _)) = streams.open.remove(&self.number)
            && !streams.open.values().any(|(other, _)| *other == proxy)
        {
            streams.acks.remove(&proxy);
        }
        drop(streams);
        self.proxies.changed.notify_waiters();
    }
}

impl Proxies {
    /// A proxy has opened its stream.
    pub(crate) fn open(self: &std::sync::Arc<Self>, proxy: ProxyId, service: Service) -> OpenStream {
        let mut streams = self.streams();
        let number = streams.next;
        streams.next += 1;
        streams.open.insert(number, (proxy, service));
        OpenStream {
            proxies: std::sync::Arc::clone(self),
            number,
        }
    }

    /// A proxy has acknowledged routes. One without an open stream is nobody: `false`.
    pub(crate) fn acknowledge(&self, proxy: &ProxyId, ack: ProxyAck) -> bool {
        let mut streams = self.streams();
        if !streams.open.values().any(|(open, _)| open == proxy) {
            return false;
        }
        let newest = streams
            .acks
            .get(proxy)
            .is_none_or(|last| ack.generation >= last.generation);
        if newest {
            streams.acks.insert(proxy.clone(), ack);
        }
        drop(streams);
        self.changed.notify_waiters();
        true
    }

    /// Waits until every `mysql-master` proxy whose stream is open holds its new connections under these routes.
    /// Gives back those that do not after `limit`.
    pub(crate) async fn wait_for_hold(&self, generation: Generation, limit: Duration) -> Vec<ProxyId> {
        let deadline = Instant::now() + limit;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that nothing between the two is missed.
            changed.as_mut().enable();
            let missing = self.streams().missing(generation);
            if missing.is_empty() || tokio::time::timeout_at(deadline, changed).await.is_err() {
                return missing;
            }
        }
    }

    /// How many streams are open, by service.
    pub(crate) fn counts(&self) -> [(Service, usize); 2] {
        let streams = self.streams();
        [Service::MysqlMaster, Service::MysqlSlave].map(|service| {
            let count = streams.open.values().filter(|(_, own)| *own == service).count();
            (service, count)
        })
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        // Nothing panics while it holds the lock; and if it did, the maps would still be whole.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    fn missing(&self, generation: Generation) -> Vec<ProxyId> {
        let mut missing: Vec<ProxyId> = self
            .open
            .values()
            .filter(|(proxy, service)| {
                *service == Service::MysqlMaster
                    && !self
                        .acks
                        .get(proxy)
                        .is_some_and(|ack| ack.generation == generation && ack.phase == Phase::Hold)
            })
            .map(|(proxy, _)| proxy.clone())
            .collect();
        missing.dedup();
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn ack(generation: u64, phase: Phase) -> ProxyAck {
        ProxyAck {
            generation: Generation(generation),
            phase,
            held: 0,
            in_transaction: 0,
            pinned: 0,
        }
    }

    #[tokio::test]
    async fn a_hold_waits_for_those_who_listen_and_serve_the_master() {
        let proxies = Arc::new(Proxies::default());
        let (one, two): (ProxyId, ProxyId) = ("one".parse().unwrap(), "two".parse().unwrap());
        let limit = Duration::from_millis(20);
        let only = std::slice::from_ref(&one);
        assert!(proxies.wait_for_hold(Generation(5), limit).await.is_empty());

        let _slave = proxies.open(two.clone(), Service::MysqlSlave);
        let stream = proxies.open(one.clone(), Service::MysqlMaster);
        assert_eq!(proxies.wait_for_hold(Generation(5), limit).await, only);

        assert!(
            proxies.acknowledge(&one, ack(5, Phase::Open)),
            "another phase does not count"
        );
        assert_eq!(proxies.wait_for_hold(Generation(5), limit).await, only);
        assert!(
            proxies.acknowledge(&one, ack(4, Phase::Hold)),
            "nor does an older generation"
        );
        assert_eq!(proxies.wait_for_hold(Generation(5), limit).await, only);

        let waiting = tokio::spawn({
            let proxies = Arc::clone(&proxies);
            async move { proxies.wait_for_hold(Generation(5), limit).await }
        });
        tokio::task::yield_now().await;
        assert!(proxies.acknowledge(&one, ack(5, Phase::Hold)));
        assert!(waiting.await.unwrap().is_empty());

        drop(stream);
        assert!(
            !proxies.acknowledge(&one, ack(6, Phase::Hold)),
            "its stream is closed"
        );
        assert!(proxies.wait_for_hold(Generation(6), limit).await.is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_ends_is_no_longer_waited_for() {
        let proxies = Arc::new(Proxies::default());
        let stream = proxies.open("one".parse().unwrap(), Service::MysqlMaster);
        let began = Instant::now();
        let waiting = tokio::spawn({
            let proxies = Arc::clone(&proxies);
            async move { proxies.wait_for_hold(Generation(1), Duration::from_mins(1)).await }
        });
        tokio::task::yield_now().await;
        drop(stream);
        assert!(waiting.await.unwrap().is_empty());
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
