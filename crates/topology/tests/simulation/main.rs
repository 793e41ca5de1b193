//! A seeded simulation of a cluster that executes plans under random faults.
//!
//! One seed is one run; `TOPOLOGY_SEED=17 cargo test -p topology --test simulation one_seed -- --nocapture`
//! replays one and prints what happened. `TOPOLOGY_SEEDS=100000` runs more of them.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod executor;
mod random;
mod server;
mod world;

use topology::heal::heal;
use topology::operations::{activate, detach, pause, register, resume, unregister};
use topology::switchover::switchover;
use topology::{InstanceId, Plan, Refusal, Role};

use crate::executor::execute;
use crate::world::{Mutation, World};

/// Rounds of looking and deciding while things break.
const TROUBLED_ROUNDS: usize = 60;

/// Rounds after which a calm cluster must be as it was decided.
const CALM_ROUNDS: usize = 60;

fn run(seed: u64, mutation: Mutation) -> World {
    let mut world = World::new(seed, mutation);
    set_up(&mut world);
    world.faults = true;
    for _ in 0..TROUBLED_ROUNDS {
        round(&mut world);
        if world.random.once_in(4) {
            somebody_wants_something(&mut world);
        }
        if world.violation.is_some() {
            return world;
        }
    }
    world.calm();
    settle(&mut world);
    world
}

fn round(world: &mut World) {
    for _ in 0..6 {
        world.tick();
    }
    world.observe();
    let plan = heal(&world.situation());
    if !plan.steps.is_empty() {
        execute(world, &plan);
    }
}

/// A Master, a Standby and Slaves, registered and active, before anything breaks.
fn set_up(world: &mut World) {
    for index in 0..world.ids.len() {
        let role = [Role::Master, Role::Standby][..]
            .get(index)
            .copied()
            .unwrap_or(Role::Slave);
        let id = world.ids[index].clone();
        world.observe();
        let plan = register(&world.situation(), &id, role);
        perform(world, plan, "register");
        round(world);
        if role != Role::Master {
            round(world);
            let plan = activate(&world.situation(), &id);
            perform(world, plan, "activate");
        }
    }
}

fn perform(world: &mut World, plan: Result<Plan, Refusal>, what: &str) {
    match plan {
        Ok(plan) => execute(world, &plan),
        Err(refusal) => {
            if !world.faults {
                world.violate(format!("{what} was refused in peace: {refusal}"));
            }
            world.note(format!("{what} is refused: {refusal}"));
        }
    }
}

/// One of the things that people ask for, sensible or not.
fn somebody_wants_something(world: &mut World) {
    world.observe();
    let index = world.random.below(world.ids.len());
    let id: InstanceId = world.ids[index].clone();
    let choice = world.random.below(12);
    let situation = world.situation();
    let (plan, what) = match choice {
        0..=4 => (switchover(&situation, Some(&id)), "switchover"),
        5 => (detach(&situation, &id), "detach"),
        6 | 7 => (activate(&situation, &id), "activate"),
        8 => (pause(&situation, &id), "pause"),
        9 | 10 => (resume(&situation, &id), "resume"),
        _ if world.cluster.members.contains_key(&id) => (unregister(&situation, &id), "unregister"),
        _ => (register(&situation, &id, Role::Slave), "register"),
    };
    perform(world, plan, &format!("{what} {id}"));
}

/// After the last fault the cluster comes to rest, as it was decided.
fn settle(world: &mut World) {
    let generation = world.cluster.generation;
    let mut quiet = 0;
    for _ in 0..CALM_ROUNDS {
        for _ in 0..12 {
            world.tick();
        }
        world.observe();
        let plan = heal(&world.situation());
        quiet = if plan.steps.is_empty() { quiet + 1 } else { 0 };
        if quiet == 3 {
            break;
        }
        if !plan.steps.is_empty() {
            execute(world, &plan);
        }
    }
    if quiet < 3 {
        let plan = heal(&world.situation()).sentences();
        world.violate(format!("there is always something to do: {plan:?}"));
    }
    if world.cluster.generation < generation {
        world.violate("the generation went back");
    }
    check_rest(world);
}

