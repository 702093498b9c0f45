//! The network: who is let in, as what, and what is written down of it.
mod kit;

use kit::Home;
use kit::lab::Lab;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;

#[test]
fn nobody_comes_in_who_shows_nothing() {
    let lab = Lab::new("nobody");
    let token = lab.token("viewer");
    let bearer = format!("Authorization: Bearer {token}");
    for path in ["/v1/info", "/v1/vms", "/v1/openapi.json", "/metrics", "/nothing"] {
        assert_eq!(lab.curl(&[], path).0, 401, "{path}");
    }
    let (status, body) = lab.curl(&["-i", "-X", "POST"], "/v1/vms");
    assert!(status == 401 && body.to_lowercase().contains("www-authenticate: bearer"), "{body}");
    assert_eq!(lab.curl(&["-H", "Authorization: Bearer viv_0"], "/v1/info").0, 401);
    assert_eq!(lab.curl(&["-H", "Authorization: Basic eDp5"], "/v1/info").0, 401);
    assert_eq!(lab.curl(&["-H", &bearer], "/v1/info").0, 200);
    // Another host's name, as a page that rebinds names would send; and a page of somewhere else.
    assert_eq!(lab.curl(&["-H", &bearer, "-H", "Host: evil.example"], "/v1/info").0, 421);
    assert_eq!(lab.curl(&["-H", &bearer, "-H", "Origin: https://evil.example"], "/v1/info").0, 403);
    let own = format!("Origin: {}", lab.url);
    assert_eq!(lab.curl(&["-H", &bearer, "-H", &own], "/v1/info").0, 200);
    // What is taken back counts no more, at once.
    lab.host.viv(&["token", "rm", "viewer"]).ok();
    assert_eq!(lab.curl(&["-H", &bearer], "/v1/info").0, 401);
    lab.by("viewer", &["ps"]).fails(6, &["token", "viv token create"]);
    // Plain HTTP and a host that has another authority are told.
    let other = Home::new("nobody-other");
    let strange = other.viv(&["cert", "ca"]).ok().out;
    let strange = lab.guest.file("strange.pem", strange.as_bytes());
    let file = lab.guest.file("t", token.as_bytes());
    lab.guest.viv(&["context", "add", "strange", &lab.url, "--token-file", &file, "--ca", &strange]).ok();
    lab.by("strange", &["ps"]).fails(6, &["is not the host service", "viv cert ca"]);
    lab.guest
        .viv(&["context", "add", "x", "http://a:1", "--token-file", &file, "--ca", &strange])
        .fails(2, &["https://"]);
    lab.by("nowhere", &["ps"]).fails(3, &["nowhere", "viv context ls"]);
}

/// Each operation of the document, with each role: it is refused as not his (403) if and only if its role is a higher one.
#[test]
fn each_role_may_do_what_the_document_says() {
    let lab = Lab::new("roles");
    let tokens: Vec<String> = ["viewer", "operator", "admin"].map(|role| lab.token(role)).into();
    let admin = format!("Authorization: Bearer {}", tokens[2]);
    let document: Value = serde_json::from_str(&lab.curl(&["-H", &admin], "/v1/openapi.json").1).unwrap();
    let rank = |role: &Value| ["viewer", "operator", "admin"].iter().position(|name| role == name).unwrap();
    let mut looked = 0;
    for (template, path) in document["paths"].as_object().unwrap() {
        for (method, operation) in path.as_object().unwrap() {
            let least = rank(&operation["x-role"]);
            // Names that name nothing, in the places of names.
            let path = template.replace("{port}", "1").replace("{number}", "1");
            let path = path.replace('{', "zz").replace('}', "");
            for (role, token) in tokens.iter().enumerate() {
                let bearer = format!("Authorization: Bearer {token}");
                let mut words = vec!["-X", method.as_str(), "-H", &bearer, "-o", "/dev/null"];
                words[1] = match method.as_str() {
                    "get" => "GET",
                    "post" => "POST",
                    _ => "DELETE",
                };
                let status = lab.curl(&words, &path).0;
                // Without a body nothing is built that is not there: that is refused after the role.
                let builds = operation["operationId"] == "ImageBuild" && role == 1;
                let refused = role < least || builds;
                if !(role == 2 && operation["operationId"] == "ImageBuild") {
                    assert_eq!(status == 403, refused, "{method} {path} as {role}: {status}");
                }
                looked += 1;
            }
        }
    }
    assert!(looked > 200, "{looked}");
    let bearer = format!("Authorization: Bearer {}", tokens[1]);
    let create = |body: Value| {
        lab.curl(&["-H", &bearer, "-H", "Content-Type: application/json", "-d", &body.to_string()], "/v1/vms")
            .0
    };
    for body in [
        json!({"kernel": "/etc/passwd"}),
        json!({"image": "/etc/shadow"}),
        json!({"image": "x", "disks": [{"path": "/dev/vda"}]}),
        json!({"image": "x", "shares": [{"path": "/", "target": "/host"}]}),
        json!({"image": "x", "cloud_init": {"user_data": "/etc/shadow"}}),
        json!({"image": "x", "net": "tap:tap0"}),
    ] {
        assert_eq!(create(body.clone()), 403, "{body}");
    }
    assert_eq!(create(json!({"image": "nothing"})), 404);
}

