//! Values that nest so deep that the AMQP crate would overflow the stack, on every link of the agent and of the back end.
//!
//! Must not know: how such values are found.
//! If the hub itself makes such a value, the connection ends. If a sender could have put it into a message, the message
//! is settled and the connection goes on.

use std::sync::mpsc::{SyncSender, sync_channel};

use crate::amqp_conditions::spawn_with;
use crate::frames::{
    ACCEPTED, AMQP_VALUE, APPLICATION_PROPERTIES, ATTACH, DATA, DELIVERY_ANNOTATIONS, DETACH, DISPOSITION,
    ERROR, FLOW, FOOTER, Frame, MESSAGE_ANNOTATIONS, PROPERTIES, REJECTED, TRANSFER, Value, message,
};
use crate::harness::{Agent, DEADLINE, binary, run, wait_for_file};
use crate::service_peer::{ServicePeer, Session};

mod back_end;

const CLOSE: u64 = 0x18;
const END: u64 = 0x17;
/// Links of the agent: one for messages, one for its reports, two for the twin, two for methods.
const LINKS: usize = 6;
const MESSAGES: usize = 0;
const TWIN: usize = 3;
const METHODS: usize = 5;

const TOO_DEEP: &str = "its values nest more than 16 deep";
const FRAME_TOO_DEEP: &str = "the hub sent a frame that cannot be read: its values nest more than 16 deep";
const PUMP: &str = "[report]\noutcomes = \"twin\"\n\
    [gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 17\ninitial = \"off\"\n\
    [[rule]]\nname = \"pump\"\nwhen = { action = \"pump\" }\ndo = [ { gpio = \"pump\", set = \"on\" } ]\n";

/// Descriptors of descriptors: 13,000 values in 39 KB.
fn deep() -> Value {
    Value::Raw([b"\x00\x53\x01".repeat(13_000), vec![0x40]].concat())
}

/// Lists in lists in a map, under a name.
fn deep_map(name: Value) -> Value {
    let lists = (0..4_000).fold(vec![0x40], |inside, _| {
        let size = u32::try_from(inside.len() + 4).expect("short").to_be_bytes();
        [&[0xd0][..], &size, &[0, 0, 0, 1], &inside].concat()
    });
    Value::Map(vec![(name, Value::Raw(lists))])
}

fn deep_fields() -> Value {
    deep_map(Value::symbol("x"))
}

/// An error whose information nests.
fn deep_error() -> Value {
    let fields = vec![Value::symbol("amqp:internal-error"), Value::text("words"), deep_fields()];
    Value::composite(ERROR, fields)
}

/// A message that turns the pump on.
fn good(id: &str) -> Vec<u8> {
    let action = Value::Map(vec![(Value::text("action"), Value::text("pump"))]);
    let properties = Value::List(vec![Value::text(id)]);
    message(&[
        (PROPERTIES, properties),
        (APPLICATION_PROPERTIES, action),
        (DATA, Value::Binary(b"x".to_vec())),
    ])
}

/// Attaches links until there are `count`.
fn links(session: &mut Session, count: usize) -> Vec<Frame> {
    let mut links = Vec::new();
    while links.len() < count {
        let frame = session.0.next();
        if frame.kind == ATTACH {
            session.attach(&frame);
            links.push(frame);
        }
    }
    links
}

/// Opens a connection without SASL, as for a device, and attaches its links.
fn device(session: &mut Session) -> Vec<Frame> {
    session.open(Vec::new());
    session.begin(Vec::new());
    let links = links(session, LINKS);
    session.wait_for_credit();
    links
}

/// More values than any peer here reports.
const MOST_TOLD: usize = 64;

/// Sends a message that turns the pump on, and stays until the agent has gone.
fn pump_on(session: &mut Session, links: &[Frame], delivery: u32, told: &SyncSender<Value>) {
    session.deliver_parts(&links[MESSAGES], delivery, &[&good("good")]);
    told.send(session.decision(delivery)).expect("the test waits");
    while session.0.try_next().is_some() {}
}

/// The agent with a pin; the test reads its inbox.
fn agent(peer: &ServicePeer, dir: &std::path::Path) -> Agent {
    spawn_with(peer.address.port(), &peer.ca_file, dir, PUMP)
}

