//! Tests of the lanes.

use super::*;
use proptest::prelude::*;

fn lanes(of: &[Lane]) -> Arc<[Lane]> {
    of.into()
}

fn owner() -> Whose {
    Whose::Owner(Instant::now())
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn actions_of_one_lane_take_turns_in_order() {
    let mut all = Lanes::new(1, 1);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::None, owner()));
    assert!(!all.enter(ActionId(2), &lanes(&[0]), Slot::None, owner()));
    assert!(!all.enter(ActionId(3), &lanes(&[0]), Slot::None, owner()));
    assert_eq!(all.next(), None);
    all.leave(ActionId(1));
    assert_eq!((all.next(), all.next()), (Some(ActionId(2)), None));
    all.leave(ActionId(2));
    assert_eq!(all.next(), Some(ActionId(3)));
}

#[test]
fn a_slow_lane_does_not_hold_back_another() {
    let mut all = Lanes::new(2, 1);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::None, owner()));
    assert!(all.enter(ActionId(2), &lanes(&[1]), Slot::None, owner()));
}

#[test]
fn an_action_of_two_lanes_waits_for_both_and_holds_both() {
    let mut all = Lanes::new(2, 1);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::None, owner()));
    assert!(!all.enter(ActionId(2), &lanes(&[0, 1]), Slot::None, owner()));
    assert!(!all.enter(ActionId(3), &lanes(&[1]), Slot::None, owner()), "2 was first in lane 1");
    all.leave(ActionId(1));
    assert_eq!((all.next(), all.next()), (Some(ActionId(2)), None));
    all.leave(ActionId(2));
    assert_eq!(all.next(), Some(ActionId(3)));
}

#[test]
fn programs_wait_for_a_slot_and_others_do_not() {
    let mut all = Lanes::new(4, 1);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::Any, owner()));
    assert!(!all.enter(ActionId(2), &lanes(&[1]), Slot::Any, owner()));
    assert!(!all.enter(ActionId(3), &lanes(&[2]), Slot::Any, owner()));
    assert!(all.enter(ActionId(4), &lanes(&[3]), Slot::None, owner()));
    all.pause(ActionId(1));
    assert_eq!((all.next(), all.next()), (Some(ActionId(2)), None));
    assert!(!all.resume(ActionId(1)), "3 was first");
    all.leave(ActionId(2));
    assert_eq!(all.next(), Some(ActionId(3)));
    all.leave(ActionId(3));
    assert_eq!(all.next(), Some(ActionId(1)));
}

#[test]
fn who_needs_a_spare_slot_leaves_the_last_one_and_is_overtaken_for_it() {
    let mut all = Lanes::new(5, 2);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::Spare, owner()));
    assert!(!all.enter(ActionId(2), &lanes(&[1]), Slot::Spare, owner()), "one slot is left, and not for it");
    assert!(all.enter(ActionId(3), &lanes(&[2]), Slot::Any, owner()));
    assert!(!all.enter(ActionId(4), &lanes(&[3]), Slot::Any, owner()));
    all.leave(ActionId(3));
    assert_eq!((all.next(), all.next()), (Some(ActionId(4)), None), "2 was first");
    all.leave(ActionId(4));
    assert_eq!(all.next(), None);
    all.leave(ActionId(1));
    assert_eq!(all.next(), Some(ActionId(2)));
    let mut one = Lanes::new(1, 1);
    assert!(one.enter(ActionId(1), &lanes(&[0]), Slot::Spare, owner()), "there is none to spare");
}

#[test]
fn one_that_leaves_from_the_middle_lets_the_others_keep_their_order() {
    let mut all = Lanes::new(1, 1);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::None, owner()));
    all.enter(ActionId(2), &lanes(&[0]), Slot::None, owner());
    all.enter(ActionId(3), &lanes(&[0]), Slot::None, owner());
    all.leave(ActionId(2));
    assert_eq!(all.next(), None);
    all.leave(ActionId(1));
    assert_eq!(all.next(), Some(ActionId(3)));
}

#[test]
fn what_the_twin_makes_an_owner_wait_ends_in_time_and_keeps_its_order() {
    let (mut all, start) = (Lanes::new(1, 1), Instant::now());
    let at = |seconds: u32| start + SECOND * seconds;
    let twin = Whose::Twin(SECOND * 20);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::None, twin));
    assert!(!all.enter(ActionId(2), &lanes(&[0]), Slot::None, twin));
    assert!(!all.enter(ActionId(3), &lanes(&[0]), Slot::None, twin));
    assert_eq!((all.wake(), all.late(at(1000))), (None, vec![]), "no one of the owner's is there");
    assert!(!all.enter(ActionId(4), &lanes(&[0]), Slot::None, Whose::Owner(at(5))));
    assert!(!all.enter(ActionId(5), &lanes(&[0]), Slot::None, twin), "behind it");
    all.leave(ActionId(1));
    assert_eq!((all.next(), all.next()), (Some(ActionId(2)), None), "it is in time");
    assert_eq!(all.wake(), Some(at(35)), "3 must begin by then to end within 50 s of 5");
    assert!(all.late(at(34)).is_empty());
    assert_eq!(all.late(at(35)), [ActionId(3)]);
    all.leave(ActionId(3));
    assert_eq!((all.wake(), all.late(at(1000))), (None, vec![]), "2 has begun, and 5 is behind");
    all.leave(ActionId(2));
    assert_eq!((all.next(), all.next()), (Some(ActionId(4)), None));
}

