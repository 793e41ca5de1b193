//! The comparison of MariaDB histories against a model that is too simple to be wrong: simulated servers
//! that remember every transaction they have, in order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::mariadb::join;
use super::{BinlogState, Lacks, MariadbGtid, MariadbHistory, Received, Transactions};
use crate::ids::ServerId;

const DOMAINS: usize = 2;

/// One domain of a server.
#[derive(Debug, Clone, Default)]
struct Line {
    /// Everything it has, oldest first.
    applied: Vec<MariadbGtid>,
    /// How much of that came with a backup: what follows is in its binlog.
    restored: usize,
    /// `gtid_slave_pos`.
    slave_position: Option<MariadbGtid>,
    /// Fetched and not yet applied.
    relay_log: Vec<MariadbGtid>,
    /// `Gtid_IO_Pos`.
    receiver_position: Option<MariadbGtid>,
}

#[derive(Debug, Clone, Default)]
struct Server {
    id: u32,
    lines: [Line; DOMAINS],
    /// Whom its receiver follows, when it was started.
    source: Option<usize>,
    /// Whether it lost the tail of its own transactions: then it may skip them when they come back, and
    /// must never write under its id again.
    lost_its_tail: bool,
}

impl Server {
    fn history(&self) -> MariadbHistory {
        let bases = self
            .lines
            .iter()
            .filter_map(|line| line.applied[..line.restored].last());
        MariadbHistory {
            base: join(bases.copied()).parse().unwrap(),
            state: self
                .lines
                .iter()
                .flat_map(|line| line.applied[line.restored..].iter().copied())
                .collect(),
        }
    }

    fn transactions(&self) -> Transactions {
        Transactions::Mariadb(self.history())
    }

    fn received(&self) -> Received {
        let position = join(self.lines.iter().filter_map(|line| line.receiver_position));
        Received::parse_mariadb(&position)
            .unwrap()
            .without_skipped(ServerId(self.id), &self.transactions())
    }

    fn applied(&self) -> BTreeSet<MariadbGtid> {
        self.lines
            .iter()
            .flat_map(|line| line.applied.iter().copied())
            .collect()
    }

    fn in_relay_logs(&self) -> BTreeSet<MariadbGtid> {
        self.lines
            .iter()
            .flat_map(|line| line.relay_log.iter().copied())
            .collect()
    }

    /// Commits a transaction of its own, `gap` numbers being lost before it.
    fn write(&mut self, domain: usize, gap: u64) {
        let line = &mut self.lines[domain];
        let sequence = line.applied.last().map_or(0, |gtid| gtid.sequence) + 1 + gap;
        line.applied.push(MariadbGtid {
            domain: u32::try_from(domain).unwrap(),
            server: self.id,
            sequence,
        });
    }

    /// Applies what it has received, until strict mode stops it.
    fn apply(&mut self, domain: usize, count: usize) {
        let line = &mut self.lines[domain];
        for _ in 0..count {
            let last = line.applied.last().map_or(0, |gtid| gtid.sequence);
            match line.relay_log.first() {
                Some(next) if next.sequence > last => {
                    let next = line.relay_log.remove(0);
                    line.applied.push(next);
                    line.slave_position = Some(next);
                }
                _ => break,
            }
        }
        if line.relay_log.is_empty() {
            // What was skipped is counted as applied.
            line.slave_position = line.receiver_position.or(line.slave_position);
        }
    }
}

/// What happens in a simulated life.
#[derive(Debug, Clone)]
enum Event {
    /// The master, or anybody else, commits.
    Write {
        server: Option<usize>,
        gap: u64,
    },
    /// A replica fetches from the master or from anybody, having set its position to its binlog's first.
    Receive {
        replica: usize,
        source: Option<usize>,
        reseed: bool,
        count: usize,
    },
    Apply {
        replica: usize,
        count: usize,
    },
    /// All follow the master and have everything; then another one is the master.
    Switchover {
        to: usize,
    },
    /// Another one is the master, whatever it has.
    Failover {
        to: usize,
    },
    /// The receiver's position is forgotten; the relay logs stay until it starts.
    Restart {
        server: usize,
    },
    /// A new server has what another had some transactions ago.
    Restore {
        donor: usize,
        age: usize,
    },
    /// A crashed master cuts off what was not acknowledged.
    LoseTail {
        server: usize,
        count: usize,
    },
}

