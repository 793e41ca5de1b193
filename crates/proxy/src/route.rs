//! Which server a new connection goes to, and which old connections must end: decided from the routes alone.
//!
//! Pure: random numbers and loads are arguments.

use std::cmp::Ordering;
use std::fmt;

use api::routes::{Phase, Routes, Service, SlaveRoute};
use topology::Address;

/// What a new connection wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// The service it came to.
    pub service: Service,
    /// How far behind a slave may be for it; `None`: as far as the monitor lists slaves.
    pub lag_limit_seconds: Option<u64>,
}

/// Where a new connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'a> {
    /// To the first of these that can be reached; never empty.
    To(Vec<&'a Address>),
    /// Nowhere yet: what it waits for is over after a switchover or a restart.
    Wait(Wait),
    /// Nowhere, and waiting would not help.
    Refuse(Refuse),
}

/// Why a new connection waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// No monitor was heard since the proxy started.
    NoRoutes,
    /// A switchover is on.
    Switchover,
    /// There is no master.
    NoMaster,
    /// There is no server for read-only connections.
    NoSlave,
}

impl fmt::Display for Wait {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoRoutes => "no monitor has said where the servers are",
            Self::Switchover => "a switchover is going on",
            Self::NoMaster => "there is no master",
            Self::NoSlave => "there is no slave",
        })
    }
}

/// Why a new connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    /// Every slave with a weight is behind by more than the limit.
    TooFarBehind {
        /// The limit.
        limit_seconds: u64,
    },
    /// Every slave was given weight 0.
    NoWeight,
}

impl fmt::Display for Refuse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFarBehind { limit_seconds } => {
                write!(formatter, "every slave is more than {limit_seconds} s behind")
            }
            Self::NoWeight => formatter.write_str("every slave has weight 0"),
        }
    }
}

/// Whether a document replaces the one that is held: generations only grow. The same generation replaces, too:
/// its slaves' figures and its phase may be newer.
#[must_use]
pub fn supersedes(new: &Routes, held: Option<&Routes>) -> bool {
    held.is_none_or(|held| new.generation >= held.generation)
}

/// Where a new connection goes. `load` is the number of connections that a server has from this proxy, open or
/// being opened; `random` are two uniformly distributed numbers.
///
/// Slaves are chosen by the power of two choices: of two that are drawn by weight, the one with the lower load
/// for its weight goes first, the other second, and the rest follow by load.
#[must_use]
pub fn route(
    routes: Option<&Routes>,
    wish: Wish,
    load: impl Fn(&Address) -> u64,
    random: [u64; 2],
) -> Route<'_> {
    let Some(routes) = routes else {
        return Route::Wait(Wait::NoRoutes);
    };
    match (wish.service, routes.phase, &routes.master) {
        (Service::MysqlMaster, Phase::Hold, _) => Route::Wait(Wait::Switchover),
        (Service::MysqlMaster, Phase::Open | Phase::Abort, Some(master)) => Route::To(vec![master]),
        (Service::MysqlMaster, Phase::Open | Phase::Abort, None) => Route::Wait(Wait::NoMaster),
        (Service::MysqlSlave, _, _) => route_to_slave(&routes.slaves, wish.lag_limit_seconds, load, random),
    }
}

fn route_to_slave(
    slaves: &[SlaveRoute],
    lag_limit_seconds: Option<u64>,
    load: impl Fn(&Address) -> u64,
    random: [u64; 2],
) -> Route<'_> {
    if slaves.is_empty() {
        return Route::Wait(Wait::NoSlave);
    }
    let weighted: Vec<&SlaveRoute> = slaves.iter().filter(|slave| slave.weight > 0).collect();
    if weighted.is_empty() {
        return Route::Refuse(Refuse::NoWeight);
    }
    let mut candidates = weighted;
    if let Some(limit_seconds) = lag_limit_seconds {
        candidates.retain(|slave| slave.lag_seconds <= limit_seconds);
        if candidates.is_empty() {
            return Route::Refuse(Refuse::TooFarBehind { limit_seconds });
        }
    }
    let first = candidates.remove(draw_by_weight(&candidates, random[0]));
    let mut order = vec![first];
    if !candidates.is_empty() {
        let second = candidates.remove(draw_by_weight(&candidates, random[1]));
        let place = usize::from(compare_load(second, first, &load).is_ge());
        order.insert(place, second);
        candidates.sort_by(|left, right| compare_load(left, right, &load));
        order.append(&mut candidates);
    }
    Route::To(order.into_iter().map(|slave| &slave.address).collect())
}

