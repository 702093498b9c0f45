//! How host and guest agent talk.
//!
//! The agent listens on vsock port [`PORT`]. A client sends one [`Request`] as a JSON line. To
//! everything but `exec` and `main` the agent answers with one [`Reply`] as a JSON line and closes. After those
//! both sides send frames until the agent's [`Output::Exit`]:
//!
//! ```text
//! kind u8 | length u32 LE, at most PAYLOAD_MAX | payload
//! ```
//!
//! Both ends distrust the other: a frame or a line that is too long is an error, never an allocation.
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use viv_model::HealthCheck;

/// The vsock port that the agent listens on.
pub const PORT: u32 = 1024;
/// Most bytes of one frame's payload.
pub const PAYLOAD_MAX: usize = 64 * 1024;
/// Most bytes of a JSON line, the line feed included.
pub const LINE_MAX: usize = 1024 * 1024;
/// The exit status of a command that the guest does not have.
pub const STATUS_NOT_FOUND: u8 = 127;
/// The exit status of a command that exists and cannot be run.
pub const STATUS_NOT_EXECUTABLE: u8 = 126;

/// A network card that has another address than the guest knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCard {
    /// Its addresses before: the guest's card has one of them.
    pub before: Vec<[u8; 6]>,
    /// Its address.
    pub mac: [u8; 6],
}

/// What makes a guest another one than that of which it is a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 32 lower-case hexadecimal digits (machine-id(5)).
    pub machine_id: String,
    /// A UUID (random(4)).
    pub boot_id: String,
}

/// The first line of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Run a command; frames follow.
    Exec(Exec),
    /// Run the command for which the VM exists; frames follow. It goes on when its client goes, and who asks for it again attends to
    /// it, also in a VM that goes on from a snapshot. Without `exec`: only if there is one; else the connection is closed.
    Main {
        /// The command.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exec: Option<Exec>,
    },
    /// Say that you are there: answered by a [`Reply`].
    Ping {},
    /// Switch the guest off in its own orderly way.
    Poweroff {},
    /// Restart the guest in its own orderly way.
    Reboot {},
    /// The guest goes on in another VM, or after a time in which it was only a file: take the time of now, be random in
    /// another way than before and than others, and bear this name.
    Renew {
        /// Nanoseconds since 1970.
        unix_ns: u64,
        /// Random bytes, up to 256.
        entropy: Vec<u8>,
        /// The VM's name.
        hostname: String,
        /// The network card's new address, if it has one.
        #[serde(default)]
        card: Option<NewCard>,
        /// Who it is from now on, if it goes on in another VM.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<Identity>,
    },
    /// Let the file systems that are on disks write out what they have and stand still until the connection is closed, or for
    /// ten seconds. The answer's `frozen` says how many.
    Freeze {},
    /// Mount the directory of the host with this tag, which has come or is about to.
    Mount {
        /// Its tag.
        tag: String,
        /// Where; made if it is not there.
        target: String,
        /// Mount it read-only.
        read_only: bool,
    },
    /// Unmount the directory of the host with this tag, wherever it is mounted. If somebody uses it, the answer's `in_use` says
    /// who, and it stays.
    Unmount {
        /// Its tag.
        tag: String,
        /// Take it away from whoever uses it.
        force: bool,
    },
    /// The terminal that shows the console has this size, in characters.
    ConsoleSize {
        /// Height.
        rows: u16,
        /// Width.
        cols: u16,
    },
    /// Run a health check now and then, and tell of each look with a [`HealthLook`](viv_model::HealthLook) as a JSON line, until the
    /// connection is closed.
    Health(HealthWatch),
    /// Whether somebody uses the disk with this serial number: then the answer's `in_use` says who.
    Disk {
        /// The serial number.
        serial: String,
    },
}

/// A health check, and how its command is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthWatch {
    /// When.
    pub check: HealthCheck,
    /// What.
    pub exec: Exec,
}

/// A command to run in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(deny_unknown_fields))]
pub struct Exec {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Variables added to the agent's default environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Where it starts; the user's home directory if not given.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Name or number of the user, with `:group` if another than the user's own; root if not given.
    #[serde(default)]
    pub user: Option<String>,
    /// Give it a terminal: standard output and error are then one stream.
    #[serde(default)]
    pub tty: bool,
    /// The terminal's height, characters.
    #[serde(default = "default_rows")]
    pub rows: u16,
    /// The terminal's width, characters.
    #[serde(default = "default_cols")]
    pub cols: u16,
}

fn default_rows() -> u16 {
    24
}

fn default_cols() -> u16 {
    80
}

impl Exec {
    /// `argv` as root, with pipes, in an 80×24 world.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Exec {
        Exec {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: false,
            rows: default_rows(),
            cols: default_cols(),
        }
    }
}

/// The answer to every request but `exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The agent's version.
    pub agent: String,
    /// Why the request was refused, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Who uses the disk or directory that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use: Option<String>,
    /// How many file systems stand still.
    #[serde(default)]
    pub frozen: usize,
}

