//! Answers as HTTP/1.1 carries them.
use crate::connections::Answering;
use hyper::body::{Bytes, Frame};
use hyper::header::{CONNECTION, CONTENT_TYPE, ETAG, HeaderValue, LOCATION, UPGRADE};
use hyper::{Response, StatusCode};
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use viv_api::client::ErrorBody;
use viv_model::{Fault, Kind};

/// An answer's body.
pub(crate) struct Body {
    content: Content,
    /// Until it is sent, or nobody takes it.
    _answering: Option<Answering>,
}

enum Content {
    /// All of it.
    Whole(Option<Bytes>),
    /// Pieces as they are made; the sender learns when nobody listens any more.
    Pieces(mpsc::Receiver<Bytes>),
}

impl From<Content> for Body {
    fn from(content: Content) -> Body {
        Body { content, _answering: None }
    }
}

impl Body {
    /// None.
    pub(crate) fn empty() -> Body {
        Content::Whole(None).into()
    }

    /// The same, for the connection that is answered.
    pub(crate) fn of(self, answering: Answering) -> Body {
        Body { _answering: Some(answering), ..self }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut self.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take()),
            Content::Pieces(receiver) => receiver.poll_recv(context),
        };
        piece.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Pieces(_) => hyper::body::SizeHint::default(),
        }
    }
}

fn whole(status: StatusCode, text: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Body::from(Content::Whole(Some(text.into()))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// A JSON document.
pub(crate) fn json<T: Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => whole(StatusCode::OK, text),
        Err(error) => fault(&Fault::new(
            Kind::Error,
            format!("cannot write the answer: {error}"),
            "this is a defect of ours: please report it",
        )),
    }
}

/// Something was begun, and is seen at `location` (RFC 9110, 15.3.3).
pub(crate) fn begun<T: Serialize>(value: &T, location: &str) -> Response<Body> {
    let mut answer = json(value);
    *answer.status_mut() = StatusCode::ACCEPTED;
    if let Ok(location) = HeaderValue::from_str(location) {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}

/// Says which revision of something an answer shows (RFC 9110, 8.8.3). It is of a moment before the answer: a change in between
/// makes a later one fail, and never go through unseen.
pub(crate) fn tag(answer: &mut Response<Body>, revision: u64) {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        answer.headers_mut().insert(ETAG, value);
    }
}

/// A stream of pieces.
pub(crate) fn pieces(receiver: mpsc::Receiver<Bytes>, content_type: &'static str) -> Response<Body> {
    let mut answer = Response::new(Body::from(Content::Pieces(receiver)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// The last answer of a connection that becomes a byte stream.
pub(crate) fn switching() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(viv_api::endpoint::UPGRADE));
    answer
}

/// An answer to a request that is not let in.
pub(crate) type Refused = Box<Response<Body>>;

/// An error with a status of its own.
pub(crate) fn refusal(status: StatusCode, fault: &Fault) -> Response<Body> {
    whole(status, serde_json::to_vec(&ErrorBody { error: fault.clone() }).unwrap_or_default())
}

/// Text that is there as it is.
pub(crate) fn document(text: &'static str) -> Response<Body> {
    whole(StatusCode::OK, text.into())
}

/// Text.
pub(crate) fn text(text: String, media: &'static str) -> Response<Body> {
    let mut answer = whole(StatusCode::OK, text.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    answer
}

/// An error.
pub(crate) fn fault(fault: &Fault) -> Response<Body> {
    let status = match fault.kind {
        Kind::Error => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Usage => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::NoCapacity => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Denied => StatusCode::FORBIDDEN,
        Kind::NotRunnable => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::StillGoingOn => StatusCode::SERVICE_UNAVAILABLE,
    };
    whole(status, serde_json::to_vec(&ErrorBody { error: fault.clone() }).unwrap_or_default())
}
