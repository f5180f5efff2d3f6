//! Life: whether a message has expired while this agent had it, and the warning about a clock that is ahead.
//!
//! Owns: since when the agent has a message, and the sentence about the clock. Must not know: what is done with
//! messages.
//!
//! The hub delivers no expired message. So the agent judges only the time for which it had the message. It counts
//! that time back from now: if the clock was set meanwhile, as on a board without a battery, the new clock decides.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::message::{C2dMessage, format_time};

use super::reason::PassedOver;

/// If a message came expired by less than this, it was only slow on its way, and the clock may be right.
const LONGEST_WAY: Duration = Duration::from_secs(60);

/// Since when this agent has a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// It was delivered to this process at this time.
    Delivered(Instant),
    /// An earlier process recorded it at this time, by its clock.
    Recorded(SystemTime),
}

impl Since {
    fn by_clock(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Delivered(at) => now.checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH),
            Self::Recorded(at) => at,
        }
    }

    /// Why a message is not acted on any more, if it expired while the agent had it.
    pub(crate) fn expired(self, message: &C2dMessage, now: SystemTime) -> Option<PassedOver> {
        // Most messages never expire, so the clock is asked only for those that do.
        message.expiry()?;
        let expiry = message.expired_since(self.by_clock(now), now)?;
        let [expiry, now] = [expiry, now].map(format_time);
        Some(PassedOver::Expired { expiry, now })
    }

    /// By how much the clock seems to be ahead: by this clock, the message had expired before the hub delivered it.
    fn ahead(self, message: &C2dMessage, now: SystemTime) -> Option<Duration> {
        let expiry = message.expiry()?;
        let ahead = self.by_clock(now).duration_since(expiry).ok()?;
        (ahead >= LONGEST_WAY).then_some(ahead)
    }

    /// Logs once that the clock seems to be ahead, if this message shows it.
    pub(crate) fn tell_of_clock(self, message: &C2dMessage, now: SystemTime, told: &mut bool) {
        let Some(ahead) = self.ahead(message, now) else { return };
        if std::mem::replace(told, true) {
            return;
        }
        let (expiry, clock) = (message.expiry().map(format_time), format_time(now));
        let ahead = humantime::format_duration(Duration::from_secs(ahead.as_secs()));
        tracing::warn!(
            message_id = message.message_id(),
            expiry,
            clock,
            "this machine's clock seems to be ahead by {ahead} or more: by this clock, a message had expired \
             before the hub delivered it; the agent acts on it anyway; set the clock, such as with \
             timedatectl set-ntp true (logged only once)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::EXPIRY;

    fn at(minute: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + minute * 60)
    }

    fn good_until(minute: u64) -> C2dMessage {
        let mut message = C2dMessage::default();
        message.system.set(EXPIRY, format_time(at(minute)));
        message
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_time_in_this_agents_hands_counts() {
        let delivered = Since::Delivered(Instant::now());
        let message = good_until(10);
        assert_eq!(delivered.expired(&message, at(5)), None);
        // The message is fresh, but expired by a clock that is two hours ahead.
        assert_eq!(delivered.expired(&message, at(125)), None);
        tokio::time::advance(Duration::from_secs(7 * 60)).await;
        assert!(delivered.expired(&message, at(12)).is_some(), "it waited here until its time was over");
        assert_eq!(delivered.expired(&message, at(9)), None);
        // The message came while a clock without a battery still showed last year. Now the clock is set, and it
        // decides.
        assert!(delivered.expired(&message, at(16)).is_some());
        // The clock was put ahead meanwhile.
        assert_eq!(delivered.expired(&message, at(132)), None);
    }

    #[test]
    fn after_a_restart_the_record_says_whether_it_expired_here() {
        let message = good_until(10);
        assert!(Since::Recorded(at(5)).expired(&message, at(11)).is_some());
        assert_eq!(Since::Recorded(at(5)).expired(&message, at(9)), None);
        assert_eq!(Since::Recorded(at(125)).expired(&message, at(11)), None, "the clock was ahead then");
        assert_eq!(Since::Recorded(at(125)).expired(&message, at(130)), None, "it is still");
        assert_eq!(Since::Recorded(at(9)).expired(&message, at(5)), None, "the clock was set back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_was_on_its_way_for_a_moment_too_long_says_nothing_about_the_clock() {
        let delivered = Since::Delivered(Instant::now());
        assert_eq!(delivered.ahead(&good_until(10), at(10) + Duration::from_secs(59)), None);
        assert_eq!(delivered.ahead(&good_until(10), at(130)), Some(Duration::from_secs(7200)));
        assert_eq!(delivered.ahead(&C2dMessage::default(), at(130)), None);
    }
}
