//! Carries messages both ways until one side has ended, with what is not sent or taken yet bounded.
use super::words::{Inward, Outward};
use futures_util::future::{Either, select};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use viv_api::websocket::reason;

/// Bytes of a VM's process that are carried at once.
const PIECE: usize = 16 << 10;
/// Bytes of a client that has sent garbage which are thrown away before its connection is closed, so that it reads why.
const REST_MAX: u64 = 1 << 20;

/// How long everything may take.
pub(super) struct Pace {
    /// A client that is sent nothing for so long is asked for a sign of life; if it says nothing until the next time, it is gone.
    pub(super) ping: Duration,
    /// A client that takes nothing for so long is gone.
    pub(super) unread: Duration,
    /// How long the end may take.
    pub(super) close: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        let (ping, unread, close) = (30, 60, 2);
        Pace {
            ping: Duration::from_secs(ping),
            unread: Duration::from_secs(unread),
            close: Duration::from_secs(close),
        }
    }
}

/// Why a WebSocket ends, for its client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closing {
    pub(super) code: CloseCode,
    pub(super) reason: String,
}

impl Closing {
    pub(super) fn new(code: CloseCode, text: impl Into<String>) -> Closing {
        Closing { code, reason: text.into() }
    }
}

/// How one direction ended.
enum End {
    /// There is nobody to tell.
    Left,
    /// The VM's process has no more to say.
    There,
    /// The client is told.
    Closed(Closing),
    /// The client is told, and nothing that it sends is understood any more.
    Broken(Closing),
}

impl End {
    fn of(error: &Error) -> End {
        let code = match error {
            Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_) => return End::Left,
            Error::Capacity(_) => CloseCode::Size,
            Error::Protocol(_) => CloseCode::Protocol,
            Error::Utf8(_) => CloseCode::Invalid,
            _ => CloseCode::Error,
        };
        End::Broken(Closing::new(code, error.to_string()))
    }
}

/// Carries until one side has ended. `end` says why the VM's process has.
pub(super) async fn carry<S: AsyncRead + AsyncWrite + Unpin, T: AsyncRead + AsyncWrite>(
    socket: WebSocketStream<S>,
    there: T,
    mut inward: Inward,
    mut outward: Outward,
    end: impl Future<Output = Closing>,
    pace: &Pace,
) {
    let (mut out, mut incoming) = socket.split();
    let (from, to) = tokio::io::split(there);
    let heard = AtomicBool::new(true);
    let how = {
        let hears = pin!(hear(&mut incoming, to, &mut inward, &heard));
        let tells = pin!(tell(&mut out, from, &mut outward, &heard, pace));
        // What is heard goes first: a sign of life that is there counts, however late it is looked for.
        match select(hears, tells).await {
            Either::Left((how, _)) | Either::Right((how, _)) => how,
        }
    };
    let how = match how {
        End::There => End::Closed(end.await),
        how => how,
    };
    let _ = timeout(pace.close, finish(out, incoming, how)).await; // it is over in any case
}

/// From the client to the VM's process.
async fn hear<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut SplitStream<WebSocketStream<S>>,
    mut to: impl AsyncWrite + Unpin,
    inward: &mut Inward,
    heard: &AtomicBool,
) -> End {
    loop {
        let next = match inward.limit() {
            None => incoming.next().await,
            Some(limit) => match timeout(limit, incoming.next()).await {
                Ok(next) => next,
                Err(_) => {
                    let text = format!("no command came within {} seconds", limit.as_secs());
                    return End::Closed(Closing::new(CloseCode::Policy, text));
                }
            },
        };
        heard.store(true, Ordering::Relaxed);
        let message = match next {
            None | Some(Ok(Message::Close(_))) => return End::Left,
            Some(Err(error)) => return End::of(&error),
            Some(Ok(message)) => message,
        };
        let written = match inward.hear(message) {
            Ok(bytes) => to.write_all(&bytes).await,
            Err(closing) => return End::Closed(closing),
        };
        if written.is_err() {
            // It takes no more: what it still has to say is its end.
            std::future::pending::<()>().await;
        }
    }
}

/// From the VM's process to the client.
async fn tell<S: AsyncRead + AsyncWrite + Unpin>(
    out: &mut SplitSink<WebSocketStream<S>, Message>,
    mut from: impl AsyncRead + Unpin,
    outward: &mut Outward,
    heard: &AtomicBool,
    pace: &Pace,
) -> End {
    let mut piece = vec![0; PIECE];
    loop {
        let (messages, closing) = match timeout(pace.ping, from.read(&mut piece)).await {
            Err(_) if !heard.swap(false, Ordering::Relaxed) => return End::Left,
            Err(_) => (vec![Message::Ping(Default::default())], None),
            Ok(Ok(length @ 1..)) => outward.tell(piece.get(..length).unwrap_or_default()),
            Ok(_) => return End::There,
        };
        for message in messages {
            match timeout(pace.unread, out.send(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return End::of(&error),
                Err(_) => {
                    return End::Closed(Closing::new(CloseCode::Policy, "nobody has read for too long"));
                }
            }
        }
        if let Some(closing) = closing {
            return End::Closed(closing);
        }
    }
}

/// Says why it ends, and waits until the client knows (RFC 6455 §7.1.1).
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(
    mut out: SplitSink<WebSocketStream<S>, Message>,
    mut incoming: SplitStream<WebSocketStream<S>>,
    how: End,
) -> Option<()> {
    let (closing, broken) = match how {
        End::Closed(closing) => (Some(closing), false),
        End::Broken(closing) => (Some(closing), true),
        End::Left | End::There => (None, false),
    };
    match closing {
        Some(Closing { code, reason: text }) => {
            let frame = CloseFrame { code, reason: reason(&text).into() };
            out.send(Message::Close(Some(frame))).await.ok()?;
        }
        None => out.flush().await.ok()?,
    }
    if !broken {
        while let Some(Ok(_)) = incoming.next().await {}
        return Some(());
    }
    // A connection that is closed with something unread is reset, and the reason may be lost.
    let mut stream = out.reunite(incoming).ok()?.into_inner();
    stream.shutdown().await.ok()?;
    tokio::io::copy(&mut stream.take(REST_MAX), &mut tokio::io::sink()).await.ok()?;
    Some(())
}

#[cfg(test)]
mod tests;
