//! WebSockets (RFC 6455): the same streams as [`crate::streams`] has, for pages and whoever else speaks it.
//!
//! What is wrong before the handshake is an HTTP answer with a fault; what ends it after that is in its close frame. What is said is
//! told in [`viv_api::websocket`].
mod carry;
mod words;

use crate::connections::Place;
use crate::http::{self, Body, Refused};
use crate::runners::Runner;
use crate::service::{Busy, Service};
use crate::streams;
use carry::{Closing, Pace, carry};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use viv_api::agent::Decoder;
use viv_api::endpoint::Endpoint;
use viv_api::runner::Ask;
use viv_api::vm::ConsoleSize;
use viv_api::websocket::MESSAGE_MAX;
use viv_model::{Fault, Kind};
use words::{Inward, Outward};

/// Most WebSockets at a time.
pub(crate) const SOCKETS_MAX: usize = 512;
/// Bytes that are read from a client at once: all that an idle one costs besides its connection.
const READ_BUFFER: usize = 4 << 10;
/// Bytes that may wait for a slow client: a few messages.
const UNSENT_MAX: usize = 256 << 10;
/// How long a VM's process may take to be gone after its console is.
const END_LIMIT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(30);

/// Refuses what is no handshake (RFC 6455 §4.2.1); with 426 what has none (RFC 9110 §15.5.22).
pub(crate) fn is_asked_for(endpoint: &Endpoint, request: &Request<Incoming>) -> Result<(), Refused> {
    let Err(error) = create_response_with_body(request, || ()) else { return Ok(()) };
    use ProtocolError::*;
    let status = match &error {
        Error::Protocol(
            MissingConnectionUpgradeHeader
            | MissingUpgradeWebSocketHeader
            | MissingSecWebSocketVersionHeader
            | WrongHttpVersion,
        ) => StatusCode::UPGRADE_REQUIRED,
        _ => StatusCode::BAD_REQUEST,
    };
    let text = format!("{} is a WebSocket, and this is no handshake for one: {error}", endpoint.path);
    let fix = "use a WebSocket client (RFC 6455, version 13), or POST for a plain stream";
    let mut refused = http::refusal(status, &Fault::new(Kind::Usage, text, fix));
    if status == StatusCode::UPGRADE_REQUIRED {
        let fields = refused.headers_mut();
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        fields.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    Err(Box::new(refused))
}

/// A stream of a VM that is carried.
pub(crate) struct Stream {
    pub(crate) there: UnixStream,
    /// The VM's name and process.
    pub(crate) name: String,
    pub(crate) runner: Runner,
}

/// A VM's serial console.
pub(crate) fn console(
    service: &Arc<Service>,
    request: Request<Bytes>,
    stream: Stream,
) -> Result<Response<Body>, Fault> {
    let inward = Inward::Console(sizes(stream.runner.clone()));
    let broke_off = broke_off("console", &stream.name);
    answer(service, request, stream, inward, Outward::Bytes, (END_LIMIT, broke_off))
}

/// A command in a VM.
pub(crate) fn exec(
    service: &Arc<Service>,
    request: Request<Bytes>,
    stream: Stream,
) -> Result<Response<Body>, Fault> {
    let (inward, outward) = (Inward::Exec { begun: false }, Outward::Agent(Decoder::new()));
    let broke_off = broke_off("agent", &stream.name);
    answer(service, request, stream, inward, outward, (END_LIMIT, broke_off))
}

/// A TCP port of a VM.
pub(crate) fn port(
    service: &Arc<Service>,
    request: Request<Bytes>,
    stream: Stream,
) -> Result<Response<Body>, Fault> {
    let text = format!("VM {:?} has closed the connection, or nothing listens there", stream.name);
    let closed = Closing::new(CloseCode::Normal, text);
    answer(service, request, stream, Inward::Port, Outward::Bytes, (Duration::ZERO, closed))
}

fn broke_off(what: &str, name: &str) -> Closing {
    Closing::new(CloseCode::Error, format!("the {what} of VM {name:?} broke off"))
}

/// How the VM has ended, if it has or does within this time.
async fn gone(name: &str, runner: &Runner, limit: Duration) -> Option<Closing> {
    let ended = async {
        while runner.beside(Runner::process).await.is_some() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(limit, ended).await.ok()?;
    let how = runner.beside(Runner::end).await.map_or("its process ended", |(end, _)| streams::told(&end));
    Some(Closing::new(CloseCode::Away, format!("VM {name:?} has ended: {how}")))
}

/// Tells a VM the sizes of its console's terminal, one after the other; those that are overtaken are left out.
fn sizes(runner: Runner) -> watch::Sender<ConsoleSize> {
    let (told, mut sizes) = watch::channel(ConsoleSize::default());
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            let asked = runner.clone();
            let _ = tokio::task::spawn_blocking(move || asked.ask(&Ask::ConsoleSize(size))).await;
            streams::tell_agent_size(runner.clone(), size).await;
        }
    });
    told
}

/// Answers with a switch of protocols, and then carries messages. Why the stream has ended is said as `broke_off` has it, unless the VM
/// ends within that time.
fn answer(
    service: &Arc<Service>,
    mut request: Request<Bytes>,
    Stream { there, name, runner }: Stream,
    inward: Inward,
    outward: Outward,
    (limit, broke_off): (Duration, Closing),
) -> Result<Response<Body>, Fault> {
    let place = service.sockets.clone().try_acquire_owned().map_err(|_| {
        let text = format!("{SOCKETS_MAX} WebSockets are open, which is the most");
        Fault::new(Kind::NoCapacity, text, "close some, or try again later")
    })?;
    let answer = create_response_with_body(&request, Body::empty).map_err(|error| {
        Fault::new(Kind::Usage, error.to_string(), "use a WebSocket client (RFC 6455, version 13)")
    })?;
    let upgrade = hyper::upgrade::on(&mut request);
    let held = (Busy::new(&service.work), Place::carrying(request.extensions()), place);
    tokio::spawn(async move {
        if let Ok(here) = upgrade.await {
            let socket =
                WebSocketStream::from_raw_socket(TokioIo::new(here), Role::Server, Some(config())).await;
            let end = async { gone(&name, &runner, limit).await.unwrap_or(broke_off) };
            carry(socket, there, inward, outward, end, &Pace::default()).await;
        }
        drop(held);
    });
    Ok(answer)
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(UNSENT_MAX)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
}
