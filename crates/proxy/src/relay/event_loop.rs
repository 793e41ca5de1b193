//! The data path's thread: one epoll, every socket registered once and edge-triggered.
//!
//! A turn of the loop: wait for events, handle each, go on with what had more to move, obey commands, fire what
//! is due, let the next in line go. Commands come after the events, so that no event of a turn can be meant for
//! a socket that a command has replaced.
//!
//! What happens to a connection stands in [`super::stages`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::routes::Service;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::Load;
use super::backend::Router;
use super::command::{Command, Inbox};
use super::connection::Connection;
use super::pace::Pace;
use super::pump::Buffers;
use super::slab::{Key, Slab};
use super::socket;
use crate::config::ProxyConfig;
use crate::counters::Counters;
use crate::route::Wish;

// No key packs to these.
const LISTENER: u64 = u64::MAX;
const INBOX: u64 = u64::MAX - 1;

/// Events that are taken from the kernel at once. More wait there for the next turn.
const EVENTS: usize = 256;

/// Connections that are accepted in one turn, so that a storm of them does not keep the others waiting.
const ACCEPTS: usize = 64;

/// How long accepting pauses when the system has run out of open files or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection's sockets are registered for, once and for all.
const EVERYTHING: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// What of the configuration the data path needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) service: Service,
    pub(super) hold_limit: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) greeting_timeout: Duration,
    pub(super) maximum_connections: usize,
    lag_limit_seconds: Option<u64>,
    departed_slave: Duration,
}

impl Settings {
    pub(super) fn new(config: &ProxyConfig, maximum_connections: usize) -> Self {
        Self {
            service: config.service,
            hold_limit: config.hold_limit(),
            connect_timeout: Duration::from_millis(config.connect_timeout_milliseconds),
            greeting_timeout: Duration::from_millis(config.greeting_timeout_milliseconds),
            maximum_connections,
            lag_limit_seconds: config.lag_limit_seconds,
            departed_slave: Duration::from_secs(config.departed_slave_seconds),
        }
    }
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct EventLoop {
    pub(super) settings: Settings,
    pub(super) counters: Arc<Counters>,
    pub(super) router: Router,
    pub(super) connections: Slab<Connection>,
    pub(super) buffers: Buffers,
    /// Connections that have more to move than one turn allows.
    pub(super) unfinished: Vec<Key>,
    /// Connections that wait for their turn to be opened.
    pub(super) line: VecDeque<Key>,
    /// A server can take another connection from the line.
    pub(super) line_moves: bool,
    /// When to look at which connection. A connection may be named more than once, or be gone.
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    pub(super) epoll: OwnedFd,
    /// `None` once the proxy drains.
    listener: Option<OwnedFd>,
    accept_again_at: Option<Instant>,
    /// When the routes change by themselves.
    routes_change_at: Option<Instant>,
    drain_until: Option<Instant>,
    /// How what clients send is slowed down, while a switchover is prepared.
    pub(super) pace: Option<Pace>,
    inbox: Arc<Inbox>,
}

/// Everything that can fail is done; what is left must be made on the thread itself.
#[derive(Debug)]
pub(super) struct Prepared {
    epoll: OwnedFd,
    listener: OwnedFd,
    settings: Settings,
    inbox: Arc<Inbox>,
    counters: Arc<Counters>,
    seed: u64,
}

impl Prepared {
    pub(super) fn new(
        listener: OwnedFd,
        settings: Settings,
        inbox: Arc<Inbox>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, inbox.wake(), EventData::new_u64(INBOX), EventFlags::IN)?;
        Ok(Self {
            epoll,
            listener,
            settings,
            inbox,
            counters,
            // The standard library's way to random numbers: good enough to choose between slaves.
            seed: RandomState::new().hash_one(0),
        })
    }

    /// Runs the event loop on this thread; see [`EventLoop::run`].
    pub(super) fn run(self) -> io::Result<()> {
        EventLoop::new(self).run()
    }
}

impl EventLoop {
    fn new(prepared: Prepared) -> Self {
        let Prepared {
            epoll,
            listener,
            settings,
            inbox,
            counters,
            seed,
        } = prepared;
        let wish = Wish {
            service: settings.service,
            lag_limit_seconds: settings.lag_limit_seconds,
        };
        let router = Router::new(
            wish,
            settings.hold_limit,
            settings.departed_slave,
            Arc::clone(&counters),
            seed,
        );
        Self {
            settings,
            counters,
            router,
            connections: Slab::new(),
            buffers: Buffers::new(),
            unfinished: Vec::new(),
            line: VecDeque::new(),
            line_moves: false,
            timers: BinaryHeap::new(),
            epoll,
            listener: Some(listener),
            accept_again_at: None,
            routes_change_at: None,
            drain_until: None,
            pace: None,
            inbox,
        }
    }

