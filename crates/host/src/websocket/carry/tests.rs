//! Both ends played by the test.
use super::*;
use std::time::Instant;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::Role;
use viv_api::agent::{Decoder, Message as _, Output};
use viv_api::websocket::MESSAGE_MAX;

const QUICK: Pace = Pace {
    ping: Duration::from_millis(50),
    unread: Duration::from_millis(200),
    close: Duration::from_millis(500),
};

/// Bytes that are under way at most, each way.
const PIPE: usize = 8 << 10;

/// A client's connection and the VM's process, with what carries between them.
fn between(inward: Inward, outward: Outward, pace: Pace) -> (DuplexStream, DuplexStream, JoinHandle<()>) {
    let ((client, here), (there, vm)) = (tokio::io::duplex(PIPE), tokio::io::duplex(PIPE));
    let carried = tokio::spawn(async move {
        let config = super::super::config();
        let socket = WebSocketStream::from_raw_socket(here, Role::Server, Some(config)).await;
        let end = async { Closing::new(CloseCode::Away, "the VM has ended") };
        carry(socket, there, inward, outward, end, &pace).await;
    });
    (client, vm, carried)
}

fn port() -> (DuplexStream, DuplexStream, JoinHandle<()>) {
    between(Inward::Port, Outward::Bytes, Pace::default())
}

async fn speaking(client: DuplexStream) -> WebSocketStream<DuplexStream> {
    WebSocketStream::from_raw_socket(client, Role::Client, None).await
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(60), test).await.unwrap() });
}

/// The code and reason with which the service closes after these raw bytes of a client.
async fn closed_for(bytes: &[u8]) -> (u16, String) {
    let (mut client, vm, carried) = port();
    client.write_all(bytes).await.unwrap();
    let frame = close_frame(&mut client).await;
    drop(client);
    carried.await.unwrap();
    drop(vm);
    frame
}

async fn close_frame(client: &mut DuplexStream) -> (u16, String) {
    let head = client.read_u16().await.unwrap();
    assert_eq!(head >> 8, 0x88, "a close frame, in one, not masked: {head:x}");
    let mut payload = vec![0; usize::from(head & 0x7f)];
    client.read_exact(&mut payload).await.unwrap();
    let (code, reason) = payload.split_at(2);
    (u16::from_be_bytes([code[0], code[1]]), String::from_utf8(reason.to_vec()).unwrap())
}

/// A masked frame (RFC 6455 §5.2) with a mask of zeroes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

#[test]
fn bytes_go_both_ways_and_the_end_is_told() {
    run(async {
        let (client, mut vm, carried) = port();
        let mut client = speaking(client).await;
        client.send(Message::binary(&b"to the VM"[..])).await.unwrap();
        let mut heard = [0; 9];
        vm.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"to the VM");
        vm.write_all(b"from the VM").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(&b"from the VM"[..]));
        client.send(Message::Ping(b"there?"[..].into())).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Pong(b"there?"[..].into()));
        drop(vm);
        let Some(Ok(Message::Close(Some(why)))) = client.next().await else { panic!() };
        assert_eq!((u16::from(why.code), why.reason.as_str()), (1001, "the VM has ended"));
        assert!(client.next().await.is_none());
        carried.await.unwrap();
    });
}

#[test]
fn a_client_that_leaves_ends_it() {
    run(async {
        let (client, mut vm, carried) = port();
        let mut client = speaking(client).await;
        client.send(Message::binary(&b"last words"[..])).await.unwrap();
        client.close(None).await.unwrap();
        let mut heard = Vec::new();
        vm.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
        while let Some(Ok(_)) = client.next().await {}
        carried.await.unwrap();
        // Also one that is just gone.
        let (client, mut vm, carried) = port();
        drop(client);
        assert_eq!(vm.read_to_end(&mut heard).await.unwrap(), 0);
        carried.await.unwrap();
    });
}

#[test]
fn what_breaks_the_protocol_is_closed_with_its_code() {
    run(async {
        let unmasked = [0x82, 1, b'x'];
        let oversized = [&[0x82, 0xff][..], &(MESSAGE_MAX as u64 + 1).to_be_bytes(), &[0; 4]].concat();
        let endless = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
        let garbage = *b"GET /v1/info HTTP/1.1\r\nHost: a\r\n\r\n";
        let long_ping = [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0][..], &[0; 126]].concat();
        for (what, bytes, code) in [
            ("a frame without a mask", &unmasked[..], 1002),
            ("a message that is too large", &oversized, 1009),
            ("the largest that can be said", &endless, 1009),
            ("no frames at all", &garbage, 1002),
            ("an unknown opcode", &frame(0x83, b""), 1002),
            ("reserved bits", &frame(0xf2, b""), 1002),
            ("a continuation of nothing", &frame(0x80, b"x"), 1002),
            ("a ping in pieces", &frame(0x09, b"x"), 1002),
            ("a ping that is too long", &long_ping, 1002),
            ("text that is none", &frame(0x81, b"\xff\xfe"), 1007),
            ("text where bytes are meant", &frame(0x81, b"hello"), 1003),
            ("a second message in the first", &[frame(0x02, b"x"), frame(0x82, b"y")].concat(), 1002),
        ] {
            let (told, reason) = closed_for(bytes).await;
            assert_eq!(told, code, "{what}: {reason}");
            assert!(!reason.is_empty(), "{what}");
        }
    });
}

