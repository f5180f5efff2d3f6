//! When to renew, whom to ask, and how often, against a paused clock.

use super::*;

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A certificate from 1000 to 2000 seconds.
fn facts(number: u8) -> CertificateFacts {
    CertificateFacts { fingerprint: [number; 32], not_before: time(1000), not_after: time(2000) }
}

fn in_use() -> Certificates {
    let mut certificates = Certificates::default();
    certificates.signed_in(Some(facts(1)), true);
    certificates
}

#[tokio::test(start_paused = true)]
async fn the_hub_is_asked_at_80_to_85_percent_of_the_life_and_again_after_a_pause() {
    let mut it = in_use();
    let look = |it: &mut Certificates, seconds| {
        it.look(Instant::now(), time(seconds), NextState::Asked, Issuer::Hub)
    };
    assert_eq!(look(&mut it, 1799), None);
    let ask = Some(CertificateWish::AskHub { replaces: false });
    assert_eq!(look(&mut it, 1851), ask);
    assert_eq!(look(&mut it, 1852), None, "an answer is awaited");
    it.failed(true);
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(look(&mut it, 1860), None, "a hundredth of the life is 10 s");
    tokio::time::advance(Duration::from_secs(12)).await;
    assert_eq!(look(&mut it, 1872), Some(CertificateWish::AskHub { replaces: true }));
    // Without any answer it is asked again, too.
    tokio::time::advance(Duration::from_secs(99)).await;
    assert_eq!(look(&mut it, 1900), None, "a tenth of the life is 100 s");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(look(&mut it, 1900), Some(CertificateWish::AskHub { replaces: true }));
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_refuses_three_times_leads_to_the_service_and_that_at_a_pace() {
    let mut it = in_use();
    let mut asked = Vec::new();
    for _second in 0..600 {
        match it.look(Instant::now(), time(1900), NextState::Asked, Issuer::Hub) {
            Some(CertificateWish::AskHub { .. }) => {
                asked.push('h');
                it.failed(false);
            }
            Some(CertificateWish::AskService) => asked.push('s'),
            other => assert_eq!(other, None),
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let asked = String::from_iter(asked);
    assert!(asked.starts_with("hhhshhhs") && (30..=60).contains(&asked.len()), "{asked}");
    let mut over_amqp = in_use();
    let wish = over_amqp.look(Instant::now(), time(1900), NextState::Asked, Issuer::Service);
    assert_eq!(wish, Some(CertificateWish::AskService));
    assert_eq!(in_use().look(Instant::now(), time(1900), NextState::Asked, Issuer::Unavailable), None);
    assert_eq!(in_use().look(Instant::now(), time(1900), NextState::Issued(facts(2)), Issuer::Hub), None);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_repeats_its_refusal_does_not_keep_the_device_from_asking_again() {
    let mut it = in_use();
    let mut asked = String::new();
    for _second in 0..300 {
        match it.look(Instant::now(), time(1900), NextState::Asked, Issuer::Hub) {
            Some(CertificateWish::AskHub { .. }) => asked.push('h'),
            Some(CertificateWish::AskService) => asked.push('s'),
            other => assert_eq!(other, None),
        }
        it.hub_failed(false);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(asked.starts_with("hhhs"), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_key_is_made_whenever_the_disk_may_have_room_again() {
    let mut it = in_use();
    let look = |it: &mut Certificates| it.look(Instant::now(), time(1100), NextState::Absent, Issuer::Hub);
    assert_eq!(look(&mut it), Some(CertificateWish::MakeKey { refused: None }));
    assert_eq!(look(&mut it), None);
    tokio::time::advance(Duration::from_secs(21)).await;
    assert_eq!(look(&mut it), Some(CertificateWish::MakeKey { refused: None }));
}

#[tokio::test(start_paused = true)]
async fn a_look_is_never_far_and_never_at_once_again() {
    let mut it = in_use();
    for seconds in [0, 1000, 1799, 1799, 1999, 5000] {
        for next in [NextState::Unwanted, NextState::Absent, NextState::Asked, NextState::Issued(facts(2))] {
            it.look(Instant::now(), time(seconds), next, Issuer::Unavailable);
            let wait = it.wake().expect("a look") - Instant::now();
            assert!(!wait.is_zero() && wait <= LOOK, "{wait:?} at {seconds}, {next:?}");
        }
    }
    let mut none = Certificates::default();
    none.configured(None, false);
    assert_eq!(none.look(Instant::now(), time(0), NextState::Unwanted, Issuer::Unavailable), None);
    assert_eq!(none.wake(), None, "nothing to look at");
}

#[tokio::test(start_paused = true)]
async fn the_end_is_told_once_a_day_from_20_percent_on() {
    let mut it = in_use();
    let warn = |it: &mut Certificates, seconds, is_issued| {
        it.warning(Instant::now(), time(seconds), is_issued).is_some()
    };
    assert!(!warn(&mut it, 1799, false));
    assert!(warn(&mut it, 1801, false) && !warn(&mut it, 1999, false));
    tokio::time::advance(DAY).await;
    assert!(warn(&mut it, 1999, false));
    it.signed_in(Some(facts(2)), true);
    assert!(!warn(&mut it, 1850, true), "its renewal is under way");
    it.failed(false);
    assert!(warn(&mut it, 1850, true), "and has failed once");
    it.signed_in(Some(facts(3)), true);
    assert!(warn(&mut it, 2000, true), "it is over");
}

#[tokio::test(start_paused = true)]
async fn a_half_written_pair_is_looked_at_again_soon_and_told_once() {
    let mut it = Certificates::default();
    it.configured(Some(facts(1)), true);
    tokio::time::advance(FILE_LOOK).await;
    let look =
        |it: &mut Certificates| it.look(Instant::now(), time(1100), NextState::Unwanted, Issuer::Unavailable);
    assert_eq!(look(&mut it), Some(CertificateWish::LookAtFiles));
    let (mut told, mut looks) = (0, 0);
    for _second in 0..600 {
        if look(&mut it).is_some() {
            (told, looks) = (told + u32::from(it.unfit(Instant::now())), looks + 1);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(told, 1);
    assert!((60..=70).contains(&looks), "each 2 s in the first minute, then each 15 s, not {looks}");
    it.fit(Some(facts(1)));
    assert!(!it.unfit(Instant::now()));
}

/// The letters of what is asked in `seconds`, with a clock that stays at `time`: of the hub, to replace another request
/// at the hub, of the service. `answered` is called after each question.
async fn asked(
    it: &mut Certificates,
    issuer: Issuer,
    (time, seconds): (SystemTime, u64),
    mut answered: impl FnMut(&mut Certificates),
) -> String {
    let mut letters = String::new();
    for _second in 0..seconds {
        let letter = match it.look(Instant::now(), time, NextState::Asked, issuer) {
            Some(CertificateWish::AskHub { replaces: false }) => 'h',
            Some(CertificateWish::AskHub { replaces: true }) => 'r',
            Some(CertificateWish::AskService) => 's',
            None => '.',
            other => panic!("{other:?}"),
        };
        if letter != '.' {
            letters.push(letter);
            answered(it);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    letters
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_does_not_answer_or_only_says_that_it_is_at_it_leads_to_the_service() {
    let silent = asked(&mut in_use(), Issuer::Hub, (time(1900), 500), |_| ()).await;
    assert!(silent.starts_with("hrrsh"), "{silent}");
    let mut it = in_use();
    let accepting = asked(&mut it, Issuer::Hub, (time(1900), 500), Certificates::accepted).await;
    assert!(accepting.starts_with("hrrs"), "{accepting}");
    let mut it = in_use();
    let ask = |it: &mut Certificates| it.look(Instant::now(), time(1900), NextState::Asked, Issuer::Hub);
    assert_eq!(ask(&mut it), Some(CertificateWish::AskHub { replaces: false }));
    for _second in 0..150 {
        tokio::time::advance(Duration::from_secs(1)).await;
        it.accepted();
    }
    assert_eq!(ask(&mut it), Some(CertificateWish::AskHub { replaces: true }), "it does not wait for ever");
}

#[tokio::test(start_paused = true)]
async fn a_long_certificate_is_asked_for_at_the_pace_of_its_life_without_an_answer() {
    let day = Duration::from_secs(24 * 60 * 60);
    let facts = CertificateFacts { fingerprint: [9; 32], not_before: time(0), not_after: time(0) + 90 * day };
    let mut it = Certificates::default();
    it.signed_in(Some(facts), true);
    let asked = asked(&mut it, Issuer::Hub, (time(0) + 85 * day, 24 * 60 * 60), |_| ()).await;
    assert!((10..=25).contains(&asked.len()) && asked.contains('s'), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_leads_to_renewals_with_pauses() {
    let (mut it, mut number) = (in_use(), 1);
    let asked = asked(&mut it, Issuer::Hub, (time(1900), 600), |it| {
        number += 1;
        it.signed_in(Some(facts(number)), true);
    });
    let asked = asked.await;
    assert!((25..=60).contains(&asked.len()), "a pause of 10 to 20 s, not {} questions", asked.len());
}

#[tokio::test(start_paused = true)]
async fn what_the_disk_refuses_is_tried_again_until_it_works() {
    let mut it = in_use();
    let look = |it: &mut Certificates, next| it.look(Instant::now(), time(1100), next, Issuer::Hub);
    let next = NextState::Issued(facts(2));
    assert_eq!(look(&mut it, next), None, "no sign-in with it has worked yet");
    it.signed_in(Some(facts(2)), true);
    for _failure in 0..3 {
        assert_eq!(look(&mut it, next), Some(CertificateWish::TakeUp));
        assert_eq!(look(&mut it, next), None);
        assert!(it.wake().expect("a look") <= Instant::now() + Duration::from_secs(20));
        tokio::time::advance(Duration::from_secs(21)).await;
    }
    assert_eq!(look(&mut it, NextState::Asked), None);

    it.refused(facts(3));
    for _failure in 0..3 {
        let refused = Some(CertificateWish::MakeKey { refused: Some(facts(3)) });
        assert_eq!(look(&mut it, NextState::Issued(facts(3))), refused);
        assert_eq!(look(&mut it, NextState::Issued(facts(3))), None);
        tokio::time::advance(Duration::from_secs(21)).await;
    }
    assert_eq!(look(&mut it, NextState::Issued(facts(4))), None, "that is another one");
}

#[tokio::test(start_paused = true)]
async fn a_pair_counts_as_refused_only_when_the_earlier_one_signs_in() {
    let mut it = in_use();
    let look =
        |it: &mut Certificates| it.look(Instant::now(), time(1100), NextState::Issued(facts(2)), Issuer::Hub);
    it.suspect(facts(2));
    assert_eq!(look(&mut it), None, "it may be the network");
    it.signed_in(Some(facts(2)), true);
    assert_eq!(look(&mut it), Some(CertificateWish::TakeUp), "it was");
    let mut it = in_use();
    it.suspect(facts(2));
    it.signed_in(Some(facts(1)), true);
    let another_key = Some(CertificateWish::MakeKey { refused: Some(facts(2)) });
    assert_eq!(look(&mut it), another_key);
    // If the hub refuses both, the service is asked, and could issue none for the key of a pair that is there.
    let mut it = in_use();
    it.suspect(facts(2));
    it.registered();
    assert_eq!(look(&mut it), another_key);
}

#[tokio::test(start_paused = true)]
async fn a_device_without_a_first_certificate_asks_for_one_a_few_times_a_day() {
    let mut it = Certificates::default();
    it.configured(None, false);
    let day = 24 * 60 * 60;
    let asked = asked(&mut it, Issuer::First, (time(1900), day), |_| ()).await;
    assert!((1..=3).contains(&asked.len()) && asked.starts_with('s'), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_brings_nothing_is_told() {
    let mut it = in_use();
    let warned = |it: &mut Certificates| it.warning(Instant::now(), time(1900), true).is_some();
    assert_eq!(asked(&mut it, Issuer::Service, (time(1900), 1), |_| ()).await, "s");
    assert!(!warned(&mut it), "the answer may come yet");
    asked(&mut it, Issuer::Service, (time(1900), 30), |_| ()).await;
    assert!(warned(&mut it));
}
