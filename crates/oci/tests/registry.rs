//! Registries that want a token, send one elsewhere, refuse for a while, break off, and lie: a small server in this process that does
//! what each test says.
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use viv_model::{Fault, Kind};
use viv_oci::{Client, Digest, Image, Logins, Options, Reference, Source, Watch};

/// A request: its target, and its headers with names in lower case.
struct Asked {
    target: String,
    headers: BTreeMap<String, String>,
}

/// An answer: status, headers, body, and how many bytes of the body are sent before the connection breaks.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into(), cut: None }
}

impl Answer {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }
}

type Rule = Box<dyn Fn(&Asked, usize) -> Option<Answer> + Send + Sync>;

/// A server with an image; `rule` may answer in its place, given how often it was asked before.
struct Server {
    address: String,
    image: Arc<Content>,
}

struct Content {
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    layer: Vec<u8>,
}

fn content() -> Content {
    let layer: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&layer)
    );
    let describe = |bytes: &[u8], kind: &str| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe(config.as_bytes(), "application/vnd.oci.image.config.v1+json"),
        "layers": [describe(&layer, "application/vnd.oci.image.layer.v1.tar")],
    });
    let blobs = [config.into_bytes(), layer.clone()].map(|bytes| (Digest::of(&bytes).to_string(), bytes));
    Content { manifest: manifest.to_string().into_bytes(), blobs: blobs.into(), layer }
}

impl Server {
    fn start(rule: Rule) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let image = Arc::new(content());
        let (rule, served) = (Arc::new(rule), image.clone());
        let count = Arc::new(Mutex::new(BTreeMap::new()));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (rule, image, count) = (rule.clone(), served.clone(), count.clone());
                std::thread::spawn(move || serve(stream, &rule, &image, &count));
            }
        });
        Server { address, image }
    }

    fn source(&self, name: &str) -> Box<dyn Source> {
        self.source_for(name, Options { insecure: true, ..Options::default() })
    }

    fn source_for(&self, name: &str, options: Options) -> Box<dyn Source> {
        let reference = Reference::parse(&format!("{}/{name}", self.address), Path::new("/")).unwrap();
        viv_oci::open(&reference, &Client::new(options).unwrap()).unwrap()
    }

    fn resolve(&self, name: &str) -> Result<Image, Fault> {
        viv_oci::resolve(self.source(name).as_ref(), &Quiet)
    }
}

fn serve(mut stream: TcpStream, rule: &Rule, image: &Content, count: &Mutex<BTreeMap<String, usize>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) if line.starts_with("GET ") => {}
            // Somebody who wants to talk TLS.
            _ => return stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap_or_default(),
        }
        let target = line.split(' ').nth(1).unwrap().to_string();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        }
        let asked = Asked { target, headers };
        let before = {
            let mut count = count.lock().unwrap();
            let times = count.entry(asked.target.clone()).or_insert(0);
            *times += 1;
            *times - 1
        };
        let given = rule(&asked, before).unwrap_or_else(|| usual(&asked, image));
        let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", given.status, given.body.len());
        for (name, value) in &given.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let body = given.body.get(..given.cut.unwrap_or(given.body.len())).unwrap();
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_err()
            || given.cut.is_some()
        {
            return;
        }
    }
}

/// What a good registry says.
fn usual(asked: &Asked, image: &Content) -> Answer {
    let last = asked.target.rsplit('/').next().unwrap();
    if asked.target.contains("/manifests/") {
        return match last == "1" || last == Digest::of(&image.manifest).to_string() {
            true => answer(200, image.manifest.clone()),
            false => answer(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
        };
    }
    let Some(blob) = image.blobs.get(last) else { return answer(404, "") };
    let from = asked
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) => answer(206, blob.get(from..).unwrap()),
        None => answer(200, blob.clone()),
    }
}

struct Quiet;

