//! Who asks, and whether he may: the user of the Unix socket, or who shows a token or a certificate over the network.
use crate::audit::Audit;
use crate::http::{self, Refused};
use crate::places::Places;
use crate::tickets::{self, Tickets};
use crate::tls::CertificateAuthority;
use crate::tokens::{Passes, new_token, sha256};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use viv_api::access::{
    Authority, CertificateMade, Pass, PassCreate, PassKind, Ticket, TicketCreate, TokenMade,
};
use viv_api::contract::{self, Role};
use viv_api::endpoint::{self, Answer, Endpoint, Method, Route};
use viv_api::image::ImageBuild;
use viv_model::{Fault, Kind, ProjectName};

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// The Unix socket, by SO_PEERCRED.
    User(u32),
    /// The network.
    Network {
        /// Its address.
        from: SocketAddr,
        /// The hash of the certificate that it has shown, which the authority has signed.
        certificate: Option<String>,
    },
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) who: String,
    pub(crate) from: Option<String>,
    role: Role,
    /// The project that he is bound to.
    pub(crate) project: Option<ProjectName>,
    by: By,
}

/// By what a caller is known: what he has shown, or who he is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The Unix socket.
    User(u32),
    /// A token or a certificate, by its hash: it may be taken back.
    Pass(PassKind, String),
}

/// Where the service listens besides its Unix socket.
#[derive(Clone, Debug, Default)]
struct Listening {
    at: Vec<String>,
    names: Vec<String>,
}

/// Who may use the service.
pub(crate) struct Access {
    places: Places,
    pub(crate) passes: Passes,
    pub(crate) audit: Audit,
    tickets: Tickets,
    authority: Mutex<()>,
    listening: Mutex<Listening>,
}

fn denied(status: StatusCode, message: String, fix: &str) -> Refused {
    Box::new(http::refusal(status, &Fault::new(Kind::Denied, message, fix)))
}

impl Access {
    pub(crate) fn open(places: &Places) -> Result<Access, Fault> {
        Ok(Access {
            places: places.clone(),
            passes: Passes::open(places.access().join("passes.json"))?,
            audit: Audit::open(&places.audit())?,
            tickets: Tickets::default(),
            authority: Mutex::default(),
            listening: Mutex::default(),
        })
    }

    fn listening(&self) -> MutexGuard<'_, Listening> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority, made when it is first asked for.
    pub(crate) fn certificate_authority(&self) -> Result<CertificateAuthority, Fault> {
        let _one = self.authority.lock().unwrap_or_else(PoisonError::into_inner);
        CertificateAuthority::open(&self.places.access())
    }

    /// From now on the service listens there, by these names.
    pub(crate) fn listens(&self, at: SocketAddr, names: &[String]) {
        let mut listening = self.listening();
        listening.at.push(at.to_string());
        listening.names = names.to_vec();
    }

    /// What clients have to know.
    pub(crate) fn authority(&self) -> Result<Authority, Fault> {
        let ca = self.certificate_authority()?.pem().to_string();
        let Listening { at, names } = self.listening().clone();
        Ok(Authority { ca, listens_at: at, names })
    }

    pub(crate) fn create_token(&self, ask: &PassCreate) -> Result<TokenMade, Fault> {
        let pass = self.passes.asked(ask, PassKind::Token)?;
        let token = new_token()?;
        self.passes.add(pass.clone(), sha256(token.as_bytes()))?;
        Ok(TokenMade { pass, token })
    }

    pub(crate) fn issue_certificate(&self, ask: &PassCreate) -> Result<CertificateMade, Fault> {
        let pass = self.passes.asked(ask, PassKind::Certificate)?;
        let until = pass.expires_at.unwrap_or(pass.created_at);
        let (der, certificate, key) = self.certificate_authority()?.issue(&pass.name, until)?;
        self.passes.add(pass.clone(), sha256(&der))?;
        Ok(CertificateMade { pass, certificate, key })
    }

