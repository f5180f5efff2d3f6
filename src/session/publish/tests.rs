//! What is in flight, alone: places, answers, time limits.

use bytes::Bytes;

use super::*;
use crate::message::Properties;

/// What is in flight on an open connection, and the session's end of it.
fn in_flight(twin: bool) -> (Arc<InFlight>, Arc<Publisher>) {
    let publisher = Arc::new(Publisher::default());
    let in_flight = Arc::new(InFlight::new(Box::new(|_, _| Ok(())), Arc::clone(&publisher)));
    publisher.use_connection(&in_flight);
    in_flight.open(twin);
    (in_flight, publisher)
}

fn telemetry() -> Upstream {
    Upstream::Telemetry { properties: Properties::default(), body: Bytes::new() }
}

fn patch() -> Upstream {
    Upstream::Reported { patch: Bytes::from_static(b"{}") }
}

/// All results since the last call.
fn told(publisher: &Publisher) -> Vec<PublishResult> {
    lock(&publisher.told).drain(..).collect()
}

fn answer(request: u64, status: u16) -> TwinAnswer {
    TwinAnswer { request, status }
}

#[tokio::test]
async fn a_d2c_message_is_done_at_its_puback_and_only_then() {
    let (in_flight, publisher) = in_flight(false);
    publisher.publish(7, telemetry());
    publisher.publish(8, telemetry());
    in_flight.sent(1);
    in_flight.sent(2);
    in_flight.acknowledged(2);
    assert_eq!(told(&publisher), [(8, Ok(Bytes::new()))]);
    in_flight.acknowledged(99);
    assert!(told(&publisher).is_empty());
    in_flight.acknowledged(1);
    assert_eq!(told(&publisher), [(7, Ok(Bytes::new()))]);
}

#[tokio::test]
async fn a_patch_is_done_at_its_answer_whether_the_puback_comes_before_or_after() {
    let (in_flight, publisher) = in_flight(true);
    for ticket in 1..=4 {
        publisher.publish(ticket, patch());
        in_flight.sent(u16::try_from(ticket).expect("small"));
    }
    in_flight.acknowledged(1);
    assert!(told(&publisher).is_empty(), "a PUBACK is no answer");
    for (request, status) in [(1, 204), (2, 429), (3, 503), (4, 400)] {
        assert!(in_flight.answered(answer(request, status), Bytes::new()));
    }
    let results = [
        Ok(Bytes::new()),
        Err(PublishError::Busy(429)),
        Err(PublishError::Busy(503)),
        Err(PublishError::Refused(400)),
    ];
    assert_eq!(told(&publisher), (1..=4).zip(results).collect::<Vec<_>>());
    assert!(!in_flight.answered(answer(2, 204), Bytes::new()), "answered already");
    assert_eq!(lock(&in_flight.state).entries.len(), 3, "places are held until the PUBACK");
    for id in 2..=4 {
        in_flight.acknowledged(id);
    }
    assert!(lock(&in_flight.state).entries.is_empty());
    assert!(told(&publisher).is_empty());
}

#[tokio::test]
async fn the_ninth_is_lost_at_once_until_a_puback_makes_room() {
    let (in_flight, publisher) = in_flight(false);
    for ticket in 1..=9 {
        publisher.publish(ticket, telemetry());
    }
    assert_eq!(told(&publisher), [(9, Err(PublishError::Lost))]);
    in_flight.sent(1);
    in_flight.acknowledged(1);
    publisher.publish(10, telemetry());
    assert_eq!(told(&publisher), [(1, Ok(Bytes::new()))]);
}

#[tokio::test]
async fn without_a_connection_everything_is_lost_and_each_is_told_of_once() {
    let publisher = Publisher::default();
    publisher.publish(1, telemetry());
    assert_eq!(told(&publisher), [(1, Err(PublishError::Lost))]);

    let (in_flight, publisher) = in_flight(true);
    publisher.publish(1, telemetry());
    publisher.publish(2, patch());
    in_flight.sent(1);
    in_flight.sent(2);
    assert!(in_flight.answered(answer(1, 204), Bytes::new()));
    in_flight.close();
    in_flight.close();
    in_flight.acknowledged(1);
    publisher.publish(3, telemetry());
    let lost = Err(PublishError::Lost);
    assert_eq!(told(&publisher), [(2, Ok(Bytes::new())), (1, lost.clone()), (3, lost)]);
    assert_eq!(in_flight.lost(), 1);
    in_flight.open(true);
    publisher.publish(4, telemetry());
    assert_eq!(told(&publisher), [(4, Err(PublishError::Lost))], "what is gone does not come back");
}

#[tokio::test]
async fn a_shut_in_flight_takes_nothing_new_and_hears_what_is_under_way() {
    let (in_flight, publisher) = in_flight(false);
    publisher.publish(1, telemetry());
    in_flight.sent(1);
    in_flight.shut();
    publisher.publish(2, telemetry());
    in_flight.acknowledged(1);
    assert_eq!(told(&publisher), [(2, Err(PublishError::Lost)), (1, Ok(Bytes::new()))]);
}

#[tokio::test]
async fn a_patch_without_a_twin_is_refused() {
    let (_in_flight, publisher) = in_flight(false);
    publisher.publish(1, patch());
    assert_eq!(told(&publisher), [(1, Err(PublishError::Refused(NO_TWIN)))]);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_it_is_lost_after_half_a_minute_and_its_place_stays_taken() {
    let (in_flight, publisher) = in_flight(true);
    let began = Instant::now();
    publisher.publish(1, telemetry());
    publisher.publish(2, patch());
    in_flight.sent(1);
    in_flight.sent(2);
    in_flight.acknowledged(2);
    let overdue = tokio::time::timeout(Duration::from_secs(31), in_flight.overdue());
    assert!(overdue.await.is_err(), "the connection goes on");
    assert_eq!(told(&publisher), [(1, Err(PublishError::Lost)), (2, Err(PublishError::Lost))]);
    assert_eq!(lock(&in_flight.state).entries.len(), 1, "only the PUBACK of the first is missing");
    assert!(!in_flight.answered(answer(1, 204), Bytes::new()), "too late");
    in_flight.overdue().await;
    assert_eq!(began.elapsed().as_secs(), UNACKNOWLEDGED_LIMIT.as_secs(), "then the connection is of no use");
    in_flight.close();
    assert!(told(&publisher).is_empty(), "each is told of once");
}

#[tokio::test(start_paused = true)]
async fn no_time_passes_while_nothing_is_read() {
    let (in_flight, publisher) = in_flight(false);
    publisher.publish(1, telemetry());
    in_flight.hold();
    let minutes = tokio::time::timeout(Duration::from_secs(600), in_flight.overdue());
    assert!(minutes.await.is_err());
    assert!(told(&publisher).is_empty());
    in_flight.go_on();
    assert!(tokio::time::timeout(Duration::from_secs(29), in_flight.overdue()).await.is_err());
    assert!(told(&publisher).is_empty(), "it has its full time again");
    assert!(tokio::time::timeout(Duration::from_secs(2), in_flight.overdue()).await.is_err());
    assert_eq!(told(&publisher), [(1, Err(PublishError::Lost))]);
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_noticed_by_whoever_waits_for_deadlines_already() {
    let (in_flight, publisher) = in_flight(false);
    let waiting = tokio::time::timeout(Duration::from_secs(40), in_flight.overdue());
    let publishing = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        publisher.publish(1, telemetry());
        publisher.next().await
    };
    let (_elapsed, told) = tokio::join!(waiting, publishing);
    assert_eq!(told, (1, Err(PublishError::Lost)));
}
