//! The command's side of the API: one blocking HTTP/1.1 request per connection (RFC 9112).
//!
//! The server is our own service on a Unix socket of the same user, so this knows just what that service
//! sends; every length that it reads is bounded all the same.
use crate::contract::host_thing;
use crate::endpoint::{Method, Route, UPGRADE, query_value};
use crate::image::REGISTRY_CONFIG;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use viv_model::{Fault, Kind, ProjectName};

/// How often a question is asked again that was dropped.
const READS: u32 = 5;
/// How long after.
const AGAIN: Duration = Duration::from_millis(20);
/// Most bytes of an answer's head.
const HEAD_MAX: usize = 16 * 1024;
/// Most header fields of an answer.
const FIELDS_MAX: usize = 32;
/// Most bytes of a JSON answer.
const JSON_MAX: u64 = 64 << 20;

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: Fault,
}

/// Connects to the service, which it starts if it must.
pub type Connect = dyn Fn() -> Result<UnixStream, Fault> + Send + Sync;

/// Talks to a host service.
pub struct Client {
    connect: Box<Connect>,
    elsewhere: Option<Elsewhere>,
    scope: Scope,
}

/// In which project a client asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Its name; without one it is the token's, or `default`.
    pub project: Option<ProjectName>,
    /// Lists are of all projects that the client may see.
    pub all: bool,
}

impl Scope {
    /// The query of a request with what is to be said of the project, where that means something and is not said already.
    fn query(&self, request: &Request) -> String {
        let known = request.route.parameters();
        let project = self.project.as_ref().map(|name| ("project", format!("project={name}")));
        let all = self.all.then(|| ("all-projects", "all-projects=true".to_string()));
        let mut pairs = vec![request.query.clone()];
        for (name, pair) in project.into_iter().chain(all) {
            let is_said = query_value(&request.query, name).is_some();
            if !is_said && known.iter().any(|known| known.name == name) {
                pairs.push(pair);
            }
        }
        pairs.retain(|pair| !pair.is_empty());
        pairs.join("&")
    }
}

/// A service on another machine.
struct Elsewhere {
    host: String,
    authorization: String,
}

/// What to ask for.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The endpoint.
    pub route: Route,
    /// What goes into the places of its path.
    pub arguments: &'a [&'a str],
    /// The query, encoded: `force=true`.
    pub query: String,
    /// The body, if there is one: JSON.
    pub body: Option<Vec<u8>>,
    /// The value of [`REGISTRY_CONFIG`], if there is one: base64url.
    pub registries: Option<String>,
}

impl<'a> Request<'a> {
    /// Asks `route` of the things named by `arguments`.
    pub fn new(route: Route, arguments: &'a [&'a str]) -> Request<'a> {
        Request { route, arguments, query: String::new(), body: None, registries: None }
    }

    /// With a query.
    pub fn query(mut self, query: impl Into<String>) -> Request<'a> {
        self.query = query.into();
        self
    }

    /// With who to be to registries.
    pub fn registries(mut self, logins: Option<String>) -> Request<'a> {
        self.registries = logins;
        self
    }

    /// With a JSON body.
    pub fn body(mut self, body: &impl Serialize) -> Request<'a> {
        self.body = serde_json::to_vec(body).ok();
        self
    }
}

/// The body of a successful answer, as it arrives.
pub struct Body {
    reader: BufReader<UnixStream>,
    left: Left,
}

/// What of a body is still to come.
enum Left {
    Bytes(u64),
    Chunks { in_this: u64 },
    UntilClosed,
    Nothing,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let limit = match &mut self.left {
            Left::Nothing => return Ok(0),
            Left::UntilClosed => return self.reader.read(buffer),
            Left::Bytes(left) => *left,
            Left::Chunks { in_this } if *in_this > 0 => *in_this,
            Left::Chunks { .. } => {
                let size = self.chunk_size()?;
                self.left = Left::Chunks { in_this: size };
                size
            }
        };
        if limit == 0 {
            self.left = Left::Nothing;
            return Ok(0);
        }
        let want = buffer.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let got = self.reader.read(buffer.get_mut(..want).unwrap_or_default())?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the service broke off its answer"));
        }
        match &mut self.left {
            Left::Bytes(left) => *left -= got as u64,
            Left::Chunks { in_this } => {
                *in_this -= got as u64;
                if *in_this == 0 {
                    self.line()?; // the line feed after the chunk's data
                }
            }
            _ => {}
        }
        Ok(got)
    }
}

