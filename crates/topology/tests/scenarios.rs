//! Runs `tests/scenarios/*.txt`: commands above `----`, what they print below, cases apart by a blank line.
//!
//! A file is one story: what a case changes, the next one finds. `TOPOLOGY_REWRITE=1 cargo test -p topology
//! --test scenarios` writes what is printed now into the files; read the difference before it is kept.
//!
//! | command | |
//! |---|---|
//! | `healthy FLAVOR N` | begins anew with `db-1` Master, `db-2` Standby, the rest Slaves, all as it should be |
//! | `new FLAVOR N` | begins anew with N initialised instances and no role |
//! | `policy WORDS` | `async`, `application`, `fallback=standby\|master\|none` |
//! | `see ID WORDS` | changes what is seen, see [`Story::see`] |
//! | `decide ID WORDS` | changes what was decided, see [`Story::decide`] |
//! | `ackers IDS` | the recorded ackers |
//! | `time SECONDS` | passes, without a new look |
//! | `look` | takes a new look at everything, and hears every agent |
//! | `status`, `health`, `problems`, `why`, `routes`, `state` | print |
//! | `heal`, `register ID ROLE`, `unregister ID`, `activate ID`, … | print the plan, or the refusal |
//! | `record` | makes the changes that the last plan records |

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use topology::gtid::{BinlogStart, Received, Transactions};
use topology::observation::{
    AgentReport, Preflight, Receiver, Replication, SemiSync, ServerState, Unreachable,
};
use topology::operations::{activate, detach, pause, quiesce, register, resume, unregister};
use topology::switchover::{no_failover, switchover};
use topology::{
    Change, Cluster, Durability, Flavor, InstanceId, InstanceView, Look, Moment, Observation, Plan, Policy,
    Refusal, Role, ServerId, Situation, SlaveFallback, Step, Version, assess, heal::heal, routes,
};

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the stories are files, and the environment says whether to rewrite them"
)]
fn stories_go_as_they_are_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let rewrite = std::env::var_os("TOPOLOGY_REWRITE").is_some();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there is no story in {}", folder.display());
    for file in files {
        let told = std::fs::read_to_string(&file).unwrap();
        let found = play(&told);
        if rewrite {
            std::fs::write(&file, found).unwrap();
        } else {
            let differs = told
                .lines()
                .zip(found.lines())
                .position(|(told, found)| told != found);
            assert!(
                told == found,
                "{}:{}: the story goes otherwise:\n{found}",
                file.display(),
                differs.unwrap_or_else(|| told.lines().count().min(found.lines().count())) + 1
            );
        }
    }
}

/// Plays every case and gives the file back with what was printed.
fn play(text: &str) -> String {
    let mut story = Story::new(Flavor::Mariadb, 0);
    let cases: Vec<String> = text
        .split("\n\n")
        .map(|case| {
            let commands = case
                .split_once("\n----")
                .map_or(case.trim_end(), |(commands, _)| commands);
            let mut printed = String::new();
            for command in commands
                .lines()
                .filter(|line| !line.starts_with('#') && !line.is_empty())
            {
                story.run(command, &mut printed);
            }
            if printed.is_empty() {
                commands.to_owned()
            } else {
                format!("{commands}\n----\n{}", printed.trim_end())
            }
        })
        .collect();
    cases.join("\n\n") + "\n"
}

struct Story {
    flavor: Flavor,
    cluster: Cluster,
    views: BTreeMap<InstanceId, InstanceView>,
    now: Moment,
    policy: Policy,
    last_plan: Option<Plan>,
}