    /// A ticket for the caller. He may open what it is for.
    pub(crate) fn create_ticket(&self, caller: &Caller, ask: &TicketCreate) -> Result<Ticket, Fault> {
        let found = endpoint::find(Method::Get.name(), &ask.path);
        let Some((endpoint, arguments)) = found.ok().filter(|(found, _)| found.answer == Answer::Socket)
        else {
            let sockets = endpoint::TABLE.iter().filter(|line| line.answer == Answer::Socket);
            let paths: Vec<&str> = sockets.map(|line| line.path).collect();
            return Err(Fault::new(
                Kind::Usage,
                format!("there is no WebSocket at {:?}", ask.path),
                format!("give its path, without a query: {}", paths.join(", ")),
            ));
        };
        caller.must_be(endpoint.route.role(), || format!("{} {}", endpoint.method, endpoint.path))?;
        let ticket = self.tickets.give(caller.by.clone(), endpoint.route, arguments, Instant::now())?;
        Ok(Ticket { ticket, expires_s: tickets::LASTS.as_secs() })
    }

    /// By whose ticket this request comes, if it shows one.
    fn by_ticket(&self, request: &Request<Incoming>) -> Option<Result<By, Refused>> {
        let (endpoint, arguments) = endpoint::find(request.method().as_str(), request.uri().path()).ok()?;
        let query = request.uri().query().filter(|_| endpoint.answer == Answer::Socket)?;
        let ticket = endpoint::query_value(query, "ticket")?;
        let by = self.tickets.take(&ticket, endpoint.route, &arguments, Instant::now());
        Some(by.ok_or_else(|| nobody("the ticket is used, over, for another path, or none", tickets::FIX)))
    }

    /// Who sends this request.
    pub(crate) fn caller(&self, peer: &Peer, request: &Request<Incoming>) -> Result<Caller, Refused> {
        let ticket = self.by_ticket(request); // it is used, whatever it is refused for
        let header =
            |name| request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
        let host = request.uri().authority().map(|authority| authority.as_str()).or(header(HOST));
        let host = host.unwrap_or_default();
        if let Some(origin) = header(ORIGIN)
            && origin.split_once("://").is_none_or(|(_, there)| !there.eq_ignore_ascii_case(host))
        {
            return Err(denied(
                StatusCode::FORBIDDEN,
                format!("a page of {origin} may not use this service"),
                "use a page of the service itself, or a program that sends no Origin",
            ));
        }
        let (from, certificate) = match peer {
            Peer::User(uid) => {
                return Ok(Caller::user(*uid, None));
            }
            Peer::Network { from, certificate } => (from, certificate),
        };
        if !self.listening().names.iter().any(|name| is_called(name, host)) {
            return Err(denied(
                StatusCode::MISDIRECTED_REQUEST,
                format!("this service is not the host {host:?}"),
                "call it by a name or address of its certificate, or tell it that name: viv serve --listen … --name NAME",
            ));
        }
        let token = header(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let from = Some(from.ip().to_string());
        let shown = match (ticket, token, certificate) {
            (Some(by), _, _) => match by? {
                By::User(uid) => return Ok(Caller::user(uid, from)),
                By::Pass(kind, hash) => Some((kind, hash)),
            },
            (None, Some(token), _) => Some((PassKind::Token, sha256(token.as_bytes()))),
            (None, None, Some(hash)) => Some((PassKind::Certificate, hash.clone())),
            (None, None, None) => None,
        };
        let pass = shown.and_then(|(kind, hash)| Some((self.passes.whose(kind, &hash)?, hash)));
        let Some((Pass { name, role, project, kind, .. }, hash)) = pass else {
            return Err(nobody(
                "there is no token or certificate that is valid",
                "get one from whoever runs the host: viv token create NAME --role ROLE",
            ));
        };
        let word = if kind == PassKind::Token { "token" } else { "certificate" };
        Ok(Caller { who: format!("{word}:{name}"), from, role, project, by: By::Pass(kind, hash) })
    }
}

fn nobody(why: &str, fix: &str) -> Refused {
    let mut refused = denied(StatusCode::UNAUTHORIZED, format!("nobody knows who asks: {why}"), fix);
    let challenge = HeaderValue::from_static("Bearer realm=\"vivarium\"");
    refused.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    refused
}

/// Whether a `Host:` means this name, with whatever port.
fn is_called(name: &str, host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    !bare.is_empty() && bare.trim_end_matches('.').eq_ignore_ascii_case(name)
}

impl Caller {
    fn user(uid: u32, from: Option<String>) -> Caller {
        Caller { who: format!("uid:{uid}"), from, role: Role::Admin, project: None, by: By::User(uid) }
    }

