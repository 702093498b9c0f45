//! Serves HTTP by a component that handles requests (`wasi:http/incoming-handler`): a new instance for each, that nothing of it is left
//! for the next.
//!
//! All of them run on the program's one thread and take turns: who computes gives way after a slice of time ([`Ticker`]).
mod ticker;

use super::given::{Given, Host};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use ticker::Ticker;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use viv_model::{End, Fault};
use wasmtime::{Error, Result};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

/// Connections at one time. Others wait in the host's queue.
const CONNECTIONS_MAX: usize = 256;
/// Instances at one time. Other requests wait.
const INSTANCES_MAX: usize = 256;
/// How long a connection may be without a request, or take to say one.
const IDLE: Duration = Duration::from_secs(30);
/// How long an instance may take until it answers. The answer's body has as long as its reader.
const ANSWER: Duration = Duration::from_secs(60);
/// How long it may go on when its answer has been read, or nobody is there to read it.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// The pause after the system has no descriptor for a client.
const AGAIN: Duration = Duration::from_millis(50);
/// Most bytes of a request that are logged of it.
const LOGGED_MAX: usize = 200;

/// A component that serves.
pub(super) struct Server {
    component: ProxyPre<Host>,
    given: Arc<Given>,
    ticker: Arc<Ticker>,
    instances: Arc<Semaphore>,
}

impl Server {
    /// By this component, with what its instances get.
    pub(super) fn new(component: ProxyPre<Host>, given: Arc<Given>) -> Result<Server, Fault> {
        // What none of them could get is said at once.
        drop(given.host(false)?);
        let instances = Arc::new(Semaphore::new(INSTANCES_MAX));
        Ok(Server { component, given, ticker: Arc::default(), instances })
    }

    /// Serves who comes to these listeners, without end.
    pub(super) async fn serve(self: Arc<Server>, listeners: Vec<TcpListener>) -> Result<Infallible> {
        self.ticker.start(self.given.engine.clone())?;
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            accepting.spawn(self.clone().accept(listener, room.clone()));
        }
        match accepting.join_next().await {
            Some(Ok(error)) => Err(error.into()),
            Some(Err(error)) => Err(Error::new(error)),
            None => Err(Error::msg("it has no listeners")),
        }
    }

    async fn accept(self: Arc<Server>, listener: tokio::net::TcpListener, room: Arc<Semaphore>) -> io::Error {
        loop {
            let place = match room.clone().acquire_owned().await {
                Ok(place) => place,
                Err(closed) => return io::Error::other(closed),
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.connection(stream).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn connection(self: Arc<Server>, stream: TcpStream) {
        let _ = stream.set_nodelay(true); // only slower without
        let service = service_fn(|request| async { Ok::<_, Infallible>(self.request(request).await) });
        // Whatever ends a connection is the client's affair.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn request(&self, request: Request<Incoming>) -> Response<HyperOutgoingBody> {
        if !request.headers().contains_key(header::HOST) && request.uri().authority().is_none() {
            return refusal(StatusCode::BAD_REQUEST, "the request names no host\n"); // RFC 9112 §3.2
        }
        let mut what = format!("{} {}", request.method(), request.uri());
        what.truncate(what.floor_char_boundary(LOGGED_MAX));
        let answer = self.answer(request, &what).await.unwrap_or_else(|error| {
            self.given.log(&what, &format!("{error:#}"));
            None
        });
        answer.unwrap_or_else(|| {
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "the program failed; its log has more\n")
        })
    }

    /// Has a new instance handle it. Nothing if that has failed and has said why.
    async fn answer(
        &self,
        request: Request<Incoming>,
        what: &str,
    ) -> Result<Option<Response<HyperOutgoingBody>>> {
        let place = self.instances.clone().acquire_owned().await?;
        let mut store = self.given.store(self.given.host(false)?)?;
        let (sender, receiver) = oneshot::channel();
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let response = store.data_mut().http().new_response_outparam(sender)?;
        let (component, given, what) = (self.component.clone(), self.given.clone(), what.to_string());
        let turn = self.ticker.turn();
        let task = tokio::spawn(async move {
            let handle = async {
                let component = component.instantiate_async(&mut store).await?;
                component.wasi_http_incoming_handler().call_handle(&mut store, request, response).await
            };
            let done = handle.await;
            given.count(&mut store);
            drop((turn, place));
            done.inspect_err(|error| given.log(&what, &failure(&given, error, store.data()))).is_ok()
        });
        let instance = Running(task.abort_handle());
        match timeout(ANSWER, receiver).await {
            Ok(Ok(Ok(answer))) => {
                Ok(Some(answer.map(|body| Answer { body, _instance: instance }.boxed_unsync())))
            }
            Ok(Ok(Err(code))) => Err(Error::msg(format!("it answers with an error: {code:?}"))),
            Ok(Err(_)) if task.await? => Err(Error::msg("it gave no answer")),
            Ok(Err(_)) => Ok(None),
            Err(_) => {
                instance.0.abort();
                Err(Error::msg(format!("it gave no answer in {} s", ANSWER.as_secs())))
            }
        }
    }
}

/// Why an instance has failed.
fn failure(given: &Given, error: &Error, host: &Host) -> String {
    if let Some(I32Exit(status)) = error.downcast_ref() {
        return format!("it ended itself with status {status}");
    }
    match given.end_of(error, host.limits.has_refused()) {
        End::Trap { message } | End::Limit { message } => message,
        _ => format!("{error:#}"),
    }
}

fn refusal(status: StatusCode, text: &'static str) -> Response<HyperOutgoingBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// An instance. When nobody waits for more of it, it may come to its end, in time.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        let instance = self.0.clone();
        if !instance.is_finished()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                tokio::time::sleep(AFTERWARDS).await;
                instance.abort();
            });
        }
    }
}

/// An answer's body, with the instance that makes it.
struct Answer {
    body: HyperOutgoingBody,
    _instance: Running,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
