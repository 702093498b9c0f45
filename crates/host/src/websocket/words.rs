//! What messages of a WebSocket mean to a VM's process, and what its bytes mean to a client.
use super::carry::Closing;
use crate::routes::understood;
use std::time::Duration;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use viv_api::agent::{self, Decoder, Input, Message as _, Output, Request};
use viv_api::vm::ConsoleSize;
use viv_api::websocket::{self, Say, Told};

/// How long a client may take to say which command it wants.
const EXEC_LIMIT: Duration = Duration::from_secs(30);

/// From the client to the VM's process.
pub(super) enum Inward {
    /// Bytes for the console; who tells the VM the size of its terminal.
    Console(watch::Sender<ConsoleSize>),
    /// A command, then what it is sent.
    Exec { begun: bool },
    /// Bytes.
    Port,
}

/// From the VM's process to the client.
pub(super) enum Outward {
    /// Bytes as they come.
    Bytes,
    /// The agent's frames.
    Agent(Decoder),
}

fn unsuitable(what: &str) -> Closing {
    Closing::new(CloseCode::Unsupported, what)
}

fn invalid(why: &str) -> Closing {
    Closing::new(CloseCode::Invalid, format!("the message was not understood: {why}"))
}

impl Inward {
    /// How long the next message may take.
    pub(super) fn limit(&self) -> Option<Duration> {
        matches!(self, Inward::Exec { begun: false }).then_some(EXEC_LIMIT)
    }

    /// What the VM's process is sent for a message.
    pub(super) fn hear(&mut self, message: Message) -> Result<Vec<u8>, Closing> {
        match (self, message) {
            (Inward::Console(_) | Inward::Port, Message::Binary(bytes)) => Ok(bytes.into()),
            (Inward::Console(size), Message::Text(text)) => match understood(text.as_bytes()) {
                Ok(Say::Resize(new)) => {
                    size.send_replace(new);
                    Ok(Vec::new())
                }
                Ok(_) => Err(unsuitable("a console takes binary messages and {\"resize\": …}")),
                Err(why) => Err(invalid(&why)),
            },
            (Inward::Port, Message::Text(_)) => Err(unsuitable("a port takes binary messages only")),
            (Inward::Exec { begun: begun @ false }, Message::Text(text)) => {
                match understood(text.as_bytes()) {
                    Ok(Say::Exec(exec)) => {
                        *begun = true;
                        agent::to_line(&Request::Exec(exec)).map_err(|error| invalid(&error.to_string()))
                    }
                    Ok(_) => Err(unsuitable("the first message is {\"exec\": {\"argv\": […]}}")),
                    Err(why) => Err(invalid(&why)),
                }
            }
            (Inward::Exec { begun: false }, _) => {
                Err(unsuitable("the first message is text: {\"exec\": {\"argv\": […]}}"))
            }
            (Inward::Exec { begun: true }, Message::Text(text)) => match understood(text.as_bytes()) {
                Ok(Say::Signal(number)) => Ok(Input::Signal(number).to_bytes()),
                Ok(Say::Resize(ConsoleSize { rows, cols })) => Ok(Input::Resize { rows, cols }.to_bytes()),
                Ok(Say::Exec(_)) => Err(unsuitable("one WebSocket is for one command")),
                Err(why) => Err(invalid(&why)),
            },
            (Inward::Exec { begun: true }, Message::Binary(bytes)) => websocket::input(&bytes)
                .map(|input| input.to_bytes())
                .ok_or_else(|| invalid("its first byte is not 0, standard input")),
            _ => Ok(Vec::new()),
        }
    }
}

