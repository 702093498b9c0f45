//! OpenTelemetry on request (`viv serve --otlp URL`): what `/metrics` has, and a span for each request, sent to a collector now and then
//! (OTLP 1.x over HTTP, in the JSON form of opentelemetry-proto). A collector that is not there costs nobody anything: what there is no
//! room for until it comes is left out, and counted.
use crate::metrics;
use crate::names;
use crate::page::attributes;
use crate::service::Service;
use hyper::{HeaderMap, Method};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use viv_api::endpoint::Endpoint;
use viv_model::{Fault, Kind};

/// How often spans are sent.
const SPANS_EVERY: Duration = Duration::from_secs(2);
/// How often metrics are, if the environment does not say it (`OTEL_METRIC_EXPORT_INTERVAL`, milliseconds).
const METRICS_EVERY: Duration = Duration::from_secs(60);
/// How long a collector may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Most spans that wait.
const SPANS_MAX: usize = 4096;
/// Most of them in one message.
const BATCH: usize = 512;
/// `SPAN_KIND_SERVER`, `STATUS_CODE_ERROR` (`trace.proto`).
const SERVER: u8 = 2;
const ERROR: u8 = 2;

/// Where to, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    url: String,
    headers: Vec<(String, String)>,
    /// What all of it is of.
    resource: Vec<(String, String)>,
    metrics_every: Duration,
}

impl Collector {
    /// The collector at `url`: `http://HOST:4318`; what else there is to say is in the environment, under OpenTelemetry's names.
    pub fn new(url: &str) -> Result<Collector, Fault> {
        Collector::of(url, &|name| std::env::var(name).ok())
    }

    fn of(url: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Collector, Fault> {
        let host = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            return Err(Fault::new(
                Kind::Usage,
                format!("{url:?} is no address of an OpenTelemetry collector"),
                "name one that takes OTLP over HTTP: --otlp http://localhost:4318",
            ));
        }
        let refused = |name: &str, text: &str, form: &str| {
            Fault::new(Kind::Usage, format!("{name} is {text:?}"), format!("write {form}, or leave it out"))
        };
        let pairs = |name: &str| {
            let text = environment(name).unwrap_or_default();
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
            let each = |word: &str| {
                let pair =
                    word.split_once('=').ok_or_else(|| refused(name, &text, "NAME=VALUE,NAME=VALUE"))?;
                Ok((pair.0.trim().to_string(), decoded(pair.1.trim())))
            };
            words.map(each).collect::<Result<Vec<_>, Fault>>()
        };
        let name = "OTEL_METRIC_EXPORT_INTERVAL";
        let interval = environment(name).map(|text| {
            let ms = text.parse().ok().filter(|ms| *ms >= 100);
            ms.map(Duration::from_millis).ok_or_else(|| refused(name, &text, "milliseconds, at least 100"))
        });
        let mut resource = pairs("OTEL_RESOURCE_ATTRIBUTES")?;
        resource.retain(|(name, _)| name != "service.name");
        let service = environment("OTEL_SERVICE_NAME").filter(|name| !name.is_empty());
        resource.insert(0, ("service.name".into(), service.unwrap_or_else(|| "vivarium".into())));
        resource.push(("service.version".into(), env!("CARGO_PKG_VERSION").into()));
        resource
            .push(("host.name".into(), rustix::system::uname().nodename().to_string_lossy().into_owned()));
        Ok(Collector {
            url: url.trim_end_matches('/').to_string(),
            headers: pairs("OTEL_EXPORTER_OTLP_HEADERS")?,
            resource,
            metrics_every: interval.transpose()?.unwrap_or(METRICS_EVERY),
        })
    }

    /// One message: what it is of, and one scope with `things`.
    fn message(&self, resources: &str, scopes: &str, name: &str, things: Vec<Value>) -> Value {
        let resource = attributes(self.resource.iter().map(|(name, text)| (&**name, &**text)));
        let scope = json!({ "name": "vivarium", "version": env!("CARGO_PKG_VERSION") });
        json!({ resources: [{
            "resource": { "attributes": resource },
            scopes: [{ "scope": scope, name: things }],
        }] })
    }

    /// Sends it; why that failed.
    fn send(&self, signal: &str, message: &Value) -> Result<(), String> {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(ANSWER_LIMIT)).build().into();
        let mut request = agent.post(format!("{}/v1/{signal}", self.url)).content_type("application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.send(message.to_string().as_bytes()).map(drop).map_err(|error| error.to_string())
    }
}