impl Body {
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.by_ref().take(256).read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the service broke off its answer"));
        }
        Ok(line)
    }

    /// RFC 9112 §7.1; the last chunk has the size 0.
    fn chunk_size(&mut self) -> io::Result<u64> {
        let line = self.line()?;
        let digits = line.trim_end().split(';').next().unwrap_or_default();
        u64::from_str_radix(digits, 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a chunk without a size"))
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

impl Client {
    /// A client that reaches its service by `connect`.
    pub fn new(connect: Box<Connect>) -> Client {
        Client { connect, elsewhere: None, scope: Scope::default() }
    }

    /// The same, of a service on another machine: it is called by this name, and gets this token.
    pub fn elsewhere(self, host: &str, token: Option<&str>) -> Client {
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        let authorization = authorization.unwrap_or_default();
        Client { elsewhere: Some(Elsewhere { host: host.to_string(), authorization }), ..self }
    }

    /// The same, in a project.
    pub fn within(self, scope: Scope) -> Client {
        Client { scope, ..self }
    }

    /// Whether the service is on another machine, where files and processes of this one mean nothing.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// Refuses what names files of this machine to a service on another one.
    fn check(&self, request: &Request) -> Result<(), Fault> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(()) };
        let arguments: Vec<String> = request.arguments.iter().map(|name| name.to_string()).collect();
        match host_thing(request.route, &arguments, request.body.as_deref().unwrap_or_default()) {
            None => Ok(()),
            Some(what) => Err(Fault::new(
                Kind::Usage,
                format!(
                    "this names {what} of this machine, which the host service at {} does not see",
                    elsewhere.host
                ),
                "use what is in its store (viv images), run the command on that host, or here: viv --context local …",
            )),
        }
    }

    /// Asks and gives the JSON answer.
    pub fn json<T: DeserializeOwned>(&self, request: Request) -> Result<T, Fault> {
        let mut text = Vec::new();
        self.open(request)?.take(JSON_MAX).read_to_end(&mut text).map_err(lost)?;
        serde_json::from_slice(&text).map_err(|error| not_understood(&error.to_string()))
    }

    /// Asks and gives the answer's body, as it arrives.
    pub fn open(&self, request: Request) -> Result<Body, Fault> {
        let (head, socket) = self.ask(&request, false)?;
        body_of(&head, socket, request.route)
    }

    /// Asks and calls `each` for every line of the answer.
    pub fn lines<T: DeserializeOwned>(&self, request: Request, mut each: impl FnMut(T)) -> Result<(), Fault> {
        let mut reader = BufReader::new(self.open(request)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.by_ref().take(JSON_MAX).read_until(b'\n', &mut line).map_err(lost)?;
            if line.is_empty() {
                return Ok(());
            }
            each(serde_json::from_slice(&line).map_err(|error| not_understood(&error.to_string()))?);
        }
    }

    /// Asks for a byte stream both ways.
    pub fn stream(&self, request: Request) -> Result<UnixStream, Fault> {
        let (head, socket) = self.ask(&request, true)?;
        match head.status {
            101 => Ok(socket),
            _ => match body_of(&head, socket, request.route) {
                Ok(_) => Err(not_understood("no stream where one was asked for")),
                Err(fault) => Err(fault),
            },
        }
    }

    /// Sends the request and reads the head of the answer, and not a byte more. A service that was just
    /// about to exit takes a connection and drops it unread: then another one is asked, once; several times if that cannot do
    /// anything twice, for one service may be taking the place of another.
    fn ask(&self, request: &Request, upgrade: bool) -> Result<(Head, UnixStream), Fault> {
        self.check(request)?;
        // One that was killed may have done it: it is asked for under the same key, and done once.
        let key = request.route.may_be_repeated().then(repeat_key).flatten();
        let bytes = encode(request, &self.scope.query(request), upgrade, self.elsewhere.as_ref(), &key);
        let harmless = key.is_some() || request.route.endpoint().method == Method::Get;
        let mut left = if harmless { READS } else { 1 };
        loop {
            let mut socket = (self.connect)()?;
            let answer = socket.write_all(&bytes).and_then(|()| read_head(&mut socket));
            match answer {
                Ok(head) => return Ok((head, socket)),
                Err(error) if dropped(&error) && left > 0 => {
                    left -= 1;
                    thread::sleep(AGAIN);
                }
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

fn dropped(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn lost(error: io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the connection to the host service was lost: {error}"),
        "VMs run on without it; see them with: viv ps",
    )
}

fn not_understood(why: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the host service's answer was not understood: {why}"),
        "it may be of another version: end it (its process: viv info) and try again",
    )
}

/// What a request is called that may be sent again.
fn repeat_key() -> Option<String> {
    let mut bytes = [0u8; 16];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
    (count == bytes.len()).then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn encode(
    request: &Request,
    query: &str,
    upgrade: bool,
    elsewhere: Option<&Elsewhere>,
    key: &Option<String>,
) -> Vec<u8> {
    let method = request.route.endpoint().method;
    let mut head = format!("{method} {}", request.route.path(request.arguments));
    if !query.is_empty() {
        head.push('?');
        head.push_str(query);
    }
    let (host, authorization) = match elsewhere {
        Some(elsewhere) => (elsewhere.host.as_str(), elsewhere.authorization.as_str()),
        None => ("vivarium", ""),
    };
    head.push_str(&format!(" HTTP/1.1\r\nHost: {host}\r\n{authorization}"));
    if let Some(key) = key {
        head.push_str(&format!("Idempotency-Key: {key}\r\n"));
    }
    if let Some(logins) = &request.registries {
        head.push_str(&format!("{REGISTRY_CONFIG}: {logins}\r\n"));
    }
    match upgrade {
        true => head.push_str(&format!("Connection: upgrade\r\nUpgrade: {UPGRADE}\r\n")),
        false => head.push_str("Connection: close\r\n"),
    }
    if let Some(body) = &request.body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    } else if method == Method::Post {
        head.push_str("Content-Length: 0\r\n");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(request.body.as_deref().unwrap_or_default());
    bytes
}

/// Reads up to the empty line, and looks before it takes: what follows may be a stream that is not ours to read.
fn read_head(socket: &mut UnixStream) -> io::Result<Head> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let seen = match recv(&*socket, &mut piece, RecvFlags::PEEK) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((seen, _)) => seen.min(piece.len()),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let before = bytes.len();
        bytes.extend_from_slice(&piece[..seen]);
        // It may have begun in the piece before.
        let from = before.saturating_sub(END.len() - 1);
        let end = bytes[from..].windows(END.len()).position(|window| window == END);
        let end = end.map(|at| from + at + END.len());
        bytes.truncate(end.unwrap_or(bytes.len()));
        socket.read_exact(&mut piece[..bytes.len() - before])?;
        if bytes.len() > HEAD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a head that is too long"));
        }
        if end.is_some() {
            break;
        }
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut fields);
    answer.parse(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    let field = |name: &str| {
        let found = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    Ok(Head {
        status: answer.code.unwrap_or_default(),
        length: field("content-length").and_then(|value| value.trim().parse().ok()),
        chunked: field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")),
    })
}

fn body_of(head: &Head, socket: UnixStream, route: Route) -> Result<Body, Fault> {
    let left = match head {
        Head { chunked: true, .. } => Left::Chunks { in_this: 0 },
        Head { length: Some(length), .. } => Left::Bytes(*length),
        _ => Left::UntilClosed,
    };
    let mut body = Body { reader: BufReader::new(socket), left };
    if (200..300).contains(&head.status) {
        return Ok(body);
    }
    let mut text = Vec::new();
    body.by_ref().take(JSON_MAX).read_to_end(&mut text).map_err(lost)?;
    Err(match serde_json::from_slice::<ErrorBody>(&text) {
        Ok(body) => body.error,
        Err(_) => not_understood(&format!("status {} for {}", head.status, route.endpoint().path)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A client whose service gives these answers, one for each connection.
    fn scripted(answers: &[&'static [u8]]) -> Client {
        let answers: Mutex<Vec<_>> = Mutex::new(answers.iter().rev().copied().collect());
        Client::new(Box::new(move || {
            let (here, mut there) = UnixStream::pair().unwrap();
            let answer = answers.lock().unwrap().pop().expect("an answer is left");
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && there.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                there.write_all(answer).unwrap();
            });
            Ok(here)
        }))
    }

    #[test]
    fn not_a_byte_is_read_behind_a_head() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\n";
        let behind = [b'\r'; 3000];
        for cut in 1..head.len() {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            let writer = std::thread::spawn(move || {
                there.write_all(&head[..cut]).unwrap();
                std::thread::yield_now();
                there.write_all(&[&head[cut..], &behind].concat()).unwrap();
            });
            assert_eq!(read_head(&mut here).unwrap().status, 101);
            writer.join().unwrap();
            let mut rest = Vec::new();
            here.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, behind, "{cut}");
        }
        let (mut here, mut there) = UnixStream::pair().unwrap();
        std::thread::spawn(move || there.write_all(&[b'x'; 2 * HEAD_MAX]));
        assert_eq!(read_head(&mut here).err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
    }

    #[test]
    fn answers_of_all_three_lengths_are_read() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n[1,2,3]trailing"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n4\r\n2,3]\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n[1,2,3]",
        ] {
            let client = scripted(&[answer]);
            assert_eq!(client.json::<Vec<u32>>(Request::new(Route::VmList, &[])), Ok(vec![1, 2, 3]));
        }
    }

    #[test]
    fn a_fault_comes_through_as_it_was_meant() {
        let client = scripted(&[
            b"HTTP/1.1 404 Not Found\r\n\r\n{\"error\":{\"kind\":\"not-found\",\"message\":\"no vm\",\"fix\":\"viv ps\"}}",
        ]);
        let fault = client.json::<u32>(Request::new(Route::VmGet, &["web"])).unwrap_err();
        assert_eq!(fault, Fault::new(Kind::NotFound, "no vm", "viv ps"));
    }

    #[test]
    fn a_project_goes_along_where_it_means_something() {
        let scope = Scope { project: "acme".parse().ok(), all: true };
        let query = |route, said: &str| scope.query(&Request::new(route, &[]).query(said));
        assert_eq!(query(Route::VmList, "limit=2"), "limit=2&project=acme&all-projects=true");
        assert_eq!(query(Route::VmGet, ""), "project=acme");
        assert_eq!(query(Route::VmGet, "project=b"), "project=b");
        assert_eq!(query(Route::TokenList, ""), "");
        let nothing = Scope::default().query(&Request::new(Route::VmList, &[]).query("limit=2"));
        assert_eq!(nothing, "limit=2");
    }

    #[test]
    fn a_connection_that_is_dropped_unread_is_tried_once_more() {
        let client = scripted(&[b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1"]);
        assert_eq!(client.json::<u32>(Request::new(Route::Info, &[])), Ok(1));
        let dropped =
            || scripted(&[b"", b"", b"", b"", b"", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1"]);
        assert!(dropped().json::<u32>(Request::new(Route::Info, &[])).is_err());
        let changes = scripted(&[b"", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1"]);
        assert!(
            changes.json::<u32>(Request::new(Route::VmKill, &["web"])).is_err(),
            "a change is sent once more only"
        );
    }

    #[test]
    fn broken_answers_are_faults() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 500 Oops\r\n\r\nno json",
        ] {
            let fault = scripted(&[answer]).json::<u32>(Request::new(Route::Info, &[])).unwrap_err();
            assert!(!fault.fix.is_empty());
        }
    }

    #[test]
    fn nothing_after_an_upgrade_is_eaten() {
        let client =
            scripted(&[b"HTTP/1.1 101 Switching Protocols\r\nupgrade: vivarium-stream\r\n\r\nhello"]);
        let mut stream = client.stream(Request::new(Route::VmConsole, &["web"])).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