/// The index of a slave, each as likely as its share of the weights. The list is not empty and no weight is 0.
fn draw_by_weight(slaves: &[&SlaveRoute], random: u64) -> usize {
    let total: u64 = slaves.iter().map(|slave| u64::from(slave.weight)).sum();
    let mut rest = random % total;
    for (index, slave) in slaves.iter().enumerate() {
        match rest.checked_sub(u64::from(slave.weight)) {
            Some(less) => rest = less,
            None => return index,
        }
    }
    unreachable!("the rest is below the sum of the weights")
}

/// Compares load per weight, without division.
fn compare_load(left: &SlaveRoute, right: &SlaveRoute, load: impl Fn(&Address) -> u64) -> Ordering {
    let left_share = u128::from(load(&left.address)) * u128::from(right.weight);
    let right_share = u128::from(load(&right.address)) * u128::from(left.weight);
    left_share.cmp(&right_share)
}

/// What becomes of the connections to a server when routes change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They stay.
    Stay,
    /// They end unless the server is back in the list before long: a slave that was cut off for a moment must
    /// not lose its readers, one that was detached must not keep them.
    EndLater,
    /// They end now.
    End,
}

/// What becomes of the connections to `server`. Nothing ends while there is nowhere else to go.
#[must_use]
pub fn fate(routes: &Routes, service: Service, server: &Address) -> Fate {
    match service {
        Service::MysqlMaster => match (&routes.master, routes.phase) {
            (Some(master), Phase::Open | Phase::Abort) if master != server => Fate::End,
            _ => Fate::Stay,
        },
        Service::MysqlSlave if routes.slaves.is_empty() => Fate::Stay,
        Service::MysqlSlave if routes.slaves.iter().any(|slave| slave.address == *server) => Fate::Stay,
        // It became the master: what came for read-only connections must not be able to write.
        Service::MysqlSlave if routes.master.as_ref() == Some(server) => Fate::End,
        Service::MysqlSlave => Fate::EndLater,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use topology::Generation;

    use super::*;

    fn address(port: u16) -> Address {
        Address::new("127.0.0.1", port).unwrap()
    }

    fn slave(port: u16, lag_seconds: u64, weight: u32) -> SlaveRoute {
        SlaveRoute {
            address: address(port),
            lag_seconds,
            weight,
        }
    }

    fn routes(phase: Phase, master: Option<u16>, slaves: Vec<SlaveRoute>) -> Routes {
        Routes {
            format: api::FORMAT,
            generation: Generation(5),
            phase,
            master: master.map(address),
            candidate: None,
            slaves,
            deadline_ms: None,
            pace_ms: None,
        }
    }

    fn master_wish() -> Wish {
        Wish {
            service: Service::MysqlMaster,
            lag_limit_seconds: None,
        }
    }

    fn slave_wish(lag_limit_seconds: Option<u64>) -> Wish {
        Wish {
            service: Service::MysqlSlave,
            lag_limit_seconds,
        }
    }

    fn ports(route: &Route<'_>) -> Vec<u16> {
        match route {
            Route::To(addresses) => addresses.iter().map(|address| address.port()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_master_service_follows_the_phase() {
        let route_of = |routes: Option<&Routes>| match route(routes, master_wish(), |_| 0, [0, 0]) {
            Route::To(addresses) => Ok(addresses[0].port()),
            Route::Wait(wait) => Err(wait),
            Route::Refuse(refuse) => panic!("{refuse}"),
        };
        assert_eq!(route_of(None), Err(Wait::NoRoutes));
        assert_eq!(route_of(Some(&routes(Phase::Open, Some(1), vec![]))), Ok(1));
        assert_eq!(route_of(Some(&routes(Phase::Abort, Some(1), vec![]))), Ok(1));
        assert_eq!(
            route_of(Some(&routes(Phase::Hold, Some(1), vec![]))),
            Err(Wait::Switchover)
        );
        assert_eq!(
            route_of(Some(&routes(Phase::Open, None, vec![slave(2, 0, 1)]))),
            Err(Wait::NoMaster)
        );
    }

    #[test]
    fn the_slave_service_does_not_care_for_the_phase() {
        for phase in [Phase::Open, Phase::Hold, Phase::Abort] {
            let routes = routes(phase, Some(1), vec![slave(2, 0, 1)]);
            assert_eq!(ports(&route(Some(&routes), slave_wish(None), |_| 0, [7, 7])), [2]);
        }
    }

    #[test]
    fn slaves_beyond_the_limit_or_without_weight_take_nothing() {
        let all = routes(
            Phase::Open,
            None,
            vec![slave(1, 0, 0), slave(2, 31, 1), slave(3, 30, 1)],
        );
        assert_eq!(
            ports(&route(Some(&all), slave_wish(Some(30)), |_| 0, [0, 0])),
            [3]
        );
        assert_eq!(
            ports(&route(Some(&all), slave_wish(None), |_| 0, [0, 0])).len(),
            2,
            "without a limit of its own the list decides"
        );
        assert_eq!(
            route(Some(&all), slave_wish(Some(29)), |_| 0, [0, 0]),
            Route::Refuse(Refuse::TooFarBehind { limit_seconds: 29 })
        );
        let none = routes(Phase::Open, None, vec![]);
        assert_eq!(
            route(Some(&none), slave_wish(None), |_| 0, [0, 0]),
            Route::Wait(Wait::NoSlave)
        );
        let weightless = routes(Phase::Open, None, vec![slave(1, 0, 0)]);
        assert_eq!(
            route(Some(&weightless), slave_wish(None), |_| 0, [0, 0]),
            Route::Refuse(Refuse::NoWeight)
        );
    }

    #[test]
    fn the_less_loaded_of_the_two_that_are_drawn_goes_first() {
        let three = routes(
            Phase::Open,
            None,
            vec![slave(1, 0, 1), slave(2, 0, 1), slave(3, 0, 1)],
        );
        let load = |address: &Address| u64::from(10 - address.port());
        // Drawn: the first of three, then the first of the other two.
        assert_eq!(
            ports(&route(Some(&three), slave_wish(None), load, [0, 0])),
            [2, 1, 3]
        );
        let load = |address: &Address| u64::from(address.port());
        assert_eq!(
            ports(&route(Some(&three), slave_wish(None), load, [0, 0])),
            [1, 2, 3]
        );
        // Twice the weight bears twice the load.
        let heavy = routes(Phase::Open, None, vec![slave(1, 0, 2), slave(2, 0, 1)]);
        let load = |address: &Address| if address.port() == 1 { 5 } else { 3 };
        assert_eq!(
            ports(&route(Some(&heavy), slave_wish(None), load, [0, 0])),
            [1, 2]
        );
    }

    #[test]
    fn lower_generations_are_ignored() {
        let held = routes(Phase::Open, Some(1), vec![]);
        let mut new = held.clone();
        for (generation, replaces) in [(4, false), (5, true), (6, true)] {
            new.generation = Generation(generation);
            assert_eq!(supersedes(&new, Some(&held)), replaces, "{generation}");
        }
        assert!(supersedes(&new, None));
    }

    #[test]
    fn old_connections_end_only_when_there_is_somewhere_else_to_go() {
        let master = |phase, port| fate(&routes(phase, port, vec![]), Service::MysqlMaster, &address(1));
        assert_eq!(master(Phase::Open, Some(1)), Fate::Stay);
        assert_eq!(master(Phase::Open, Some(2)), Fate::End);
        assert_eq!(master(Phase::Hold, Some(2)), Fate::Stay);
        assert_eq!(master(Phase::Open, None), Fate::Stay);

        let slave_fate = |master, slaves| {
            fate(
                &routes(Phase::Open, master, slaves),
                Service::MysqlSlave,
                &address(1),
            )
        };
        assert_eq!(slave_fate(None, vec![slave(1, 99, 0)]), Fate::Stay);
        assert_eq!(slave_fate(Some(1), vec![slave(2, 0, 1)]), Fate::End);
        assert_eq!(
            slave_fate(Some(1), vec![slave(1, 0, 1)]),
            Fate::Stay,
            "the master stands in"
        );
        assert_eq!(slave_fate(Some(3), vec![slave(2, 0, 1)]), Fate::EndLater);
        assert_eq!(slave_fate(Some(3), vec![]), Fate::Stay);
    }

    proptest! {
        #[test]
        fn every_eligible_slave_is_named_once_and_no_other(
            slaves in proptest::collection::vec((0_u64..60, 0_u32..4), 0..8),
            limit in proptest::option::of(0_u64..60),
            random in any::<[u64; 2]>(),
            seed in any::<u64>(),
        ) {
            let list: Vec<SlaveRoute> = slaves
                .iter()
                .zip(1_u16..)
                .map(|(&(lag, weight), port)| slave(port, lag, weight))
                .collect();
            let mut expected: Vec<u16> = list
                .iter()
                .filter(|slave| slave.weight > 0 && limit.is_none_or(|limit| slave.lag_seconds <= limit))
                .map(|slave| slave.address.port())
                .collect();
            let routes = routes(Phase::Open, None, list);
            let load = |address: &Address| seed.rotate_left(u32::from(address.port())) % 100;
            match route(Some(&routes), slave_wish(limit), load, random) {
                Route::To(addresses) => {
                    let mut named: Vec<u16> = addresses.iter().map(|address| address.port()).collect();
                    named.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(named, expected);
                }
                Route::Wait(wait) => {
                    prop_assert_eq!(wait, Wait::NoSlave);
                    prop_assert!(slaves.is_empty());
                }
                Route::Refuse(_) => prop_assert!(expected.is_empty()),
            }
        }
    }
}
