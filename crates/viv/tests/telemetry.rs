//! OpenTelemetry on request: what a collector gets, and that the service needs none.
mod kit;

use kit::{Home, until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

/// Path, head and message of each request that came.
type Taken = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A collector at this address that takes all.
fn collect(listener: TcpListener) -> Taken {
    let taken = Taken::default();
    let into = taken.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
            }
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap()];
            stream.read_exact(&mut body).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_string();
            into.lock().unwrap().push((path, head, serde_json::from_slice(&body).unwrap()));
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
                .unwrap();
        }
    });
    taken
}

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(home: &Home, url: &str) -> Service {
    let mut command = home.command(&["serve", "--otlp", url]);
    command.env("OTEL_METRIC_EXPORT_INTERVAL", "200").env("OTEL_SERVICE_NAME", "lab");
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=open%20sesame");
    let service = Service(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    until("the service listens", || home.dir.join("home/run/viv.sock").exists());
    service
}

#[test]
fn a_collector_gets_metrics_and_a_span_for_each_request() {
    let home = Home::new("telemetry");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let _service = serve(&home, &url);
    // Nobody is there yet: the service does not mind, and what is not too much waits.
    let kernel = home.kernel();
    home.viv(&[
        "create",
        "-f",
        &home.file("vm.json", format!(r#"{{"name":"box","kernel":"{kernel}"}}"#).as_bytes()),
    ])
    .ok();
    home.viv(&["inspect", "nobody"]);
    let taken = collect(TcpListener::bind(url.trim_start_matches("http://").trim_end_matches('/')).unwrap());
    let spans = || -> Vec<Value> {
        let taken = taken.lock().unwrap();
        let of = |(path, _, message): &(String, String, Value)| match path.as_str() {
            "/v1/traces" => message["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone(),
            _ => Vec::new(),
        };
        taken.iter().flat_map(of).collect()
    };
    let number = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    until("the spans", || spans().iter().any(|span| span["name"] == "GET /v1/vms/{vm}"));
    let all = spans();
    let made = all.iter().find(|span| span["name"] == "POST /v1/vms").unwrap();
    assert_eq!((made["kind"].as_u64(), made["traceId"].as_str().unwrap().len()), (Some(2), 32));
    assert!(number(made, "endTimeUnixNano") >= number(made, "startTimeUnixNano"));
    let shown = all.iter().find(|span| span["name"] == "GET /v1/vms/{vm}").unwrap();
    assert!(shown["attributes"].to_string().contains(r#""intValue":"404""#), "{shown}");
    // Each once.
    let mut ids: Vec<_> = all.iter().map(|span| span["spanId"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all.len());
    let metric = |name: &str| -> Option<Value> {
        let taken = taken.lock().unwrap();
        let (_, head, message) = taken.iter().rfind(|(path, ..)| path == "/v1/metrics")?;
        assert!(head.contains("x-key: open sesame") && head.contains("application/json"), "{head}");
        let of = &message["resourceMetrics"][0];
        assert_eq!(of["resource"]["attributes"][0]["value"]["stringValue"], "lab");
        let metrics = of["scopeMetrics"][0]["metrics"].as_array().unwrap();
        metrics.iter().find(|metric| metric["name"] == name).cloned()
    };
    until("the metrics", || metric("viv_http_requests_total").is_some());
    let requests = metric("viv_http_requests_total").unwrap();
    assert_eq!(requests["sum"]["isMonotonic"], true);
    assert!(requests.to_string().contains("/v1/vms/{vm}"), "{requests}");
    assert!(metric("viv_vm_up").unwrap()["gauge"].to_string().contains("box"));
    let times = metric("viv_http_request_duration_seconds").unwrap();
    let point = &times["histogram"]["dataPoints"][0];
    assert_eq!(
        point["bucketCounts"].as_array().unwrap().len(),
        point["explicitBounds"].as_array().unwrap().len() + 1
    );
}

#[test]
fn what_is_no_collector_is_refused() {
    let home = Home::new("telemetry-bad");
    for url in ["localhost:4317", "grpc://localhost:4317", ""] {
        let refused = home.viv(&["serve", "--otlp", url]);
        assert!(refused.status == 2 && refused.err.contains("--otlp http://localhost:4318"), "{refused:?}");
    }
}
