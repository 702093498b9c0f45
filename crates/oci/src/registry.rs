//! A registry over HTTP (OCI distribution specification 1.1, "Pull"; docker, "Token Authentication Specification").
use crate::Digest;
use crate::logins::Logins;
use crate::patience::{wait, while_wanted};
use crate::reference::RegistryName;
use crate::registries::{Place, Registries};
use crate::source::{Blob, DOCUMENT_MAX, Source, Watch, damaged_at};
use crate::types::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};
use viv_model::{Fault, Kind};

mod authorization;
mod certificates;

use authorization::scope;
use certificates::{Certificates, Pinned};

/// How long a connection may take, and an answer to begin.
const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(30);
/// How long nothing may come in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(20);
/// How often something is asked again that may go better: 429, 502 to 504, a broken connection.
const TRIES: u32 = 5;
/// Most times that a registry sends us elsewhere for one thing.
const REDIRECTS_MAX: u32 = 8;
/// Longest that a registry may have us wait (RFC 9110 §10.2.3, `Retry-After`).
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Where docker's registry is.
const DOCKER_HOST: &str = "registry-1.docker.io";
/// Most bytes of a token's document, and of an error.
const SMALL: u64 = 1 << 20;
/// Tags that are named to who wants one that is not there.
const TAGS_SHOWN: usize = 8;

/// How to talk to registries.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Do without TLS and with any certificate, whatever the registry.
    pub insecure: bool,
    /// Who to be; where nothing is said, who this process's user is.
    pub logins: Logins,
}

/// Connections, credentials and tokens for any number of registries.
pub struct Client {
    shared: Arc<Shared>,
    insecure: bool,
}

struct Shared {
    /// For those of whom nothing is known: with proof of who they are, and without.
    strict: Agent,
    trusting: Agent,
    certificates: Certificates,
    /// Which one is whose, by a registry's name and whether it needs no proof.
    pinned: Mutex<BTreeMap<(String, bool), Agent>>,
    rules: Registries,
    logins: Logins,
    /// What a registry wants with each request, by place.
    tokens: Mutex<BTreeMap<String, String>>,
    /// Whether a registry talks TLS, where that was tried.
    schemes: Mutex<BTreeMap<String, &'static str>>,
}

impl Client {
    /// A client that goes by the user's rules.
    ///
    /// # Errors
    /// They are there, and not understood.
    pub fn new(options: Options) -> Result<Client, Fault> {
        Client::with(options, Certificates::new())
    }

    fn with(options: Options, certificates: Certificates) -> Result<Client, Fault> {
        let shared = Shared {
            strict: agent(false, None),
            trusting: agent(true, None),
            certificates,
            pinned: Mutex::default(),
            rules: Registries::load()?,
            logins: options.logins,
            tokens: Mutex::default(),
            schemes: Mutex::default(),
        };
        Ok(Client { shared: Arc::new(shared), insecure: options.insecure })
    }
}

/// What talks to registries.
fn agent(trusting: bool, pinned: Option<Pinned>) -> Agent {
    let Pinned { roots, client } =
        pinned.unwrap_or(Pinned { roots: RootCerts::PlatformVerifier, client: None });
    let tls = TlsConfig::builder().root_certs(roots).client_cert(client).disable_verification(trusting);
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        // Those of a registry we follow ourselves: what is for it alone goes nowhere else.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("vivarium/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(SILENCE));
    Agent::new_with_config(config.build())
}

impl Shared {
    fn agent(&self, place: &Place) -> Result<Agent, Failure> {
        let key = (place.registry.clone(), place.insecure);
        if let Some(agent) = lock(&self.pinned).get(&key) {
            return Ok(agent.clone());
        }
        let own = match self.certificates.of(&place.registry).map_err(Failure::Fault)? {
            Some(pinned) => agent(place.insecure, Some(pinned)),
            None if place.insecure => self.trusting.clone(),
            None => self.strict.clone(),
        };
        lock(&self.pinned).insert(key, own.clone());
        Ok(own)
    }
}

/// A repository of a registry, and its mirrors.
#[derive(Clone)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
    name: RegistryName,
    places: Vec<Place>,
    /// It is to be written to: tokens are asked for that.
    writes: bool,
}

