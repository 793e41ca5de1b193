//! Does plans in the simulated world, as the monitor's executor is told to: undo before the point of no return,
//! repetition after it, and the death of the monitor between any two steps.

use topology::{Change, Flavor, Plan, Purpose, Step};

use crate::server::{Link, What};
use crate::world::{Mutation, World};

/// How long a step that waits goes on waiting, in ticks.
const PATIENCE: usize = 12;

/// Does the plan to its end, through the monitor's deaths.
pub(crate) fn execute(world: &mut World, plan: &Plan) {
    let plan = mutate(plan.clone(), world.mutation);
    world.note(format!("plan: {}", plan.purpose));
    let decided_after = plan.point_of_no_return();
    let mut position = 0;
    let mut last_passed_over: Option<&Step> = None;
    while position < plan.steps.len() {
        let decided = decided_after.is_some_and(|point| position > point);
        let step = &plan.steps[position];
        if last_passed_over.is_some_and(|before| step.goes_with(before)) {
            position += 1;
            continue;
        }
        world.tick();
        if world.faults && world.random.once_in(25) {
            world.note(format!("the monitor dies before: {step}"));
            for _ in 0..world.random.below(20) {
                world.tick();
            }
            let stops_writes = plan
                .steps
                .iter()
                .any(|step| matches!(step, Step::StopWrites { .. }));
            if plan.purpose == Purpose::Heal {
                return;
            }
            if !decided && stops_writes {
                undo(world, &plan, position);
                return;
            }
        }
        match attempt(world, step, decided) {
            Ok(()) => position += 1,
            Err(error) => {
                world.note(format!("failed: {step}: {error}"));
                if decided && plan.may_be_left_to_heal(position) {
                    last_passed_over = Some(step);
                    position += 1;
                } else if decided || plan.purpose == Purpose::Heal {
                    return;
                } else {
                    undo(world, &plan, position);
                    return;
                }
            }
        }
    }
}

/// Undoes the step at `last` and those before it, last first, each as far as that is possible.
fn undo(world: &mut World, plan: &Plan, last: usize) {
    for position in (0..=last).rev() {
        if let Some(inverse) = plan.steps[position].undo() {
            world.tick();
            world.note(format!("undo: {inverse}"));
            if let Err(error) = attempt(world, &inverse, true) {
                world.note(format!("undo failed: {inverse}: {error}"));
            }
        }
    }
}

/// A step, repeated a while when it is to be.
fn attempt(world: &mut World, step: &Step, repeat: bool) -> Result<(), String> {
    let mut result = Err("was not tried".to_owned());
    for _ in 0..if repeat { 4 } else { 1 } {
        result = perform(world, step);
        if result.is_ok() {
            break;
        }
        world.tick();
    }
    result
}

fn perform(world: &mut World, step: &Step) -> Result<(), String> {
    if world.faults && world.random.once_in(60) {
        return Err("a fault, before anything was done".to_owned());
    }
    if let Some(at) = step.at() {
        let server = &world.servers[world.index(at)];
        if !server.running || !server.seen_by_monitor {
            return Err(format!("{at} does not answer"));
        }
    }
    world.note(step.to_string());
    at_servers(world, step)?;
    // A record is one transaction: it fails before, or not at all.
    let recorded = matches!(step, Step::Record { .. });
    if world.faults && !recorded && world.random.once_in(60) {
        return Err("a fault, after everything was done".to_owned());
    }
    Ok(())
}