#[test]
fn another_machine_uses_it_like_its_own() {
    let lab = Lab::new("elsewhere");
    lab.token("operator");
    lab.token("viewer");
    let kernel = lab.host.kernel();
    lab.host.viv(&["run", "-d", "--name", "web", "--accel", "soft", "--kernel", &kernel]).ok();
    assert_eq!(lab.by("viewer", &["ps", "-q"]).ok().out, "web\n");
    let logs = || lab.by("viewer", &["logs", "web"]).ok().out;
    kit::until("the guest speaks", || logs().contains("ready"));
    lab.by("viewer", &["stop", "web"]).fails(6, &["takes the role operator", "token:viewer"]);
    // The console, both ways: the kernel echoes, and `q` switches it off, which ends the stream.
    lab.guest.viv(&["context", "use", "operator"]).ok();
    let mut console = lab.guest.command(&["console", "web"]);
    let mut child =
        console.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"hello").unwrap();
    kit::until("the guest echoes", || logs().contains("hello"));
    std::io::Write::write_all(&mut input, b"q").unwrap();
    let seen = child.wait_with_output().unwrap();
    drop(input);
    assert!(String::from_utf8_lossy(&seen.stdout).contains("hello"), "{seen:?}");
    kit::until("it has ended", || lab.host.inspect("web")["state"] == "stopped");
    lab.guest.viv(&["start", "web"]).ok();
    lab.guest.viv(&["kill", "web"]).ok();
    // Files of this machine are not there.
    let here = lab.guest.kernel();
    lab.guest
        .viv(&["run", "--kernel", &here, "--accel", "soft"])
        .fails(2, &["a kernel's file", "--context local"]);
    lab.guest.viv(&["attach", "web", &here]).fails(2, &["a disk of this machine"]);
    lab.guest.viv(&["run", "-d", "--accel", "soft"]).fails(6, &["the image \"default\"", "admin"]);
    assert_eq!(lab.by("local", &["ps", "-a", "-q"]).ok().out, "");
    let shown = lab.guest.viv(&["context", "ls", "--json"]).ok().json();
    assert_eq!(shown[1]["name"], "operator");
    assert_eq!(shown[1]["used"], true);
    // A certificate in place of a token.
    let dir = lab.guest.dir.to_str().unwrap().to_string();
    lab.host.viv(&["cert", "issue", "ann", "--role", "viewer", "--expires", "1d", "--output", &dir]).ok();
    let (pem, key) = (format!("{dir}/ann.pem"), format!("{dir}/ann.key"));
    let ca = format!("{dir}/ca.pem");
    lab.guest.viv(&["context", "add", "ann", &lab.url, "--cert", &pem, "--key", &key, "--ca", &ca]).ok();
    assert_eq!(lab.by("ann", &["ps", "-a", "-q"]).ok().out, "web\n");
    lab.by("ann", &["start", "web"]).fails(6, &["certificate:ann"]);
    lab.host.viv(&["cert", "rm", "ann"]).ok();
    lab.by("ann", &["ps"]).fails(6, &["nobody knows who asks"]);
    // All of it is written down, but not what only looked.
    let entries = lab.host.viv(&["audit", "ls", "--json"]).ok().json();
    let has = |who: &str, operation: &str, status: u64| {
        entries.as_array().unwrap().iter().any(|entry| {
            entry["who"].as_str().unwrap().starts_with(who)
                && entry["operation"] == operation
                && entry["status"] == status
        })
    };
    assert!(has("uid:", "VmCreate", 200) && has("token:operator", "VmConsole", 101), "{entries}");
    assert!(has("token:viewer", "VmStop", 403) && has("certificate:ann", "VmStart", 403), "{entries}");
    assert!(!has("", "VmList", 200));
    lab.by("operator", &["audit", "ls"]).fails(6, &["admin"]);
}

#[test]
fn the_audit_log_tells_who_has_changed_it() {
    let home = Home::new("audit");
    home.viv(&["network", "create", "a"]).ok();
    home.viv(&["network", "create", "b"]).ok();
    home.viv(&["network", "rm", "nothing"]).fails(3, &[]);
    let text = home.viv(&["audit", "ls"]).ok().out;
    assert!(
        text.contains("NetworkCreate") && text.contains("/v1/networks/nothing") && text.contains("404"),
        "{text}"
    );
    assert!(home.viv(&["audit", "verify"]).ok().out.contains("3 lines, all as they were written"));
    let path = home.dir.join("home/state/audit/audit.jsonl");
    let log = fs::read_to_string(&path).unwrap();
    fs::write(&path, log.replacen("/v1/networks", "/v1/nothing", 1)).unwrap();
    home.viv(&["audit", "verify"]).fails(1, &["line 2 of audit.jsonl"]);
    // A crash in the middle of a line is another thing.
    let service = home.service().unwrap();
    kit::signal(service, Signal::KILL);
    kit::until("it is gone", || !kit::is_alive(service.into()));
    fs::write(&path, &log[..log.len() - 20]).unwrap();
    let told = home.viv(&["audit", "verify"]).ok().out;
    assert!(told.contains("3 lines") && told.contains("half a line was lost"), "{told}");
}

#[test]
fn those_who_only_wait_are_in_nobodys_way() {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let lab = Lab::new("idle");
    lab.token("viewer");
    let address = lab.url.trim_start_matches("https://").to_string();
    let connect = || {
        let socket = TcpStream::connect(&address).unwrap();
        socket.set_read_timeout(Some(kit::LIMIT)).unwrap();
        socket
    };
    let idle: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    assert_eq!(lab.by("viewer", &["ps", "-q"]).ok().out, "");
    assert_eq!(lab.host.viv(&["ps", "-q"]).ok().out, "");
    // What is not TLS, and what says nothing, is closed by itself.
    let mut plain = connect();
    let _ = plain.write_all(b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let closed = |mut socket: &TcpStream| {
        let mut rest = Vec::new();
        let ended = socket.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
        ended.is_ok() || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    };
    assert!(closed(&plain));
    assert!(idle.iter().all(closed));
    assert_eq!(lab.by("viewer", &["ps", "-q"]).ok().out, "");
}
