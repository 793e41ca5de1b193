use std::time::Duration;

use api::backup::{CleanRequest, ScaleOutRequest, ScaleOutSource};
use api::job::{JobDocument, JobState};
use topology::gtid::Transactions;
use topology::observation::{AgentReport, Receiver, Replication, SemiSync, ServerState};
use topology::{
    AccountNumber, Address, Change, Cluster, Durability, Flavor, InstanceView, Look, Moment, Observation,
    Policy, ServerId,
};

use super::super::copied;
use super::*;

const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

/// A cluster of `a`, `b` and so on, all of them heard, and what is known of it.
struct World {
    cluster: Cluster,
    views: BTreeMap<InstanceId, InstanceView>,
    agents: BTreeMap<InstanceId, Agent>,
    newest: Option<BackupDocument>,
    age_seconds: u64,
    restores: Vec<JobDocument>,
    config: BackupConfig,
}

fn id(name: &str) -> InstanceId {
    name.parse().unwrap()
}

fn address(number: u16) -> Address {
    Address::new("127.0.0.1", 3310 + number).unwrap()
}

fn incarnation(number: u16) -> Incarnation {
    format!("3e11fa47-71ca-11e1-9e33-{number:012}").parse().unwrap()
}

fn seen(number: u16, role: Role, gtid: &str) -> Observation {
    let follows = matches!(role, Role::Standby | Role::Slave);
    Observation {
        flavor: Flavor::Mysql,
        version: "9.7.4".to_owned().try_into().unwrap(),
        server_id: ServerId(u32::from(number)),
        server_uuid: None,
        uptime_seconds: 100,
        read_only: role != Role::Master,
        takes_writes: role == Role::Master,
        transactions: Transactions::parse_mysql(gtid).unwrap(),
        replication: follows.then(|| Replication {
            source: address(1),
            source_server_id: Some(ServerId(1)),
            user: "repl_1".to_owned(),
            receiver: Receiver::Running,
            applier_running: true,
            receiver_error: String::new(),
            applier_error: String::new(),
            lag_seconds: Some(0),
            received: topology::gtid::Received::parse_mysql("").unwrap(),
        }),
        semi_sync: SemiSync::default(),
        event_scheduler: false,
        variables: BTreeMap::new(),
        preflight: None,
    }
}

impl World {
    /// The first is the Master, then the roles that are given; each has `gtid`.
    fn of(roles: &[Role], gtid: &str) -> Self {
        let mut world = Self {
            cluster: Cluster::new(UUID.parse().unwrap(), "test", Durability::Async),
            views: BTreeMap::new(),
            agents: BTreeMap::new(),
            newest: None,
            age_seconds: 0,
            restores: Vec::new(),
            config: BackupConfig::default(),
        };
        for (role, (number, name)) in roles.iter().zip((1_u16..).zip(["a", "b", "c", "d"])) {
            world.add(name, number, *role, gtid);
        }
        world
    }

    fn add(&mut self, name: &str, number: u16, role: Role, gtid: &str) {
        let instance = id(name);
        if role != Role::Unregistered {
            let register = Change::Register {
                instance: instance.clone(),
                role,
                incarnation: incarnation(number),
                server_id: ServerId(u32::from(number)),
                server_uuid: None,
            };
            register.apply(&mut self.cluster).unwrap();
            let member = self.cluster.members.get_mut(&instance).unwrap();
            member.active = role != Role::Master;
            member.account = AccountNumber(u32::from(number));
        }
        let mut view = InstanceView::new(instance.clone(), address(number));
        view.record(Look {
            began: Moment(Duration::from_secs(1)),
            at: Moment(Duration::from_secs(1)),
            result: Ok(seen(number, role, gtid)),
        });
        self.views.insert(instance.clone(), view);
        self.agents.insert(
            instance,
            Agent {
                heard: true,
                incarnation: Some(incarnation(number)),
                version: Some("9.7.4".to_owned().try_into().unwrap()),
                url: format!("http://{name}"),
            },
        );
    }

    fn with_backup(mut self, data_bytes: u64, age_seconds: u64) -> Self {
        self.newest = Some(BackupDocument {
            id: "2026_11_22_03_00_00_bak".to_owned(),
            instance: id("b"),
            flavor: Flavor::Mysql,
            version: "9.7.4".to_owned().try_into().unwrap(),
            started: String::new(),
            ended: String::new(),
            gtid: String::new(),
            binlog_file: String::new(),
            binlog_offset: 0,
            data_bytes,
            stored_bytes: data_bytes / 3,
        });
        self.age_seconds = age_seconds;
        self
    }