impl Story {
    fn new(flavor: Flavor, count: usize) -> Self {
        let id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut story = Self {
            flavor,
            cluster: Cluster::new(id, "story", Durability::SemiSync),
            views: BTreeMap::new(),
            now: Moment(Duration::from_secs(1000)),
            policy: Policy::default(),
            last_plan: None,
        };
        for number in 1..=count {
            let id = named(&format!("db-{number}"));
            let mut view = InstanceView::new(
                id.clone(),
                format!("127.0.0.1:{}", 3310 + number).parse().unwrap(),
            );
            view.record(Look {
                began: story.now,
                at: story.now,
                result: Ok(story.fresh(number)),
            });
            view.agent = Some(story.report(number));
            story.views.insert(id, view);
        }
        story
    }

    fn healthy(flavor: Flavor, count: usize) -> Self {
        let mut story = Self::new(flavor, count);
        for number in 1..=count {
            let id = named(&format!("db-{number}"));
            let role = [Role::Master, Role::Standby][..]
                .get(number - 1)
                .copied()
                .unwrap_or(Role::Slave);
            let seen = story.views[&id].observation().unwrap().clone();
            let change = Change::Register {
                instance: id.clone(),
                role,
                incarnation: story.views[&id].agent.as_ref().unwrap().incarnation.clone(),
                server_id: seen.server_id,
                server_uuid: seen.server_uuid,
            };
            change.apply(&mut story.cluster).unwrap();
            if role == Role::Master {
                story.see("db-1", &["writable", "scheduler=on"]);
                continue;
            }
            story.decide(id.as_str(), &["active", "link=db-1"]);
            story.see(id.as_str(), &["follows=db-1"]);
            if number <= 3 {
                story.cluster.ackers.insert(id.clone());
                story.see(id.as_str(), &["acknowledges=yes"]);
                story.see("db-1", &["source=on", &format!("clients={}", number - 1)]);
            }
        }
        story
    }

    fn fresh(&self, number: usize) -> Observation {
        let mysql = self.flavor == Flavor::Mysql;
        Observation {
            flavor: self.flavor,
            version: Version::parse(if mysql { "9.7.4" } else { "10.11.19" }).unwrap(),
            server_id: ServerId(u32::try_from(100 + number).unwrap()),
            server_uuid: mysql.then(|| uuid(number).parse().unwrap()),
            uptime_seconds: 500,
            read_only: true,
            takes_writes: false,
            transactions: self.transactions(if mysql { "1:1-50" } else { "0-101-50" }),
            replication: None,
            semi_sync: SemiSync::default(),
            event_scheduler: false,
            variables: BTreeMap::new(),
            preflight: Some(Preflight::default()),
        }
    }

    fn report(&self, number: usize) -> AgentReport {
        AgentReport {
            at: self.now,
            incarnation: format!("00000000-0000-4000-9000-{number:012}").parse().unwrap(),
            state: ServerState::Running,
            replaying: false,
            left_out: Vec::new(),
            archived: false,
            archived_up_to: None,
            detail: String::new(),
            server_pid: Some(4000),
            disk_free_bytes: 50 << 30,
            disk_total_bytes: 100 << 30,
            clock_ahead_milliseconds: 0,
            first_start: None,
        }
    }

    /// Positions as the servers print them; of MySQL's UUIDs the instance's number stands for the whole.
    fn transactions(&self, text: &str) -> Transactions {
        match self.flavor {
            Flavor::Mariadb => Transactions::parse_mariadb(text, "").unwrap(),
            Flavor::Mysql => Transactions::parse_mysql(&long(text)).unwrap(),
        }
    }