fn at_servers(world: &mut World, step: &Step) -> Result<(), String> {
    match step {
        Step::Record { change } => world.record(change),
        Step::HoldProxies { .. } => {
            world.route = None;
            Ok(())
        }
        Step::PaceProxies { .. } | Step::RotateRelayLog { .. } => Ok(()),
        Step::PublishRoutes => {
            world.route = world.recorded_master().filter(|_| {
                world
                    .cluster
                    .master()
                    .and_then(|id| world.cluster.members.get(id))
                    .is_some_and(|member| !member.paused)
            });
            Ok(())
        }
        Step::StopWrites { at, .. } => stop_writes(world, world.index(at)),
        Step::AllowWrites { at } => allow_writes(world, world.index(at)),
        Step::SetSemiSyncSource { at, on } => set_source(world, world.index(at), *on),
        Step::WaitUntilApplied { at, of, .. } => {
            let (at, of) = (world.index(at), world.index(of));
            wait(world, |world| covers(world, at, of))?;
            if covers(world, of, at) {
                Ok(())
            } else {
                Err("it is errant".to_owned())
            }
        }
        // However long it takes, it is no failure.
        Step::WaitUntilNear { at, of, .. } => {
            let (at, of) = (world.index(at), world.index(of));
            let _ = wait(world, |world| covers(world, at, of));
            Ok(())
        }
        Step::WaitUntilReceived { of, .. } => {
            let of = world.index(of);
            let _ = wait(world, |world| an_acker_received_all(world, of));
            Ok(())
        }
        Step::WaitUntilAcknowledged { of, .. } => {
            let of = world.index(of);
            wait(world, |world| an_acker_received_all(world, of))
        }
        Step::StopReplication { at } => stop_replication(world, world.index(at)),
        Step::ForgetSource { at } => forget(world, world.index(at)),
        Step::Follow {
            at,
            source,
            account,
            acknowledge,
        }
        | Step::LeadAhead {
            at,
            source,
            account,
            acknowledge,
            ..
        } => follow(
            world,
            world.index(at),
            world.index(source),
            account.0,
            *acknowledge,
        ),
        Step::WaitUntilFollowing { at, source, .. } => {
            let (at, source) = (world.index(at), world.index(source));
            wait(world, |world| {
                world.servers[at]
                    .link
                    .as_ref()
                    .is_some_and(|link| link.source == source && link.session.is_some())
            })
        }
        Step::WaitForAcker { of, .. } => {
            let of = world.index(of);
            wait(world, |world| !world.acknowledging_to(of).is_empty())
        }
        Step::SyncRelayLog { at, every_event } => {
            let at = world.index(at);
            world.servers[at].relaxed = !every_event;
            Ok(())
        }
        Step::SetAcknowledging { at, on } => {
            let at = world.index(at);
            let server = &mut world.servers[at];
            if server
                .link
                .as_ref()
                .is_some_and(|link| link.receiving && !link.applying)
            {
                return Err("its applier does not run".to_owned());
            }
            server.replica_side = *on;
            if server.link.as_ref().is_some_and(|link| link.receiving) {
                server.restart_receiver();
            }
            Ok(())
        }
        _ => asked_of_agents(world, step),
    }
}

/// What the agents do as `root`. MySQL's `super_read_only` stops them too.
fn asked_of_agents(world: &mut World, step: &Step) -> Result<(), String> {
    let Some(at) = step.at().map(|id| world.index(id)) else {
        return Ok(());
    };
    let refused = world.servers[at].flavor == Flavor::Mysql && world.servers[at].read_only;
    let needs_writable = !matches!(
        step,
        Step::StopApplying { .. } | Step::StartApplying { .. } | Step::SetEventScheduler { .. }
    );
    if refused && needs_writable {
        return Err("refused by super_read_only".to_owned());
    }
    match step {
        Step::FenceAccount { account, .. } => {
            world.servers[at].locked.insert(account.0);
            end_sessions(world, at, account.0);
            Ok(())
        }
        Step::UnlockAccount { account, .. } => {
            world.servers[at].locked.remove(&account.0);
            Ok(())
        }
        Step::StopApplying { .. } | Step::StartApplying { .. } => {
            let on = matches!(step, Step::StartApplying { .. });
            let flavor = world.servers[at].flavor;
            let link = world.servers[at].link.as_mut().ok_or("it follows nobody")?;
            if on && !link.applying && !link.receiving && flavor == Flavor::Mariadb {
                link.drop_relay_logs();
            }
            link.applying = on;
            Ok(())
        }
        Step::EnsureReplicationAccount { account, .. } => {
            if world.servers[at].has_account(account.0) {
                return Ok(());
            }
            write_own(world, at, What::Account(account.0))
        }
        Step::RemoveReplicationAccount { account, .. } => {
            if !world.servers[at].has_account(account.0) {
                return Ok(());
            }
            write_own(world, at, What::NoAccount(account.0))?;
            end_sessions(world, at, account.0);
            Ok(())
        }
        Step::BeginFirstStart { .. } | Step::CreateApplication { .. } => write_own(world, at, What::Own),
        Step::FreeWaiters { .. } => {
            world.servers[at].commit(What::Own);
            Ok(())
        }
        Step::EnableEvents { .. } => {
            world.servers[at].events_enabled = true;
            world.servers[at].scheduler = true;
            Ok(())
        }
        Step::DisableEvents { .. } => {
            world.servers[at].events_enabled = false;
            world.servers[at].scheduler = false;
            Ok(())
        }
        Step::SetEventScheduler { on, .. } => {
            world.servers[at].scheduler = *on;
            Ok(())
        }
        other => panic!("{other} is not simulated"),
    }
}

