//! What happens to a connection: the arrows of the diagram in [`super::connection`].

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::SendFlags;

use super::backend::{Candidate, Way};
use super::connection::{Cause, Connection, FIRST_PAUSE, LONGEST_PAUSE, Opening, Relaying, Stage, Waiting};
use super::event_loop::{EventLoop, watch};
use super::packet;
use super::pump::{self, Flow, Side};
use super::slab::Key;
use super::socket;

impl EventLoop {
    /// A new client.
    pub(super) fn admit(&mut self, client: OwnedFd) {
        self.counters.accepted.add(1);
        if self.connections.len() >= self.settings.maximum_connections {
            self.counters.refused_too_many.add(1);
            let message = "mysql-service: the proxy has too many connections";
            answer(&client, packet::TOO_MANY_CONNECTIONS, message);
            return;
        }
        let now = Instant::now();
        let stage = Stage::default();
        self.enter(&stage);
        let key = self.connections.insert(Connection {
            client: Side::new(client),
            give_up_at: now + self.settings.hold_limit,
            was_held: false,
            is_paced: false,
            stage,
        });
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if let Err(error) = watch(&self.epoll, &connection.client.socket, key, false) {
            tracing::warn!("a client's connection cannot be watched and is closed: {error}");
            self.close(key);
            return;
        }
        self.choose(key, FIRST_PAUSE, now);
    }

    /// A socket of a connection has something to say.
    pub(super) fn on_event(&mut self, key: Key, is_server: bool, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match (&mut connection.stage, is_server) {
            (Stage::Relaying(relaying), true) => {
                relaying.server.note(flags);
                self.relay(key);
            }
            (Stage::Relaying(_), false) => {
                connection.client.note(flags);
                self.relay(key);
            }
            (Stage::Opening(opening), true) => {
                opening.server.note(flags);
                self.go_on_opening(key);
            }
            (Stage::Opening(_) | Stage::Waiting(_), false) => {
                connection.client.note(flags);
                if connection.client.hangup {
                    self.counters.abandoned.add(1);
                    self.close(key);
                }
            }
            // An event of a socket that was closed in this very turn.
            (Stage::Waiting(_), true) => {}
        }
    }

    /// Finds a server for a connection that has none. `pause` is what it waits if all of them fail.
    pub(super) fn choose(&mut self, key: Key, pause: Duration, now: Instant) {
        match self.router.way(now) {
            Way::Wait(wait) => self.wait(key, Cause::Routes(wait), None, FIRST_PAUSE),
            Way::Refuse(reason) => {
                self.counters.refused_no_slave.add(1);
                self.refuse(key, &reason);
            }
            Way::To(mut candidates) => {
                candidates.reverse();
                self.open(key, candidates, pause, now);
            }
        }
    }

    /// Starts to connect to the last of the candidates that can be connected to.
    fn open(&mut self, key: Key, mut rest: Vec<Candidate>, pause: Duration, now: Instant) {
        let mut busy = false;
        while let Some(Candidate { backend, socket }) = rest.pop() {
            if backend.is_full() {
                busy = true;
                continue;
            }
            backend.counters.connects.add(1);
            let server = socket::start_connecting(socket)
                .and_then(|server| watch(&self.epoll, &server, key, true).map(|()| server));
            match server {
                Ok(server) => {
                    let deadline = now + self.settings.connect_timeout;
                    let opening = Opening {
                        server: Side::new(server),
                        backend,
                        connected: false,
                        deadline,
                        rest,
                        pause,
                    };
                    self.change_stage(key, Stage::Opening(Box::new(opening)));
                    self.look_at(key, deadline);
                    return;
                }
                Err(error) => backend.note_failure(&format_args!("cannot connect: {error}"), now),
            }
        }
        if busy {
            self.wait(key, Cause::Turn, None, pause);
            self.line.push_back(key);
        } else {
            let longer = (pause * 2).min(LONGEST_PAUSE);
            self.wait(key, Cause::Reachable, Some(now + pause), longer);
        }
    }

    fn wait(&mut self, key: Key, cause: Cause, retry_at: Option<Instant>, pause: Duration) {
        self.change_stage(
            key,
            Stage::Waiting(Waiting {
                cause,
                retry_at,
                pause,
            }),
        );
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if !std::mem::replace(&mut connection.was_held, true) {
            self.counters.held_ever.add(1);
        }
        if let Some(deadline) = connection.deadline() {
            self.look_at(key, deadline);
        }
    }