/// What the client sends after an `exec` request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for standard input. Empty: standard input has ended.
    Stdin(Vec<u8>),
    /// A signal for the command's process group.
    Signal(u8),
    /// The terminal's new size, characters.
    Resize {
        /// Height.
        rows: u16,
        /// Width.
        cols: u16,
    },
}

/// What the agent sends after an `exec` request; [`Output::Exit`] is the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// From the command's standard output, or its terminal.
    Stdout(Vec<u8>),
    /// From the command's standard error.
    Stderr(Vec<u8>),
    /// It ended: its status, or 128 + the number of the signal that ended it.
    Exit(u8),
    /// It could not be run: why. An exit with 126 or 127 follows.
    Error(String),
}

const KIND_STDIN: u8 = 0;
const KIND_SIGNAL: u8 = 1;
const KIND_RESIZE: u8 = 2;
const KIND_STDOUT: u8 = 16;
const KIND_STDERR: u8 = 17;
const KIND_EXIT: u8 = 18;
const KIND_ERROR: u8 = 19;

/// Bytes of kind and length.
const HEADER_LEN: usize = 5;

/// Bytes that are no frame of this protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A payload longer than [`PAYLOAD_MAX`].
    TooLong {
        /// The length that the header claims, bytes.
        length: u32,
    },
    /// A kind that this side does not know.
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A payload that does not fit its kind.
    Payload {
        /// The kind.
        kind: u8,
        /// The payload's length, bytes.
        length: usize,
    },
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::TooLong { length } => {
                write!(f, "agent frame of {length} bytes; at most {PAYLOAD_MAX} are allowed")
            }
            Malformed::UnknownKind { kind } => write!(f, "agent frame of unknown kind {kind}"),
            Malformed::Payload { kind, length } => {
                write!(f, "agent frame of kind {kind} with a payload of {length} bytes")
            }
        }
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// Appends one frame for each [`PAYLOAD_MAX`] of `payload`, one for an empty payload.
fn encode(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(PAYLOAD_MAX));
        out.push(kind);
        out.extend_from_slice(&(now.len() as u32).to_le_bytes());
        out.extend_from_slice(now);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}

/// A message of one direction.
pub trait Message: Sized {
    /// Appends the message's frame to `out`; long byte strings become several frames.
    fn encode(&self, out: &mut Vec<u8>);
    /// The message of a frame.
    fn decode(kind: u8, payload: &[u8]) -> Result<Self, Malformed>;
    /// The message's frame.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

impl Message for Input {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Input::Stdin(bytes) => encode(KIND_STDIN, bytes, out),
            Input::Signal(number) => encode(KIND_SIGNAL, &[*number], out),
            Input::Resize { rows, cols } => {
                let ([r0, r1], [c0, c1]) = (rows.to_le_bytes(), cols.to_le_bytes());
                encode(KIND_RESIZE, &[r0, r1, c0, c1], out)
            }
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Input, Malformed> {
        match (kind, payload) {
            (KIND_STDIN, bytes) => Ok(Input::Stdin(bytes.to_vec())),
            (KIND_SIGNAL, &[number]) => Ok(Input::Signal(number)),
            (KIND_RESIZE, &[r0, r1, c0, c1]) => {
                Ok(Input::Resize { rows: u16::from_le_bytes([r0, r1]), cols: u16::from_le_bytes([c0, c1]) })
            }
            (KIND_SIGNAL | KIND_RESIZE, _) => Err(Malformed::Payload { kind, length: payload.len() }),
            _ => Err(Malformed::UnknownKind { kind }),
        }
    }
}

impl Message for Output {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Output::Stdout(bytes) => encode(KIND_STDOUT, bytes, out),
            Output::Stderr(bytes) => encode(KIND_STDERR, bytes, out),
            Output::Exit(status) => encode(KIND_EXIT, &[*status], out),
            Output::Error(text) => {
                let bytes = text.as_bytes();
                encode(KIND_ERROR, bytes.get(..PAYLOAD_MAX).unwrap_or(bytes), out)
            }
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Output, Malformed> {
        match (kind, payload) {
            (KIND_STDOUT, bytes) => Ok(Output::Stdout(bytes.to_vec())),
            (KIND_STDERR, bytes) => Ok(Output::Stderr(bytes.to_vec())),
            (KIND_EXIT, &[status]) => Ok(Output::Exit(status)),
            (KIND_ERROR, text) => Ok(Output::Error(String::from_utf8_lossy(text).into_owned())),
            (KIND_EXIT, _) => Err(Malformed::Payload { kind, length: payload.len() }),
            _ => Err(Malformed::UnknownKind { kind }),
        }
    }
}

/// Turns a byte stream into messages, whatever the pieces that it arrives in.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// With nothing pending.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes bytes as they arrived. Call [`Decoder::next`] until it gives nothing before the next piece:
    /// then at most a frame is held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.consumed);
        self.consumed = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one. After an error the stream is lost.
    #[allow(clippy::should_implement_trait)]
    pub fn next<M: Message>(&mut self) -> Result<Option<M>, Malformed> {
        let rest = self.pending.get(self.consumed..).unwrap_or_default();
        let Some((&[kind, l0, l1, l2, l3], body)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > PAYLOAD_MAX {
            return Err(Malformed::TooLong { length });
        }
        let Some(payload) = body.get(..length as usize) else { return Ok(None) };
        let message = M::decode(kind, payload)?;
        self.consumed += HEADER_LEN + payload.len();
        Ok(Some(message))
    }

    /// The next message of a blocking stream; `None` at its end.
    pub fn read<M: Message>(&mut self, stream: &mut impl Read) -> io::Result<Option<M>> {
        let mut piece = [0; 16 * 1024];
        loop {
            if let Some(message) = self.next()? {
                return Ok(Some(message));
            }
            let length = match stream.read(&mut piece) {
                Ok(0) if self.consumed == self.pending.len() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.push(piece.get(..length).unwrap_or_default());
        }
    }
}

/// `value` as one JSON line with its line feed.
pub fn to_line<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() > LINE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a request of {} bytes; at most {LINE_MAX} are allowed", line.len()),
        ));
    }
    Ok(line)
}

