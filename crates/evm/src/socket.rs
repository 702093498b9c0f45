//! One WebSocket (RFC 6455): requests, their answers, and what the client has subscribed to.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::U128;
use alloy_rpc_types_eth::Filter;
use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::{Request, header};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::chain::Event;
use crate::rpc::{Answer, Params, RpcError, header as header_of, logs_of, waiting_of};
use crate::server::Door;

/// What a key is hashed with (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: usize = 1024;
/// Requests of one connection that wait for their answers; more are not read until some are done.
const REQUESTS_MAX: usize = 32;
/// A connection that says nothing is asked for a sign of life.
const PING: Duration = Duration::from_secs(30);
/// Bytes that may wait for a slow client.
const UNSENT_MAX: usize = 64 << 20;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// The answer to a client that wants a WebSocket; none if it does not.
pub fn accept_key(request: &Request<Incoming>) -> Option<String> {
    let upgrade = request.headers().get(header::UPGRADE)?.to_str().ok()?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY)?;
    upgrade.eq_ignore_ascii_case("websocket").then(|| {
        let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        base64::engine::general_purpose::STANDARD.encode(digest)
    })
}

#[derive(Clone, Debug)]
enum Topic {
    Heads,
    Logs(Box<Filter>),
    Waiting { full: bool },
    Syncing,
}

/// What a connection has subscribed to. HTTP has none.
#[derive(Clone, Debug, Default)]
pub struct Subscriptions(Option<Arc<Mutex<BTreeMap<U128, Topic>>>>);

impl Subscriptions {
    /// For a connection that cannot be told anything.
    pub fn none() -> Subscriptions {
        Subscriptions(None)
    }

    /// Answers the methods that belong to a connection.
    pub fn call(&self, method: &str, params: &Params) -> Option<Answer> {
        match method {
            "eth_subscribe" => Some(self.subscribe(params)),
            "eth_unsubscribe" => Some(params.get(0).map(|id: U128| {
                let removed =
                    self.0.as_ref().map(|all| all.lock().unwrap_or_else(PoisonError::into_inner).remove(&id));
                json!(removed.flatten().is_some())
            })),
            _ => None,
        }
    }

    fn subscribe(&self, params: &Params) -> Answer {
        let Some(all) = &self.0 else {
            return Err(RpcError::new(
                crate::rpc::error::METHOD,
                "notifications not supported: subscribe over a WebSocket",
            ));
        };
        let topic: String = params.get(0)?;
        let topic = match topic.as_str() {
            "newHeads" => Topic::Heads,
            "logs" => Topic::Logs(Box::new(params.opt(1)?.unwrap_or_default())),
            "newPendingTransactions" => Topic::Waiting { full: params.opt(1)?.unwrap_or(false) },
            "syncing" => Topic::Syncing,
            other => return Err(RpcError::params(format!("no \"{other}\" subscription in eth namespace"))),
        };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SUBSCRIPTIONS_MAX {
            return Err(RpcError::server(format!(
                "more than {SUBSCRIPTIONS_MAX} subscriptions on one connection"
            )));
        }
        let id = U128::from(NEXT.fetch_add(1, Ordering::Relaxed)) << 64 | U128::from(all.len());
        all.insert(id, topic);
        Ok(json!(id))
    }

    /// What the client is to be told of an event.
    fn notices(&self, event: &Event, door: &Door) -> Vec<String> {
        let Some(all) = &self.0 else { return Vec::new() };
        let all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notices = Vec::new();
        for (id, topic) in &*all {
            let mut tell = |result: Value| {
                let params = json!({ "subscription": id, "result": result });
                notices.push(
                    json!({ "jsonrpc": "2.0", "method": "eth_subscription", "params": params }).to_string(),
                );
            };
            match (topic, event) {
                (Topic::Heads, Event::Block(block)) => tell(json!(header_of(block))),
                (Topic::Logs(filter), Event::Block(block)) => {
                    logs_of(block, filter).into_iter().for_each(|log| tell(json!(log)));
                }
                (Topic::Waiting { full: false }, Event::Waiting(hash)) => tell(json!(hash)),
                (Topic::Waiting { full: true }, Event::Waiting(hash)) => {
                    if let Some(tx) = door.rpc.chain.read().pool.get(hash) {
                        tell(json!(waiting_of(tx)));
                    }
                }
                _ => {}
            }
        }
        notices
    }
}

/// Speaks with one client until it goes.
pub async fn run(door: Door, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(door.rpc.limits.request))
        .max_frame_size(Some(door.rpc.limits.request))
        .max_write_buffer_size(UNSENT_MAX);
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut out, mut incoming) = socket.split();
    let subscriptions = Subscriptions(Some(Arc::default()));
    let mut events = door.rpc.chain.events();
    let (answered, mut answers) = mpsc::channel::<String>(REQUESTS_MAX);
    let mut asked = 0_usize;
    let mut silent = false;
    loop {
        let sent = tokio::select! {
            biased;
            Some(answer) = answers.recv() => {
                asked = asked.saturating_sub(1);
                match answer.is_empty() {
                    true => Ok(()),
                    false => out.send(Message::text(answer)).await,
                }
            }
            event = events.recv() => match event {
                Ok(event) => {
                    let mut sent = Ok(());
                    for notice in subscriptions.notices(&event, &door) {
                        sent = out.send(Message::text(notice)).await;
                    }
                    sent
                }
                // Too slow to be told everything: better to begin again than to miss some.
                Err(RecvError::Lagged(_) | RecvError::Closed) => return,
            },
            message = incoming.next(), if asked < REQUESTS_MAX => {
                silent = false;
                match message {
                    Some(Ok(Message::Text(text))) => {
                        asked += 1;
                        ask(&door, text.into(), &subscriptions, &answered);
                        Ok(())
                    }
                    Some(Ok(Message::Binary(bytes))) => {
                        asked += 1;
                        ask(&door, bytes, &subscriptions, &answered);
                        Ok(())
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => Ok(()),
                }
            }
            () = tokio::time::sleep(PING) => {
                // Two silences, and nobody is there.
                if std::mem::replace(&mut silent, true) {
                    return;
                }
                out.send(Message::Ping(Default::default())).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn ask(
    door: &Door,
    body: hyper::body::Bytes,
    subscriptions: &Subscriptions,
    answered: &mpsc::Sender<String>,
) {
    let (door, subscriptions, answered) = (door.clone(), subscriptions.clone(), answered.clone());
    tokio::spawn(async move {
        let answer = door.answer(body, &subscriptions).await.unwrap_or_default();
        // The connection may be gone.
        let _ = answered.send(answer).await;
    });
}