    /// The server's socket has something to say: connected, failed, or the greeting.
    fn go_on_opening(&mut self, key: Key) {
        let Some(Connection {
            client,
            stage: Stage::Opening(opening),
            ..
        }) = self.connections.get_mut(key)
        else {
            return;
        };
        let server = &mut opening.server;
        if !opening.connected {
            if server.hangup
                && let Err(error) = socket::connect_outcome(&server.socket)
            {
                self.try_next(key, &format_args!("cannot connect: {error}"));
                return;
            }
            if !server.writable {
                return;
            }
            opening.connected = true;
            opening.deadline = Instant::now() + self.settings.greeting_timeout;
        }
        if !server.readable {
            return;
        }
        match server.read_first(&mut self.buffers) {
            Ok(None) => {}
            Ok(Some([])) => self.try_next(key, &"closed the connection without a greeting"),
            // The last candidate's error is the client's to read.
            Ok(Some(bytes)) if packet::is_error(bytes) && !opening.rest.is_empty() => {
                self.try_next(key, &"answered with an error in place of a greeting");
            }
            Ok(Some(bytes)) => {
                let length = bytes.len();
                client.send_first(length, &mut self.buffers);
                self.counters.bytes_to_clients.add(length as u64);
                self.join(key);
            }
            Err(error) => self.try_next(key, &format_args!("the connection broke: {error}")),
        }
    }

    /// The server has greeted: from now on bytes are carried both ways.
    fn join(&mut self, key: Key) {
        let Some(Stage::Opening(opening)) = self.take_stage(key) else {
            return;
        };
        opening.backend.note_greeting();
        let Opening { server, backend, .. } = *opening;
        self.put_stage(key, Stage::Relaying(Relaying { server, backend }));
        self.relay(key);
    }

    /// Gives up the server that a connection is on its way to, and tries the next.
    fn try_next(&mut self, key: Key, what: &dyn Display) {
        let now = Instant::now();
        let Some(Stage::Opening(opening)) = self.take_stage(key) else {
            return;
        };
        opening.backend.note_failure(what, now);
        let Opening { rest, pause, .. } = *opening;
        self.put_stage(key, Stage::default());
        self.open(key, rest, pause, now);
    }

