//! A load for the emulator: many devices that stay connected over MQTT with TLS, and one back end that sends to them.
//!
//!   load STATE_DIR
//!
//! `tests/bench/scale.py` drives it. It reads one command a line, and answers each with one line:
//!
//! - `connect N`: connects the devices load-00000 to load-N; `connected SECONDS`
//! - `latency COUNT`: sends COUNT messages, each when the last one has come; `latency P50 P99`, in microseconds
//! - `flow COUNT RATE`: sends COUNT messages at RATE a second on one link, without waiting for answers;
//!   `flow SECONDS P50 P99`: until the last one has come
//!
//! Each device has its own TLS handshake: nothing is resumed. A device completes each message at once.

// This program measures and ends: its tasks end with it, and its answers are its output.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use c2d_agent::credentials::{
    DeviceConnectionString, DeviceSecret, SasToken, ServiceConnectionString, ServiceSecret,
};
use c2d_agent::tls;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::messaging::{Data, Message, Properties};
use fe2o3_amqp::types::primitives::Binary;
use fe2o3_amqp::{Connection, Sender, Session};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Subscribe};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

type Failure = Box<dyn Error + Send + Sync>;

/// Devices that connect at a time.
const AT_A_TIME: usize = 32;
const MAX_PACKET: usize = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of a message, and when its device had it.
type Arrival = (u64, Instant);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let state = std::env::args().nth(1).ok_or("usage: load STATE_DIR")?;
    let state = Path::new(&state);
    let mut config = ClientConfig::clone(&*tls::client_config(Some(&state.join("ca.pem")), None)?);
    config.resumption = Resumption::disabled();
    let tls = TlsConnector::from(Arc::new(config));
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let mut back_end = None;
    let mut connected = 0;
    let (give, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| give.blocking_send(line))
    });
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["connect", count] => {
                let count: usize = count.parse()?;
                let begin = Instant::now();
                connect(state, &tls, connected..count, &arrived).await?;
                connected = count;
                format!("connected {:.3}", begin.elapsed().as_secs_f64())
            }
            ["latency", count] => {
                let back_end = BackEnd::connected(&mut back_end, state, &tls).await?;
                let mut times = Vec::new();
                for number in 0..count.parse()? {
                    let sent = Instant::now();
                    back_end.send(spread(number, connected), number).await?;
                    times.push(arrival(&mut arrivals, number).await?.duration_since(sent));
                }
                format!("latency {}", percentiles(times))
            }
            ["flow", count, rate] => {
                let back_end = BackEnd::connected(&mut back_end, state, &tls).await?;
                let (seconds, times) =
                    flow(back_end, &mut arrivals, count.parse()?, rate.parse()?, connected).await?;
                format!("flow {seconds:.3} {}", percentiles(times))
            }
            _ => return Err(format!("\"{line}\" is no command").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

/// Another device for each message.
fn spread(number: u64, devices: usize) -> usize {
    let devices = u64::try_from(devices).unwrap_or(1);
    usize::try_from(number * 7919 % devices).unwrap_or(0)
}

async fn arrival(arrivals: &mut mpsc::UnboundedReceiver<Arrival>, number: u64) -> Result<Instant, Failure> {
    loop {
        let next = timeout(PATIENCE, arrivals.recv()).await?;
        let (own, at) = next.ok_or("all devices are gone")?;
        if own == number {
            return Ok(at);
        }
    }
}

async fn flow(
    back_end: &mut BackEnd,
    arrivals: &mut mpsc::UnboundedReceiver<Arrival>,
    count: u64,
    rate: u64,
    devices: usize,
) -> Result<(f64, Vec<Duration>), Failure> {
    let begin = Instant::now();
    let due = |number: u64| begin + Duration::from_micros(number * 1_000_000 / rate);
    let sending = async {
        for number in 0..count {
            sleep_until(due(number)).await;
            back_end.send(spread(number, devices), number).await?;
        }
        Ok::<(), Failure>(())
    };
    let receiving = async {
        let mut times = Vec::new();
        let mut last = begin;
        for _ in 0..count {
            let (number, at) = timeout(PATIENCE, arrivals.recv()).await?.ok_or("all devices are gone")?;
            last = last.max(at);
            // From when it was due: waiting for the back end counts as well.
            times.push(at.duration_since(due(number)));
        }
        Ok::<_, Failure>((last, times))
    };
    let ((), (last, times)) = tokio::try_join!(sending, receiving)?;
    Ok((last.duration_since(begin).as_secs_f64(), times))
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| {
        times.get((times.len() * share / 100).min(times.len() - 1)).map_or(0, Duration::as_micros)
    };
    format!("{} {}", at(50), at(99))
}

/// The sender link.
struct BackEnd {
    link: Sender,
    _session: fe2o3_amqp::session::SessionHandle<()>,
    _connection: fe2o3_amqp::connection::ConnectionHandle<()>,
}

impl BackEnd {
    /// Connects it when it is needed first: a broker that only has devices has no service side.
    async fn connected<'a>(
        own: &'a mut Option<Self>,
        state: &Path,
        tls: &TlsConnector,
    ) -> Result<&'a mut Self, Failure> {
        let connected = match own.take() {
            Some(connected) => connected,
            None => Self::connect(state, tls).await?,
        };
        Ok(own.insert(connected))
    }

    async fn connect(state: &Path, tls: &TlsConnector) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(state.join("service.connection-string"))?;
        let service = ServiceConnectionString::parse(text.trim())?;
        let (host, expiry) = (&service.host.name, SystemTime::now() + Duration::from_secs(3600));
        let ServiceSecret::Key(key) = &service.secret else { return Err("the policy has no key".into()) };
        let token = SasToken::sign(key, host, Some(&service.policy), expiry);
        let user = format!("{}@sas.root.{}", service.policy, host.split('.').next().unwrap_or(host));
        let stream = dial(host, service.host.port.unwrap_or(5671), tls).await?;
        let mut connection = Connection::builder()
            .container_id("load")
            .hostname(Some(host.as_str()))
            .sasl_profile(SaslProfile::Plain { username: user, password: token.expose().to_owned() })
            .open_with_stream(stream)
            .await?;
        let mut session = Session::begin(&mut connection).await?;
        let link = Sender::attach(&mut session, "load", "/messages/devicebound").await?;
        Ok(Self { link, _session: session, _connection: connection })
    }

    /// Sends a message, and does not wait for its outcome: a message that is refused never comes.
    async fn send(&mut self, device: usize, number: u64) -> Result<(), Failure> {
        let id = id(device);
        let properties = Properties::builder()
            .message_id(format!("m-{number}"))
            .to(format!("/devices/{id}/messages/devicebound"))
            .build();
        let body = Data(Binary::from(number.to_string().into_bytes()));
        let message = Message::builder().properties(properties).data(body).build();
        let outcome = self.link.send_batchable(message).await?;
        tokio::spawn(async move {
            match outcome.await {
                Ok(outcome) if outcome.is_accepted() => {}
                other => eprintln!("load: a message for {id} was not taken: {other:?}"),
            }
        });
        Ok(())
    }
}