/// Which lives are lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Every server was initialised, and only the master writes; numbers may be lost.
    Orderly,
    /// Every server was initialised; errant writes, failovers, lost tails.
    Initialised,
    /// Errant writes, failovers, restored servers.
    Restored,
}

#[derive(Debug, Clone)]
struct World {
    servers: Vec<Server>,
    master: usize,
}

impl World {
    fn new() -> Self {
        let server = |id| Server {
            id,
            ..Server::default()
        };
        Self {
            servers: (1..=3).map(server).collect(),
            master: 0,
        }
    }

    fn happen(&mut self, domain: usize, event: &Event) {
        let count_of_servers = self.servers.len();
        let pick = |index: usize| index % count_of_servers;
        match *event {
            Event::Write { server, gap } => {
                let server = &mut self.servers[server.map_or(self.master, pick)];
                if !server.lost_its_tail {
                    server.write(domain, gap);
                }
            }
            Event::Receive {
                replica,
                source,
                reseed,
                count,
            } => {
                self.receive(
                    domain,
                    pick(replica),
                    source.map_or(self.master, pick),
                    reseed,
                    count,
                );
            }
            Event::Apply { replica, count } => self.servers[pick(replica)].apply(domain, count),
            Event::Switchover { to } => {
                for (replica, domain) in (0..count_of_servers).flat_map(|index| [(index, 0), (index, 1)]) {
                    self.servers[replica].apply(domain, usize::MAX);
                    self.receive(domain, replica, self.master, true, usize::MAX);
                    self.servers[replica].apply(domain, usize::MAX);
                }
                self.promote(pick(to));
            }
            Event::Failover { to } => self.promote(pick(to)),
            Event::Restart { server } => {
                let server = &mut self.servers[pick(server)];
                server.source = None;
                server
                    .lines
                    .iter_mut()
                    .for_each(|line| line.receiver_position = None);
            }
            Event::Restore { donor, age } => self.restore(pick(donor), age),
            Event::LoseTail { server, count } => {
                let server = &mut self.servers[pick(server)];
                let line = &mut server.lines[domain];
                for _ in 0..count {
                    if line.applied.pop_if(|gtid| gtid.server == server.id).is_some() {
                        server.lost_its_tail = true;
                    }
                }
            }
        }
    }

    fn receive(&mut self, domain: usize, replica: usize, source: usize, reseed: bool, count: usize) {
        if replica == source {
            return;
        }
        let (own, from) = (
            self.servers[replica].id,
            self.servers[source].lines[domain].clone(),
        );
        let server = &mut self.servers[replica];
        if server.source.replace(source) != Some(source) {
            for line in &mut server.lines {
                line.relay_log.clear();
                if reseed {
                    line.slave_position = line.applied.last().copied();
                }
                line.receiver_position = line.slave_position;
            }
        }
        let line = &mut server.lines[domain];
        let next = match line.receiver_position {
            None => 0,
            Some(position) => match from.applied.iter().position(|gtid| *gtid == position) {
                Some(index) => index + 1,
                None => return, // Error 1236: the position is not in the source's binlog.
            },
        };
        if next < from.restored {
            return; // The source's binlog does not reach back so far.
        }
        for gtid in from.applied[next..].iter().take(count) {
            if gtid.server != own {
                line.relay_log.push(*gtid);
            }
            line.receiver_position = Some(*gtid);
        }
    }

    /// Makes a server the master: its receiver is reset.
    fn promote(&mut self, to: usize) {
        let server = &mut self.servers[to];
        server.source = None;
        for line in &mut server.lines {
            line.relay_log.clear();
            line.receiver_position = None;
        }
        self.master = to;
    }

    fn restore(&mut self, donor: usize, age: usize) {
        if self.servers.len() == 7 {
            return;
        }
        let donor = self.servers[donor].clone();
        let line = |line: Line| {
            let applied = line.applied[..line.applied.len().saturating_sub(age)].to_vec();
            let (restored, slave_position) = (applied.len(), applied.last().copied());
            Line {
                applied,
                restored,
                slave_position,
                ..Line::default()
            }
        };
        let id = u32::try_from(self.servers.len()).unwrap() + 1;
        self.servers.push(Server {
            id,
            lines: donor.lines.map(line),
            ..Server::default()
        });
    }
}

