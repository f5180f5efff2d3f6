//! What a moved clock does to connections over AMQP.

use super::*;
use crate::emulator::clock::ClockSetting;

fn advance(hub: &SharedHub, by: Duration) {
    hub.move_clock(ClockSetting::Advance(by)).expect("in bounds");
}

#[tokio::test]
async fn a_token_that_has_expired_by_the_moved_clock_ends_the_session_and_a_new_one_is_taken() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    advance(&hub, HOUR - Duration::from_secs(1));
    let outcome = sender.send(c2d("m-1".to_owned())).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    advance(&hub, Duration::from_secs(1));
    let ended = client.session.on_end().await.expect_err("ended by the hub");
    let fe2o3_amqp::session::Error::RemoteEndedWithError(error) = ended else { panic!("{ended:?}") };
    assert_eq!(condition(&error), "amqp:unauthorized-access");

    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let outcome = sender.send(c2d("m-2".to_owned())).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_feedback_batch_comes_again_when_its_minute_is_over_by_the_moved_clock() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let mut receiver = client.receiver("/messages/servicebound/feedback").await.expect("a link");
    sender.send(c2d("m-1".to_owned())).await.expect("accepted");
    take(&hub);
    let first = receiver.recv::<Body<Value>>().await.expect("a batch");
    // It is not settled.
    advance(&hub, Duration::from_secs(60));
    let again = receiver.recv::<Body<Value>>().await.expect("the batch again");
    assert_eq!(format!("{:?}", again.body()), format!("{:?}", first.body()));
    receiver.accept(&again).await.expect("accepted");
    receiver.close().await.expect("closed");
    assert!(hub.with(|hub, now| hub.next_feedback_batch(now)).is_none());
}