fn pump_is_on(agent: &Agent) {
    wait_for_file(&agent.dir.join("pins.json"), "\"pump\":\"on\"");
    assert!(agent.process.is_running());
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_message_that_nests_too_deep_is_settled_as_undecodable_and_later_ones_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let body = (AMQP_VALUE, deep());
    let whole = message(std::slice::from_ref(&body));
    let after_data = [(DATA, Value::Binary(vec![0; 30_000])), (FOOTER, deep_fields())];
    let list = Value::List(vec![Value::text("id"), Value::Null, deep()]);
    // The deep value is also split into frames, each of which is harmless by itself.
    let parts: Vec<_> = whole.chunks(60).collect();
    let messages: Vec<Vec<&[u8]>> = vec![vec![&whole], parts];
    let sections = [
        vec![(DELIVERY_ANNOTATIONS, deep_fields())],
        vec![(MESSAGE_ANNOTATIONS, deep_fields())],
        vec![(PROPERTIES, list)],
        vec![(APPLICATION_PROPERTIES, deep_map(Value::text("action")))],
        after_data.to_vec(),
    ]
    .map(|sections| message(&sections));
    let messages: Vec<Vec<Vec<u8>>> = messages
        .into_iter()
        .map(|parts| parts.into_iter().map(<[u8]>::to_vec).collect())
        .chain(sections.map(|message| message.chunks(50_000).map(<[u8]>::to_vec).collect()))
        .collect();
    let count = messages.len();
    let peer = ServicePeer::before_sign_in(dir.path(), move |_, session| {
        let links = device(session);
        for (delivery, parts) in messages.iter().enumerate() {
            let delivery = u32::try_from(delivery).expect("few");
            let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
            session.deliver_parts(&links[MESSAGES], delivery, &parts);
            told.send(session.decision(delivery)).expect("the test waits");
        }
        pump_on(session, &links, u32::try_from(count).expect("few"), &told);
    });
    let agent = agent(&peer, dir.path());
    let settled = |kind| Value::composite(kind, Vec::new());
    for _ in 0..count {
        let decision = decisions.recv_timeout(DEADLINE).expect("settled");
        assert!(matches!(decision, Value::Described(REJECTED, _)), "{decision:?}");
    }
    assert_eq!(decisions.recv_timeout(DEADLINE), Ok(settled(ACCEPTED)));
    let said = format!("the message cannot be read: {TOO_DEEP}");
    agent.process.stderr.wait_for_nth(&said, count);
    assert_eq!(agent.process.stderr.count(&said), count, "{}", agent.process.stderr.text());
    assert_eq!(agent.process.stderr.count("signed in over AMQP"), 1, "one connection");
    pump_is_on(&agent);
    let list = run(binary().args(["inbox", "list", "--json", "-c"]).arg(dir.path().join("config.toml")));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(list.matches("\"outcome\":\"undecodable\"").count(), count, "{list}");
}

#[test]
fn a_message_larger_than_any_of_a_hub_is_settled_as_undecodable_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let large = message(&[(DATA, Value::Binary(vec![b'x'; 300_000]))]);
    let peer = ServicePeer::before_sign_in(dir.path(), move |_, session| {
        let links = device(session);
        session.deliver_parts(&links[MESSAGES], 0, &large.chunks(60_000).collect::<Vec<_>>());
        told.send(session.decision(0)).expect("the test waits");
        pump_on(session, &links, 1, &told);
    });
    let agent = agent(&peer, dir.path());
    let decision = decisions.recv_timeout(DEADLINE).expect("settled");
    assert!(matches!(decision, Value::Described(REJECTED, _)), "{decision:?}");
    agent.process.stderr.wait_for("the message cannot be read: it has more than 262144 bytes");
    assert_eq!(decisions.recv_timeout(DEADLINE), Ok(Value::composite(ACCEPTED, Vec::new())));
    pump_is_on(&agent);
}