/// What a repository is asked for, or given.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// What is there, from this byte on.
    Get { accept: Option<String>, from: u64 },
    /// Whether it is there.
    Head,
    /// A place for something new.
    Begin,
    /// A file, to the place that the registry gave for it.
    File { to: String, file: PathBuf },
    /// A manifest.
    Manifest { kind: String, text: Vec<u8> },
}

impl Content {
    fn send(
        &self,
        agent: &Agent,
        target: &str,
        token: Option<&String>,
    ) -> Result<Response<Body>, ureq::Error> {
        let authorize = |headers: &mut HeaderMap| -> Result<(), ureq::Error> {
            if let Some(token) = token {
                headers.insert(header::AUTHORIZATION, token.parse().map_err(ureq::http::Error::from)?);
            }
            Ok(())
        };
        match self {
            Content::Get { accept, from } => {
                // Layers are compressed as they are.
                let mut request = agent.get(target).header(header::ACCEPT_ENCODING, "identity");
                if let Some(accept) = accept {
                    request = request.header(header::ACCEPT, accept);
                }
                if *from > 0 {
                    request = request.header(header::RANGE, format!("bytes={from}-"));
                }
                if let Some(headers) = request.headers_mut() {
                    authorize(headers)?;
                }
                request.call()
            }
            Content::Head => {
                let mut request = agent.head(target);
                if let Some(headers) = request.headers_mut() {
                    authorize(headers)?;
                }
                request.call()
            }
            Content::Begin => {
                let mut request = agent.post(target);
                if let Some(headers) = request.headers_mut() {
                    authorize(headers)?;
                }
                request.send_empty()
            }
            Content::File { file, .. } => {
                let file = File::open(file)?;
                let mut request = agent
                    .put(target)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, file.metadata()?.len());
                if let Some(headers) = request.headers_mut() {
                    authorize(headers)?;
                }
                request.send(file)
            }
            Content::Manifest { kind, text } => {
                let mut request = agent.put(target).header(header::CONTENT_TYPE, kind);
                if let Some(headers) = request.headers_mut() {
                    authorize(headers)?;
                }
                request.send(&text[..])
            }
        }
    }
}

/// An answer that is no success.
struct Refusal {
    status: StatusCode,
    /// What the registry says about it.
    words: String,
    /// When to come again.
    after: Option<Duration>,
    challenge: Option<String>,
}

/// Why a place gave nothing.
enum Failure {
    Refused(Refusal),
    /// The connection, in words.
    Broken(String),
    Fault(Fault),
}

impl Registry {
    pub(crate) fn new(client: &Client, name: RegistryName) -> Registry {
        let mut places = client.shared.rules.places(&name.registry, &name.repository);
        places.iter_mut().for_each(|place| place.insecure |= client.insecure);
        Registry { shared: client.shared.clone(), name, places, writes: false }
    }

    /// A repository to write to: where it is itself, whatever mirrors it has for reading.
    pub(crate) fn writable(client: &Client, name: RegistryName) -> Result<Registry, Fault> {
        let mut registry = Registry::new(client, name);
        registry.writes = true;
        // The place itself comes behind its mirrors.
        registry.places = registry.places.pop().into_iter().collect();
        match registry.places.is_empty() {
            true => Err(registry.blocked()),
            false => Ok(registry),
        }
    }

    /// Asks the repository for something that changes it.
    pub(crate) fn ask(
        &self,
        path: &str,
        content: &Content,
        watch: &dyn Watch,
    ) -> Result<Response<Body>, Fault> {
        let Some(place) = self.places.first() else { return Err(self.blocked()) };
        self.get_from(place, path, content, watch).map_err(|failure| {
            let fault = self.told(place, failure);
            Fault { message: fault.message.replacen("cannot get", "cannot send", 1), ..fault }
        })
    }

    fn blocked(&self) -> Fault {
        let text = format!("{} may not be used: registries.conf blocks it", self.name);
        Fault::new(Kind::Denied, text, "unblock it there, or take another image")
    }

    /// Asks each place until one answers.
    fn get(
        &self,
        path: &str,
        accept: Option<&str>,
        from: u64,
        watch: &dyn Watch,
    ) -> Result<Response<Body>, Fault> {
        if self.places.is_empty() {
            return Err(self.blocked());
        }
        let content = Content::Get { accept: accept.map(str::to_string), from };
        let mut last = None;
        for place in &self.places {
            match self.get_from(place, path, &content, watch) {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = Some(self.told(place, failure)),
            }
            if watch.cancelled() {
                break;
            }
        }
        Err(last.unwrap_or_else(given_up))
    }