impl Watch for Quiet {
    fn bytes(&self, _: i64) {}
    fn note(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

fn read_layer(server: &Server, image: &Image, from: u64) -> (u64, Vec<u8>) {
    let mut blob = server.source("a/b:1").blob(&image.layers[0].descriptor, from, &Quiet).unwrap();
    let mut bytes = Vec::new();
    blob.reader.read_to_end(&mut bytes).unwrap();
    (blob.from, bytes)
}

#[test]
fn an_image_is_found_by_tag_and_digest_and_its_layers_from_anywhere_in_them() {
    let server = Server::start(Box::new(|_, _| None));
    let image = server.resolve("a/b:1").unwrap();
    assert_eq!(image.digest, Digest::of(&server.image.manifest));
    assert_eq!(server.resolve(&format!("a/b@{}", image.digest)).unwrap().digest, image.digest);
    assert!(read_layer(&server, &image, 0) == (0, server.image.layer.clone()));
    assert!(read_layer(&server, &image, 1000) == (1000, server.image.layer[1000..].to_vec()));
    let fault = server.resolve("a/b:2").unwrap_err();
    assert!(fault.kind == Kind::NotFound && fault.message.contains("manifest unknown"), "{fault}");
}

#[test]
fn a_token_is_got_where_the_registry_says() {
    let server = Server::start(Box::new(|asked, _| {
        let host = asked.headers.get("host").unwrap();
        if asked.target.starts_with("/token?") {
            assert!(
                asked.target.contains("service=us")
                    && asked.target.contains("scope=repository%3Aa%2Fb%3Apull"),
                "{}",
                asked.target
            );
            return Some(answer(200, r#"{"token":"abc.def"}"#));
        }
        match asked.headers.get("authorization").map(String::as_str) {
            Some("Bearer abc.def") => None,
            _ => Some(answer(401, "").with(
                "www-authenticate",
                format!(r#"Bearer realm="http://{host}/token",service="us",scope="repository:a/b:pull""#),
            )),
        }
    }));
    let image = server.resolve("a/b:1").unwrap();
    assert!(read_layer(&server, &image, 0).1 == server.image.layer);
}

#[test]
fn who_is_not_let_in_is_told_how_to_log_in() {
    let server = Server::start(Box::new(|_, _| {
        Some(
            answer(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#)
                .with("www-authenticate", "Basic realm=\"x\""),
        )
    }));
    let fault = server.resolve("a/b:1").unwrap_err();
    assert!(fault.kind == Kind::Denied && fault.fix.contains("docker login 127.0.0.1:"), "{fault}");
    // A registry that would have our password sent to a stranger, by no protocol of ours.
    let server = Server::start(Box::new(|_, _| {
        Some(answer(401, "").with("www-authenticate", "Bearer realm=\"ftp://x/\""))
    }));
    assert!(server.resolve("a/b:1").unwrap_err().message.contains("not safe"));
}

#[test]
fn without_tls_nothing_is_asked_for_unless_somebody_said_so() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let server = Server::start(Box::new(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        None
    }));
    let fault =
        viv_oci::resolve(server.source_for("a/b:1", Options::default()).as_ref(), &Quiet).unwrap_err();
    assert!(fault.message.contains("TLS") && fault.fix.contains("--insecure"), "{fault}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    server.resolve("a/b:1").unwrap();
}

#[test]
fn a_request_says_who_it_is() {
    let server = Server::start(Box::new(|asked, _| {
        let known = asked.headers.get("authorization").is_some_and(|value| value == "Basic YW5uOnMzY3JldA==");
        (!known).then(|| answer(401, "").with("www-authenticate", "Basic realm=\"x\""))
    }));
    let resolve = |login: &str| {
        let text = format!(r#"{{"{}":{login}}}"#, server.address);
        let logins = Logins::decode(&URL_SAFE.encode(text)).unwrap();
        viv_oci::resolve(server.source_for("a/b:1", Options { logins, insecure: true }).as_ref(), &Quiet)
    };
    resolve(r#"{"username":"ann","password":"s3cret"}"#).unwrap();
    let fault = resolve(r#"{"username":"ann","password":"other"}"#).unwrap_err();
    assert!(fault.kind == Kind::Denied && fault.message.contains("does not let you"), "{fault}");
    assert!(server.resolve("a/b:1").unwrap_err().message.contains("there are no credentials for it"));
}

#[test]
fn what_refuses_for_a_while_is_asked_again() {
    for status in [429, 502, 503, 504] {
        let server = Server::start(Box::new(move |_, before| {
            (before < 2).then(|| answer(status, "").with("retry-after", "0"))
        }));
        let image = server.resolve("a/b:1").unwrap();
        assert!(read_layer(&server, &image, 0).1 == server.image.layer);
    }
    let server = Server::start(Box::new(|_, _| {
        Some(answer(429, r#"{"errors":[{"message":"slow \u001b[31mdown"}]}"#).with("retry-after", "3600"))
    }));
    let fault = server.resolve("a/b:1").unwrap_err();
    // Nobody waits for an hour, and no terminal obeys a registry.
    assert!(fault.kind == Kind::NoCapacity && fault.message.contains("slow [31mdown"), "{fault}");
}

#[test]
fn other_tags_are_named_where_one_is_missing() {
    let server = Server::start(Box::new(|asked, _| {
        let tags = r#"{"name":"a/b","tags":["latest","12-slim","12","1\u001b[31m","11"]}"#;
        asked.target.ends_with("/tags/list").then(|| answer(200, tags))
    }));
    let fault = server.resolve("a/b:12-slin").unwrap_err();
    assert!(
        fault.kind == Kind::NotFound && fault.fix == "take another tag of it: 12-slim, 12, 11, latest",
        "{fault}"
    );
    // A registry that does not say, or lies.
    for tags in ["", "[]", r#"{"tags":null}"#, r#"{"tags":[]}"#] {
        let server = Server::start(Box::new(move |asked, _| {
            asked.target.ends_with("/tags/list").then(|| answer(200, tags))
        }));
        let fault = server.resolve("a/b:2").unwrap_err();
        assert!(fault.kind == Kind::NotFound && fault.fix.contains("spelling"), "{fault}");
    }
}

#[test]
fn a_redirect_is_followed_without_our_token() {
    let other = Server::start(Box::new(|asked, _| {
        assert!(!asked.headers.contains_key("authorization"), "our token went to a stranger");
        None
    }));
    let place = other.address.clone();
    let server = Server::start(Box::new(move |asked, _| {
        if asked.target.starts_with("/token") {
            return Some(answer(200, r#"{"access_token":"secret"}"#));
        }
        if !asked.headers.contains_key("authorization") {
            let host = asked.headers.get("host").unwrap();
            return Some(
                answer(401, "").with("www-authenticate", format!("Bearer realm=\"http://{host}/token\"")),
            );
        }
        let is_blob = asked.target.contains("/blobs/");
        is_blob.then(|| answer(307, "").with("location", format!("http://{place}{}", asked.target)))
    }));
    let image = server.resolve("a/b:1").unwrap();
    assert!(read_layer(&server, &image, 0).1 == server.image.layer);
    let circle =
        Server::start(Box::new(|asked, _| Some(answer(302, "").with("location", asked.target.clone()))));
    assert!(circle.resolve("a/b:1").is_err());
}

#[test]
fn lies_are_found() {
    let server = Server::start(Box::new(|asked, _| {
        asked.target.contains("/manifests/").then(|| {
            answer(200, content().manifest).with("docker-content-digest", Digest::of(b"other").to_string())
        })
    }));
    assert!(server.resolve("a/b:1").unwrap_err().message.contains("the registry says"));
    // By digest, nothing but the digest counts.
    let server = Server::start(Box::new(|asked, _| {
        asked.target.contains("/manifests/").then(|| answer(200, content().manifest))
    }));
    let fault = server.resolve(&format!("a/b@{}", Digest::of(b"other"))).unwrap_err();
    assert!(fault.message.contains("gave"), "{fault}");
    let server = Server::start(Box::new(|asked, _| {
        let is_config = asked.target.contains("/blobs/");
        is_config.then(|| answer(200, vec![b' '; 300]))
    }));
    assert!(server.resolve("a/b:1").unwrap_err().message.contains("configuration"));
}

#[test]
fn what_breaks_off_is_told_or_asked_again() {
    // A manifest that breaks off twice.
    let server = Server::start(Box::new(|asked, before| {
        let cut = asked.target.contains("/manifests/") && before < 2;
        cut.then(|| Answer { cut: Some(100), ..answer(200, content().manifest) })
    }));
    let image = server.resolve("a/b:1").unwrap();
    // A layer that breaks off: an error for the reader, who goes on from there.
    let server = Server::start(Box::new(|asked, before| {
        let cut = asked.target.contains("/blobs/") && before == 0 && !asked.headers.contains_key("range");
        let layer = content().layer;
        (cut && asked.target.ends_with(&Digest::of(&layer).to_string()))
            .then(|| Answer { cut: Some(5000), ..answer(200, layer) })
    }));
    let mut blob = server.source("a/b:1").blob(&image.layers[0].descriptor, 0, &Quiet).unwrap();
    let mut bytes = Vec::new();
    assert!(blob.reader.read_to_end(&mut bytes).is_err());
    let rest = read_layer(&server, &image, bytes.len() as u64);
    assert!(rest.0 == bytes.len() as u64 && [bytes, rest.1].concat() == server.image.layer);
}

#[test]
fn nobody_there_is_said_quickly() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = Reference::parse(&format!("{address}/a:1"), Path::new("/")).unwrap();
    let source = viv_oci::open(&reference, &Client::new(Options::default()).unwrap()).unwrap();
    let fault = viv_oci::resolve(source.as_ref(), &Quiet).unwrap_err();
    assert!(fault.message.contains("127.0.0.1"), "{fault}");
}