/// Without percent-encoding (W3C Baggage, as the environment's values have it).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        match others.get(..2).filter(|_| *first == b'%').and_then(hex) {
            Some(byte) => (bytes.push(byte), rest = others.get(2..).unwrap_or_default()).1,
            None => (bytes.push(*first), rest = others).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Spans that wait for being sent, if somebody is to have them.
pub(crate) struct Telemetry {
    collector: Option<Collector>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    spans: VecDeque<Value>,
    /// For which there was no room.
    lost: u64,
}

/// A request that is being answered.
pub(crate) struct Span {
    trace: [u8; 16],
    parent: Option<[u8; 8]>,
    begin: SystemTime,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Trace and parent of a `traceparent` (W3C Trace Context §3.2); whether its sender wants it recorded.
fn parent(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = text.split('-');
    let mut next = |bytes: usize| {
        let part = parts.next().filter(|part| part.len() == 2 * bytes)?;
        let digits = part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        digits.then(|| {
            part.as_bytes()
                .chunks(2)
                .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
                .collect::<Vec<u8>>()
        })
    };
    let version = next(1)?;
    let (trace, parent, flags) = (next(16)?, next(8)?, next(1)?);
    let is_something = |id: &[u8]| id.iter().any(|byte| *byte != 0);
    let known = version != [0xff] && is_something(&trace) && is_something(&parent);
    let wanted = flags.first().is_some_and(|flags| flags & 1 != 0);
    Some((trace.try_into().ok()?, parent.try_into().ok()?, wanted)).filter(|_| known)
}

impl Telemetry {
    pub(crate) fn new(collector: Option<Collector>) -> Telemetry {
        Telemetry { collector, waiting: Mutex::default() }
    }