    fn compose(&self, errand: &Errand) -> Result<Composed, Vec<String>> {
        let policy = Policy::default();
        let facts = Facts {
            situation: Situation {
                cluster: &self.cluster,
                instances: &self.views,
                now: Moment(Duration::from_secs(2)),
                policy: &policy,
            },
            agents: &self.agents,
            config: &self.config,
            newest: self.newest.as_ref(),
            newest_age_seconds: self.age_seconds,
            rates: Rates::of(&self.restores.iter()),
        };
        compose(&facts, errand)
            .map_err(|refusal| refusal.reasons.into_iter().map(|reason| reason.code).collect())
    }

    fn place_of_backup(&self, require_role: Option<Role>) -> Result<String, Vec<String>> {
        let request = BackupRequest {
            require_role,
            ..BackupRequest::default()
        };
        let composed = self.compose(&Errand::Backup(request))?;
        Ok(composed.stages[0].at().to_string())
    }

    fn scale_out(
        &self,
        from: Option<ScaleOutSource>,
        discard: Option<Incarnation>,
    ) -> Result<Composed, Vec<String>> {
        self.compose(&Errand::ScaleOut(ScaleOutRequest {
            instance: id("d"),
            from,
            discard,
        }))
    }
}

const THREE: [Role; 3] = [Role::Master, Role::Standby, Role::Slave];
const FOUR: [Role; 4] = [Role::Master, Role::Standby, Role::Slave, Role::Unregistered];

/// A restore that an agent has done.
fn restored(from: RestoreSource, bytes_per_second: u64) -> JobDocument {
    let work = Work::RestoreFull {
        from,
        discard: None,
        foreign_cluster: false,
        dry_run: false,
    };
    JobDocument {
        state: JobState::Done,
        ended: Some("2026-11-22T03:00:00Z".to_owned()),
        result: Some(serde_json::json!({ "bytes": bytes_per_second, "seconds": 1.0 })),
        ..JobDocument::begun("job".parse().unwrap(), work, String::new())
    }
}

fn gtids(last: u32) -> String {
    format!("{UUID}:1-{last}")
}

#[test]
fn a_backup_is_made_at_the_standby_else_at_the_master() {
    let gtid = gtids(9);
    let mut world = World::of(&THREE, &gtid);
    assert_eq!(world.place_of_backup(None).unwrap(), "b");
    assert_eq!(world.place_of_backup(Some(Role::Master)).unwrap(), "a");
    assert_eq!(world.place_of_backup(Some(Role::Slave)).unwrap(), "c");
    world.agents.get_mut(&id("b")).unwrap().heard = false;
    assert_eq!(world.place_of_backup(None).unwrap(), "a");
    assert_eq!(
        world.place_of_backup(Some(Role::Standby)).unwrap_err(),
        ["agent_silent"]
    );
    let alone = World::of(&[Role::Master], &gtid);
    assert_eq!(alone.place_of_backup(None).unwrap(), "a");
    assert_eq!(
        alone.place_of_backup(Some(Role::Standby)).unwrap_err(),
        ["no_instance_with_role"]
    );
    assert_eq!(
        World::of(&[], &gtid).place_of_backup(None).unwrap_err(),
        ["no_instance_with_role", "no_instance_with_role"]
    );
}

#[test]
fn a_replica_that_is_not_what_the_master_is_is_not_copied() {
    let mut world = World::of(&THREE, &gtids(9));
    let view = world.views.get_mut(&id("b")).unwrap();
    let mut diverged = view.observation().unwrap().clone();
    diverged.transactions = Transactions::parse_mysql(&gtids(10)).unwrap();
    view.record(Look {
        began: Moment(Duration::from_secs(1)),
        at: Moment(Duration::from_secs(1)),
        result: Ok(diverged),
    });
    let told = world.place_of_backup(Some(Role::Standby));
    assert_eq!(told.unwrap_err(), ["not_fit_for_backup"]);
    assert_eq!(world.place_of_backup(None).unwrap(), "a");
}

#[test]
fn a_prune_without_numbers_is_by_the_configuration() {
    let mut world = World::of(&THREE, &gtids(9));
    world.config.keep_count = Some(3);
    let numbers = |request| match &world.compose(&Errand::Prune(request)).unwrap().stages[0] {
        Stage::Job {
            work:
                Work::PruneBackups {
                    keep_count,
                    keep_days,
                    ..
                },
            ..
        } => (*keep_count, *keep_days),
        other => panic!("{other:?}"),
    };
    assert_eq!(numbers(PruneRequest::default()), (Some(3), None));
    let said = PruneRequest {
        keep_days: Some(7),
        ..PruneRequest::default()
    };
    assert_eq!(numbers(said), (None, Some(7)));
}