fn check_rest(world: &mut World) {
    let Some(master) = world.recorded_master() else {
        return;
    };
    let id = world.ids[master].clone();
    let active = |world: &World, paused: bool| {
        let replicas = world.cluster.members.iter().filter(|(other, _)| **other != id);
        replicas
            .filter(|(_, member)| member.active && member.paused == paused)
            .count()
    };
    if active(world, true) > 0 && active(world, false) == 0 {
        return; // Whoever could acknowledge is paused, and may have been restarted since.
    }
    let paused = world.cluster.members[&id].paused;
    if paused != world.servers[master].read_only {
        let objections = topology::assess(&world.situation()).instances[&id].1.clone();
        world.violate(format!(
            "{id}, paused: {paused}, read-only: {}: {objections}",
            !paused
        ));
    }
    if !paused && !world.servers[master].scheduler {
        world.violate(format!("scheduled events do not run at {id}"));
    }
    world.check_writes(master);
    let told = world.cluster.members[&id].active;
    if let Some(link) = world.servers[master].link.as_ref().filter(|_| !told) {
        let source = world.ids[link.source].clone();
        world.violate(format!(
            "{id} is the master and has a link to {source} that nobody wants"
        ));
    }
    if !world.servers[master].waiters.is_empty() && !paused {
        // One that was begun just now is acknowledged in a moment.
        world.route = None;
        for _ in 0..20 {
            world.tick();
        }
        world.observe();
    }
    let lagging: Vec<String> = world
        .cluster
        .members
        .iter()
        .filter(|(other, member)| **other != id && member.active && !member.paused)
        // Nobody can be let in again while the master is read-only.
        .filter(|(_, member)| !(paused && member.fenced_at.contains(&id)))
        .filter(|(other, _)| !world.situation().replicates(other))
        .map(|(other, _)| {
            format!(
                "{other} {}",
                topology::status::status(&world.situation(), other).1
            )
        })
        .collect();
    if !lagging.is_empty() {
        world.violate(format!(
            "not every active replica follows {id}: {}",
            lagging.join("; ")
        ));
    }
}

/// Looks and decides in peace until nothing is left to do.
fn rest(world: &mut World) {
    settle(world);
    assert_eq!(world.violation, None, "{}", tail(world));
}

#[test]
fn after_a_switchover_nothing_is_left_to_do() {
    let mut switched = 0;
    for seed in 0..200 {
        let mut world = World::new(seed, Mutation::None);
        set_up(&mut world);
        rest(&mut world);
        let target = world.random.below(world.ids.len());
        world.observe();
        let id = world.ids[target].clone();
        let Ok(plan) = switchover(&world.situation(), Some(&id)) else {
            continue;
        };
        execute(&mut world, &plan);
        world.route = None;
        for _ in 0..40 {
            world.tick();
        }
        world.observe();
        world.observe();
        if world.recorded_master() != Some(target) {
            // One that was too far behind is undone. Who was led ahead is led back, and that is still to be recorded.
            rest(&mut world);
            continue;
        }
        let left = heal(&world.situation()).sentences();
        assert_eq!(left, Vec::<String>::new(), "seed {seed}: {}", tail(&world));
        switched += 1;
    }
    assert!(switched > 50, "{switched}");
}

/// Who has which role, is active, paused, follows whom, and how many acknowledge. Who of several does is kept as
/// it is as long as they are well, and so depends on what was before.
fn decided(world: &World) -> Vec<String> {
    let members = world.cluster.members.iter().map(|(id, member)| {
        format!(
            "{id} {} {} {} {:?}",
            member.role, member.active, member.paused, member.link
        )
    });
    members
        .chain([format!("{} ackers", world.cluster.ackers.len())])
        .collect()
}

