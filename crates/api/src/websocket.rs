//! What is said over a WebSocket (RFC 6455) of a VM.
//!
//! | stream | binary messages, both ways | text to the service | text from it |
//! |---|---|---|---|
//! | console | its bytes | [`Say::Resize`] | |
//! | TCP port | its bytes | | |
//! | command | [`STDIN`], [`STDOUT`] or [`STDERR`], then its bytes | [`Say::Exec`] first, [`Say::Signal`], [`Say::Resize`] | [`Told`] |
//!
//! Text messages are JSON. Why a WebSocket ends is in its close frame (RFC 6455 §7.4.1): 1000 what was to be done is; 1001 the VM
//! has ended; 1002, 1003, 1007 and 1009 the client has sent what cannot be taken; 1008 it was too slow; 1011 something broke off.
use crate::agent::{Exec, Input, Output};
use crate::vm::ConsoleSize;
use serde::{Deserialize, Serialize};

/// Most bytes of a message to the service. Those from it are at most as long as a frame of the agent's, and a byte.
pub const MESSAGE_MAX: usize = 256 * 1024;
/// Most bytes of a close frame's reason (RFC 6455 §5.5: 125, of which the code takes two).
pub const REASON_MAX: usize = 123;
/// First byte of a binary message with bytes for a command's standard input. Alone: standard input has ended.
pub const STDIN: u8 = 0;
/// First byte of a binary message with bytes of a command's standard output, or its terminal.
pub const STDOUT: u8 = 1;
/// First byte of a binary message with bytes of a command's standard error.
pub const STDERR: u8 = 2;

/// A text message to the service: `{"exec": {"argv": ["sh"], "tty": true}}`, `{"signal": 15}`, `{"resize": {"rows": 24, "cols": 80}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Say {
    /// Run a command: the first message, and no other one.
    Exec(Exec),
    /// A signal for the command's process group.
    Signal(u8),
    /// The terminal has this size.
    Resize(ConsoleSize),
}

/// A text message from the service: `{"exit": 0}`, `{"error": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// The command has ended: its status, or 128 + the number of the signal that ended it. Nothing follows.
    Exit(u8),
    /// It could not be run: why. [`Told::Exit`] with 126 or 127 follows.
    Error(String),
}

/// What the agent gets for a binary message; none for one that is not for standard input.
pub fn input(message: &[u8]) -> Option<Input> {
    let bytes = message.strip_prefix(&[STDIN])?;
    Some(Input::Stdin(bytes.to_vec()))
}

/// What the client gets of the agent's words: the bytes of a binary message, or a text.
pub fn output(output: Output) -> Result<Vec<u8>, Told> {
    let tagged = |kind: u8, bytes: Vec<u8>| Ok([&[kind], &bytes[..]].concat());
    match output {
        Output::Stdout(bytes) => tagged(STDOUT, bytes),
        Output::Stderr(bytes) => tagged(STDERR, bytes),
        Output::Exit(status) => Err(Told::Exit(status)),
        Output::Error(why) => Err(Told::Error(why)),
    }
}

/// As much of a reason as a close frame has room for.
pub fn reason(text: &str) -> &str {
    let end = (0..=REASON_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_they_are_told() {
        let say = |text: &str| serde_json::from_str::<Say>(text);
        let Say::Exec(exec) = say(r#"{"exec": {"argv": ["sh"], "tty": true}}"#).unwrap() else { panic!() };
        assert_eq!((exec.argv, exec.tty, exec.rows), (vec!["sh".to_string()], true, 24));
        assert_eq!(say(r#"{"signal": 15}"#).unwrap(), Say::Signal(15));
        let size = ConsoleSize { rows: 50, cols: 132 };
        assert_eq!(say(r#"{"resize": {"rows": 50, "cols": 132}}"#).unwrap(), Say::Resize(size));
        for wrong in ["", "{}", r#"{"signal": 300}"#, r#"{"resize": {"columns": 1}}"#, r#"{"mount": {}}"#] {
            assert!(say(wrong).is_err(), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&Told::Exit(3)).unwrap(), r#"{"exit":3}"#);
        assert_eq!(input(b"\0ls"), Some(Input::Stdin(b"ls".to_vec())));
        assert_eq!(input(b"\0"), Some(Input::Stdin(Vec::new())), "the end");
        assert_eq!((input(b""), input(b"\x01x")), (None, None));
        assert_eq!(output(Output::Stderr(b"oh".to_vec())), Ok(b"\x02oh".to_vec()));
        assert_eq!(output(Output::Exit(3)), Err(Told::Exit(3)));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(reason("its process ended"), "its process ended");
        assert_eq!(reason(&"x".repeat(200)).len(), REASON_MAX);
        let cut = reason(&"ü".repeat(100)).to_string();
        assert_eq!(cut, "ü".repeat(61));
        assert_eq!(reason(""), "");
        assert_eq!(reason(&"x".repeat(REASON_MAX)).len(), REASON_MAX);
    }
}