    fn waiting<R>(&self, act: impl FnOnce(&mut Waiting) -> R) -> R {
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request with these fields begins; nothing if nobody wants to know.
    pub(crate) fn begin(&self, fields: &HeaderMap) -> Option<Span> {
        self.collector.as_ref()?;
        let said = fields.get("traceparent").and_then(|text| parent(text.to_str().ok()?));
        let (trace, parent) = match said {
            Some((.., false)) => return None,
            Some((trace, parent, true)) => (trace, Some(parent)),
            None => (names::random().ok()?, None),
        };
        Some(Span { trace, parent, begin: SystemTime::now() })
    }

    /// It has been answered.
    pub(crate) fn end(&self, span: Option<Span>, endpoint: Option<&Endpoint>, method: &Method, status: u16) {
        let Some(span) = span else { return };
        let Ok(id) = names::random::<8>() else { return };
        let route = endpoint.map_or("", |endpoint| endpoint.path);
        // Whoever asks may not make names without end.
        let method = endpoint.map_or("_OTHER", |_| method.as_str());
        let mut attributes = attributes([("http.request.method", method), ("http.route", route)]);
        attributes.push(json!({
            "key": "http.response.status_code", "value": { "intValue": status.to_string() },
        }));
        let mut shown = json!({
            "traceId": hex(&span.trace), "spanId": hex(&id), "kind": SERVER,
            "name": format!("{method} {route}").trim(),
            "startTimeUnixNano": unix_ns(span.begin).to_string(),
            "endTimeUnixNano": unix_ns(SystemTime::now()).to_string(),
            "attributes": attributes,
        });
        if let Some(parent) = span.parent {
            shown["parentSpanId"] = json!(hex(&parent));
        }
        if status >= 500 {
            shown["status"] = json!({ "code": ERROR });
        }
        self.waiting(|waiting| match waiting.spans.len() < SPANS_MAX {
            true => waiting.spans.push_back(shown),
            false => waiting.lost += 1,
        });
    }

    /// Sends the spans that wait. What was not taken waits on.
    fn send_spans(&self, collector: &Collector) -> Result<(), String> {
        loop {
            let batch: Vec<Value> =
                self.waiting(|waiting| waiting.spans.iter().take(BATCH).cloned().collect());
            if batch.is_empty() {
                return Ok(());
            }
            let count = batch.len();
            collector.send("traces", &collector.message("resourceSpans", "scopeSpans", "spans", batch))?;
            self.waiting(|waiting| drop(waiting.spans.drain(..count.min(waiting.spans.len()))));
        }
    }

    /// Says once when a collector is not there any more, and once when it is again.
    fn tell(&self, collector: &Collector, was_taken: &mut bool, done: &Result<(), String>) {
        match done {
            Err(why) if *was_taken => {
                viv_api::complain!("viv serve: the collector at {} takes nothing: {why}", collector.url);
            }
            Ok(()) if !*was_taken => {
                let lost = self.waiting(|waiting| std::mem::take(&mut waiting.lost));
                viv_api::complain!(
                    "viv serve: the collector at {} is there again; {lost} spans are lost",
                    collector.url
                );
            }
            _ => {}
        }
        *was_taken = done.is_ok();
    }
}

/// Sends what there is, for ever.
pub(crate) async fn send(service: Arc<Service>) {
    let Some(collector) = service.telemetry.collector.clone() else { return };
    let collector = Arc::new(collector);
    let (mut was_taken, mut next) = (true, Instant::now());
    loop {
        tokio::time::sleep(SPANS_EVERY.min(collector.metrics_every)).await;
        let mut measured = None;
        if Instant::now() >= next {
            next = Instant::now() + collector.metrics_every;
            measured = metrics::page(&service, None).await.ok();
        }
        let (from, to) = (service.clone(), collector.clone());
        let done = tokio::task::spawn_blocking(move || {
            from.telemetry.send_spans(&to)?;
            let Some(page) = measured else { return Ok(()) };
            let since = from.started_at.unix_s.saturating_mul(1_000_000_000);
            let metrics = page.metrics(since, unix_ns(SystemTime::now()));
            to.send("metrics", &to.message("resourceMetrics", "scopeMetrics", "metrics", metrics))
        });
        if let Ok(done) = done.await {
            service.telemetry.tell(&collector, &mut was_taken, &done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_the_rest() {
        let of = |url: &str, pairs: &'static [(&str, &str)]| {
            Collector::of(url, &move |name| {
                pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_string())
            })
        };
        let plain = of("http://localhost:4318/", &[]).unwrap();
        assert_eq!((plain.url.as_str(), plain.metrics_every), ("http://localhost:4318", METRICS_EVERY));
        assert_eq!(plain.resource[0], ("service.name".to_string(), "vivarium".to_string()));
        let more = of(
            "https://c.example",
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, a=b"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,zone=1"),
                ("OTEL_SERVICE_NAME", "lab"),
                ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
            ],
        )
        .unwrap();
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(more.headers, [pair("authorization", "Bearer x"), pair("a", "b")]);
        assert_eq!(more.resource[..2], [pair("service.name", "lab"), pair("zone", "1")]);
        assert_eq!(more.metrics_every, Duration::from_millis(500));
        for url in ["", "localhost:4318", "http://", "http:///x", "grpc://localhost:4317"] {
            assert_eq!(of(url, &[]).unwrap_err().kind, Kind::Usage, "{url}");
        }
        for pairs in [&[("OTEL_EXPORTER_OTLP_HEADERS", "a")], &[("OTEL_METRIC_EXPORT_INTERVAL", "1 s")]] {
            assert_eq!(of("http://c", pairs).unwrap_err().kind, Kind::Usage, "{pairs:?}");
        }
    }

    #[test]
    fn whoever_asks_may_say_which_trace_it_is() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (trace, span, wanted) = parent(good).unwrap();
        assert_eq!((hex(&trace), hex(&span)), (good[3..35].to_string(), good[36..52].to_string()));
        assert!(wanted && !parent(&good.replace("-01", "-00")).unwrap().2);
        // A later version may have more behind it (§3.2.3).
        assert!(parent(&format!("cc{}-more", &good[2..])).is_some());
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47\u{e9}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }

    #[test]
    fn spans_for_which_there_is_no_room_are_counted() {
        let telemetry = Telemetry::new(Some(Collector::of("http://c", &|_| None).unwrap()));
        for _ in 0..SPANS_MAX + 3 {
            let span = telemetry.begin(&HeaderMap::new());
            assert!(span.is_some());
            telemetry.end(span, None, &Method::GET, 404);
        }
        assert_eq!(telemetry.waiting(|waiting| (waiting.spans.len(), waiting.lost)), (SPANS_MAX, 3));
        assert!(Telemetry::new(None).begin(&HeaderMap::new()).is_none());
    }
}