    /// Carries what can be carried, both ways. What the client sends waits for its moment, if there is a pace.
    pub(super) fn relay(&mut self, key: Key) {
        let Some(pace) = &mut self.pace else {
            self.relay_now(key);
            return;
        };
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let readable = std::mem::take(&mut connection.client.readable);
        if readable && !std::mem::replace(&mut connection.is_paced, true) {
            pace.wait(key);
        }
        self.relay_now(key);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.client.readable |= readable;
        }
    }

    /// The moment has come for what these clients have sent.
    pub(super) fn relay_paced(&mut self, keys: Vec<Key>) {
        for key in keys {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.is_paced = false;
                self.relay_now(key);
            }
        }
    }

    fn relay_now(&mut self, key: Key) {
        let Some(Connection {
            client,
            stage: Stage::Relaying(Relaying { server, .. }),
            ..
        }) = self.connections.get_mut(key)
        else {
            return;
        };
        let mut flow = Flow::Quiet;
        let (mut to_server, mut to_client) = (0, 0);
        if client.readable || server.has_unsent() {
            flow = pump::pump(client, server, &mut self.buffers, &mut to_server);
        }
        if server.readable || client.has_unsent() {
            let other = pump::pump(server, client, &mut self.buffers, &mut to_client);
            flow = flow.or(other);
        }
        self.counters.bytes_to_servers.add(to_server);
        self.counters.bytes_to_clients.add(to_client);
        if pump::is_over(client, server) {
            self.close(key);
        } else if flow == Flow::More {
            self.unfinished.push(key);
        }
    }

    /// A connection's deadline has come.
    pub(super) fn on_deadline(&mut self, key: Key, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let give_up_at = connection.give_up_at;
        match &mut connection.stage {
            Stage::Waiting(Waiting { cause, .. }) if give_up_at <= now => {
                let cause = *cause;
                self.give_up(key, &cause);
            }
            Stage::Waiting(Waiting { pause, .. }) => {
                let pause = *pause;
                self.choose(key, pause, now);
            }
            Stage::Opening(opening) if give_up_at <= now => {
                opening.backend.note_failure(&"does not greet", now);
                self.give_up(key, &"the server does not greet");
            }
            // Nobody else is left to try: this one gets all the time that there is.
            Stage::Opening(opening) if opening.connected && opening.rest.is_empty() => {
                opening.deadline = give_up_at;
                self.look_at(key, give_up_at);
            }
            Stage::Opening(opening) => {
                let what = if opening.connected {
                    "does not greet"
                } else {
                    "does not answer"
                };
                self.try_next(key, &what);
            }
            Stage::Relaying(_) => {}
        }
    }

    /// Brings every connection in line with the routes in force.
    pub(super) fn obey_routes(&mut self, now: Instant) {
        let (mut ending, mut misled, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (key, connection) in self.connections.iter() {
            match &connection.stage {
                Stage::Relaying(Relaying { backend, .. }) if backend.ends_now(now) => {
                    ending.push(key);
                }
                Stage::Relaying(_)
                | Stage::Waiting(Waiting {
                    cause: Cause::Turn, ..
                }) => {}
                Stage::Opening(opening) if self.router.still_leads_to(&opening.backend) => {}
                Stage::Opening(_) => misled.push(key),
                Stage::Waiting(_) => waiting.push((connection.give_up_at, key)),
            }
        }
        self.counters.ended_by_routes.add(ending.len() as u64);
        for key in ending {
            self.close(key);
        }
        // Who came first goes first.
        waiting.sort_unstable();
        for key in misled.into_iter().chain(waiting.into_iter().map(|(_, key)| key)) {
            self.change_stage(key, Stage::default());
            self.choose(key, FIRST_PAUSE, now);
        }
        self.line_moves = !self.line.is_empty();
    }

    /// Opens connections from the line as long as there is a server that takes one.
    pub(super) fn let_next_go(&mut self) {
        if !std::mem::take(&mut self.line_moves) {
            return;
        }
        let now = Instant::now();
        while let Some(key) = self.line.pop_front() {
            let stage = self.connections.get_mut(key).map(|connection| &connection.stage);
            let Some(&Stage::Waiting(Waiting {
                cause: Cause::Turn,
                pause,
                ..
            })) = stage
            else {
                continue;
            };
            let length = self.line.len();
            self.choose(key, pause, now);
            if self.line.len() > length {
                // Still no room: back to the front, and so is the end of this turn.
                self.line.rotate_right(1);
                return;
            }
        }
    }

    fn give_up(&mut self, key: Key, cause: &dyn Display) {
        self.counters.refused_waited_too_long.add(1);
        let waited = self.settings.hold_limit.as_millis();
        self.refuse(key, &format_args!("{cause}, after waiting for {waited} ms"));
    }

    fn refuse(&mut self, key: Key, reason: &dyn Display) {
        if let Some(connection) = self.connections.get_mut(key) {
            let service = self.settings.service;
            let message = format_args!("mysql-service: no server for {service}: {reason}");
            answer(&connection.client.socket, packet::NO_SERVER, message);
        }
        self.close(key);
    }

    /// Ends a connection: its sockets close when it is dropped.
    pub(super) fn close(&mut self, key: Key) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        self.leave(&connection.stage);
        connection.client.release(&mut self.buffers);
        if let Stage::Relaying(relaying) = &mut connection.stage {
            relaying.server.release(&mut self.buffers);
        }
    }

    fn change_stage(&mut self, key: Key, stage: Stage) {
        drop(self.take_stage(key));
        self.put_stage(key, stage);
    }

    /// Takes a connection's stage out; [`EventLoop::put_stage`] must follow.
    fn take_stage(&mut self, key: Key) -> Option<Stage> {
        let stage = std::mem::take(&mut self.connections.get_mut(key)?.stage);
        self.leave(&stage);
        Some(stage)
    }

    fn put_stage(&mut self, key: Key, stage: Stage) {
        self.enter(&stage);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.stage = stage;
        }
    }

    fn enter(&mut self, stage: &Stage) {
        match stage {
            Stage::Waiting(_) => self.counters.held.add(1),
            Stage::Opening(opening) => {
                self.counters.opening.add(1);
                opening.backend.opening.set(opening.backend.opening.get() + 1);
            }
            Stage::Relaying(relaying) => {
                self.counters.open.add(1);
                relaying.backend.counters.open.add(1);
            }
        }
    }

    fn leave(&mut self, stage: &Stage) {
        match stage {
            Stage::Waiting(_) => self.counters.held.subtract(1),
            Stage::Opening(opening) => {
                self.counters.opening.subtract(1);
                opening.backend.opening.set(opening.backend.opening.get() - 1);
                self.line_moves |= !self.line.is_empty();
            }
            Stage::Relaying(relaying) => {
                self.counters.open.subtract(1);
                relaying.backend.counters.open.subtract(1);
            }
        }
    }
}

/// Sends an error in place of a greeting. The socket is new and has room for it; a client that is gone misses
/// nothing.
fn answer(client: &OwnedFd, code: u16, message: impl Display) {
    let _ = rustix::net::send(client, &packet::error(code, message), SendFlags::NOSIGNAL);
}