#[test]
fn each_operation_is_undone_by_its_inverse() {
    type Operation = fn(&topology::Situation<'_>, &InstanceId) -> Result<Plan, Refusal>;
    let pairs: [(Operation, Operation); 3] = [
        (pause, resume),
        (detach, activate),
        (unregister, |situation, id| register(situation, id, Role::Slave)),
    ];
    let mut undone = [0; 3];
    for seed in 0..150 {
        let mut world = World::new(seed, Mutation::None);
        set_up(&mut world);
        rest(&mut world);
        let id = world.ids[world.random.below(world.ids.len())].clone();
        world.observe();
        if world.cluster.role_of(&id) == Role::Master && world.random.once_in(2) {
            let plan = activate(&world.situation(), &id);
            perform(&mut world, plan, "activate");
        }
        for (index, (operation, inverse)) in pairs.iter().enumerate() {
            if index == 2 && world.cluster.role_of(&id) == Role::Slave {
                world.observe();
                let plan = detach(&world.situation(), &id);
                perform(&mut world, plan, "detach");
            }
            rest(&mut world);
            let before = decided(&world);
            world.observe();
            let Ok(plan) = operation(&world.situation(), &id) else {
                continue;
            };
            execute(&mut world, &plan);
            rest(&mut world);
            assert_ne!(decided(&world), before, "seed {seed}: {}", plan.purpose);
            world.observe();
            let plan = inverse(&world.situation(), &id);
            perform(&mut world, plan, "the inverse");
            rest(&mut world);
            assert_eq!(decided(&world), before, "seed {seed}: {}", tail(&world));
            undone[index] += 1;
        }
    }
    assert!(undone.iter().all(|times| *times > 10), "{undone:?}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "how much to test is said by the environment"
)]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn no_seed_breaks_a_rule() {
    for seed in 0..setting("TOPOLOGY_SEEDS").unwrap_or(2000) {
        let world = run(seed, Mutation::None);
        if let Some(violation) = &world.violation {
            panic!(
                "seed {seed}: {violation}\nreplay it with TOPOLOGY_SEED={seed}\n{}",
                tail(&world)
            );
        }
    }
}

#[test]
fn one_seed() {
    let Some(seed) = setting("TOPOLOGY_SEED") else {
        return;
    };
    let world = run(seed, Mutation::None);
    println!("{}", world.history.join("\n"));
    assert_eq!(world.violation, None);
}

fn tail(world: &World) -> String {
    let from = world.history.len().saturating_sub(60);
    world.history[from..].join("\n")
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7, Mutation::None).history, run(7, Mutation::None).history);
}

/// Breaks one rule and sees that a checker notices with these words.
#[track_caller]
fn noticed(mutation: Mutation, words: &str) {
    let mut others = Vec::new();
    for seed in 0..400 {
        match run(seed, mutation).violation {
            Some(violation) if violation.contains(words) => return,
            violation => others.extend(violation),
        }
    }
    panic!("nobody noticed {mutation:?}: {others:#?}");
}

#[test]
fn a_source_forgotten_before_all_is_applied_is_noticed() {
    noticed(Mutation::ForgetBeforeApplied, "lacks the acknowledged writes");
}

#[test]
fn a_new_master_that_still_replicates_is_noticed() {
    noticed(Mutation::LeaveLinkRunning, "still replicates");
}

#[test]
fn an_acker_recorded_late_is_noticed() {
    noticed(Mutation::RecordAckerLate, "is not recorded as acker");
}

#[test]
fn an_acker_removed_early_is_noticed() {
    noticed(Mutation::RemoveAckerEarly, "is not recorded as acker");
}

#[test]
fn two_writable_servers_are_noticed() {
    noticed(Mutation::AllowBeforeStop, "take writes at the same time");
}

#[test]
fn writes_before_semi_sync_are_noticed() {
    noticed(Mutation::AllowBeforeSemiSync, "no other server has it");
}

#[test]
fn a_wait_that_was_ended_is_noticed() {
    noticed(Mutation::EndWaitsBySwitch, "no other server has it");
}

#[test]
fn writes_allowed_unprotected_are_noticed() {
    noticed(Mutation::AllowUnprotected, "no other server has it");
}