    fn situation(&self) -> Situation<'_> {
        Situation {
            cluster: &self.cluster,
            instances: &self.views,
            now: self.now,
            policy: &self.policy,
        }
    }

    fn run(&mut self, line: &str, printed: &mut String) {
        let words: Vec<&str> = line.split(' ').collect();
        let flavor = |word: &str| match word {
            "mariadb" => Flavor::Mariadb,
            "mysql" => Flavor::Mysql,
            other => panic!("{other} is no flavor: {line}"),
        };
        match words[0] {
            "new" => *self = Self::new(flavor(words[1]), words[2].parse().unwrap()),
            "healthy" => *self = Self::healthy(flavor(words[1]), words[2].parse().unwrap()),
            "policy" => self.set_policy(&words[1..]),
            "see" => self.see(words[1], &words[2..]),
            "decide" => self.decide(words[1], &words[2..]),
            "ackers" => self.cluster.ackers = words[1..].iter().map(|id| named(id)).collect(),
            "time" => self.now = Moment(self.now.0 + Duration::from_secs(words[1].parse().unwrap())),
            "look" => self.look(),
            "record" => self.record(),
            "status" | "health" | "problems" | "why" | "routes" | "state" => self.print(words[0], printed),
            _ => self.plan(&words, printed),
        }
    }

    fn set_policy(&mut self, words: &[&str]) {
        for word in words {
            match *word {
                "async" => self.cluster.durability = Durability::Async,
                "application" => self.policy.application = true,
                "fallback=standby" => self.policy.slave_fallback = SlaveFallback::Standby,
                "fallback=master" => self.policy.slave_fallback = SlaveFallback::Master,
                "fallback=none" => self.policy.slave_fallback = SlaveFallback::None,
                other => panic!("{other} is no policy"),
            }
        }
    }

    /// `writable`, `read-only`, `half-open` (MySQL's `read_only` alone), `gtid=…`, `earlier=…` (the look before), `follows=ID|ADDRESS|nobody`,
    /// `receiver=running|connecting|stopped`, `received=…`, `applier=on|off`, `lag=SECONDS|unknown`, `acknowledges=yes|no|switched`,
    /// `source=on|off`, `clients=N`, `waiting=N`, `scheduler=on|off`, `version=…`, `flavor=…`, `id=…` (server id), `sync=EVENTS` (of the relay log),
    /// `uptime=SECONDS`, `transaction=SECONDS`, `xa=N`, `busy=WORD`, `binlogs=…` (what was logged before the oldest),
    /// `hasty` (no thorough look), `overlapping` (this look began before the others ended), `agent=replaying|left-out|
    /// left-out-unknown|silent|never|other|crashed|full|misfit`, `disk=PERCENT`, `archived=elsewhere|…` (its agent has a
    /// store; up to where its own binlog is there),
    /// `clock=MILLISECONDS`, `gone` (unreachable), and last in a line `error=…` of the applier, `receiving-error=…`.
    fn see(&mut self, id: &str, words: &[&str]) {
        for (position, word) in words.iter().enumerate() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let rest = || words[position..].join(" ").split_once('=').unwrap().1.to_owned();
            match key {
                "error" => self.replication(id).applier_error = rest(),
                "receiving-error" => self.replication(id).receiver_error = rest(),
                "agent" | "disk" | "clock" | "archived" => {
                    self.see_agent(id, key, value);
                    continue;
                }
                "gone" | "overlapping" | "earlier" => {
                    self.see_look(id, key, value);
                    continue;
                }
                "follows" | "receiver" | "received" | "applier" | "lag" => {
                    self.see_replication(id, key, value);
                }
                _ => self.see_server(id, key, value),
            }
            if matches!(key, "error" | "receiving-error") {
                break;
            }
        }
        let view = self.views.get_mut(&named(id)).unwrap();
        if let Some(Ok(seen)) = view.look.as_ref().map(|look| look.result.clone()) {
            view.last_seen = Some((view.look.as_ref().unwrap().at, seen));
        }
        self.remember();
    }

    fn remember(&mut self) {
        topology::memory::remember(&self.cluster, &mut self.views, self.now, &self.policy);
    }

    fn seen(&mut self, id: &str) -> &mut Observation {
        let view = self.views.get_mut(&named(id)).unwrap();
        view.look.as_mut().unwrap().result.as_mut().unwrap()
    }

    fn replication(&mut self, id: &str) -> &mut Replication {
        self.seen(id).replication.as_mut().unwrap()
    }

    fn see_server(&mut self, id: &str, key: &str, value: &str) {
        let transactions = (key == "gtid").then(|| self.transactions(value));
        let seen = self.seen(id);
        match key {
            "writable" => (seen.read_only, seen.takes_writes) = (false, true),
            "read-only" => (seen.read_only, seen.takes_writes) = (true, false),
            "half-open" => (seen.read_only, seen.takes_writes) = (false, false),
            "gtid" => seen.transactions = transactions.unwrap(),
            "acknowledges" => {
                seen.semi_sync.replica_enabled = value != "no";
                seen.semi_sync.replica_active = value == "yes";
            }
            "source" => {
                seen.semi_sync.source_enabled = value == "on";
                seen.semi_sync.source_active = value == "on";
            }
            "clients" => seen.semi_sync.source_clients = value.parse().unwrap(),
            "waiting" => seen.semi_sync.waiting_sessions = value.parse().unwrap(),
            "scheduler" => seen.event_scheduler = value == "on",
            "version" => seen.version = Version::parse(value).unwrap(),
            "flavor" => {
                seen.flavor = if value == "mysql" {
                    Flavor::Mysql
                } else {
                    Flavor::Mariadb
                };
            }
            "sync" => {
                seen.variables
                    .insert("sync_relay_log".to_owned(), value.to_owned());
            }
            "id" => seen.server_id = ServerId(value.parse().unwrap()),
            "uptime" => seen.uptime_seconds = value.parse().unwrap(),
            "hasty" => seen.preflight = None,
            "transaction" => {
                seen.preflight.as_mut().unwrap().oldest_transaction_seconds = Some(value.parse().unwrap());
            }
            "xa" => seen.preflight.as_mut().unwrap().prepared_xa_transactions = value.parse().unwrap(),
            "binlogs" => {
                seen.preflight.as_mut().unwrap().binlogs_begin = Some(match seen.flavor {
                    Flavor::Mariadb => BinlogStart::parse_mariadb(value).unwrap(),
                    Flavor::Mysql => BinlogStart::parse_mysql(&long(value)).unwrap(),
                });
            }
            "busy" => seen
                .preflight
                .as_mut()
                .unwrap()
                .exclusive_work
                .push(value.to_owned()),
            other => panic!("{other} cannot be seen"),
        }
    }

    fn see_replication(&mut self, id: &str, key: &str, value: &str) {
        match key {
            "follows" if value == "nobody" => self.seen(id).replication = None,
            "follows" => {
                let followed = value
                    .parse::<InstanceId>()
                    .ok()
                    .and_then(|id| self.views.get(&id));
                let source = followed.map_or_else(|| value.parse().unwrap(), |view| view.address.clone());
                let source_server_id = followed
                    .and_then(|view| view.observation())
                    .map(|seen| seen.server_id);
                let mysql = self.flavor == Flavor::Mysql;
                let member = self.cluster.members.get(&named(id));
                let user = member.map_or_else(|| "repl".to_owned(), |member| member.account.user());
                self.seen(id).replication = Some(Replication {
                    source,
                    source_server_id,
                    user,
                    receiver: Receiver::Running,
                    applier_running: true,
                    receiver_error: String::new(),
                    applier_error: String::new(),
                    lag_seconds: Some(0),
                    received: if mysql {
                        Received::parse_mysql("").unwrap()
                    } else {
                        Received::parse_mariadb("").unwrap()
                    },
                });
            }
            "receiver" => {
                self.replication(id).receiver = match value {
                    "running" => Receiver::Running,
                    "connecting" => Receiver::Connecting,
                    "stopped" => Receiver::Stopped,
                    other => panic!("a receiver is never {other}"),
                }
            }
            "received" => {
                self.replication(id).received = match self.flavor {
                    Flavor::Mariadb => Received::parse_mariadb(value).unwrap(),
                    Flavor::Mysql => Received::parse_mysql(&long(value)).unwrap(),
                }
            }
            "applier" => self.replication(id).applier_running = value == "on",
            "lag" => self.replication(id).lag_seconds = value.parse().ok(),
            other => panic!("{other} is nothing of replication"),
        }
    }

    fn see_agent(&mut self, id: &str, key: &str, value: &str) {
        let now = self.now;
        let archived_up_to = (key == "archived" && value != "elsewhere").then(|| self.transactions(value));
        let view = self.views.get_mut(&named(id)).unwrap();
        let report = view.agent.as_mut().unwrap();
        match (key, value) {
            ("agent", "replaying") => report.replaying = true,
            ("agent", "left-out") => report.left_out = vec!["0-101-7".to_owned()],
            ("agent", "left-out-unknown") => report.left_out = vec!["2 more at db-1".to_owned()],
            ("agent", "silent") => report.at = Moment(now.0.checked_sub(Duration::from_mins(1)).unwrap()),
            ("agent", "never") => view.agent = None,
            ("agent", "other") => {
                report.incarnation = "00000000-0000-4000-9000-999999999999".parse().unwrap();
            }
            ("agent", "crashed") => {
                report.state = ServerState::Crashed;
                "signal 9".clone_into(&mut report.detail);
            }
            ("agent", "full") => {
                "the disk of binlog_directory is full (3 MiB free): writes fail or wait until there is space"
                    .clone_into(&mut report.detail);
            }
            ("agent", "misfit") => {
                "root_passwd of the secrets does not fit the data".clone_into(&mut report.detail);
            }
            ("archived", _) => (report.archived, report.archived_up_to) = (true, archived_up_to),
            ("disk", percent) => report.disk_free_bytes = percent.parse::<u64>().unwrap() << 30,
            ("clock", milliseconds) => report.clock_ahead_milliseconds = milliseconds.parse().unwrap(),
            other => panic!("{other:?} is nothing of an agent"),
        }
    }

    fn see_look(&mut self, id: &str, key: &str, value: &str) {
        let earlier = (key == "earlier").then(|| self.transactions(value));
        let (now, second) = (self.now, Duration::from_secs(1));
        let view = self.views.get_mut(&named(id)).unwrap();
        let look = view.look.as_mut().unwrap();
        match key {
            "gone" => {
                look.result = Err(Unreachable {
                    reason: "connection refused".to_owned(),
                    login_refused: false,
                });
            }
            "overlapping" => look.at = Moment(now.0 + Duration::from_millis(1)),
            _ => view.earlier = Some((Moment(now.0.checked_sub(second).unwrap()), earlier.unwrap())),
        }
    }

    /// `active`, `detached`, `paused`, `resumed`, `link=ID`, `may-follow=ID`, `fenced=ID`, `unregistered`.
    fn decide(&mut self, id: &str, words: &[&str]) {
        let id = named(id);
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let member = self.cluster.members.get_mut(&id).unwrap();
            match key {
                "active" => member.active = true,
                "detached" => (member.active, member.link) = (false, None),
                "paused" => member.paused = true,
                "resumed" => member.paused = false,
                "link" => member.link = Some(named(value)),
                "may-follow" => member.may_follow = BTreeSet::from([named(value)]),
                "fenced" => member.fenced_at = BTreeSet::from([named(value)]),
                "unregistered" => drop(self.cluster.members.remove(&id)),
                other => panic!("{other} cannot be decided"),
            }
        }
    }

    fn record(&mut self) {
        let plan = self.last_plan.take().expect("no plan was made before `record`");
        for step in &plan.steps {
            if let Step::Record { change } = step {
                change.apply(&mut self.cluster).unwrap();
            }
        }
    }

    fn look(&mut self) {
        let now = self.now;
        for view in self.views.values_mut() {
            let result = view.look.take().unwrap().result;
            view.record(Look {
                began: now,
                at: now,
                result,
            });
            if let Some(report) = &mut view.agent {
                report.at = now;
            }
        }
        self.remember();
    }

    fn print(&self, what: &str, printed: &mut String) {
        let assessment = assess(&self.situation());
        let mut line = |text: &str| writeln!(printed, "{}", short(text)).unwrap();
        match what {
            "status" => {
                for (id, (status, reason)) in &assessment.instances {
                    let role = self.cluster.role_of(id);
                    line(format!("{id} {role} {status} {reason}").trim_end());
                }
            }
            "health" => line(&assessment.health),
            "problems" if assessment.problems.is_empty() => line("no problems"),
            "problems" => assessment.problems.iter().for_each(|problem| line(problem)),
            "why" => assessment.why_no_failover.iter().for_each(|reason| line(reason)),
            "routes" => {
                let routes = routes(&self.situation());
                let list = |backends: &[topology::Backend]| {
                    backends
                        .iter()
                        .map(|backend| format!("{} ({} s)", backend.id, backend.lag_seconds))
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                line(&format!(
                    "master: {}",
                    routes
                        .master
                        .map_or("none".to_owned(), |backend| backend.id.to_string())
                ));
                line(format!("slaves: {}", list(&routes.slaves)).trim_end());
                line(format!("listed: {}", list(&routes.listed_slaves)).trim_end());
            }
            _ => {
                let cluster = &self.cluster;
                line(&format!(
                    "generation {}, ackers {:?}",
                    cluster.generation,
                    names(&cluster.ackers)
                ));
                for (id, member) in &cluster.members {
                    line(&format!(
                        "{id} {} active: {}, paused: {}, follows: {}",
                        member.role,
                        member.active,
                        member.paused,
                        member.link.as_ref().map_or("nobody", |id| id.as_str())
                    ));
                }
            }
        }
    }

    fn plan(&mut self, words: &[&str], printed: &mut String) {
        let situation = self.situation();
        let id = words.get(1).map(|id| named(id));
        let planned: Result<Plan, Refusal> = match (words[0], &id) {
            ("heal", _) => Ok(heal(&situation)),
            ("quiesce", _) => quiesce(&situation),
            ("failover", _) => Err(no_failover()),
            ("switchover", to) => switchover(&situation, to.as_ref()),
            ("register", Some(id)) => register(&situation, id, role(words[2])),
            ("unregister", Some(id)) => unregister(&situation, id),
            ("activate", Some(id)) => activate(&situation, id),
            ("detach", Some(id)) => detach(&situation, id),
            ("pause", Some(id)) => pause(&situation, id),
            ("resume", Some(id)) => resume(&situation, id),
            _ => panic!("there is no command `{}`", words.join(" ")),
        };
        let mut line = |text: &str| writeln!(printed, "{}", short(text)).unwrap();
        match planned {
            Ok(plan) => {
                if plan.steps.is_empty() {
                    line("nothing to do");
                }
                plan.sentences().iter().for_each(|sentence| line(sentence));
                plan.warnings
                    .iter()
                    .for_each(|warning| line(&format!("warning: {warning}")));
                self.last_plan = Some(plan);
            }
            Err(refusal) => {
                for reason in &refusal.reasons {
                    line(&format!("refused, {}: {}", reason.code, reason.message));
                }
            }
        }
    }
}

fn named(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn names(ids: &BTreeSet<InstanceId>) -> Vec<&str> {
    ids.iter().map(InstanceId::as_str).collect()
}

fn role(text: &str) -> Role {
    match text {
        "Master" => Role::Master,
        "Standby" => Role::Standby,
        "Slave" => Role::Slave,
        "Unregistered" => Role::Unregistered,
        other => panic!("{other} is no role"),
    }
}

const UUID: &str = "00000000-0000-0000-0000-00000000000";

fn uuid(number: usize) -> String {
    format!("{UUID}{number}")
}

/// `1:1-50,2:1-3` with whole UUIDs.
fn long(text: &str) -> String {
    text.split(',')
        .map(|part| format!("{UUID}{part}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn short(text: &str) -> String {
    text.replace(UUID, "")
}