#[test]
fn one_of_the_twin_that_the_owner_may_wait_for_keeps_its_slot_in_a_pause() {
    let mut all = Lanes::new(4, 3);
    assert!(all.enter(ActionId(1), &lanes(&[0]), Slot::Spare, Whose::Twin(TWIN_WAIT)));
    assert!(all.enter(ActionId(2), &lanes(&[1]), Slot::Spare, Whose::Twin(TWIN_WAIT + SECOND)));
    all.pause(ActionId(1));
    all.pause(ActionId(2));
    assert!(all.enter(ActionId(3), &lanes(&[2]), Slot::Any, owner()));
    assert!(!all.enter(ActionId(4), &lanes(&[3]), Slot::Spare, Whose::Twin(SECOND)), "the last one is free");
    assert!(all.resume(ActionId(1)));
    assert!(!all.resume(ActionId(2)));
}

#[test]
fn what_had_its_turn_before_the_lanes_were_made_anew_has_it_still() {
    let mut all = Lanes::new(2, 1);
    all.enter_again(ActionId(1), &lanes(&[0]), Slot::Any, owner());
    all.enter_again(ActionId(2), &lanes(&[1]), Slot::Spare, Whose::Twin(TWIN_WAIT));
    assert!(!all.enter(ActionId(3), &lanes(&[1]), Slot::Any, Whose::Owner(Instant::now())));
    assert_eq!(all.wake(), None);
    all.leave(ActionId(2));
    assert_eq!(all.next(), None, "there were two in one slot");
    all.leave(ActionId(1));
    assert_eq!(all.next(), Some(ActionId(3)));
}

proptest! {
    /// Each action has its turn once. No two actions of one lane run at once, and never more programs than slots.
    #[test]
    fn each_action_gets_a_turn_and_no_two_share_a_lane(
        actions in proptest::collection::vec((proptest::collection::btree_set(0usize..4, 1..3), any::<bool>()), 1..60),
        slots in 1usize..3,
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let mut all = Lanes::new(4, slots);
        let (mut running, mut ended): (Vec<ActionId>, Vec<ActionId>) = (Vec::new(), Vec::new());
        let sets: Vec<Arc<[Lane]>> = actions.iter().map(|(set, _)| set.iter().copied().collect()).collect();
        for (nth, (_, child)) in actions.iter().enumerate() {
            let needs = if *child { Slot::Any } else { Slot::None };
            if all.enter(ActionId(nth as u64), &sets[nth], needs, owner()) {
                running.push(ActionId(nth as u64));
            }
        }
        for pick in picks {
            running.extend(std::iter::from_fn(|| all.next()));
            let children = running.iter().filter(|id| actions[id.0 as usize].1).count();
            prop_assert!(children <= slots);
            let mut held: Vec<Lane> = running.iter().flat_map(|id| sets[id.0 as usize].to_vec()).collect();
            let all_held = held.len();
            held.sort_unstable();
            held.dedup();
            prop_assert_eq!(held.len(), all_held, "a lane is held twice");
            if running.is_empty() {
                break;
            }
            let id = running.remove(pick.index(running.len()));
            all.leave(id);
            ended.push(id);
        }
        prop_assert_eq!(ended.len(), actions.len());
    }

    /// Actions come, run, fail, pause and end at any time. The twin's rules never delay an action of the owner's by
    /// more than the bound, however many there are. No action of the owner's is passed over.
    #[test]
    fn rules_of_the_twin_hold_the_owners_up_for_no_longer_than_the_bound(
        arrivals in proptest::collection::vec(arrival(), 1..60),
        slots in 2usize..4,
    ) {
        let waits = simulated(&arrivals, slots);
        // While it waits, some action always runs or pauses. So the rest of the wait comes from the owner's actions.
        let owners: Duration = arrivals.iter().filter(|one| !one.of_twin).map(Arrival::longest).sum();
        for (nth, one) in arrivals.iter().enumerate().filter(|(_, one)| !one.of_twin) {
            let wait = waits[nth];
            prop_assert!(wait.is_some_and(|wait| wait <= TWIN_WAIT + owners), "{nth} {one:?} waited {wait:?}");
        }
    }
}