#[test]
fn what_nests_too_deep_on_the_links_of_the_twin_and_of_methods_is_passed_over_and_calls_are_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let (answered, answers) = sync_channel(MOST_TOLD);
    let peer = ServicePeer::before_sign_in(dir.path(), move |_, session| {
        let links = device(session);
        let deep = message(&[(AMQP_VALUE, deep())]);
        for (delivery, link) in [(0, TWIN), (1, METHODS)] {
            session.deliver_parts(&links[link], delivery, &[&deep]);
            told.send(session.decision(delivery)).expect("the test waits");
        }
        let id = [vec![Value::Null; 5], vec![Value::text("call-1")]].concat();
        let name = Value::Map(vec![(Value::text("IoThub-methodname"), Value::text("pump"))]);
        let call = [
            (PROPERTIES, Value::List(id)),
            (APPLICATION_PROPERTIES, name),
            (DATA, Value::Binary(b"{}".to_vec())),
        ];
        session.deliver_parts(&links[METHODS], 2, &[&message(&call)]);
        let answer = loop {
            let frame = session.0.next();
            // The answer comes on the link of methods, not on the twin's.
            if frame.kind == TRANSFER && frame.field(0) == links[METHODS - 1].field(1) {
                break frame;
            }
        };
        answered.send(answer).expect("the test waits");
        pump_on(session, &links, 3, &told);
    });
    let agent = agent(&peer, dir.path());
    for _ in 0..2 {
        let accepted = Ok(Value::composite(ACCEPTED, Vec::new()));
        assert_eq!(decisions.recv_timeout(DEADLINE), accepted);
    }
    let answer = answers.recv_timeout(DEADLINE).expect("an answer");
    let id = answer.section(PROPERTIES);
    assert_eq!(id.fields().get(5), Some(&Value::text("call-1")), "{id:?}");
    for part in ["ignored a message on the link of the twin", "ignored a method call"] {
        let line = agent.process.stderr.wait_for(part);
        assert!(line.contains(TOO_DEEP), "{line}");
    }
    assert!(decisions.recv_timeout(DEADLINE).is_ok());
    pump_is_on(&agent);
}

#[test]
fn a_reply_to_a_token_that_nests_too_deep_is_passed_over_and_the_next_one_signs_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let peer = ServicePeer::before_sign_in(dir.path(), move |_, session| {
        session.open(Vec::new());
        session.begin(Vec::new());
        let cbs = links(session, 2);
        let token = session.message();
        session.accept(&token);
        session.deliver_parts(
            &cbs[1],
            0,
            &[&message(&[(APPLICATION_PROPERTIES, deep_map(Value::text("status-code")))])],
        );
        let id = token.section(PROPERTIES).fields()[0].clone();
        let properties = Value::List([vec![Value::Null; 5], vec![id]].concat());
        let status = Value::Map(vec![(Value::text("status-code"), Value::Int(200))]);
        let reply = [(PROPERTIES, properties), (APPLICATION_PROPERTIES, status), (AMQP_VALUE, Value::Null)];
        session.deliver_parts(&cbs[1], 1, &[&message(&reply)]);
        let links = links(session, LINKS);
        pump_on(session, &links, 2, &told);
    });
    let port = peer.address.port();
    let string = format!("HostName=localhost:{port};DeviceId=pi-01;SharedAccessKey=AAAA");
    let config = format!("[device]\ntransport = \"amqp\"\n{PUMP}");
    let agent = Agent::spawn(&string, &peer.ca_file, dir.path(), &config);
    assert_eq!(decisions.recv_timeout(DEADLINE), Ok(Value::composite(ACCEPTED, Vec::new())));
    let line = agent.process.stderr.wait_for("ignored a reply to a token");
    assert!(line.contains(TOO_DEEP), "{line}");
    pump_is_on(&agent);
}

/// Where a performative nests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Open,
    Begin,
    Attach,
    Filter,
    Flow,
    Transfer,
    Disposition,
    /// A disposition that does not nest, but covers every possible delivery: the crate would look for each of them.
    Decisions,
    Detach,
    End,
    Close,
}

const EVERYWHERE: &[At] = &[
    At::Open,
    At::Begin,
    At::Attach,
    At::Filter,
    At::Flow,
    At::Transfer,
    At::Disposition,
    At::Decisions,
    At::Detach,
    At::End,
    At::Close,
];