/// Whoever receives from the server with this account does so no more.
fn end_sessions(world: &mut World, at: usize, account: u32) {
    let links = world.servers.iter_mut().filter_map(|server| server.link.as_mut());
    for link in links.filter(|link| link.source == at && link.account == account) {
        link.session = None;
    }
}

fn write_own(world: &mut World, at: usize, what: What) -> Result<(), String> {
    world.servers[at].commit(what);
    let position = world.servers[at].binlog.len() - 1;
    wait(world, |world| {
        world.servers[at].running
            && world.servers[at]
                .waiters
                .iter()
                .all(|waiter| waiter.position != position)
    })
}

fn wait(world: &mut World, done: impl Fn(&World) -> bool) -> Result<(), String> {
    for _ in 0..PATIENCE {
        if done(world) {
            return Ok(());
        }
        world.tick();
    }
    if done(world) {
        Ok(())
    } else {
        Err("it took too long".to_owned())
    }
}

fn an_acker_received_all(world: &World, of: usize) -> bool {
    world.cluster.ackers.iter().any(|acker| {
        let acker = &world.servers[world.index(acker)];
        let binlog = &world.servers[of].binlog;
        acker.running && binlog.iter().all(|known| acker.received(known.gtid()))
    })
}

/// Whether `index` has applied everything that is in the binlog of `of`.
fn covers(world: &World, index: usize, of: usize) -> bool {
    world.servers[of]
        .binlog
        .iter()
        .all(|known| world.servers[index].has.contains(&known.gtid()))
}

fn stop_writes(world: &mut World, at: usize) -> Result<(), String> {
    for _ in 0..PATIENCE {
        if world.mutation == Mutation::EndWaitsBySwitch {
            world.servers[at].source_side = false;
            world.free_waiters(at, usize::MAX, false);
        }
        if !world.servers[at].running {
            return Err("it does not answer".to_owned());
        }
        if world.servers[at].waiters.is_empty() {
            world.servers[at].read_only = true;
            return Ok(());
        }
        world.tick();
    }
    Err("commits wait for an acknowledgement".to_owned())
}

fn allow_writes(world: &mut World, at: usize) -> Result<(), String> {
    let mutated = matches!(
        world.mutation,
        Mutation::AllowBeforeStop | Mutation::AllowBeforeSemiSync | Mutation::AllowUnprotected
    );
    if !mutated {
        if world.recorded_master() != Some(at) {
            return Err("it is not the recorded master".to_owned());
        }
        if world.cluster.waits_for_acknowledgements() && !world.servers[at].source_side {
            return Err("its semi-sync source side is off".to_owned());
        }
    }
    world.servers[at].read_only = false;
    Ok(())
}

fn set_source(world: &mut World, at: usize, on: bool) -> Result<(), String> {
    if !on {
        wait(world, |world| world.servers[at].waiters.is_empty())?;
    }
    if !on && world.recorded_master() == Some(at) {
        world.end_of_protection();
    }
    world.servers[at].source_side = on;
    Ok(())
}

/// Stops the receiver, lets the applier finish, and stops it.
fn stop_replication(world: &mut World, at: usize) -> Result<(), String> {
    drain(world, at)?;
    if let Some(link) = &mut world.servers[at].link {
        link.receiving = false;
        link.session = None;
        link.applying = false;
    }
    Ok(())
}

/// The same, then drops the channel.
fn forget(world: &mut World, at: usize) -> Result<(), String> {
    stop_replication(world, at)?;
    world.servers[at].link = None;
    Ok(())
}

