//! Calls the hub once for each device of a list, some at a time and at a pace.
//!
//! Owns: how many calls are on their way, what follows from each answer, when to give up. Must not know: what is called,
//! how it is shown.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Pace;
use crate::service::ServiceError;

/// How long to wait for the answers to calls that are on their way, once calling must stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// After so many calls in a row that did not reach the hub, the others would not reach it, either.
const MOST_LOST: usize = 20;

/// What happens, for the program that shows it.
#[derive(Debug)]
pub(crate) enum CallProgress<'a, T> {
    /// A call has ended.
    Ended { entry: usize, result: &'a Result<T, ServiceError> },
    /// The hub throttles; the call is made again.
    Throttled { wait: Duration, per_minute: f64 },
}

/// Why calling has stopped before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallsError {
    /// The hub does not let this program in, or cannot be reached.
    #[error(transparent)]
    Hub(ServiceError),
    /// It has throttled for too long.
    #[error("the hub has taken nothing for {}: {last}", humantime::format_duration(*.within))]
    NoProgress { within: Duration, last: ServiceError },
    /// It was asked to stop.
    #[error("interrupted by a signal")]
    Stopped,
}

/// What has not ended when calling stops.
#[derive(Debug)]
pub(crate) struct CallsLeft {
    pub(crate) error: CallsError,
    /// The entries that were not called.
    pub(crate) not_begun: Vec<usize>,
    /// The entries whose call was on its way: it may or may not have had its effect.
    pub(crate) unknown: Vec<usize>,
}

