//! The executor in a world that does what a script says.

use std::collections::BTreeMap;

use topology::{Role, ServerId};

use super::*;

/// Does nothing but remember; fails the steps it is told to.
#[derive(Default)]
struct ScriptedWorld {
    performed: Vec<String>,
    /// By the step's sentence: how often it still fails, and how.
    failures: BTreeMap<String, (u32, Failure)>,
}

impl ScriptedWorld {
    fn failing(step: &Step, times: u32, failure: Failure) -> Self {
        Self {
            performed: Vec::new(),
            failures: BTreeMap::from([(step.to_string(), (times, failure))]),
        }
    }
}

impl World for ScriptedWorld {
    async fn prepare(&mut self, _: &Plan) {}

    async fn perform(&mut self, step: &Step) -> Result<String, Failure> {
        let sentence = step.to_string();
        self.performed.push(sentence.clone());
        match self.failures.get_mut(&sentence) {
            Some((times, failure)) if *times > 0 => {
                *times -= 1;
                Err(failure.clone())
            }
            _ => Ok(String::new()),
        }
    }
}

/// Remembers every note; is lost when it is told to.
#[derive(Default)]
struct Notes {
    begun: Vec<(usize, bool)>,
    ended: Vec<(usize, Note)>,
    lost_at: Option<usize>,
}

impl Ledger for Notes {
    async fn begin(&mut self, position: usize, undoing: bool) -> Result<(), Lost> {
        if self.lost_at == Some(self.begun.len()) {
            return Err(Lost);
        }
        self.begun.push((position, undoing));
        Ok(())
    }

    async fn end(&mut self, position: usize, note: Note, _: Duration) -> Result<(), Lost> {
        self.ended.push((position, note));
        Ok(())
    }
}

const IMPATIENT: Patience = Patience {
    step: Duration::from_millis(200),
    undo: Duration::from_millis(200),
    first_pause: Duration::from_millis(1),
};

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

/// A switchover in short: two steps with an undo, one without, the point of no return, three after it, of which
/// the last concerns the former master.
fn switchover() -> Plan {
    let (from, to) = (id("a"), id("b"));
    Plan::new(
        Purpose::Switchover {
            from: from.clone(),
            to: to.clone(),
        },
        vec![
            Step::HoldProxies {
                candidate: to.clone(),
                limit_milliseconds: 1,
            },
            Step::StopWrites {
                at: from.clone(),
                limit_milliseconds: 1,
            },
            Step::WaitUntilApplied {
                at: to.clone(),
                of: from.clone(),
                limit_milliseconds: 1,
            },
            Step::Record {
                change: Change::Promote {
                    from: from.clone(),
                    to: to.clone(),
                },
            },
            Step::AllowWrites { at: to.clone() },
            Step::PublishRoutes,
            Step::Follow {
                at: from.clone(),
                source: to,
                account: topology::AccountNumber(1),
                acknowledge: true,
            },
        ],
    )
}

async fn run(plan: &Plan, start: Start, world: &mut ScriptedWorld) -> (Outcome, Notes) {
    let mut notes = Notes::default();
    let outcome = execute(plan, start, IMPATIENT, world, &mut notes).await;
    (outcome, notes)
}

fn sentences(plan: &Plan, range: std::ops::Range<usize>) -> Vec<String> {
    plan.steps[range].iter().map(ToString::to_string).collect()
}

/// What undoes the steps up to `last`, last first.
fn undoes(plan: &Plan, last: usize) -> Vec<String> {
    plan.steps[..=last]
        .iter()
        .rev()
        .filter_map(Step::undo)
        .map(|step| step.to_string())
        .collect()
}