fn id(device: usize) -> String {
    format!("load-{device:05}")
}

async fn dial(host: &str, port: u16, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, Failure> {
    let address: SocketAddr = tokio::net::lookup_host((host, port)).await?.next().ok_or("no address")?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(tls.connect(ServerName::try_from(host.to_owned())?, stream).await?)
}

async fn connect(
    state: &Path,
    tls: &TlsConnector,
    devices: std::ops::Range<usize>,
    arrived: &mpsc::UnboundedSender<Arrival>,
) -> Result<(), Failure> {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let (ready, mut all_ready) = mpsc::channel::<Result<(), Failure>>(AT_A_TIME);
    let count = devices.len();
    let expiry = SystemTime::now() + Duration::from_secs(3600);
    let strings: Vec<String> = devices
        .map(|device| {
            std::fs::read_to_string(state.join(format!("devices/{}.connection-string", id(device))))
        })
        .collect::<Result<_, _>>()?;
    let (tls, arrived) = (tls.clone(), arrived.clone());
    tokio::spawn(async move {
        for text in strings {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (tls, arrived, ready) = (tls.clone(), arrived.clone(), ready.clone());
            tokio::spawn(async move {
                let signed_in = timeout(PATIENCE, sign_in(&text, &tls, expiry)).await;
                drop(place);
                match signed_in.map_err(Failure::from).flatten() {
                    Ok(device) => {
                        drop(ready.send(Ok(())).await);
                        // The measurement ends by itself when messages do not come any more.
                        if let Err(error) = device.run(&arrived).await {
                            eprintln!("load: a device's connection ended: {error}");
                        }
                    }
                    Err(error) => drop(ready.send(Err(error)).await),
                }
            });
        }
    });
    for _ in 0..count {
        all_ready.recv().await.ok_or("no device is left")??;
    }
    Ok(())
}

struct Device {
    stream: TlsStream<TcpStream>,
    incoming: BytesMut,
}

async fn sign_in(text: &str, tls: &TlsConnector, expiry: SystemTime) -> Result<Device, Failure> {
    let own = DeviceConnectionString::parse(text.trim())?;
    let DeviceSecret::Key(key) = &own.secret else { return Err("the device has no key".into()) };
    let (host, id) = (&own.host.name, &own.device_id);
    let token = SasToken::sign(key, &format!("{host}/devices/{id}"), None, expiry);
    let stream = dial(host, own.host.port.unwrap_or(8883), tls).await?;
    let mut device = Device { stream, incoming: BytesMut::new() };
    let mut connect = Connect::new(id);
    connect.keep_alive = 0;
    connect.set_login(format!("{host}/{id}/?api-version=2021-04-12"), token.expose());
    let mut subscribe = Subscribe::new(format!("devices/{id}/messages/devicebound/#"), QoS::AtLeastOnce);
    subscribe.pkid = 1;
    device.write(&Packet::Connect(connect)).await?;
    match device.read().await? {
        Packet::ConnAck(answer) if answer.code == ConnectReturnCode::Success => {}
        other => return Err(format!("{id} was refused: {other:?}").into()),
    }
    device.write(&Packet::Subscribe(subscribe)).await?;
    match device.read().await? {
        Packet::SubAck(_) => Ok(device),
        other => Err(format!("{id} got no SUBACK: {other:?}").into()),
    }
}

impl Device {
    async fn run(mut self, arrived: &mpsc::UnboundedSender<Arrival>) -> Result<(), Failure> {
        loop {
            if let Packet::Publish(publish) = self.read().await? {
                let number = std::str::from_utf8(&publish.payload)?.parse()?;
                arrived.send((number, Instant::now()))?;
                self.write(&Packet::PubAck(PubAck::new(publish.pkid))).await?;
            }
        }
    }

    async fn write(&mut self, packet: &Packet) -> Result<(), Failure> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, MAX_PACKET)?;
        self.stream.write_all(&bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn read(&mut self) -> Result<Packet, Failure> {
        loop {
            match Packet::read(&mut self.incoming, MAX_PACKET) {
                Ok(packet) => return Ok(packet),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(error.to_string().into()),
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err("the hub closed it".into());
            }
        }
    }
}