fn sentence(at: At) -> &'static str {
    match at {
        At::Decisions => "the hub sent a decision on more than 5000 messages",
        _ => FRAME_TOO_DEEP,
    }
}

/// Opens a connection and attaches a link, up to the first performative that nests.
fn first_link(session: &mut Session, at: At) -> Option<Frame> {
    if at == At::Open {
        // Only short frames may come before the end of Open.
        let short = Value::Raw([b"\x00\x53\x01".repeat(100), vec![0x40]].concat());
        session.open([vec![Value::Null; 8], vec![short]].concat());
        return None;
    }
    session.open(Vec::new());
    if at == At::Begin {
        session.begin([vec![Value::Null; 3], vec![deep_fields()]].concat());
        return None;
    }
    session.begin(Vec::new());
    let link = session.asked_for_link();
    match at {
        At::Attach => {
            let head = vec![link.field(0).clone(), link.field(1).clone(), Value::Bool(false)];
            session.0.send(0, ATTACH, [head, vec![Value::Null; 10], vec![deep_fields()]].concat(), &[]);
            None
        }
        At::Filter => {
            let source = Value::composite(
                0x28,
                [vec![Value::text("a")], vec![Value::Null; 6], vec![deep_fields()]].concat(),
            );
            session.answer_attach(&link, source, link.field(6).clone());
            None
        }
        _ => {
            session.attach(&link);
            Some(link)
        }
    }
}

/// Sends a performative that nests at one place, and waits for the end of the connection.
fn play(session: &mut Session, at: At, link: &Frame) {
    let handle = || link.field(1).clone();
    let window = || Value::Uint(1_000);
    let (kind, fields) = match at {
        At::Flow => {
            let numbers = vec![Value::Uint(0), window(), Value::Uint(0), window()];
            (FLOW, [numbers, vec![Value::Null; 6], vec![deep_fields()]].concat())
        }
        At::Transfer => {
            let head = vec![handle(), Value::Uint(0), Value::Binary(vec![7]), Value::Uint(0)];
            (TRANSFER, [head, vec![Value::Null; 3], vec![deep()]].concat())
        }
        At::Disposition => {
            let state = Value::composite(REJECTED, vec![deep_error()]);
            let numbers = vec![Value::Bool(true), Value::Uint(0), Value::Null];
            (DISPOSITION, [numbers, vec![Value::Bool(true), state]].concat())
        }
        At::Decisions => (DISPOSITION, vec![Value::Bool(true), Value::Uint(0), Value::Uint(u32::MAX)]),
        At::Detach => (DETACH, vec![handle(), Value::Bool(true), deep_error()]),
        At::End => (END, vec![deep_error()]),
        _ => (CLOSE, vec![deep_error()]),
    };
    session.0.send(0, kind, fields, &[]);
}

#[test]
fn a_performative_that_nests_too_deep_ends_the_agents_connection_in_one_sentence_and_the_next_one_works() {
    for some in EVERYWHERE.chunks(4) {
        std::thread::scope(|scope| {
            some.iter().for_each(|at| drop(scope.spawn(move || ended_and_recovered(*at))));
        });
    }
}

fn ended_and_recovered(at: At) {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let peer = ServicePeer::before_sign_in(dir.path(), move |number, session| {
        if number > 0 {
            let links = device(session);
            return pump_on(session, &links, 0, &told);
        }
        if let Some(link) = first_link(session, at) {
            // The agent attaches its other links, too.
            links(session, LINKS - 1);
            play(session, at, &link);
        }
        while session.0.try_next().is_some() {}
    });
    let agent = agent(&peer, dir.path());
    let line = agent.process.stderr.wait_for("not connected");
    assert!(line.contains(sentence(at)), "{at:?}: {line}");
    assert_eq!(decisions.recv_timeout(DEADLINE), Ok(Value::composite(ACCEPTED, Vec::new())), "{at:?}");
    assert_eq!(agent.process.stderr.count("not connected"), 1, "{at:?}: {}", agent.process.stderr.text());
    pump_is_on(&agent);
}