    /// Runs until it was told to drain and has drained.
    ///
    /// # Errors
    /// When epoll itself fails: then nothing can be served any more.
    fn run(mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        while !self.has_drained() {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut told = false;
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                match data.u64() {
                    LISTENER => self.accept(),
                    INBOX => told = true,
                    number => {
                        let (key, is_server) = Key::unpack(number);
                        self.on_event(key, is_server, flags);
                    }
                }
            }
            self.go_on();
            if told {
                self.obey()?;
            }
            self.fire();
            self.let_next_go();
        }
        self.counters.ended_by_stop.add(self.connections.len() as u64);
        Ok(())
    }

    /// Looks at a connection again at a time.
    pub(super) fn look_at(&mut self, key: Key, at: Instant) {
        self.timers.push(Reverse((at, key)));
    }

    /// How long to wait for events: not at all with work left, until the next thing is due, or for ever.
    fn timeout(&self) -> Option<Timespec> {
        if !self.unfinished.is_empty() || self.line_moves {
            return Some(Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            });
        }
        let due = self.next_due()?;
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up to a millisecond, what epoll counts in: or the loop would spin through the last one.
        let milliseconds = i64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
        Some(Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        })
    }

    fn next_due(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [
            timer,
            self.accept_again_at,
            self.routes_change_at,
            self.drain_until,
            self.pace.as_ref().map(Pace::next_due),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.listener else { return };
            match socket::accept(listener) {
                Ok(client) => self.admit(client),
                Err(Errno::AGAIN) => return,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    self.pause_accepting(error);
                    return;
                }
                // The connection was over before it was taken: its error, not ours (accept(2)).
                Err(error) => tracing::debug!("a connection was lost in the queue: {error}"),
            }
        }
    }

    fn pause_accepting(&mut self, error: Errno) {
        let Some(listener) = &self.listener else { return };
        tracing::warn!(
            "no connection can be accepted: {error}; trying again every {} ms (a higher limit on open files or \
             a lower `maximum_connections` helps)",
            ACCEPT_PAUSE.as_millis()
        );
        self.counters.accept_pauses.add(1);
        // It stays ready and would wake us all the time.
        match epoll::delete(&self.epoll, listener) {
            Ok(()) => self.accept_again_at = Some(Instant::now() + ACCEPT_PAUSE),
            Err(error) => tracing::error!("accepting cannot be paused: {error}"),
        }
    }

    fn accept_again(&mut self) {
        self.accept_again_at = None;
        let Some(listener) = &self.listener else { return };
        if let Err(error) = epoll::add(
            &self.epoll,
            listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        ) {
            tracing::error!("accepting cannot go on yet: {error}");
            self.accept_again_at = Some(Instant::now() + ACCEPT_PAUSE);
        }
    }

    /// Moves on what had more to move, one round each.
    fn go_on(&mut self) {
        for key in std::mem::take(&mut self.unfinished) {
            self.relay(key);
        }
    }

    fn obey(&mut self) -> io::Result<()> {
        for command in self.inbox.take() {
            let now = Instant::now();
            match command {
                Command::Apply(table, done) => {
                    if self.router.apply(*table, now) {
                        self.obey_routes(now);
                        self.obey_pace(now);
                        self.routes_change_at = self.router.next_change();
                    }
                    let load = Load {
                        held: self.counters.held.get() + self.counters.opening.get(),
                        open: self.counters.open.get(),
                    };
                    // Whoever asked may have gone.
                    let _ = done.send(load);
                }
                Command::Drain(limit) => {
                    if let Some(listener) = self.listener.take()
                        && self.accept_again_at.take().is_none()
                    {
                        epoll::delete(&self.epoll, &listener)?;
                    }
                    self.drain_until = Some(now + limit);
                }
            }
        }
        Ok(())
    }

    /// Slows clients down, or no longer, as the routes in force say.
    fn obey_pace(&mut self, now: Instant) {
        let wanted = self.router.pace();
        match (&mut self.pace, wanted) {
            (Some(pace), Some((every, limit))) => pace.change(every, limit, now),
            (None, Some((every, limit))) => self.pace = Some(Pace::new(every, limit, now)),
            (_, None) => self.end_pace(),
        }
    }

    fn end_pace(&mut self) {
        if let Some(pace) = self.pace.take() {
            self.relay_paced(pace.end());
        }
    }

    /// Gives their turn to those whose moment has come.
    fn keep_pace(&mut self, now: Instant) {
        let Some(pace) = &mut self.pace else { return };
        if pace.is_over(now) {
            self.end_pace();
        } else {
            let due = pace.due(now);
            self.relay_paced(due);
        }
    }

    /// Does everything that is due.
    fn fire(&mut self) {
        if self.counters.held.get() + self.counters.opening.get() == 0 {
            // All that is left is of connections that need no timer any more: not worth waking up for.
            self.timers.clear();
        }
        let Some(due) = self.next_due() else { return };
        let now = Instant::now();
        if due > now {
            return;
        }
        if self.accept_again_at.is_some_and(|at| at <= now) {
            self.accept_again();
        }
        self.keep_pace(now);
        if self.routes_change_at.is_some_and(|at| at <= now) {
            if self.router.lapse(now) {
                tracing::warn!(
                    "no monitor has ended the switchover in time: new connections go to the same master again"
                );
            }
            self.obey_routes(now);
            self.router.forget_departures_until(now);
            self.routes_change_at = self.router.next_change();
        }
        while let Some(&Reverse((at, key))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let deadline = self
                .connections
                .get_mut(key)
                .and_then(|connection| connection.deadline());
            match deadline {
                Some(deadline) if deadline <= now => self.on_deadline(key, now),
                Some(deadline) => self.look_at(key, deadline),
                None => {}
            }
        }
    }

    fn has_drained(&self) -> bool {
        self.drain_until
            .is_some_and(|until| self.connections.len() == 0 || until <= Instant::now())
    }
}

/// Registers a connection's socket.
pub(super) fn watch(epoll: &OwnedFd, socket: &OwnedFd, key: Key, is_server: bool) -> rustix::io::Result<()> {
    let data = EventData::new_u64(key.pack(is_server));
    epoll::add(epoll, socket, data, EVERYTHING)
}