#[tokio::test]
async fn every_step_is_done_in_order_and_noted_before_it_begins() {
    let plan = switchover();
    let mut world = ScriptedWorld::default();
    let (outcome, notes) = run(&plan, Start::Do(0), &mut world).await;
    assert_eq!(
        outcome,
        Outcome::Done {
            passed_over: Vec::new()
        }
    );
    assert_eq!(world.performed, sentences(&plan, 0..plan.steps.len()));
    assert_eq!(
        notes.begun,
        (0..plan.steps.len())
            .map(|step| (step, false))
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn whichever_step_fails_before_the_point_of_no_return_it_and_all_before_it_are_undone_last_first() {
    let plan = switchover();
    let point = plan.point_of_no_return().unwrap();
    for failing in 0..=point {
        let mut world = ScriptedWorld::failing(&plan.steps[failing], u32::MAX, Failure::new("told to"));
        let (outcome, notes) = run(&plan, Start::Do(0), &mut world).await;
        assert!(
            matches!(&outcome, Outcome::Undone { why } if why.contains("told to")),
            "{outcome:?}"
        );
        let mut expected = sentences(&plan, 0..failing + 1);
        expected.extend(undoes(&plan, failing));
        assert_eq!(world.performed, expected, "step {failing} fails");
        assert!(
            notes.begun.iter().skip(failing + 1).all(|(_, undoing)| *undoing),
            "the undo is noted as one: {:?}",
            notes.begun
        );
    }
}

#[tokio::test]
async fn an_undo_that_fails_is_repeated_and_does_not_keep_the_others_from_being_undone() {
    let plan = switchover();
    let allow = plan.steps[1].undo().unwrap();
    let mut world = ScriptedWorld::failing(&plan.steps[2], u32::MAX, Failure::new("told to"));
    world
        .failures
        .insert(allow.to_string(), (2, Failure::new("not yet")));
    let (outcome, _) = run(&plan, Start::Do(0), &mut world).await;
    assert!(matches!(outcome, Outcome::Undone { .. }), "{outcome:?}");

    let mut world = ScriptedWorld::failing(&plan.steps[2], u32::MAX, Failure::new("told to"));
    world
        .failures
        .insert(allow.to_string(), (u32::MAX, Failure::new("never")));
    let (outcome, notes) = run(&plan, Start::Do(0), &mut world).await;
    assert!(
        matches!(&outcome, Outcome::Failed { why } if why.contains("told to") && why.contains("never")),
        "{outcome:?}"
    );
    assert_eq!(
        world.performed.last(),
        plan.steps[0].undo().map(|step| step.to_string()).as_ref()
    );
    assert!(notes.ended.contains(&(1, Note::UndoFailed("never".to_owned()))));
}

#[tokio::test]
async fn after_the_point_of_no_return_a_step_is_repeated_and_nothing_is_undone() {
    let plan = switchover();
    for failing in 4..plan.steps.len() {
        let mut world = ScriptedWorld::failing(&plan.steps[failing], 3, Failure::new("not yet"));
        let (outcome, _) = run(&plan, Start::Do(0), &mut world).await;
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        let times = world
            .performed
            .iter()
            .filter(|step| **step == plan.steps[failing].to_string())
            .count();
        assert_eq!(times, 4);

        let mut world = ScriptedWorld::failing(&plan.steps[failing], u32::MAX, Failure::new("never"));
        let (outcome, notes) = run(&plan, Start::Do(0), &mut world).await;
        assert!(
            matches!(&outcome, Outcome::Failed { why } if why.contains("never")),
            "{outcome:?}"
        );
        assert!(notes.begun.iter().all(|(_, undoing)| !undoing));
    }
}

#[tokio::test]
async fn a_step_whose_instance_is_gone_is_passed_over_where_it_may_be() {
    let plan = switchover();
    let last = plan.steps.len() - 1;
    let gone = Failure::unreachable(&id("a"), "a does not answer");
    let mut world = ScriptedWorld::failing(&plan.steps[last], u32::MAX, gone.clone());
    let (outcome, notes) = run(&plan, Start::Do(0), &mut world).await;
    assert_eq!(
        outcome,
        Outcome::Done {
            passed_over: vec!["a does not answer".to_owned()]
        }
    );
    assert!(matches!(notes.ended.last(), Some((_, Note::PassedOver(_)))));

    // The new master must not be passed over, and another's absence is no excuse.
    let away = Failure::unreachable(&id("b"), "b does not answer");
    for (step, failure) in [
        (4, away),
        (last, Failure::unreachable(&id("c"), "c does not answer")),
    ] {
        let mut world = ScriptedWorld::failing(&plan.steps[step], u32::MAX, failure);
        let (outcome, _) = run(&plan, Start::Do(0), &mut world).await;
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    }
}

#[tokio::test]
async fn healing_is_not_undone() {
    let mut plan = switchover();
    plan.purpose = Purpose::Heal;
    plan.steps.truncate(3);
    let mut world = ScriptedWorld::failing(&plan.steps[1], u32::MAX, Failure::new("told to"));
    let (outcome, _) = run(&plan, Start::Do(0), &mut world).await;
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    assert_eq!(world.performed, sentences(&plan, 0..2));
}

#[tokio::test]
async fn nothing_further_is_done_when_the_notes_are_lost() {
    let plan = switchover();
    for lost_at in 0..plan.steps.len() {
        let mut world = ScriptedWorld::default();
        let mut notes = Notes {
            lost_at: Some(lost_at),
            ..Notes::default()
        };
        let outcome = execute(&plan, Start::Do(0), IMPATIENT, &mut world, &mut notes).await;
        assert_eq!(outcome, Outcome::Lost);
        assert_eq!(world.performed, sentences(&plan, 0..lost_at));
    }
}

#[tokio::test]
async fn a_plan_is_taken_up_where_it_was() {
    let plan = switchover();
    let point = plan.point_of_no_return().unwrap();
    for position in 0..=point {
        let resumption = resume(&plan, position, false);
        assert_eq!(
            resumption,
            Resumption::Go(Start::Undo(position)),
            "nothing was decided at {position}"
        );
        let mut world = ScriptedWorld::default();
        let (outcome, _) = run(&plan, Start::Undo(position), &mut world).await;
        assert!(matches!(outcome, Outcome::Undone { .. }));
        assert_eq!(world.performed, undoes(&plan, position));
    }
    for position in point + 1..plan.steps.len() {
        let resumption = resume(&plan, position, false);
        assert_eq!(
            resumption,
            Resumption::Go(Start::Do(position)),
            "it was decided before {position}"
        );
        let mut world = ScriptedWorld::default();
        let (outcome, _) = run(&plan, Start::Do(position), &mut world).await;
        assert!(matches!(outcome, Outcome::Done { .. }));
        assert_eq!(world.performed, sentences(&plan, position..plan.steps.len()));
    }
}

#[test]
fn what_is_taken_up_depends_on_what_it_is() {
    let mut plan = switchover();
    assert_eq!(
        resume(&plan, 1, true),
        Resumption::Go(Start::Undo(1)),
        "an undo goes on"
    );
    plan.format += 1;
    assert_eq!(
        resume(&plan, 1, false),
        Resumption::Go(Start::Undo(1)),
        "another format is undone"
    );
    assert_eq!(
        resume(&plan, 5, false),
        Resumption::Drop,
        "and left alone where it cannot be"
    );

    let register = Plan::new(
        Purpose::Register {
            instance: id("a"),
            role: Role::Slave,
        },
        vec![Step::Record {
            change: Change::Register {
                instance: id("a"),
                role: Role::Slave,
                incarnation: "0f0e8400-e29b-41d4-a716-446655440000".parse().unwrap(),
                server_id: ServerId(1),
                server_uuid: None,
            },
        }],
    );
    assert_eq!(
        resume(&register, 0, false),
        Resumption::Go(Start::Do(0)),
        "what stops no writes goes on"
    );
    let heal = Plan::new(Purpose::Heal, register.steps);
    assert_eq!(
        resume(&heal, 0, false),
        Resumption::Drop,
        "healing is planned anew"
    );
}
