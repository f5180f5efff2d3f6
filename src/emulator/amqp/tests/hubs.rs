//! Which of several hubs a connection is for. Both have the same keys and the same device.

use super::readers::put_token;
use super::*;

struct Two {
    main: SharedHub,
    other: SharedHub,
}

impl Two {
    fn new() -> Self {
        Self { main: hub(), other: hub_at("b.test") }
    }

    async fn open(&self, host: Option<&str>, profile: SaslProfile) -> Client {
        let hubs = Hubs::of(&self.main, std::slice::from_ref(&self.other));
        Client::open_at(hubs, host, Some(profile)).await.expect("opened")
    }

    /// How many messages wait for the device at each hub.
    fn waiting(&self) -> [usize; 2] {
        [&self.main, &self.other].map(|hub| hub.with(|hub, _| hub.queued("dev1").count()))
    }
}

fn token_at(resource: &str) -> String {
    SasToken::sign(&key(10), resource, Some("service"), now() + HOUR).expose().to_owned()
}

/// Puts tokens to `$cbs`, and returns the status of each.
async fn put(client: &mut Client, tokens: &[String]) -> Vec<SimpleValue> {
    let mut requests = client.sender("$cbs").await.expect("a link");
    let mut replies = client.receiver("$cbs").await.expect("a link");
    let mut statuses = Vec::new();
    for token in tokens {
        requests.send(put_token(token.clone())).await.expect("an outcome");
        let delivery = replies.recv::<AmqpValue<Value>>().await.expect("a reply");
        replies.accept(&delivery).await.expect("settled");
        let application = delivery.into_message().application_properties.expect("properties").0;
        statuses.push(application.get("status-code").cloned().expect("a code"));
    }
    statuses
}

async fn send(client: &mut Client) {
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let outcome = sender.send(c2d("m-1".to_owned())).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

#[tokio::test]
async fn the_host_of_open_decides_and_a_token_for_another_hub_is_refused() {
    let two = Two::new();
    let tokens = [token_at("hub.local.test"), token_at("b.test")];
    let (good, bad) = (SimpleValue::Int(200), SimpleValue::Int(401));
    let mut client = two.open(Some("B.Service.test"), SaslProfile::Anonymous).await;
    assert_eq!(put(&mut client, &tokens).await, [bad.clone(), good.clone()]);
    send(&mut client).await;
    assert_eq!(two.waiting(), [0, 1]);
    let mut client = two.open(Some("hub.local.test"), SaslProfile::Anonymous).await;
    assert_eq!(put(&mut client, &tokens).await, [good, bad]);
    send(&mut client).await;
    assert_eq!(two.waiting(), [1, 1]);
}

#[tokio::test]
async fn behind_another_name_the_first_token_decides() {
    let two = Two::new();
    for host in [Some("gateway.test"), Some("127.0.0.1"), None] {
        let mut client = two.open(host, SaslProfile::Anonymous).await;
        let tokens = [token_at("b.test"), token_at("hub.local.test")];
        assert_eq!(put(&mut client, &tokens).await, [SimpleValue::Int(200), SimpleValue::Int(401)]);
        send(&mut client).await;
        // A reader of D2C messages writes a whole address.
        let mut client = two.open(host, SaslProfile::Anonymous).await;
        let reader = token_at("sb://b.test/iothub-ehub-b/ConsumerGroups/$Default/Partitions/0");
        assert_eq!(put(&mut client, &[reader]).await, [SimpleValue::Int(200)]);
    }
    assert_eq!(two.waiting(), [0, 3]);
}

#[tokio::test]
async fn the_token_of_sasl_plain_decides_because_it_comes_before_open() {
    let two = Two::new();
    let plain = |resource| SaslProfile::Plain {
        username: "service@sas.root.b".to_owned(),
        password: token_at(resource),
    };
    send(&mut two.open(Some("127.0.0.1"), plain("b.test")).await).await;
    assert_eq!(two.waiting(), [0, 1]);
    send(&mut two.open(None, plain("hub.local.test")).await).await;
    assert_eq!(two.waiting(), [1, 1]);
    let own = SasToken::sign(&key(30), "b.test/devices/dev1", None, now() + HOUR).expose().to_owned();
    let device = SaslProfile::Plain { username: "dev1@sas.b".to_owned(), password: own };
    let mut client = two.open(None, device).await;
    let _link = client.receiver("/devices/dev1/messages/devicebound").await.expect("a link");
    let connected = [&two.main, &two.other].map(|hub| hub.with(|hub, _| hub.is_connected("dev1")));
    assert_eq!(connected, [false, true]);
}

#[tokio::test]
async fn without_a_token_the_address_of_the_first_link_decides() {
    let two = Two::new();
    let credential = DeviceCredential::Keys(pair(30));
    two.other.with(|hub, _| hub.add_device(Device { id: "only-b".to_owned(), credential }));
    for (address, words) in [
        ("amqps://b.test/devices/only-b/messages/devicebound", "not signed in"),
        ("amqps://hub.local.test/devices/only-b/messages/devicebound", "the hub has no device"),
        ("/devices/only-b/messages/devicebound", "the hub has no device"),
    ] {
        let mut client = two.open(Some("gateway.test"), SaslProfile::Anonymous).await;
        let refused = client.receiver(address).await.expect_err("refused");
        assert!(format!("{refused:?}").contains(words), "{address}: {refused:?}");
    }
}
