//! Guards: keep a rule's action from beginning too soon after the last one, or too often.
//!
//! Owns: when each rule's actions began, as far as its guards need it. Pure: the caller passes the time in. Must not
//! know: how actions run.
//!
//! Guards use calendar times, because they must hold across a restart. If the clock was set back, a start that now
//! lies in the future does not count. Otherwise it could block a rule for years.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use humantime::format_duration;

use crate::rules::Policy;

/// When actions began, by rule.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    begun: HashMap<String, VecDeque<SystemTime>>,
}

impl Guards {
    /// Whether an action of the rule may begin.
    ///
    /// # Errors
    /// Why not, in one sentence.
    pub(crate) fn check(&self, rule: &str, policy: &Policy, now: SystemTime) -> Result<(), String> {
        let Some(begun) = self.begun.get(rule) else { return Ok(()) };
        let ago = |at: &SystemTime| now.duration_since(*at).ok();
        if let Some(interval) = policy.min_interval
            && let Some(last) = begun.back().and_then(ago).filter(|last| *last < interval)
        {
            return Err(format!(
                "rule {rule} acted {} ago, and its min_interval is {}",
                format_duration(whole_millis(last)),
                format_duration(interval)
            ));
        }
        if let Some(rate) = policy.rate {
            let recent = begun.iter().filter(|at| ago(at).is_some_and(|ago| ago < rate.per)).count();
            if recent >= rate.count as usize {
                let per = format_duration(rate.per);
                return Err(format!(
                    "rule {rule} acted {recent} times in the last {per}, and its rate is {}/{per}",
                    rate.count
                ));
            }
        }
        Ok(())
    }

    /// Records that an action of the rule begins.
    pub(crate) fn begin(&mut self, rule: &str, policy: &Policy, now: SystemTime) {
        let kept = policy.rate.map_or(1, |rate| rate.count as usize);
        if !policy.is_guarded() {
            return;
        }
        let begun = self.begun.entry(rule.to_owned()).or_default();
        begun.push_back(now);
        while begun.len() > kept {
            begun.pop_front();
        }
    }
}

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rate;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    #[test]
    fn a_minimum_interval_refuses_what_comes_too_soon() {
        let policy = Policy { min_interval: Some(Duration::from_secs(10)), ..Policy::default() };
        let mut guards = Guards::default();
        assert_eq!(guards.check("pump", &policy, at(0)), Ok(()));
        guards.begin("pump", &policy, at(0));
        let refused = guards.check("pump", &policy, at(9)).expect_err("too soon");
        assert_eq!(refused, "rule pump acted 9s ago, and its min_interval is 10s");
        assert_eq!(guards.check("pump", &policy, at(10)), Ok(()));
        assert_eq!(guards.check("other", &policy, at(9)), Ok(()));
    }

    #[test]
    fn a_rate_counts_within_its_time() {
        let policy =
            Policy { rate: Some(Rate { count: 2, per: Duration::from_secs(60) }), ..Policy::default() };
        let mut guards = Guards::default();
        for second in [0, 30] {
            assert_eq!(guards.check("pump", &policy, at(second)), Ok(()));
            guards.begin("pump", &policy, at(second));
        }
        let refused = guards.check("pump", &policy, at(59)).expect_err("too often");
        assert_eq!(refused, "rule pump acted 2 times in the last 1m, and its rate is 2/1m");
        assert_eq!(guards.check("pump", &policy, at(60)), Ok(()));
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nothing() {
        let policy = Policy { min_interval: Some(Duration::from_secs(10)), ..Policy::default() };
        let mut guards = Guards::default();
        guards.begin("pump", &policy, at(1_000_000));
        assert_eq!(guards.check("pump", &policy, at(0)), Ok(()));
    }
}
