//! HTTP and WebSocket on one port.
//!
//! The thread of the runtime only moves bytes: what may take long runs on [`Workers`].
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use crate::rpc::{self, Rpc};
use crate::socket;
use crate::workers::Workers;

/// Connections at one time.
const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request's body may take.
const BODY: Duration = Duration::from_secs(60);
/// A request above this is read on another thread.
const LIGHT_MAX: usize = 16 << 10;
/// The pause after the system has no descriptor for a client.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// A socket that is bound already.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A socket in the file system.
    Unix(std::os::unix::net::UnixListener),
}

type Reply = Response<Full<Bytes>>;

/// Serves clients, on all of the listeners, until `stop` says so. Without listeners nobody comes.
pub async fn serve(
    rpc: Arc<Rpc>,
    workers: Workers,
    listeners: Vec<Listener>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let door = Door { rpc, workers };
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(door.clone(), Arc::clone(&room), listener));
    }
    tokio::select! {
        Some(failed) = accepting.join_next() => failed.map_err(io::Error::other)?,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    }
}

/// Lets clients in. It ends only if the listener cannot be used at all.
async fn accept(door: Door, room: Arc<Semaphore>, listener: Listener) -> io::Result<()> {
    macro_rules! accept {
        ($listener:expr) => {
            loop {
                match $listener.accept().await {
                    Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
                    Ok((stream, _)) => {
                        // A client too many sees its connection close.
                        if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
                            let door = door.clone();
                            tokio::spawn(async move {
                                door.connection(stream).await;
                                drop(permit);
                            });
                        }
                    }
                }
            }
        };
    }
    match listener {
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let listener = NoDelay(listener);
            accept!(listener)
        }
        Listener::Unix(listener) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            accept!(listener)
        }
    }
}

/// A listener whose connections send small answers at once.
struct NoDelay(tokio::net::TcpListener);

impl NoDelay {
    async fn accept(&self) -> io::Result<(tokio::net::TcpStream, std::net::SocketAddr)> {
        let (stream, address) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, address))
    }
}

/// What a connection needs.
#[derive(Clone, Debug)]
pub struct Door {
    /// The methods.
    pub rpc: Arc<Rpc>,
    /// Where they run.
    pub workers: Workers,
}

impl Door {
    async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| async { Ok::<_, Infallible>(self.request(request).await) });
        // Whatever ends a connection is the client's affair.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }

    async fn request(&self, mut request: Request<Incoming>) -> Reply {
        if request.method() == Method::OPTIONS {
            return reply(StatusCode::NO_CONTENT, "");
        }
        if let Some(accept) = socket::accept_key(&request) {
            let (door, upgrade) = (self.clone(), hyper::upgrade::on(&mut request));
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    socket::run(door, TokioIo::new(upgraded)).await;
                }
            });
            return upgraded(&accept);
        }
        if request.method() != Method::POST {
            return reply(
                StatusCode::METHOD_NOT_ALLOWED,
                "JSON-RPC 2.0: send requests with POST, or open a WebSocket here\n",
            );
        }
        let request_max = self.rpc.limits.request;
        let body = Limited::new(request.into_body(), request_max).collect();
        let body = match tokio::time::timeout(BODY, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return reply(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a request has at most {request_max} bytes\n"),
                );
            }
            Ok(Err(_)) => return reply(StatusCode::BAD_REQUEST, "the body did not arrive whole\n"),
            Err(_) => return reply(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
        };
        let answer = self.answer(body, &socket::Subscriptions::none()).await;
        reply(StatusCode::OK, answer.unwrap_or_default())
    }

    /// Answers a message, on another thread if it may take long.
    pub async fn answer(&self, body: Bytes, subscriptions: &socket::Subscriptions) -> Option<String> {
        let hold = self.rpc.chain.hold();
        hold.passed().await;
        if body.len() <= LIGHT_MAX {
            let message = rpc::parse(&body, &self.rpc.limits);
            if message.is_light() {
                return self.rpc.answer(message, &mut |method, params| subscriptions.call(method, params));
            }
        }
        let (answer, answered) = oneshot::channel();
        let (rpc, subscriptions) = (Arc::clone(&self.rpc), subscriptions.clone());
        self.workers.run(move || {
            let message = rpc::parse(&body, &rpc.limits);
            let text = rpc.answer(message, &mut |method, params| subscriptions.call(method, params));
            // The client may be gone.
            let _ = answer.send(text);
        });
        let answer = answered.await;
        hold.passed().await;
        answer.unwrap_or_else(|_| {
            Some(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"internal error: the request ended without an answer"}}"#.into())
        })
    }
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let kind = if status == StatusCode::OK { "application/json" } else { "text/plain" };
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Pages of other origins may ask: wallets and test pages do, and there is nothing of value here.
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    reply
}

fn upgraded(accept: &str) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    reply
}
