//! The API's contract: the service answers as its document says.
mod kit;

use kit::Home;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// An answer: its status, its head and its body.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

/// Sends these bytes and reads the answer up to its end.
fn send(home: &Home, bytes: &[u8]) -> Answer {
    home.viv(&["info"]).ok(); // it is there, or started
    let mut socket = UnixStream::connect(home.dir.join("home/run/viv.sock")).unwrap();
    socket.set_read_timeout(Some(kit::LIMIT)).unwrap();
    // One that refuses a body need not read it.
    let _ = socket.write_all(bytes);
    let mut all = Vec::new();
    let _ = socket.read_to_end(&mut all);
    let end = all.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(all[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = all.split_off(end + 4);
    if head.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Answer { status, head, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.extend(&rest[line + 2..line + 2 + length]);
        rest = &rest[line + 4 + length..];
    }
}

fn ask(home: &Home, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: vivarium\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    send(home, (head + &body).as_bytes())
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Checks a value by a schema (JSON Schema 2020-12), as far as our schemas use its words; another word is a failure.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let wrong = |why: String| Err(format!("{at}: {why}: {value}"));
    if *schema == json!(true) {
        return Ok(());
    }
    let Some(words) = schema.as_object() else { return wrong(format!("no schema: {schema}")) };
    let all = |schemas: &Value| -> Vec<Result<(), String>> {
        schemas.as_array().unwrap().iter().map(|schema| check(document, schema, value, at)).collect()
    };
    for (word, says) in words {
        match word.as_str() {
            "$ref" => {
                let path = says.as_str().unwrap().trim_start_matches('#');
                let there = document.pointer(path).ok_or(format!("{says} leads nowhere"))?;
                check(document, there, value, at)?;
            }
            "type" => {
                let is = |name: &str| match name {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    _ => value.is_object(),
                };
                let names = says.as_array().cloned().unwrap_or_else(|| vec![says.clone()]);
                if !names.iter().any(|name| is(name.as_str().unwrap())) {
                    return wrong(format!("not of the type {says}"));
                }
            }
            "enum" if !says.as_array().unwrap().contains(value) => return wrong(format!("none of {says}")),
            "const" if says != value => return wrong(format!("not {says}")),
            "minimum" if value.is_number() && value.as_f64() < says.as_f64() => {
                return wrong(format!("less than {says}"));
            }
            "maximum" if value.is_number() && value.as_f64() > says.as_f64() => {
                return wrong(format!("more than {says}"));
            }
            "required" if value.is_object() => {
                let missing =
                    says.as_array().unwrap().iter().find(|name| value.get(name.as_str().unwrap()).is_none());
                if let Some(name) = missing {
                    return wrong(format!("{name} is missing"));
                }
            }
            "properties" => {
                for (name, schema) in says.as_object().unwrap() {
                    if let Some(field) = value.get(name) {
                        check(document, schema, field, &format!("{at}.{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                let known = words.get("properties").and_then(Value::as_object);
                let mut others = value.as_object().into_iter().flatten();
                let other = others.find(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)));
                if let (Some((name, field)), true) = (other, *says != json!(true)) {
                    match says {
                        Value::Bool(_) => return wrong(format!("{name} is not known")),
                        schema => check(document, schema, field, &format!("{at}.{name}"))?,
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    let before = words.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
                    if index >= before {
                        check(document, says, item, &format!("{at}[{index}]"))?;
                    }
                }
            }
            "prefixItems" => {
                for (schema, item) in
                    says.as_array().unwrap().iter().zip(value.as_array().into_iter().flatten())
                {
                    check(document, schema, item, at)?;
                }
            }
            "allOf" => all(says).into_iter().collect::<Result<_, _>>()?,
            "anyOf" if all(says).iter().all(Result::is_err) => return wrong(format!("{:?}", all(says))),
            "oneOf" if all(says).iter().filter(|outcome| outcome.is_ok()).count() != 1 => {
                return wrong(format!("{:?}", all(says)));
            }
            "minItems" | "maxItems" if value.is_array() => {
                let (length, bound) = (value.as_array().unwrap().len() as u64, says.as_u64().unwrap());
                if (word == "minItems" && length < bound) || (word == "maxItems" && length > bound) {
                    return wrong(format!("{length} items"));
                }
            }
            "enum" | "const" | "minimum" | "maximum" | "required" | "anyOf" | "oneOf" | "minItems"
            | "maxItems" => {}
            // Those that there are; others take a library.
            "pattern" => {
                let text = value.as_str().unwrap_or_default();
                let fits = match says.as_str().unwrap_or_default() {
                    "^(no|on-failure(:[0-9]{1,9})?|unless-stopped|always)$" => {
                        text.parse::<viv_model::Restart>().is_ok()
                    }
                    "^[a-z][a-z0-9-]{0,62}$" => text.parse::<viv_model::ProjectName>().is_ok(),
                    other => panic!("{at}: the test does not know the pattern {other}"),
                };
                if !fits {
                    return wrong(format!("not like {says}"));
                }
            }
            "title" | "description" | "default" | "format" => {}
            other => return Err(format!("{at}: the test does not know {other}")),
        }
    }
    Ok(())
}

/// Every reference in the document leads somewhere.
fn references(document: &Value, value: &Value) {
    if let Some(link) = value.get("$ref").and_then(Value::as_str) {
        assert!(document.pointer(link.trim_start_matches('#')).is_some(), "{link}");
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| references(document, value)),
        Value::Object(fields) => fields.values().for_each(|value| references(document, value)),
        _ => {}
    }
}

/// Holds an answer against what the document says of it.
#[track_caller]
fn as_documented(document: &Value, operation: &Value, answer: &Answer, what: &str) {
    let status = answer.status.to_string();
    let mut response = &operation["responses"][&status];
    if let Some(link) = response.get("$ref") {
        response = document.pointer(link.as_str().unwrap().trim_start_matches('#')).unwrap();
    }
    assert!(
        response.is_object(),
        "{what}: {status} is not documented: {}",
        String::from_utf8_lossy(&answer.body)
    );
    let content = response["content"].as_object().unwrap_or_else(|| panic!("{what} {status}: no content"));
    let mut media = content.iter();
    let (media, content) = media
        .find(|(media, _)| answer.head.contains(&format!("content-type: {media}")))
        .unwrap_or_else(|| panic!("{what} {status}: {}", answer.head));
    match media.as_str() {
        "application/json" => check(document, &content["schema"], &answer.json(), what).unwrap(),
        "application/x-ndjson" => answer.body.split(|byte| *byte == b'\n').for_each(|line| {
            let line = serde_json::from_slice(line).ok();
            line.into_iter().for_each(|line| check(document, &content["schema"], &line, what).unwrap());
        }),
        _ => {}
    }
}

#[test]
fn the_service_answers_as_its_document_says() {
    let home = Home::new("openapi");
    let document = ask(&home, "GET", "/v1/openapi.json", None).json();
    assert_eq!(document["openapi"], "3.1.0");
    references(&document, &document);
    let paths = document["paths"].as_object().unwrap();
    let mut names = std::collections::HashSet::new();
    for operation in paths.values().flat_map(|path| path.as_object().unwrap().values()) {
        assert!(names.insert(operation["operationId"].as_str().unwrap()), "{operation}");
        assert!(!operation["responses"].as_object().unwrap().is_empty());
        assert!(["viewer", "operator", "admin"].contains(&operation["x-role"].as_str().unwrap()));
    }
    // Something of each kind is there to be shown.
    let made = |method: &str, template: &str, path: &str, body: Value| {
        let answer = ask(&home, method, path, Some(&body));
        let operation = &paths[template][method.to_ascii_lowercase()];
        assert_eq!(answer.status, 200, "{path}: {}", String::from_utf8_lossy(&answer.body));
        as_documented(&document, operation, &answer, path);
        check(&document, &operation["requestBody"]["content"]["application/json"]["schema"], &body, path)
            .unwrap();
    };
    made("POST", "/v1/networks", "/v1/networks", json!({"name": "blue"}));
    made("POST", "/v1/secgroups", "/v1/secgroups", json!({"name": "web", "rules": ["in tcp/80 from any"]}));
    made("POST", "/v1/projects", "/v1/projects", json!({"name": "acme", "limits": {"vms": 3}}));
    made("POST", "/v1/volumes", "/v1/volumes", json!({"name": "data", "size_mib": 64}));
    let kernel = home.kernel();
    let vm = json!({"name": "web", "kernel": kernel, "accel": "soft", "memory_mib": 32, "net": "blue",
        "groups": ["web"], "labels": ["a=b"], "start": true});
    made("POST", "/v1/vms", "/v1/vms", vm);
    made("POST", "/v1/vms/{vm}/snapshots", "/v1/vms/web/snapshots", json!({"name": "s1"}));
    made("POST", "/v1/vms/{vm}/snapshots", "/v1/vms/web/snapshots?lines=true", json!({"name": "s2"}));
    made("POST", "/v1/vms/{vm}/port/limits", "/v1/vms/web/port/limits", json!({"bps": 1000000}));
    made("POST", "/v1/explain", "/v1/explain", json!({"from": "web", "to": "web", "what": "tcp/80"}));
    let import = json!({"path": kernel, "dry_run": true});
    let begun = ask(&home, "POST", "/v1/images/import?detach=true", Some(&import));
    assert_eq!(begun.status, 202, "{}", begun.head);
    as_documented(&document, &paths["/v1/images/import"]["post"], &begun, "a detached import");
    let events = ask(&home, "GET", "/v1/events?since=10m", None);
    let text = String::from_utf8(events.body).unwrap();
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).collect();
    assert!(data.len() > 3, "{text}");
    let event = &paths["/v1/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"];
    for line in data {
        check(&document, event, &serde_json::from_str(line).unwrap(), "event").unwrap();
    }
    // All that can be read is, but what does not end.
    for (template, path) in paths {
        let Some(operation) = path.get("get") else { continue };
        if ["VmWait", "PortCapture", "Events"].contains(&operation["operationId"].as_str().unwrap()) {
            continue;
        }
        for named in ["web", "nobody"] {
            let path = template
                .replace("{vm}", named)
                .replace("{network}", if named == "web" { "blue" } else { named });
            let path = path
                .replace("{group}", named)
                .replace("{volume}", if named == "web" { "data" } else { named })
                .replace("{operation}", if named == "web" { "1" } else { named })
                .replace("{snapshot}", if named == "web" { "s1" } else { named });
            let path = path.replace("{image}", named);
            let path = path.replace("{project}", if named == "web" { "acme" } else { named });
            let answer = ask(&home, "GET", &path, None);
            let absent = path.contains("nobody") || path.contains("/images/");
            let expected = match absent {
                _ if operation["responses"].get("101").is_some() => 426,
                true => 404,
                false => 200,
            };
            assert_eq!(answer.status, expected, "{path}");
            as_documented(&document, operation, &answer, &path);
        }
    }
    let metrics = String::from_utf8(ask(&home, "GET", "/metrics", None).body).unwrap();
    for line in [
        "# TYPE viv_vm_cpu_seconds_total counter",
        "viv_vms{state=\"running\"} 1",
        "viv_http_requests_total{method=\"GET\",path=\"/v1/vms/{vm}\",status=\"200\"} 1",
        "viv_http_request_duration_seconds_bucket{method=\"GET\",path=\"/v1/vms/{vm}\",le=\"+Inf\"} 2",
        "process_resident_memory_bytes ",
        "viv_vm_vcpu_seconds_total{id=",
        "viv_vm_exits_total{id=",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "no {line} in {metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && name.starts_with(['v', 'p']), "{line}");
    }
    made("POST", "/v1/vms/{vm}/kill", "/v1/vms/web/kill", json!({"status": 3}));
}

#[test]
fn what_is_no_request_is_refused_by_the_book() {
    let home = Home::new("refused");
    let refused = |method: &str, path: &str, body: Value, status: u16, words: &[&str]| {
        let answer = ask(&home, method, path, (body != json!("")).then_some(&body));
        let text = answer.json()["error"].to_string();
        assert_eq!(answer.status, status, "{method} {path}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{method} {path}: no {word} in {text}"));
        answer
    };
    refused("POST", "/v1/networks", json!({"nam": "a"}), 400, &["`nam`", "`name`"]);
    refused("POST", "/v1/networks", json!([1]), 400, &["not understood"]);
    let exec = json!({"image": "x", "command": {"argv": ["a"], "argw": []}});
    refused("POST", "/v1/vms", exec, 400, &["`command.", "argw`"]);
    refused("POST", "/v1/vms/a/pause", json!({"x": 1}), 400, &["takes no body"]);
    refused("DELETE", "/v1/vms/a?froce=true", json!(""), 400, &["froce", "force"]);
    refused("GET", "/v1/nothing", json!(""), 404, &["/v1/nothing"]);
    let answer = refused("PUT", "/v1/vms", json!({}), 405, &["PUT", "GET, POST"]);
    assert!(answer.head.contains("allow: get, post"), "{}", answer.head);
    let answer = refused("GET", "/v1/snapshots/import", json!(""), 404, &[]);
    assert!(!answer.head.contains("allow"));
    let head = |path: &str, fields: &str, body: &str| {
        let text =
            format!("POST {path} HTTP/1.1\r\nHost: vivarium\r\nConnection: close\r\n{fields}\r\n{body}");
        send(&home, text.as_bytes()).status
    };
    assert_eq!(head("/v1/networks", "Content-Length: 0\r\n", ""), 400);
    assert_eq!(head("/v1/networks", "Content-Type: text/plain\r\nContent-Length: 2\r\n", "{}"), 415);
    assert_eq!(
        head("/v1/networks", "Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n", "{]"),
        400
    );
    assert_eq!(head("/v1/networks", "Content-Length: 5000000\r\n", &"x".repeat(5_000_000)), 413);
    assert_eq!(head("/v1/vms/a/console", "Content-Length: 0\r\n", ""), 400);
    let deep = "[".repeat(100_000);
    assert_eq!(head("/v1/networks", &format!("Content-Length: {}\r\n", deep.len()), &deep), 400);
    assert_eq!(send(&home, b"NONSENSE\r\n\r\n").status, 400);
}