/// An action that comes.
#[derive(Debug, Clone)]
struct Arrival {
    /// The time since the arrival before it.
    gap: Duration,
    lanes: Arc<[Lane]>,
    of_twin: bool,
    child: bool,
    /// How long each attempt and each pause takes. The allowed time is up to `slack` longer.
    attempts: Vec<(Duration, Duration)>,
    slack: Duration,
}

impl Arrival {
    fn longest(&self) -> Duration {
        self.slack + self.attempts.iter().map(|(attempt, pause)| *attempt + *pause).sum::<Duration>()
    }
}

/// Lanes 0 to 2 are for all. Lane 3 is only for the twin's rules, which may take long there.
fn arrival() -> impl Strategy<Value = Arrival> {
    let lanes = proptest::collection::btree_set(0usize..4, 1..3);
    let attempts = proptest::collection::vec((0u64..12, 0u64..4), 1..4);
    (0u64..20, lanes, any::<bool>(), any::<bool>(), attempts, 0u64..30).prop_map(
        |(gap, mut lanes, of_twin, child, mut attempts, slack)| {
            if !of_twin {
                lanes.remove(&3);
                lanes.insert(0);
                // Most attempts take no time, so that all waiting comes from the twin's actions.
                attempts.iter_mut().for_each(|one| *one = (one.0 / 11, one.1 / 3));
            } else if lanes.iter().all(|lane| *lane == 3) {
                attempts.iter_mut().for_each(|one| *one = (one.0 * 100, one.1 * 100));
            }
            let seconds = |count: u64| Duration::from_secs(count);
            let attempts: Vec<_> = attempts.into_iter().map(|(a, b)| (seconds(a), seconds(b))).collect();
            let mut one = Arrival {
                gap: seconds(gap / 4),
                lanes: lanes.into_iter().collect(),
                of_twin,
                child,
                attempts,
                slack: if of_twin { seconds(slack) } else { Duration::ZERO },
            };
            // The configuration keeps an action within the bound if it may share a lane with the owner's.
            if of_twin && one.lanes.iter().any(|lane| *lane != 3) {
                one.slack = one.slack.saturating_sub(one.longest().saturating_sub(TWIN_WAIT));
            }
            one
        },
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrives,
    AttemptEnds,
    Rested,
}

/// How long each action waited for its turn and, between attempts, for its slot. None: it was late, and left.
fn simulated(arrivals: &[Arrival], slots: usize) -> Vec<Option<Duration>> {
    let (mut all, start) = (Lanes::new(4, slots), Instant::now());
    let mut events = std::collections::BTreeSet::new();
    let mut now = start;
    for (nth, one) in arrivals.iter().enumerate() {
        now += one.gap;
        events.insert((now, What::Arrives, nth));
    }
    let mut waits: Vec<Option<Duration>> = vec![Some(Duration::ZERO); arrivals.len()];
    let (mut since, mut attempt) = (vec![start; arrivals.len()], vec![0usize; arrivals.len()]);
    while let Some(now) = events.first().map(|(at, ..)| *at).into_iter().chain(all.wake()).min() {
        for id in all.late(now) {
            assert!(arrivals[id.0 as usize].of_twin);
            waits[id.0 as usize] = None;
            all.leave(id);
        }
        let mut begins = Vec::new();
        if let Some((at, what, nth)) = events.first().copied().filter(|(at, ..)| *at <= now) {
            events.remove(&(at, what, nth));
            let one = &arrivals[nth];
            let id = ActionId(nth as u64);
            match what {
                What::Arrives => {
                    since[nth] = now;
                    let whose = if one.of_twin { Whose::Twin(one.longest()) } else { Whose::Owner(now) };
                    let needs = match (one.child, one.of_twin) {
                        (false, _) => Slot::None,
                        (true, false) => Slot::Any,
                        (true, true) => Slot::Spare,
                    };
                    begins.extend(all.enter(id, &one.lanes, needs, whose).then_some(id));
                }
                What::AttemptEnds if attempt[nth] + 1 < one.attempts.len() => {
                    all.pause(id);
                    events.insert((now + one.attempts[attempt[nth]].1, What::Rested, nth));
                    attempt[nth] += 1;
                }
                What::AttemptEnds => all.leave(id),
                What::Rested => {
                    since[nth] = now;
                    begins.extend(all.resume(id).then_some(id));
                }
            }
        }
        begins.extend(std::iter::from_fn(|| all.next()));
        for id in begins {
            let nth = id.0 as usize;
            waits[nth] = waits[nth].map(|before| before + (now - since[nth]));
            events.insert((now + arrivals[nth].attempts[attempt[nth]].0, What::AttemptEnds, nth));
        }
    }
    assert!(all.members.is_empty(), "all have left");
    waits
}