#[test]
fn only_an_instance_without_a_role_is_restored() {
    let world = World::of(&FOUR, &gtids(9));
    let restore = |at: &str| {
        world.compose(&Errand::Restore {
            at: id(at),
            request: RestoreRequest::Full {
                backup: None,
                discard: None,
                foreign_cluster: false,
                dry_run: false,
            },
        })
    };
    assert_eq!(restore("c").unwrap_err(), ["is_member"]);
    assert_eq!(restore("d").unwrap().stages.len(), 1);
    let clean = world.compose(&Errand::Clean(CleanRequest { instance: id("c") }));
    assert_eq!(clean.unwrap().stages[0].at(), &id("c"));
}

#[test]
fn a_new_replica_is_filled_registered_activated_and_waited_for() {
    let mut world = World::of(&THREE, &gtids(9));
    world.add("d", 4, Role::Unregistered, "");
    let composed = world.scale_out(None, None).unwrap();
    let Stage::Job { at, work } = &composed.stages[0] else {
        panic!("{composed:?}");
    };
    assert_eq!(at, &id("d"));
    assert_eq!(copied(work), Some(&id("b")), "the Standby is copied");
    let Work::RestoreFull {
        from:
            RestoreSource::Donor {
                instance,
                address: of_donor,
                agent,
                ..
            },
        discard,
        ..
    } = work
    else {
        panic!("{work:?}");
    };
    assert_eq!(
        (instance, of_donor, agent.as_str()),
        (&id("b"), &address(2), "http://b")
    );
    assert_eq!(discard, &Some(incarnation(4)));
    assert_eq!(
        composed.stages[1..],
        [
            Stage::AwaitServer {
                at: id("d"),
                instead_of: Some(incarnation(4))
            },
            Stage::Register { at: id("d") },
            Stage::Activate { at: id("d") },
            Stage::AwaitOk { at: id("d") },
        ]
    );
}

#[test]
fn a_donor_whose_server_cannot_be_cloned_there_is_copied_through_the_store() {
    let mut world = World::of(&THREE, &gtids(9));
    world.add("d", 4, Role::Unregistered, "");
    world.agents.get_mut(&id("d")).unwrap().version = Some("9.8.0".to_owned().try_into().unwrap());
    let composed = world.scale_out(None, None).unwrap();
    assert!(
        matches!(&composed.stages[..2], [
            Stage::Job { at, work: Work::FullBackup { .. } },
            Stage::RestoreMade { at: target, .. },
        ] if *at == id("b") && *target == id("d")),
        "{composed:?}"
    );
    assert!(
        composed
            .warnings
            .iter()
            .any(|warning| warning.contains("within a series"))
    );
}

/// Of an instance that binlogs are replayed into.
fn agent_report() -> AgentReport {
    AgentReport {
        at: Moment(Duration::from_secs(2)),
        incarnation: incarnation(4),
        state: ServerState::Running,
        replaying: true,
        left_out: Vec::new(),
        archived: false,
        archived_up_to: None,
        detail: String::new(),
        server_pid: None,
        disk_free_bytes: 0,
        disk_total_bytes: 0,
        clock_ahead_milliseconds: 0,
        first_start: None,
    }
}

#[test]
fn an_instance_that_binlogs_are_replayed_into_is_not_filled_anew() {
    let mut world = World::of(&THREE, &gtids(9));
    world.add("d", 4, Role::Unregistered, "");
    let mut report = agent_report();
    world.views.get_mut(&id("d")).unwrap().agent = Some(report.clone());
    assert_eq!(world.scale_out(None, None).unwrap_err(), ["replaying"]);
    report.replaying = false;
    world.views.get_mut(&id("d")).unwrap().agent = Some(report);
    assert!(world.scale_out(None, None).is_ok());
}