fn happenings(life: Life) -> impl Strategy<Value = Vec<(usize, Event)>> {
    let (server, count) = (0..7usize, 1..5usize);
    let anybody = prop::option::weighted(if life == Life::Orderly { 0.001 } else { 0.2 }, server.clone())
        .prop_map(move |server| server.filter(|_| life != Life::Orderly));
    let gap = if life == Life::Orderly { 0..3u64 } else { 0..1u64 };
    let event = prop_oneof![
        8 => (anybody.clone(), gap).prop_map(|(server, gap)| Event::Write { server, gap }),
        8 => (server.clone(), anybody, any::<bool>(), count.clone()).prop_map(move |(replica, source, reseed, count)| {
            Event::Receive { replica, source, reseed: reseed || life == Life::Orderly, count }
        }),
        8 => (server.clone(), count.clone()).prop_map(|(replica, count)| Event::Apply { replica, count }),
        2 => server.clone().prop_map(|to| Event::Switchover { to }),
        1 => server.clone().prop_map(|server| Event::Restart { server }),
        1 => (server, count, any::<bool>()).prop_map(move |(server, count, coin)| match (life, coin) {
            (Life::Orderly, _) => Event::Switchover { to: server },
            (_, true) => Event::Failover { to: server },
            (Life::Initialised, false) => Event::LoseTail { server, count },
            (Life::Restored, false) => Event::Restore { donor: server, age: count - 1 },
        }),
    ];
    prop::collection::vec((0..DOMAINS, event), 0..60)
}

/// An answer is sound: "nothing" is nothing, and of "these" every one is missing.
fn assert_sound(answer: &Lacks, missing: &BTreeSet<MariadbGtid>) {
    match answer {
        Lacks::Nothing => assert!(missing.is_empty(), "said to lack nothing, lacks {missing:?}"),
        Lacks::These(these) => {
            let these: BinlogState = these.parse().unwrap();
            assert!(these.iter().next().is_some(), "lacks nothing by name");
            for gtid in these.iter() {
                assert!(missing.contains(&gtid), "said to lack {gtid}, lacks {missing:?}");
            }
        }
        Lacks::Unknown(reason) => assert!(!reason.is_empty()),
    }
}

fn check_histories(own: &Server, other: &Server) {
    let missing = &other.applied() - &own.applied();
    let answer = own.transactions().lacks(&other.transactions());
    assert_sound(&answer, &missing);
    let base_is_elsewhere = own
        .history()
        .base
        .iter()
        .any(|base| !other.applied().contains(&base));
    if matches!(answer, Lacks::Unknown(_)) {
        assert!(
            base_is_elsewhere,
            "the other's binlog goes through the base: {answer:?}"
        );
    }
}

fn check_received(own: &Server, other: &Server) {
    let (received, executed) = (own.received(), own.transactions());
    let missing = &(&other.applied() - &own.applied()) - &own.in_relay_logs();
    assert_sound(&received.covers(&executed, &other.transactions()), &missing);
    if !other.lost_its_tail {
        // A server with a hole is found by its state, not by a position.
        let answer = other.transactions().has_applied(&received);
        assert!(!answer.is_nothing() || own.in_relay_logs().is_subset(&other.applied()));
    }
    let own_answer = executed.has_applied(&received);
    assert!(!own_answer.is_nothing() || own.in_relay_logs().is_subset(&own.applied()));
    if own.in_relay_logs().is_empty() && !received.is_empty() && own.history().base.is_empty() {
        assert_eq!(own_answer, Lacks::Nothing, "{received} is applied");
    }
}

fn live(events: Vec<(usize, Event)>, check: impl Fn(&Server, &Server)) {
    let mut world = World::new();
    for (domain, event) in events {
        world.happen(domain, &event);
        for own in &world.servers {
            for other in &world.servers {
                check(own, other);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn in_an_orderly_cluster_every_answer_is_exact(events in happenings(Life::Orderly)) {
        live(events, |own, other| {
            check_histories(own, other);
            check_received(own, other);
            assert!(!matches!(own.transactions().lacks(&other.transactions()), Lacks::Unknown(_)));
        });
    }

    #[test]
    fn of_initialised_servers_every_answer_is_exact(events in happenings(Life::Initialised)) {
        live(events, |own, other| {
            check_histories(own, other);
            check_received(own, other);
            assert!(!matches!(own.transactions().lacks(&other.transactions()), Lacks::Unknown(_)));
        });
    }

    #[test]
    fn with_restored_servers_every_answer_is_sound(events in happenings(Life::Restored)) {
        live(events, |own, other| {
            check_histories(own, other);
            check_received(own, other);
        });
    }
}
