//! The sign-in of the doctor: in and out, with nothing in between.

use super::super::probe;
use super::*;

#[tokio::test]
async fn a_probe_begins_a_clean_session_subscribes_to_nothing_and_says_goodbye() {
    let broker = Broker::start().await;
    let hub = async {
        let mut peer = broker.accept().await;
        assert!(peer.read_connect().await.clean_session, "what waits for another session is not sent");
        peer.send_connack(0).await;
        assert_eq!(peer.read().await, (0xE0, Vec::new()), "DISCONNECT");
    };
    let (result, ()) = tokio::join!(probe::probe(settings(&broker), DEADLINE), hub);
    result.expect("signed in");
}

#[tokio::test]
async fn a_probe_of_a_hub_that_does_not_answer_ends_in_time() {
    let broker = Broker::start().await;
    let (result, _peer) =
        tokio::join!(probe::probe(settings(&broker), Duration::from_millis(300)), broker.accept());
    let sentence = result.expect_err("no answer").to_string();
    assert!(sentence.contains("did not answer within 0 s"), "{sentence}");
}
