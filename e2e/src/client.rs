//! The host service and its API, for what measures them.
use crate::{Home, until};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A service of its own, killed in the end.
pub struct Service(Child);

impl Service {
    /// One that answers.
    #[track_caller]
    pub fn start(home: &Home) -> Service {
        let service = Service(home.viv(&["serve"]).stdout(Stdio::null()).spawn().unwrap());
        let answers = || UnixStream::connect(home.path("run/viv.sock")).is_ok();
        until("the service", Duration::from_secs(60), answers);
        service
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection to the service that is kept.
pub struct Client {
    socket: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the home's service.
    pub fn new(home: &Home) -> Client {
        let socket = UnixStream::connect(home.path("run/viv.sock")).expect("the service listens");
        Client { socket: BufReader::new(socket) }
    }

    /// The status and the body of an answer.
    pub fn ask(&mut self, request: &str, body: &str) -> (u16, Vec<u8>) {
        let text = format!(
            "{request} HTTP/1.1\r\nHost: vivarium\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.socket.get_mut().write_all(text.as_bytes()).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            self.socket.read_line(&mut line).unwrap();
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().unwrap();
            } else if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.socket.read_exact(&mut body).unwrap();
        (status, body)
    }

    /// The body of an answer that must be good.
    #[track_caller]
    pub fn must(&mut self, request: &str, body: &str) -> Vec<u8> {
        let (status, answer) = self.ask(request, body);
        assert_eq!(status, 200, "{request}: {}", String::from_utf8_lossy(&answer));
        answer
    }
}

/// Resident memory of a process, MiB.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