/// Calls `call` for each entry from 0 to `count`, over the connections of `idle`, each of which has one call at a time.
/// A call that the hub throttles is made again, since it had no effect.
///
/// # Errors
/// [`CallsLeft`]. Each other entry was told.
///
/// # Cancel safety
/// If dropped, calls that are on their way may or may not have had their effect.
pub(crate) async fn call_each<S, T>(
    count: usize,
    mut idle: Vec<S>,
    mut pace: Pace,
    patience: Duration,
    stop: &CancellationToken,
    call: impl AsyncFn(&mut S, usize) -> Result<T, ServiceError>,
    tell: &mut dyn FnMut(CallProgress<'_, T>),
) -> Result<(), CallsLeft> {
    let call = &call;
    let begin = async |mut service: S, entry: usize| {
        let result = call(&mut service, entry).await;
        (service, entry, result)
    };
    let mut open: VecDeque<usize> = (0..count).collect();
    let mut begun = std::collections::BTreeSet::new();
    let mut on_the_way = FuturesUnordered::new();
    // Since when the hub has throttled, and let no call end.
    let mut throttled: Option<Instant> = None;
    let (mut lost, mut last_answers) = (0, None);
    let error = loop {
        let next = open.front().copied().filter(|_| !stop.is_cancelled() && !idle.is_empty());
        let due = match next.map(|entry| (entry, pace.take(Instant::now()))) {
            Some((entry, Ok(()))) => {
                open.pop_front();
                if let Some(service) = idle.pop() {
                    begun.insert(entry);
                    on_the_way.push(begin(service, entry));
                }
                continue;
            }
            Some((_, Err(due))) => Some(due),
            None => None,
        };
        if on_the_way.is_empty() && due.is_none() {
            break stop.is_cancelled().then_some(CallsError::Stopped);
        }
        tokio::select! {
            Some((service, entry, result)) = on_the_way.next(), if !on_the_way.is_empty() => {
                idle.push(service);
                begun.remove(&entry);
                match result {
                    Err(error @ ServiceError::Throttled(_)) => {
                        open.push_front(entry);
                        let wait = pace.throttled(None, Instant::now());
                        tell(CallProgress::Throttled { wait, per_minute: pace.per_minute() });
                        // A slow run asks seldom, so the time since the last end of a call says nothing.
                        if throttled.get_or_insert_with(Instant::now).elapsed() > patience {
                            break Some(CallsError::NoProgress { within: patience, last: error });
                        }
                    }
                    Err(error) if is_of_all(&error) => {
                        open.push_front(entry);
                        break Some(CallsError::Hub(error));
                    }
                    result => {
                        throttled = None;
                        tell(CallProgress::Ended { entry, result: &result });
                        lost = match &result {
                            Err(error) if is_lost(error) => lost + 1,
                            _ => 0,
                        };
                        if let Err(error) = result
                            && lost >= MOST_LOST
                        {
                            break Some(CallsError::Hub(error));
                        }
                    }
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            () = stop.cancelled(), if last_answers.is_none() => {
                last_answers = Some(Instant::now() + LAST_ANSWERS);
            }
            () = sleep_until(last_answers.unwrap_or_else(Instant::now)), if last_answers.is_some() => {
                break Some(CallsError::Stopped);
            }
        }
    };
    let (mut not_begun, unknown): (Vec<_>, Vec<_>) = (open.into(), begun.into_iter().collect());
    not_begun.sort_unstable();
    match error {
        // A signal that came after the last call changes nothing.
        Some(CallsError::Stopped) if not_begun.is_empty() && unknown.is_empty() => Ok(()),
        Some(error) => Err(CallsLeft { error, not_begun, unknown }),
        None => Ok(()),
    }
}

/// Whether each other call would fail in the same way.
fn is_of_all(error: &ServiceError) -> bool {
    use ServiceError::*;
    matches!(error, NotAuthorised { .. } | TokenExpired(_) | Tls(_) | NoToken { is_passing: false, .. })
}

/// Whether the call did not reach the hub, or its answer did not come.
fn is_lost(error: &ServiceError) -> bool {
    use ServiceError::*;
    matches!(error, Unreachable(_) | Unanswered(_) | Lost(_) | NoToken { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    fn throttled() -> ServiceError {
        ServiceError::Throttled("hub".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn each_entry_is_called_once_and_no_more_than_the_connections_allow_at_a_time() {
        let (now, most) = (Cell::new(0), Cell::new(0));
        let throttles = Cell::new(3);
        let ended = RefCell::new(Vec::new());
        let call = async |_service: &mut (), entry: usize| {
            if throttles.get() > 0 {
                throttles.set(throttles.get() - 1);
                return Err(throttled());
            }
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.set(now.get() - 1);
            Ok(entry)
        };
        let mut tell = |progress: CallProgress<'_, usize>| {
            if let CallProgress::Ended { entry, result: Ok(result) } = progress {
                assert_eq!(entry, *result);
                ended.borrow_mut().push(entry);
            }
        };
        let (pace, stop) = (Pace::new(60_000.0, Instant::now()), CancellationToken::new());
        let patience = Duration::from_secs(60);
        let done = call_each(50, vec![(); 4], pace, patience, &stop, call, &mut tell).await;
        assert!(done.is_ok(), "{done:?}");
        ended.borrow_mut().sort_unstable();
        assert_eq!(*ended.borrow(), (0..50).collect::<Vec<_>>());
        assert_eq!(most.get(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_is_told_when_the_hub_refuses_all_or_takes_nothing_or_a_signal_comes() {
        let begin = || (Pace::new(600.0, Instant::now()), CancellationToken::new());
        let patience = Duration::from_secs(60);
        let mut ended = 0;
        let mut tell = |progress: CallProgress<'_, ()>| {
            ended += usize::from(matches!(progress, CallProgress::Ended { .. }));
        };
        let expired = async |_: &mut (), entry: usize| match entry {
            0 => Ok(()),
            _ => Err(ServiceError::TokenExpired("then".to_owned())),
        };
        let (pace, stop) = begin();
        let left = call_each(5, vec![()], pace, patience, &stop, expired, &mut tell).await.expect_err("left");
        assert!(matches!(left.error, CallsError::Hub(_)), "{left:?}");
        assert_eq!((left.not_begun, left.unknown), (vec![1, 2, 3, 4], vec![]));

        // A token source that refuses lets no call reach the hub. One that is away may be back soon.
        for (is_passing, left_of_50) in [(false, 50), (true, 30)] {
            let none = async |_: &mut (), _: usize| {
                let (login, reason) = ("me".to_owned(), "no".to_owned());
                Err(ServiceError::NoToken { login, reason, is_passing })
            };
            let (pace, stop) = begin();
            let mut tell = |_: CallProgress<'_, ()>| {};
            let left =
                call_each(50, vec![()], pace, patience, &stop, none, &mut tell).await.expect_err("left");
            assert!(matches!(left.error, CallsError::Hub(ServiceError::NoToken { .. })), "{left:?}");
            assert_eq!(left.not_begun.len(), left_of_50);
        }

        let (pace, stop) = begin();
        let never = async |_: &mut (), _: usize| Err(throttled());
        let left = call_each(2, vec![()], pace, patience, &stop, never, &mut tell).await.expect_err("left");
        assert!(left.error.to_string().starts_with("the hub has taken nothing for 1m: "), "{left:?}");

        let (pace, stop) = begin();
        let unreachable = async |_: &mut (), _: usize| Err(ServiceError::Lost("gone".to_owned()));
        let left =
            call_each(50, vec![()], pace, patience, &stop, unreachable, &mut tell).await.expect_err("left");
        assert_eq!((left.not_begun.len(), ended), (30, 1 + 20));

        let (pace, stop) = begin();
        let signal = stop.clone();
        let hangs = async |_: &mut (), _: usize| {
            signal.cancel();
            std::future::pending().await
        };
        let mut tell = |_: CallProgress<'_, ()>| {};
        let left =
            call_each(3, vec![(); 2], pace, patience, &stop, hangs, &mut tell).await.expect_err("left");
        assert!(matches!(left.error, CallsError::Stopped), "{left:?}");
        assert!(left.unknown == [0] && left.not_begun == [1, 2], "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_run_goes_on_after_the_hub_has_throttled_one_call() {
        let throttles = Cell::new(1);
        let call = async |_: &mut (), entry: usize| {
            if entry == 1 && throttles.replace(0) == 1 {
                return Err(throttled());
            }
            Ok(())
        };
        let mut ended = 0;
        let mut tell = |progress: CallProgress<'_, ()>| {
            ended += usize::from(matches!(progress, CallProgress::Ended { .. }));
        };
        // One call an hour, and a minute of patience.
        let (pace, stop) = (Pace::new(1.0 / 60.0, Instant::now()), CancellationToken::new());
        let done = call_each(3, vec![()], pace, Duration::from_secs(60), &stop, call, &mut tell).await;
        assert!(done.is_ok(), "{done:?}");
        assert_eq!(ended, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn no_call_begins_after_what_has_ended_has_stopped_all() {
        let (pace, stop) = (Pace::new(60_000.0, Instant::now()), CancellationToken::new());
        let begun = Cell::new(0);
        let call = async |_: &mut (), _: usize| {
            begun.set(begun.get() + 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        };
        // As when standard output fails.
        let (mut ended, token) = (0, stop.clone());
        let mut tell = |_: CallProgress<'_, ()>| {
            ended += 1;
            token.cancel();
        };
        let patience = Duration::from_secs(60);
        let left = call_each(9, vec![(); 2], pace, patience, &stop, call, &mut tell).await.expect_err("left");
        assert!(matches!(left.error, CallsError::Stopped), "{left:?}");
        assert_eq!((begun.get(), ended, left.not_begun.len(), left.unknown.len()), (2, 2, 7, 0));
    }
}
