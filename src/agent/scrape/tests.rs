//! The endpoint opens, closes and moves, at good and bad addresses. The clock jumps to the next thing to do.
#![cfg(feature = "full")]

use std::net::{SocketAddr, TcpListener, TcpStream};

use tokio::time::timeout;

use super::*;

fn at(listen: SocketAddr) -> MetricsSettings {
    MetricsSettings { listen }
}

fn any_port() -> MetricsSettings {
    at("127.0.0.1:0".parse().expect("an address"))
}

/// Serves for a while in which no scraper connects.
async fn serve(scraper: &mut Scraper, time: Duration) {
    assert!(timeout(time, scraper.next()).await.is_err(), "nobody asked");
}

fn address(scraper: &Scraper) -> Option<SocketAddr> {
    scraper.endpoint.as_ref().map(Endpoint::address)
}

fn listens(at: SocketAddr) -> bool {
    TcpStream::connect(at).is_ok()
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_taken_is_tried_again_until_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = taken.local_addr().expect("an address");
    let mut scraper = Scraper::new(Some(&at(listen)));
    serve(&mut scraper, RETRY * 3).await;
    assert_eq!(address(&scraper), None);
    drop(taken);
    serve(&mut scraper, RETRY + Duration::from_secs(1)).await;
    assert_eq!(address(&scraper), Some(listen));
    assert!(listens(listen));
}

#[tokio::test(start_paused = true)]
async fn another_configuration_moves_the_endpoint_or_ends_it_and_counts_stay() {
    let mut scraper = Scraper::new(None);
    serve(&mut scraper, RETRY).await;
    assert_eq!(address(&scraper), None);
    scraper.tally.ended(Some("pump"), "succeeded");

    scraper.change(Some(&any_port()));
    serve(&mut scraper, RETRY).await;
    let first = address(&scraper).expect("it listens");
    scraper.change(Some(&any_port()));
    serve(&mut scraper, RETRY).await;
    assert_eq!(address(&scraper), Some(first), "nothing has changed");

    // The port is the same, so it is free only after the endpoint that has it is closed.
    scraper.change(None);
    scraper.change(Some(&at(first)));
    serve(&mut scraper, Duration::from_secs(1)).await;
    assert_eq!(address(&scraper), Some(first));
    assert!(listens(first));

    scraper.change(None);
    serve(&mut scraper, RETRY).await;
    assert_eq!(address(&scraper), None);
    assert!(!listens(first));
    let Figures::Counter(counts) = scraper.tally.messages() else { panic!("counts") };
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 1);
}