#[test]
fn pieces_of_a_message_are_put_together_up_to_the_limit() {
    run(async {
        let (mut client, mut vm, carried) = port();
        let pieces =
            [frame(0x02, b"on"), frame(0x89, b"between"), frame(0x00, b"e me"), frame(0x80, b"ssage")];
        client.write_all(&pieces.concat()).await.unwrap();
        let mut heard = [0; 11];
        vm.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"one message");
        drop((client, vm));
        carried.await.unwrap();
        // Small pieces without an end.
        let (mut client, vm, carried) = port();
        let (mut from, mut to) = tokio::io::split(&mut client);
        let send = async {
            to.write_all(&frame(0x02, &[0; 100])).await.unwrap();
            while to.write_all(&frame(0x00, &[0; 100])).await.is_ok() {}
        };
        let read = async {
            let mut head = [0; 4];
            from.read_exact(&mut head).await.unwrap();
            assert_eq!((head[0], u16::from_be_bytes([head[2], head[3]])), (0x88, 1009));
        };
        let Either::Right(_) = select(pin!(send), pin!(read)).await else { panic!("nobody has closed it") };
        drop((client, vm));
        carried.await.unwrap();
    });
}

#[test]
fn who_does_not_read_holds_nothing_up_for_long() {
    run(async {
        let (client, mut vm, carried) = between(Inward::Port, Outward::Bytes, QUICK);
        // The guest is stopped once the buffers are full, and let go when the client is given up.
        let mut sent = 0;
        while let Ok(length) = vm.write(&[0; 1024]).await {
            sent += length;
            assert!(sent < UNREAD_MAX, "nobody holds so much for a client");
        }
        carried.await.unwrap();
        drop(client);
    });
}

/// More than may wait anywhere on the way: two pipes, a piece, what tungstenite has.
const UNREAD_MAX: usize = 512 << 10;

#[test]
fn a_guest_that_does_not_read_stops_its_client() {
    run(async {
        let (client, vm, carried) = port();
        let mut client = speaking(client).await;
        let mut sent = 0;
        while timeout(QUICK.unread, client.send(Message::binary(vec![0; 4096]))).await.is_ok() {
            sent += 4096;
            assert!(sent < UNREAD_MAX, "nobody holds so much for a guest");
        }
        drop((client, vm));
        carried.await.unwrap();
    });
}

#[test]
fn who_gives_no_sign_of_life_is_gone_and_who_does_stays() {
    run(async {
        let (mut client, mut vm, carried) = between(Inward::Port, Outward::Bytes, QUICK);
        let begin = Instant::now();
        assert_eq!(vm.read(&mut [0]).await.unwrap(), 0, "nothing has come, and it is over");
        assert!(begin.elapsed() >= QUICK.ping);
        assert_eq!(client.read_u8().await.unwrap(), 0x89, "it was asked");
        drop(client);
        carried.await.unwrap();
        let (client, mut vm, carried) = between(Inward::Port, Outward::Bytes, QUICK);
        let mut client = speaking(client).await;
        // Whoever reads answers pings by it.
        let stayed = timeout(10 * QUICK.ping, async { while let Some(Ok(_)) = client.next().await {} }).await;
        assert!(stayed.is_err(), "it was closed");
        client.send(Message::binary(&b"x"[..])).await.unwrap();
        assert_eq!(vm.read_u8().await.unwrap(), b'x');
        drop(client);
        carried.await.unwrap();
    });
}

#[test]
fn a_command_ends_with_its_status_also_if_it_does_not_read() {
    run(async {
        let (inward, outward) = (Inward::Exec { begun: false }, Outward::Agent(Decoder::new()));
        let (client, mut vm, carried) = between(inward, outward, Pace::default());
        let mut client = speaking(client).await;
        client.send(Message::text(r#"{"exec": {"argv": ["true"]}}"#)).await.unwrap();
        let mut line = vec![0; 7];
        vm.read_exact(&mut line).await.unwrap();
        assert_eq!(line, b"{\"exec\"");
        vm.write_all(&[Output::Stdout(b"hi".to_vec()).to_bytes(), Output::Exit(3).to_bytes()].concat())
            .await
            .unwrap();
        drop(vm);
        let _ = client.feed(Message::binary(vec![0; 1000])).await;
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(&b"\x01hi"[..]));
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text(r#"{"exit":3}"#));
        let Some(Ok(Message::Close(Some(why)))) = client.next().await else { panic!() };
        assert_eq!((u16::from(why.code), why.reason.as_str()), (1000, "exit status 3"));
        while let Some(Ok(_)) = client.next().await {}
        carried.await.unwrap();
    });
}