fn drain(world: &mut World, at: usize) -> Result<(), String> {
    if world.mutation == Mutation::ForgetBeforeApplied {
        return Ok(());
    }
    let server = &mut world.servers[at];
    let (flavor, read_only) = (server.flavor, server.read_only);
    let Some(link) = server.link.as_mut() else {
        return Ok(());
    };
    if !link.applying && !link.receiving {
        if flavor == Flavor::Mariadb {
            link.drop_relay_logs();
        }
        if link.relay.is_empty() {
            return Ok(());
        }
    }
    if !link.applying && !read_only {
        link.receiving = false;
        link.session = None;
        return if link.relay.is_empty() {
            Ok(())
        } else {
            Err("it takes writes and has not applied what it received".to_owned())
        };
    }
    link.applying = true;
    link.receiving = false;
    link.session = None;
    wait(world, |world| {
        world.servers[at].running
            && world.servers[at]
                .link
                .as_ref()
                .is_none_or(|link| link.relay.is_empty())
    })
}

fn follow(
    world: &mut World,
    at: usize,
    source: usize,
    account: u32,
    acknowledge: bool,
) -> Result<(), String> {
    let present = world.servers[at].link.as_ref().map(|link| link.source);
    if present == Some(source) {
        let server = &mut world.servers[at];
        let session = server.link.as_ref().and_then(|link| link.session);
        server.replica_side = acknowledge;
        server.start_threads();
        if session.is_some_and(|session| session.acknowledging != acknowledge) {
            server.restart_receiver();
        }
        return Ok(());
    }
    drain(world, at)?;
    let of_master = world.recorded_master() == Some(at);
    let server = &mut world.servers[at];
    server.replica_side = acknowledge;
    server.link = Some(Link {
        source,
        of_master,
        account,
        receiving: true,
        applying: true,
        session: None,
        learnt: false,
        receiver_error: String::new(),
        relay: std::collections::VecDeque::new(),
        retrieved: Vec::new(),
        position_known: true,
    });
    Ok(())
}

/// Breaks a rule in the plan, where the mutation is one of the plan.
fn mutate(mut plan: Plan, mutation: Mutation) -> Plan {
    let find = |plan: &Plan, wanted: &dyn Fn(&Step) -> bool| plan.steps.iter().position(wanted);
    match mutation {
        Mutation::ForgetBeforeApplied => plan
            .steps
            .retain(|step| !matches!(step, Step::WaitUntilApplied { .. })),
        Mutation::LeaveLinkRunning => plan
            .steps
            .retain(|step| !matches!(step, Step::StopReplication { .. })),
        Mutation::RecordAckerLate => move_last(&mut plan, |change| matches!(change, Change::AddAcker { .. })),
        Mutation::RemoveAckerEarly => {
            move_first(&mut plan, |change| matches!(change, Change::RemoveAcker { .. }));
        }
        Mutation::AllowBeforeStop => {
            let allow = find(&plan, &|step| matches!(step, Step::AllowWrites { .. }));
            let stop = find(&plan, &|step| matches!(step, Step::StopWrites { .. }));
            if let (Some(allow), Some(stop)) = (allow, stop)
                && stop < allow
            {
                let moved = plan.steps.remove(allow);
                plan.steps.insert(stop, moved);
            }
        }
        Mutation::AllowBeforeSemiSync => {
            let allow = find(&plan, &|step| matches!(step, Step::AllowWrites { .. }));
            let source = find(&plan, &|step| {
                matches!(step, Step::SetSemiSyncSource { on: true, .. })
            });
            if let (Some(allow), Some(source)) = (allow, source)
                && source < allow
            {
                let moved = plan.steps.remove(allow);
                plan.steps.insert(source, moved);
            }
        }
        Mutation::None | Mutation::EndWaitsBySwitch | Mutation::AllowUnprotected => {}
    }
    plan
}

fn move_last(plan: &mut Plan, wanted: impl Fn(&Change) -> bool) {
    let (moved, kept) = std::mem::take(&mut plan.steps)
        .into_iter()
        .partition(|step| matches!(step, Step::Record { change } if wanted(change)));
    plan.steps = kept;
    plan.steps.extend::<Vec<Step>>(moved);
}

fn move_first(plan: &mut Plan, wanted: impl Fn(&Change) -> bool) {
    let (mut moved, kept): (Vec<Step>, Vec<Step>) = std::mem::take(&mut plan.steps)
        .into_iter()
        .partition(|step| matches!(step, Step::Record { change } if wanted(change)));
    moved.extend(kept);
    plan.steps = moved;
}
