//! From names in the routes to IP addresses, so that the data path never waits for a name server.
//!
//! A name that was resolved once is answered from memory; all of them are asked for again now and then, in the
//! background, and an answer that fails leaves the last one in force.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::routes::Routes;
use topology::Address;

use crate::relay::Table;

/// How long a name server may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// What is known of names.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    known: HashMap<Address, Vec<SocketAddr>>,
}

impl Resolver {
    /// A table for the routes; names that were never seen before are looked up, all at once.
    pub(crate) async fn table(&mut self, routes: Routes) -> Table {
        let wanted: Vec<Address> = addresses(&routes).cloned().collect();
        self.known.retain(|address, _| wanted.contains(address));
        let unknown: Vec<Address> = wanted
            .into_iter()
            .filter(|address| !self.known.contains_key(address))
            .collect();
        self.look_up(unknown).await;
        Table {
            routes,
            sockets: self.known.clone(),
        }
    }

    /// Looks all names up again. Returns whether something has changed.
    pub(crate) async fn refresh(&mut self) -> bool {
        let names: Vec<Address> = self
            .known
            .keys()
            .filter(|address| literal(address).is_none())
            .cloned()
            .collect();
        if names.is_empty() {
            return false;
        }
        let before = self.known.clone();
        self.look_up(names).await;
        self.known != before
    }

    async fn look_up(&mut self, addresses: Vec<Address>) {
        let mut lookups = tokio::task::JoinSet::new();
        for address in addresses {
            match literal(&address) {
                Some(socket) => {
                    self.known.insert(address, vec![socket]);
                }
                None => {
                    lookups.spawn(async move {
                        let outcome = look_up_name(&address).await;
                        (address, outcome)
                    });
                }
            }
        }
        while let Some(finished) = lookups.join_next().await {
            match finished {
                Ok((address, Ok(sockets))) => {
                    self.known.insert(address, sockets);
                }
                Ok((address, Err(reason))) => {
                    tracing::warn!("the name {} cannot be resolved: {reason}", address.host());
                }
                Err(error) => tracing::error!("a look-up has failed: {error}"),
            }
        }
    }
}

async fn look_up_name(address: &Address) -> Result<Vec<SocketAddr>, String> {
    let lookup = tokio::net::lookup_host((address.host(), address.port()));
    let mut sockets: Vec<SocketAddr> = tokio::time::timeout(LOOKUP_LIMIT, lookup)
        .await
        .map_err(|_| format!("no answer within {} s", LOOKUP_LIMIT.as_secs()))?
        .map_err(|error| error.to_string())?
        .collect();
    sockets.sort_by_key(SocketAddr::is_ipv6);
    sockets.dedup();
    if sockets.is_empty() {
        return Err("it has no address".to_owned());
    }
    Ok(sockets)
}

fn literal(address: &Address) -> Option<SocketAddr> {
    let ip: IpAddr = address.host().parse().ok()?;
    Some(SocketAddr::new(ip, address.port()))
}

fn addresses(routes: &Routes) -> impl Iterator<Item = &Address> {
    let slaves = routes.slaves.iter().map(|slave| &slave.address);
    slaves.chain(&routes.master).chain(&routes.candidate)
}

#[cfg(test)]
mod tests {
    use api::routes::Phase;
    use topology::Generation;

    use super::*;

    fn routes(master: &str) -> Routes {
        Routes {
            format: api::FORMAT,
            generation: Generation(1),
            phase: Phase::Open,
            master: Some(master.parse().unwrap()),
            candidate: None,
            slaves: Vec::new(),
            deadline_ms: None,
            pace_ms: None,
        }
    }

    #[tokio::test]
    async fn literals_and_names_become_sockets_and_bad_names_are_missing() {
        let mut resolver = Resolver::default();
        for (text, expected) in [
            ("127.0.0.1:3311", Some("127.0.0.1:3311")),
            ("[::1]:3311", Some("[::1]:3311")),
            ("localhost:3311", Some("127.0.0.1:3311")),
            ("no-such-host.invalid:3311", None),
        ] {
            let table = resolver.table(routes(text)).await;
            let first = table
                .sockets
                .get(&text.parse().unwrap())
                .map(|sockets| sockets[0].to_string());
            assert_eq!(first.as_deref(), expected, "{text}");
            assert!(
                table.sockets.len() <= 1,
                "what is not named any more is forgotten"
            );
        }
        resolver.table(routes("localhost:3311")).await;
        assert!(!resolver.refresh().await, "the same answer is no change");
    }
}