    fn get_from(
        &self,
        place: &Place,
        path: &str,
        content: &Content,
        watch: &dyn Watch,
    ) -> Result<Response<Body>, Failure> {
        let mut tried_token = false;
        let mut tries = 0;
        loop {
            if watch.cancelled() {
                return Err(Failure::Fault(given_up()));
            }
            match self.wanted(place, watch, {
                let (path, content) = (path.to_string(), content.clone());
                move |registry, place| registry.once(place, &path, &content)
            }) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Refused(refusal))
                    if refusal.status == StatusCode::UNAUTHORIZED && !tried_token =>
                {
                    tried_token = true;
                    self.wanted(place, watch, move |registry, place| registry.authorize(place, &refusal))?;
                }
                Err(failure) => {
                    tries += 1;
                    let pause = match &failure {
                        Failure::Refused(refusal) if is_passing(refusal.status) => {
                            refusal.after.unwrap_or_else(|| backoff(tries))
                        }
                        Failure::Broken(_) => backoff(tries),
                        _ => return Err(failure),
                    };
                    if tries >= TRIES || pause > WAIT_MAX {
                        return Err(failure);
                    }
                    watch.note(&format!("waiting for {}", place.registry));
                    if !wait(pause, watch) {
                        return Err(Failure::Fault(given_up()));
                    }
                }
            }
        }
    }

    /// Asks as long as the answer is wanted.
    fn wanted<T: Send + 'static>(
        &self,
        place: &Place,
        watch: &dyn Watch,
        ask: impl FnOnce(&Registry, &Place) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (registry, place) = (self.clone(), place.clone());
        while_wanted(watch, move || ask(&registry, &place)).unwrap_or_else(|| Err(Failure::Fault(given_up())))
    }

    fn once(&self, place: &Place, path: &str, content: &Content) -> Result<Response<Body>, Failure> {
        let host = if place.registry == "docker.io" { DOCKER_HOST } else { &place.registry };
        let token = lock(&self.shared.tokens).get(&scope(place)).cloned();
        let agent = self.shared.agent(place)?;
        let call = |scheme: &str| {
            let own = format!("{scheme}://{host}/v2/{}/{path}", place.repository);
            let ours = origin(&own);
            let mut target = match content {
                Content::File { to, .. } => absolute(to, &own),
                _ => own,
            };
            for _ in 0..REDIRECTS_MAX {
                if !target.starts_with("https://") && !place.insecure {
                    return Err(ureq::Error::RequireHttpsOnly(target));
                }
                let token = token.as_ref().filter(|_| origin(&target) == ours);
                let answer = content.send(&agent, &target, token)?;
                match redirect(&answer, &target) {
                    Some(next) => target = next,
                    None => return Ok(answer),
                }
            }
            Err(ureq::Error::TooManyRedirects)
        };
        let known = lock(&self.shared.schemes).get(&place.registry).copied();
        let answer = match known {
            Some(scheme) => call(scheme),
            None => self.first_call(place, &call),
        };
        let mut answer = answer.map_err(|error| broken(place, &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let text =
            |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        let challenges: Vec<String> = answer
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_string))
            .collect();
        // A registry may offer both; a token is what is asked for least often.
        let bearer = challenges.iter().find(|text| text.to_ascii_lowercase().starts_with("bearer "));
        let challenge = bearer.or(challenges.first()).cloned();
        let after =
            text(header::RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let status = answer.status();
        Err(Failure::Refused(Refusal { status, words: words(answer.body_mut()), after, challenge }))
    }

    /// Finds out whether the registry talks TLS.
    fn first_call(
        &self,
        place: &Place,
        call: &dyn Fn(&str) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ureq::Error> {
        let (scheme, answer) = match call("https") {
            Err(error) if place.insecure && !matches!(error, ureq::Error::Timeout(_)) => {
                ("http", call("http"))
            }
            answer => ("https", answer),
        };
        if answer.is_ok() {
            lock(&self.shared.schemes).insert(place.registry.clone(), scheme);
        }
        answer
    }

    /// A failure as the user meets it.
    fn told(&self, place: &Place, failure: Failure) -> Fault {
        let name = &self.name;
        let refusal = match failure {
            Failure::Fault(fault) => return fault,
            Failure::Broken(words) => {
                return Fault::new(
                    Kind::Error,
                    format!("cannot get {name}: {words}"),
                    "look at the registry's name, the network and HTTPS_PROXY; without TLS: --insecure",
                );
            }
            Failure::Refused(refusal) => refusal,
        };
        let said = match refusal.words.is_empty() {
            true => refusal.status.to_string(),
            false => format!("{} ({})", refusal.words, refusal.status),
        };
        match refusal.status {
            StatusCode::NOT_FOUND => Fault::new(
                Kind::NotFound,
                format!("{name} is not there: {} says: {said}", place.registry),
                "look at the spelling of repository and tag",
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                if !matches!(self.credentials(place), Ok(Some(_))) {
                    let fault = self.no_credentials(place);
                    return Fault {
                        message: format!("cannot get {name}: {}; it says: {said}", fault.message),
                        ..fault
                    };
                }
                Fault::new(
                    Kind::Denied,
                    format!("cannot get {name}: {} does not let you: {said}", place.registry),
                    format!(
                        "see that it is there and that you may have it, or log in again: docker login {}",
                        place.registry
                    ),
                )
            }
            StatusCode::TOO_MANY_REQUESTS => Fault::new(
                Kind::NoCapacity,
                format!("cannot get {name}: {} was asked too often: {said}", place.registry),
                "come again later, log in, or use a mirror (registries.conf)",
            ),
            _ => Fault::new(
                Kind::Error,
                format!("cannot get {name}: {} says: {said}", place.registry),
                "try again; if it stays so, ask whoever runs the registry",
            ),
        }
    }

    /// What tags the repository has instead of one that it has not, those most like that first; nothing if it does not say.
    fn other_tags(&self, wanted: &str, watch: &dyn Watch) -> Option<String> {
        /// OCI Distribution Specification 1.1, "Listing Tags".
        #[derive(Deserialize)]
        struct Tags {
            tags: Vec<String>,
        }
        let mut answer = self.get("tags/list", None, 0, watch).ok()?;
        let mut text = Vec::new();
        answer.body_mut().as_reader().take(SMALL).read_to_end(&mut text).ok()?;
        let Tags { mut tags } = serde_json::from_slice(&text).ok()?;
        tags.retain(|tag| {
            tag.len() <= 128 && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        });
        let alike = |tag: &String| tag.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
        tags.sort_by_key(|tag| std::cmp::Reverse(alike(tag)));
        let more = tags.len().saturating_sub(TAGS_SHOWN);
        tags.truncate(TAGS_SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        (!tags.is_empty()).then(|| format!("take another tag of it: {}{more}", tags.join(", ")))
    }

    fn manifest(&self, wanted: &str, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let mut failures = 0;
        loop {
            let mut answer = self.get(&format!("manifests/{wanted}"), Some(&accept), 0, watch)?;
            let said = answer
                .headers()
                .get("docker-content-digest")
                .and_then(|value| value.to_str().ok())
                .map(str::to_string);
            let mut text = Vec::new();
            match answer.body_mut().as_reader().take(DOCUMENT_MAX + 1).read_to_end(&mut text) {
                Ok(_) if text.len() as u64 > DOCUMENT_MAX => {
                    return Err(damaged_at(&self.name(), "its manifest has no end"));
                }
                Ok(_) => {
                    let said = said.and_then(|said| said.parse::<Digest>().ok());
                    let found = Digest::of(&text);
                    return match said {
                        Some(said) if said != found => Err(damaged_at(
                            &self.name(),
                            &format!("its manifest is {found}, and the registry says {said}"),
                        )),
                        _ => Ok(text),
                    };
                }
                Err(error) => {
                    failures += 1;
                    if failures >= TRIES || !wait(backoff(failures), watch) {
                        return Err(damaged_at(&self.name(), &format!("its manifest breaks off: {error}")));
                    }
                }
            }
        }
    }
}

impl Source for Registry {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn top(&self, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
        let wanted = self.name.wanted();
        let text = self.manifest(&wanted, watch).map_err(|fault| match (fault.kind, &self.name.digest) {
            (Kind::NotFound, None) => {
                Fault { fix: self.other_tags(&wanted, watch).unwrap_or(fault.fix), ..fault }
            }
            _ => fault,
        })?;
        match &self.name.digest {
            Some(digest) if *digest != Digest::of(&text) => {
                Err(damaged_at(&self.name(), &format!("the registry gave {} for it", Digest::of(&text))))
            }
            _ => Ok(text),
        }
    }

    fn document(&self, wanted: &Descriptor, watch: &dyn Watch) -> Result<Vec<u8>, Fault> {
        let digest: Digest = wanted.digest.parse()?;
        self.manifest(&digest.to_string(), watch)
    }

    fn blob(&self, wanted: &Descriptor, from: u64, watch: &dyn Watch) -> Result<Blob, Fault> {
        let digest: Digest = wanted.digest.parse()?;
        let answer = self.get(&format!("blobs/{digest}"), None, from, watch)?;
        let from = if answer.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        let limit = wanted.size.saturating_add(1);
        Ok(Blob { from, reader: Box::new(answer.into_body().into_with_config().limit(limit).reader()) })
    }

    fn is_remote(&self) -> bool {
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn given_up() -> Fault {
    Fault::new(
        Kind::Error,
        "the download was given up",
        "start it again when you like; what has come is kept",
    )
}

fn broken(place: &Place, error: &ureq::Error) -> Failure {
    if let Some(fault) = tls_fault(place, error) {
        return Failure::Fault(fault);
    }
    let words = match error {
        ureq::Error::HostNotFound => format!("no host is called {}", place.registry),
        ureq::Error::ConnectionFailed => format!("{} cannot be reached", place.registry),
        ureq::Error::Timeout(_) => format!("{} does not answer", place.registry),
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            format!("{} cannot be reached: nobody listens there", place.registry)
        }
        error => format!("{}: {error}", place.registry),
    };
    Failure::Broken(words)
}

/// What asking again does not mend: who is there talks something else than TLS, or is not known to be who it says.
fn tls_fault(place: &Place, error: &ureq::Error) -> Option<Fault> {
    let ureq::Error::Io(error) = error else { return None };
    let registry = &place.registry;
    let (text, fix) = match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidMessage(_) => (
            format!("{registry} does not talk TLS"),
            "if that is how it should be: --insecure, or insecure = true for it in registries.conf",
        ),
        rustls::Error::InvalidCertificate(why) => (
            format!("the certificate of {registry} is none that this host trusts: {}", reason(why)),
            "add its authority to this host's (update-ca-certificates) or to /etc/containers/certs.d, or do without: --insecure",
        ),
        _ => return None,
    };
    Some(Fault::new(Kind::Denied, text, fix))
}

fn reason(why: &rustls::CertificateError) -> String {
    match why {
        rustls::CertificateError::Other(other) => other.to_string(),
        why => why.to_string(),
    }
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> Option<(String, String)> {
    let uri: Uri = address.parse().ok()?;
    Some((uri.scheme_str()?.to_string(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// Where an answer to a request for `target` sends us (RFC 9110 §15.4), if it does.
fn redirect(answer: &Response<Body>, target: &str) -> Option<String> {
    if !answer.status().is_redirection() {
        return None;
    }
    let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
    Some(absolute(location, target))
}

/// Where `location` is, seen from `target`: in full, or a path there (RFC 9110 §10.2.2).
fn absolute(location: &str, target: &str) -> String {
    match (location.strip_prefix('/'), origin(target)) {
        (Some(path), Some((scheme, authority))) if !path.starts_with('/') => {
            format!("{scheme}://{authority}{location}")
        }
        _ => location.to_string(),
    }
}

/// A refusal that may pass.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::REQUEST_TIMEOUT
    )
}

/// The pause before the next try: a quarter of a second, then twice as long each time.
fn backoff(tries: u32) -> Duration {
    Duration::from_millis(250 << tries.min(8).saturating_sub(1))
}

/// What a registry says in its error document (OCI distribution specification, "Error Codes"), without what a terminal obeys.
fn words(body: &mut Body) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        message: String,
        #[serde(default)]
        code: String,
    }
    let mut text = Vec::new();
    let _ = body.as_reader().take(SMALL).read_to_end(&mut text);
    let first = serde_json::from_slice::<Errors>(&text).ok().and_then(|all| all.errors.into_iter().next());
    let words =
        first.map(|one| if one.message.is_empty() { one.code } else { one.message }).unwrap_or_default();
    words.chars().filter(|c| !c.is_control()).take(200).collect()
}