    /// Refuses what is not his to do.
    pub(crate) fn may(&self, endpoint: &Endpoint) -> Result<(), Fault> {
        let what = || format!("{} {}", endpoint.method, endpoint.path);
        self.must_be(endpoint.route.role(), what)?;
        if endpoint.route.reach().is_for_bound() { Ok(()) } else { self.must_be_free(what) }
    }

    /// Refuses what is the host's to who is bound to a project.
    fn must_be_free(&self, what: impl FnOnce() -> String) -> Result<(), Fault> {
        let Some(project) = &self.project else { return Ok(()) };
        Err(Fault::new(
            Kind::Denied,
            format!("{} is the host's, and {} is bound to the project {project}", what(), self.who),
            "ask whoever runs the host for it",
        ))
    }

    /// Refuses what names files, devices or processes of the host, and what fetches or builds; `is_there` says of an image whether it is.
    pub(crate) fn may_name(
        &self,
        endpoint: &Endpoint,
        arguments: &[String],
        body: &[u8],
        is_there: impl FnOnce(&str) -> bool,
    ) -> Result<(), Fault> {
        if self.role == Role::Admin && self.project.is_none() {
            return Ok(());
        }
        if let Some(what) = contract::host_thing(endpoint.route, arguments, body) {
            let named = || format!("a request that names {what} of the host");
            self.must_be(Role::Admin, named)?;
            return self.must_be_free(named);
        }
        if let Some(what) = contract::host_network(endpoint.route, body) {
            self.must_be_free(|| format!("a request that names {what} of the host"))?;
        }
        let image = arguments.first().map(String::as_str).unwrap_or_default();
        if endpoint.route == Route::ImageBuild && !(asks_if_missing(body) && is_there(image)) {
            let what = || format!("getting or building the image {image:?}");
            self.must_be(Role::Admin, what)?;
            return self.must_be_free(what);
        }
        Ok(())
    }

    fn must_be(&self, least: Role, what: impl FnOnce() -> String) -> Result<(), Fault> {
        if self.role >= least {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Denied,
            format!("{} takes the role {least}, and {} has the role {}", what(), self.who, self.role),
            "ask whoever runs the host for it",
        ))
    }
}

/// Whether an image is wanted only as it is, if it is there.
fn asks_if_missing(body: &[u8]) -> bool {
    let Ok(ask) = serde_json::from_slice::<ImageBuild>(body) else { return false };
    ask.agent.is_none() && ask.is_only_if_missing()
}

/// Whether what was done is written down: every change, and what shows the inside of a guest.
pub(crate) fn is_audited(endpoint: &Endpoint) -> bool {
    match endpoint.route {
        Route::Explain => false,
        Route::PortCapture => true,
        _ if endpoint.answer == Answer::Socket => true,
        _ => endpoint.method != Method::Get,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_gets_images_that_are_there_and_builds_none() {
        let endpoint = Route::ImageBuild.endpoint();
        let may = |role, body: &str, is_there| {
            let by = By::Pass(PassKind::Token, String::new());
            let caller = Caller { who: "token:ci".into(), from: None, role, project: None, by };
            caller.may_name(endpoint, &["debian".into()], body.as_bytes(), |_| is_there).is_ok()
        };
        assert!(may(Role::Operator, r#"{"if_missing": true}"#, true));
        assert!(!may(Role::Operator, r#"{"if_missing": true}"#, false));
        for body in
            ["", "{}", r#"{"if_missing": true, "run": ["x"]}"#, r#"{"if_missing": true, "force": true}"#]
        {
            assert!(!may(Role::Operator, body, true), "{body}");
            assert!(may(Role::Admin, body, true));
        }
    }

    #[test]
    fn a_host_is_meant_by_its_name_and_nothing_like_it() {
        for (name, host) in [
            ("localhost", "localhost:8443"),
            ("localhost", "LocalHost"),
            ("viv.example", "viv.example."),
            ("::1", "[::1]:8443"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert!(is_called(name, host), "{name} {host}");
        }
        for (name, host) in [
            ("localhost", "localhost.evil.example"),
            ("localhost", "evil.example:localhost"),
            ("localhost", ""),
            ("::1", "::1"),
            ("127.0.0.1", "127.0.0.10"),
        ] {
            assert!(!is_called(name, host), "{name} {host}");
        }
    }
}
