//! What every request passes before it is answered: who asks may do this; it is understood, or refused by the book (RFC 9110).
use crate::access::{self, Caller, Peer};
use crate::audit::Done;
use crate::connections::Place;
use crate::http::{self, Body, Refused};
use crate::manners::{self, Client};
use crate::projects::Scope;
use crate::routes::{self, Asked};
use crate::service::Service;
use crate::websocket;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use viv_api::endpoint::{self, Answer, Endpoint, NoRoute};
use viv_model::{Fault, Kind, ProjectName};

/// Most bytes of a request's body.
const BODY_MAX: usize = 4 << 20;
/// How long it may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(60);
/// Where the contract is.
const SEE: &str = "see the table of endpoints in the API's documentation, or GET /v1/openapi.json";

/// Answers one request, counts it, and has it written down if it changes something.
pub(crate) async fn enter(
    service: Arc<Service>,
    peer: &Peer,
    client: Client,
    request: Request<Incoming>,
) -> Response<Body> {
    let begin = Instant::now();
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let path = request.uri().path().to_string();
    let (span, method) = (service.telemetry.begin(request.headers()), request.method().clone());
    let (answer, endpoint) = match service.access.caller(peer, &request) {
        Err(refused) => (*refused, None),
        Ok(caller) => match find(&request) {
            Err(refused) => (*refused, None),
            Ok((endpoint, arguments)) => {
                let passed = pass(&service, &caller, endpoint, arguments, request).await;
                let answer = passed.unwrap_or_else(|refused| *refused);
                if access::is_audited(endpoint) {
                    let Caller { who, from, .. } = caller;
                    let operation = format!("{:?}", endpoint.route);
                    let status = answer.status().as_u16();
                    service.access.audit.write(Done { who, from, operation, path, status }).await;
                }
                (answer, Some(endpoint))
            }
        },
    };
    service.metrics.answered(endpoint, answer.status().as_u16(), begin.elapsed());
    service.telemetry.end(span, endpoint, &method, answer.status().as_u16());
    if manners::is_refusal(answer.status()) {
        service.manners.refused(client, length.unwrap_or(0u64).min(BODY_MAX as u64));
        service.manners.wait(client).await;
    }
    answer
}

async fn pass(
    service: &Arc<Service>,
    caller: &Caller,
    endpoint: &'static Endpoint,
    arguments: Vec<String>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let refused = |fault: Fault| Box::new(http::fault(&fault));
    caller.may(endpoint).map_err(refused)?;
    let request = understood(endpoint, request).await?;
    if let Some(place) = Place::of(request.extensions()) {
        place.asked();
    }
    let is_there = |image: &str| service.images.get(image).is_ok();
    caller.may_name(endpoint, &arguments, request.body(), is_there).map_err(refused)?;
    let query = request.uri().query().unwrap_or_default();
    let exists = |project: &ProjectName| service.vms.has_project(project);
    let scope = Scope::of(caller.project.as_ref(), query, exists).map_err(refused)?;
    let asked = Asked { route: endpoint.route, arguments, scope };
    routes::answer(service.clone(), caller, asked, request).await.map_err(refused)
}

/// The endpoint that is asked for.
fn find(request: &Request<Incoming>) -> Result<(&'static Endpoint, Vec<String>), Refused> {
    let path = request.uri().path();
    let missed = match endpoint::find(request.method().as_str(), path) {
        Ok(found) => return Ok(found),
        Err(missed) => missed,
    };
    Err(Box::new(match missed {
        NoRoute::Path => {
            let text = format!("the service has no endpoint {path}");
            http::fault(&Fault::new(Kind::NotFound, text, SEE))
        }
        NoRoute::Method => {
            let allowed: Vec<&str> = endpoint::allowed(path).iter().map(|method| method.name()).collect();
            let allowed = allowed.join(", ");
            let text = format!("{path} does not take {}, but {allowed}", request.method());
            let mut refused =
                http::refusal(StatusCode::METHOD_NOT_ALLOWED, &Fault::new(Kind::Usage, text, SEE));
            if let Ok(allowed) = HeaderValue::from_str(&allowed) {
                refused.headers_mut().insert(ALLOW, allowed);
            }
            refused
        }
    }))
}

/// The request with all of its body, if both may be as they are.
async fn understood(endpoint: &Endpoint, request: Request<Incoming>) -> Result<Request<Bytes>, Refused> {
    let usage =
        |status, why: String, fix: &str| Box::new(http::refusal(status, &Fault::new(Kind::Usage, why, fix)));
    let query = request.uri().query().unwrap_or_default();
    endpoint.route.check_query(query).map_err(|fault| Box::new(http::fault(&fault)))?;
    let upgrades = request.headers().get(UPGRADE).map(HeaderValue::as_bytes);
    if endpoint.answer == Answer::Stream && upgrades != Some(endpoint::UPGRADE.as_bytes()) {
        let text =
            format!("{} is a stream, and no upgrade to {} was asked for", endpoint.path, endpoint::UPGRADE);
        let fix = "send Connection: upgrade and Upgrade: vivarium-stream";
        return Err(usage(StatusCode::BAD_REQUEST, text, fix));
    }
    if endpoint.answer == Answer::Socket {
        websocket::is_asked_for(endpoint, &request)?;
    }
    let (parts, body) = request.into_parts();
    let collected = tokio::time::timeout(BODY_LIMIT, Limited::new(body, BODY_MAX).collect()).await;
    let bytes = match collected.unwrap_or_else(|_| Err("it did not come within a minute".into())) {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let text =
                format!("the request's body is larger than {} MiB, which no request is", BODY_MAX >> 20);
            return Err(usage(StatusCode::PAYLOAD_TOO_LARGE, text, SEE));
        }
        Err(error) => {
            let text = format!("the request's body broke off: {error}");
            return Err(usage(StatusCode::BAD_REQUEST, text, "send it again"));
        }
    };
    if !bytes.is_empty() && !endpoint.route.takes_body() {
        let text = format!("{} {} takes no body, and there is one", endpoint.method, endpoint.path);
        return Err(usage(StatusCode::BAD_REQUEST, text, "leave it out"));
    }
    if bytes.is_empty() && endpoint.route.needs_body() {
        let text = format!("{} {} takes a JSON document, and there is none", endpoint.method, endpoint.path);
        return Err(usage(StatusCode::BAD_REQUEST, text, SEE));
    }
    // A page of another site can have forms and plain text sent, but not this type without being asked for it.
    let media = parts.headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    if let Some(media) = media.filter(|media| !bytes.is_empty() && !is_json(media)) {
        let text = format!("the request's body is {media}, and not JSON");
        return Err(usage(StatusCode::UNSUPPORTED_MEDIA_TYPE, text, "send Content-Type: application/json"));
    }
    Ok(Request::from_parts(parts, bytes))
}

fn is_json(media: &str) -> bool {
    media.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}