impl Outward {
    /// What the client is sent for these bytes, and how it ends with them, if it does.
    pub(super) fn tell(&mut self, bytes: &[u8]) -> (Vec<Message>, Option<Closing>) {
        let Outward::Agent(decoder) = self else {
            return (vec![Message::binary(bytes.to_vec())], None);
        };
        let mut messages = Vec::new();
        decoder.push(bytes);
        loop {
            match decoder.next::<Output>() {
                Ok(None) => return (messages, None),
                Ok(Some(output)) => match websocket::output(output) {
                    Ok(bytes) => messages.push(Message::binary(bytes)),
                    Err(told) => {
                        let text = serde_json::to_string(&told).unwrap_or_default();
                        messages.push(Message::text(text));
                        if let Told::Exit(status) = told {
                            let end = Closing::new(CloseCode::Normal, format!("exit status {status}"));
                            return (messages, Some(end));
                        }
                    }
                },
                Err(error) => {
                    let end = Closing::new(CloseCode::Error, format!("the agent is not understood: {error}"));
                    return (messages, Some(end));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(heard: Result<Vec<u8>, Closing>) -> u16 {
        heard.unwrap_err().code.into()
    }

    #[test]
    fn a_console_takes_bytes_and_sizes() {
        let (size, sizes) = watch::channel(ConsoleSize::default());
        let mut console = Inward::Console(size);
        assert_eq!(console.hear(Message::binary(&b"ls\r"[..])), Ok(b"ls\r".to_vec()));
        assert_eq!(console.hear(Message::text(r#"{"resize": {"rows": 50, "cols": 132}}"#)), Ok(vec![]));
        assert_eq!(*sizes.borrow(), ConsoleSize { rows: 50, cols: 132 });
        assert_eq!(code(console.hear(Message::text("ls"))), 1007);
        assert_eq!(code(console.hear(Message::text(r#"{"signal": 9}"#))), 1003);
        assert_eq!(code(Inward::Port.hear(Message::text("GET /"))), 1003);
    }

    #[test]
    fn a_command_comes_first_and_once() {
        let exec = || Message::text(r#"{"exec": {"argv": ["cat"]}}"#);
        let fresh = || Inward::Exec { begun: false };
        assert_eq!(code(fresh().hear(Message::binary(&b"\0x"[..]))), 1003);
        assert_eq!(code(fresh().hear(Message::text(r#"{"signal": 9}"#))), 1003);
        assert_eq!(code(fresh().hear(Message::text(r#"{"exec": {"argv": ["a"], "argw": 1}}"#))), 1007);
        assert_eq!(code(fresh().hear(Message::text(r#"{"poweroff": {}}"#))), 1007);
        let mut begun = fresh();
        assert!(begun.limit().is_some());
        let line = String::from_utf8(begun.hear(exec()).unwrap()).unwrap();
        assert!(line.starts_with(r#"{"exec":{"argv":["cat"]"#) && line.ends_with('\n'), "{line}");
        assert!(begun.limit().is_none());
        let sent = |begun: &mut Inward, message| {
            let mut decoder = Decoder::new();
            decoder.push(&begun.hear(message).unwrap());
            decoder.next::<Input>().unwrap().unwrap()
        };
        assert_eq!(sent(&mut begun, Message::binary(&b"\0hi"[..])), Input::Stdin(b"hi".to_vec()));
        assert_eq!(sent(&mut begun, Message::binary(&b"\0"[..])), Input::Stdin(vec![]));
        assert_eq!(sent(&mut begun, Message::text(r#"{"signal": 2}"#)), Input::Signal(2));
        let size = Message::text(r#"{"resize": {"rows": 5, "cols": 9}}"#);
        assert_eq!(sent(&mut begun, size), Input::Resize { rows: 5, cols: 9 });
        assert_eq!(code(begun.hear(exec())), 1003);
        assert_eq!(code(begun.hear(Message::binary(&b""[..]))), 1007);
        assert_eq!(code(begun.hear(Message::binary(&b"\x02x"[..]))), 1007);
    }

    #[test]
    fn the_agents_frames_become_messages_and_its_exit_the_end() {
        let mut outward = Outward::Agent(Decoder::new());
        let frames = [Output::Stdout(b"out".to_vec()), Output::Stderr(b"err".to_vec()), Output::Exit(3)];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.to_bytes()).collect();
        let (first, second) = bytes.split_at(6);
        assert_eq!(outward.tell(first), (vec![], None));
        let (messages, end) = outward.tell(second);
        let expected = [
            Message::binary(&b"\x01out"[..]),
            Message::binary(&b"\x02err"[..]),
            Message::text(r#"{"exit":3}"#),
        ];
        assert_eq!(messages, expected);
        assert_eq!(u16::from(end.unwrap().code), 1000);
        let (messages, end) = Outward::Agent(Decoder::new()).tell(&[99, 0, 0, 0, 0]);
        assert_eq!((messages.len(), u16::from(end.unwrap().code)), (0, 1011));
    }
}