/// Reads one JSON line and not a byte more, so that frames may follow.
pub fn read_line<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if line.len() >= LINE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line of more than {LINE_MAX} bytes"),
            ));
        }
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_request_of_the_brief_is_understood() {
        let line = br#"{"exec":{"argv":["ls","-l"],"env":[["K","V"]],"cwd":null,"user":null,"tty":true,"rows":50,"cols":132}}
rest"#;
        let mut stream = &line[..];
        let request: Request = read_line(&mut stream).unwrap();
        let mut expected = Exec::new(["ls", "-l"]);
        expected.env.push(("K".into(), "V".into()));
        expected.tty = true;
        (expected.rows, expected.cols) = (50, 132);
        assert_eq!(request, Request::Exec(expected));
        assert_eq!(stream, b"rest", "not a byte more than the line is taken");
        let ping: Request = read_line(&mut &b"{\"ping\":{}}\n"[..]).unwrap();
        assert_eq!(ping, Request::Ping {});
        assert_eq!(to_line(&Request::Poweroff {}).unwrap(), b"{\"poweroff\":{}}\n");
    }

    #[test]
    fn an_endless_line_is_refused() {
        let error = read_line::<Request>(&mut io::repeat(b'x')).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_arrives() {
        let mut decoder = Decoder::new();
        decoder.push(&[16, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next::<Output>(), Err(Malformed::TooLong { length: u32::MAX }));
    }

    #[test]
    fn a_stream_cut_inside_a_frame_is_an_error_and_between_frames_its_end() {
        let bytes = Output::Exit(3).to_bytes();
        let mut whole = &bytes[..];
        let mut decoder = Decoder::new();
        assert_eq!(decoder.read(&mut whole).unwrap(), Some(Output::Exit(3)));
        assert_eq!(decoder.read::<Output>(&mut whole).unwrap(), None);
        let cut = Decoder::new().read::<Output>(&mut &bytes[..4]);
        assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(Input::Stdin),
            any::<u8>().prop_map(Input::Signal),
            any::<(u16, u16)>().prop_map(|(rows, cols)| Input::Resize { rows, cols }),
        ]
    }

    fn output() -> impl Strategy<Value = Output> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(Output::Stdout),
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(Output::Stderr),
            any::<u8>().prop_map(Output::Exit),
            ".{0,40}".prop_map(Output::Error),
        ]
    }

    /// Every message of `bytes`, fed in pieces of `piece` bytes.
    fn drain<M: Message>(bytes: &[u8], piece: usize) -> Vec<M> {
        let mut decoder = Decoder::new();
        let mut messages = Vec::new();
        for part in bytes.chunks(piece) {
            decoder.push(part);
            while let Some(message) = decoder.next().unwrap() {
                messages.push(message);
            }
        }
        messages
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            inputs in proptest::collection::vec(input(), 0..8),
            outputs in proptest::collection::vec(output(), 0..8),
            piece in 1usize..64,
        ) {
            let mut bytes = Vec::new();
            inputs.iter().for_each(|message| message.encode(&mut bytes));
            prop_assert_eq!(drain::<Input>(&bytes, piece), inputs);
            bytes.clear();
            outputs.iter().for_each(|message| message.encode(&mut bytes));
            prop_assert_eq!(drain::<Output>(&bytes, piece), outputs);
        }

        #[test]
        fn long_streams_become_frames_within_the_limit(length in 0usize..200_000) {
            let bytes = Input::Stdin(vec![7; length]).to_bytes();
            let parts = drain::<Input>(&bytes, 9_999);
            let total: usize = parts.iter().map(|part| match part {
                Input::Stdin(bytes) => { assert!(bytes.len() <= PAYLOAD_MAX); bytes.len() }
                other => panic!("{other:?}"),
            }).sum();
            prop_assert_eq!(total, length);
            prop_assert_eq!(parts.len(), length.div_ceil(PAYLOAD_MAX).max(1));
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new();
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.next::<Input>() {}
            let mut decoder = Decoder::new();
            decoder.push(&noise);
            while let Ok(Some(_)) = decoder.next::<Output>() {}
            let _ = read_line::<Request>(&mut &noise[..]);
        }
    }
}
