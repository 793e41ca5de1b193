//! Bringing what is seen back to what was decided, by the monitor itself: when nothing else is done, when
//! everything was looked at since something was, and not again and again without effect.

use std::time::Duration;

use topology::gtid::Transactions;
use topology::{InstanceId, Moment, Plan, Step, heal};

use super::{Controller, MONITOR};
use crate::store::Store;

/// The first pause after a plan that had to be made again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause: what could not be healed for so long waits for a person or for the world.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How long nothing is healed after all writes were stopped so that every server can be stopped: healing would let
/// writes through again. Servers are stopped within seconds; if they are not, the cluster comes back.
const QUIESCED: Duration = Duration::from_mins(1);

/// When the monitor acts by itself.
#[derive(Debug, Default)]
pub(super) struct Healing {
    /// Only looks that were begun after this tell what an operation left.
    pub(super) looks_after: Moment,
    /// Wishes that are being looked into: a person has precedence.
    pub(super) wishes_begun: usize,
    /// Nothing before this.
    not_before: Moment,
    /// What was last tried, and how often in a row.
    last: Option<(Plan, u32)>,
    /// What the last try failed with: an event once, and a problem as long as it is so.
    pub(super) last_failure: Option<String>,
    /// When commits were first seen to wait in vain, and what their server had then.
    waiting: Option<(Moment, Transactions)>,
}

impl Healing {
    /// All writes were stopped on purpose.
    pub(super) fn suspend(&mut self, now: Moment) {
        self.not_before = Moment(now.0 + QUIESCED);
    }

    /// Whether every server is to be stopped now.
    pub(super) fn is_suspended(&self, now: Moment) -> bool {
        now < self.not_before
    }

    /// Whether commits still wait, and nothing was added to their server's transactions, since an earlier look. One
    /// look alone takes for that what a busy master always has: commits that are acknowledged a moment later.
    fn stands_still(&mut self, began: Moment, has: &Transactions) -> bool {
        match &self.waiting {
            Some((first, had)) if had == has => began > *first,
            _ => {
                self.waiting = Some((began, has.clone()));
                false
            }
        }
    }

    /// Notes that this plan is tried now; the same one again has to wait, longer each time.
    fn note(&mut self, plan: &Plan) {
        let times = match &self.last {
            Some((last, times)) if last.steps == plan.steps => times + 1,
            _ => 0,
        };
        if times == 0 {
            self.last_failure = None;
        }
        self.last = Some((plan.clone(), times));
    }

    /// Whether this plan may be tried now.
    fn may_try(&self, plan: &Plan, now: Moment) -> bool {
        !self.is_suspended(now) && self.pause_ends(plan).is_none_or(|end| now >= end)
    }

    fn pause_ends(&self, plan: &Plan) -> Option<Moment> {
        let (last, times) = self.last.as_ref()?;
        if last.steps != plan.steps {
            return None;
        }
        let pause = FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(*times))
            .min(LONGEST_PAUSE);
        Some(Moment(self.looks_after.0 + pause))
    }
}

impl<S: Store> Controller<S> {
    pub(super) async fn heal_if_needed(&mut self) -> anyhow::Result<()> {
        if self.running.is_some() || self.stopping || self.healing.wishes_begun > 0 || !self.all_seen_since()
        {
            return Ok(());
        }
        let now = self.now();
        let plan = heal::heal(&self.situation());
        if plan.steps.is_empty() {
            self.healing.last = None;
            self.healing.last_failure = None;
            self.healing.waiting = None;
            return Ok(());
        }
        match plan.steps.as_slice() {
            [Step::FreeWaiters { at }] if !self.wait_in_vain(at) => return Ok(()),
            [Step::FreeWaiters { .. }] => {}
            _ => self.healing.waiting = None,
        }
        if !self.healing.may_try(&plan, now) {
            return Ok(());
        }
        self.healing.note(&plan);
        if let Err(error) = self.start_operation(plan, MONITOR, None).await {
            tracing::error!(%error, "cannot begin to heal");
            self.healing.looks_after = self.now();
        }
        Ok(())
    }

    fn wait_in_vain(&mut self, at: &InstanceId) -> bool {
        let look = self.views.get(at).and_then(|view| view.look.as_ref());
        let Some((began, seen)) = look.and_then(|look| Some((look.began, look.result.as_ref().ok()?))) else {
            return false;
        };
        self.healing.stands_still(began, &seen.transactions)
    }

    /// Whether every instance was looked at since the last operation ended.
    pub(super) fn all_seen_since(&self) -> bool {
        self.views.values().all(|view| {
            view.look
                .as_ref()
                .is_some_and(|look| look.began >= self.healing.looks_after)
        })
    }
}

#[cfg(test)]
mod tests {
    use topology::Purpose;

    use super::*;

    fn plan(at: &str) -> Plan {
        Plan::new(
            Purpose::Heal,
            vec![Step::StopApplying {
                at: at.parse().unwrap(),
            }],
        )
    }

    fn second(seconds: u64) -> Moment {
        Moment(Duration::from_secs(seconds))
    }

    #[test]
    fn the_same_plan_waits_longer_each_time_and_another_does_not() {
        let mut healing = Healing::default();
        let mut now = second(10);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(healing.may_try(&plan("a"), now));
            healing.note(&plan("a"));
            healing.looks_after = now;
            assert!(healing.may_try(&plan("b"), now), "another plan need not wait");
            let early = Moment(now.0 + Duration::from_millis(expected * 1000 - 1));
            assert!(!healing.may_try(&plan("a"), early), "after {expected} s");
            now = Moment(now.0 + Duration::from_secs(expected));
        }
    }

    #[test]
    fn nothing_is_healed_while_servers_are_to_be_stopped() {
        let mut healing = Healing::default();
        healing.suspend(second(5));
        assert!(!healing.may_try(&plan("a"), second(64)));
        assert!(healing.may_try(&plan("a"), second(65)));
    }
    #[test]
    fn commits_that_make_way_do_not_wait_in_vain() {
        let has = |last: u32| Transactions::parse_mariadb(&format!("0-1-{last}"), "").unwrap();
        let mut healing = Healing::default();
        assert!(!healing.stands_still(second(1), &has(5)), "one look says nothing");
        assert!(
            !healing.stands_still(second(1), &has(5)),
            "nor the same one again"
        );
        assert!(
            !healing.stands_still(second(2), &has(6)),
            "one more was committed"
        );
        assert!(healing.stands_still(second(3), &has(6)));
        healing.waiting = None;
        assert!(
            !healing.stands_still(second(4), &has(6)),
            "nobody waited in between"
        );
    }
}