#[test]
fn data_that_nobody_else_has_is_not_thrown_away_unless_it_is_named() {
    let mut world = World::of(&THREE, &gtids(9));
    world.add("d", 4, Role::Unregistered, &gtids(5));
    assert!(world.scale_out(None, None).is_ok(), "the Master has all of it");
    world.add("d", 4, Role::Unregistered, &gtids(10));
    assert_eq!(world.scale_out(None, None).unwrap_err(), ["holds_data"]);
    assert!(world.scale_out(None, Some(incarnation(4))).is_ok());
    assert_eq!(
        world.scale_out(None, Some(incarnation(5))).unwrap_err(),
        ["other_data"]
    );
    world.views.get_mut(&id("d")).unwrap().look = None;
    assert_eq!(world.scale_out(None, None).unwrap_err(), ["unreachable"]);
    assert!(world.scale_out(None, Some(incarnation(4))).is_ok());
    world.agents.get_mut(&id("d")).unwrap().incarnation = None;
    assert!(
        world.scale_out(None, None).is_ok(),
        "there is nothing to throw away"
    );
    world.agents.get_mut(&id("d")).unwrap().heard = false;
    assert_eq!(world.scale_out(None, None).unwrap_err(), ["agent_silent"]);
}

#[test]
fn what_came_after_a_backup_is_replayed_before_the_master_is_asked_for_the_rest() {
    let mut world = World::of(&THREE, &gtids(9)).with_backup(1_000_000, 3600);
    world.add("d", 4, Role::Unregistered, "");
    let stages = world.scale_out(Some(ScaleOutSource::Store), None).unwrap().stages;
    let place = |wanted: &dyn Fn(&Stage) -> bool| stages.iter().position(wanted).unwrap();
    let answers = place(&|stage| matches!(stage, Stage::AwaitServer { .. }));
    let caught_up = place(&|stage| matches!(stage, Stage::CatchUp { .. }));
    let registered = place(&|stage| matches!(stage, Stage::Register { .. }));
    assert!(answers < caught_up && caught_up < registered, "{stages:?}");
}

#[test]
fn a_replay_after_an_older_backup_leaves_out_what_the_master_is_without() {
    let mut world = World::of(&THREE, &gtids(9));
    let left_out = |world: &World| left_out_of_master(&world.cluster, &world.views);
    assert_eq!(left_out(&world), None);
    let gone = vec![format!("{UUID}:5")];
    for (name, gone) in [("a", &gone), ("b", &Vec::new())] {
        world.views.get_mut(&id(name)).unwrap().agent = Some(AgentReport {
            left_out: gone.clone(),
            ..agent_report()
        });
    }
    assert_eq!(left_out(&world), Some(gone));
}

#[test]
fn a_member_is_not_made_anew() {
    let world = World::of(
        &[Role::Master, Role::Standby, Role::Slave, Role::Slave],
        &gtids(9),
    );
    let reasons = world.scale_out(None, None).unwrap_err();
    assert!(reasons.contains(&"is_member".to_owned()), "{reasons:?}");
}

#[test]
fn the_source_that_is_ready_sooner_is_taken() {
    let from = |world: World, wanted| {
        let mut world = world;
        world.add("d", 4, Role::Unregistered, "");
        world
            .scale_out(wanted, None)
            .map(|composed| match &composed.stages[0] {
                Stage::Job { work, .. } if copied(work).is_some() => ScaleOutSource::Donor,
                _ => ScaleOutSource::Store,
            })
    };
    let world = || World::of(&THREE, &gtids(9));
    let (donor, store) = (ScaleOutSource::Donor, ScaleOutSource::Store);
    let large = 1_000_000_000_000;
    assert_eq!(from(world(), None).unwrap(), donor, "there is no backup");
    // As long as nothing was measured, what has to be caught up with decides.
    assert_eq!(from(world().with_backup(large, 3600), None).unwrap(), donor);
    let mut measured = world().with_backup(large, 3600);
    measured.restores = vec![restored(RestoreSource::Backup { backup: None }, 400_000_000)];
    assert_eq!(from(measured, None).unwrap(), store);
    let mut old = world().with_backup(large, 86_400_000);
    old.restores = vec![restored(RestoreSource::Backup { backup: None }, 400_000_000)];
    assert_eq!(from(old, None).unwrap(), donor);
    assert_eq!(from(world().with_backup(1_000_000, 3600), None).unwrap(), donor);
    assert_eq!(
        from(world().with_backup(1_000_000, 3600), Some(store)).unwrap(),
        store
    );
    assert_eq!(from(world(), Some(store)).unwrap_err(), ["no_backup"]);
    let mut silent = world();
    for agent in silent.agents.values_mut() {
        agent.heard = false;
    }
    assert_eq!(from(silent, Some(donor)).unwrap_err(), ["no_donor"]);
}
