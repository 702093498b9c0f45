//! Programs of the host and a guest's driver talk through the whole vsock path: Unix socket, muxer, device,
//! rings.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use viv_arch::virtio::vsock as op;
use viv_devices::pci::{Allocator, PciFunction};
use viv_devices::virtio::mock::MockVsock;
use viv_devices::virtio::{Rings, VirtioPci, VirtioTransport, Vsock, vsock::Header};
use viv_machine::vsock::{GuestSockets, SocketDevice};
use viv_mem::{Gpa, GuestMemory};
use viv_net::vsock::{VsockMuxer, Waker};

type Device = Arc<Mutex<VirtioPci<Vsock>>>;

/// The device as the board holds it: its interrupts are counted.
struct Counted {
    device: Device,
    interrupts: Arc<AtomicU32>,
    waker: Waker,
}

impl SocketDevice for Counted {
    fn with(&self, act: &mut dyn FnMut(&mut Vsock, &mut Rings<'_>)) {
        let mut transport = self.device.lock().unwrap();
        let (device, mut rings) = transport.device();
        act(device, &mut rings);
        let list = VirtioTransport::take_interrupts(&mut *transport);
        self.interrupts.fetch_add(list.len() as u32, Ordering::Relaxed);
        wake_if_needed(&mut transport, &self.waker);
    }
}

/// What the board does after each access of the guest.
fn wake_if_needed(transport: &mut VirtioPci<Vsock>, waker: &Waker) {
    if transport.device().0.wants_host() {
        waker.wake();
    }
}

struct Bench {
    guest: MockVsock<Device>,
    device: Device,
    waker: Waker,
    path: PathBuf,
    muxer: Option<VsockMuxer>,
    interrupts: Arc<AtomicU32>,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Bench {
    fn new() -> Bench {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("viv-vsock-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("vsock.sock");
        let memory = GuestMemory::new(&[(Gpa(0), 4 << 20)]).unwrap();
        let mut function = VirtioPci::new(Vsock::new(3), memory.clone(), 10);
        let window = (Gpa(1 << 40), 1 << 20);
        assert!(function.place_bars(&mut Allocator::new(window, window)));
        let device: Device = Arc::new(Mutex::new(function));
        let waker = Waker::new().unwrap();
        let interrupts = Arc::new(AtomicU32::new(0));
        let counter = interrupts.clone();
        let sockets =
            GuestSockets(Counted { device: device.clone(), interrupts: counter, waker: waker.clone() });
        let guest = MockVsock::new(device.clone(), memory, 3, 16);
        let muxer = Some(VsockMuxer::start(&path, Arc::new(sockets), waker.clone()).unwrap());
        Bench { guest, device, waker, path, muxer, interrupts }
    }

    fn send(&mut self, host_port: u32, port: u32, op: u16, flags: u32, payload: &[u8]) {
        self.guest.send(host_port, port, op, flags, payload);
        wake_if_needed(&mut self.device.lock().unwrap(), &self.waker);
    }

    /// The next packet, as a guest would wait for its interrupt.
    fn packet(&mut self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.guest.receive() {
                wake_if_needed(&mut self.device.lock().unwrap(), &self.waker);
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A packet of this operation; credit traffic before it is skipped.
    fn expect(&mut self, wanted: u16) -> (Header, Vec<u8>) {
        loop {
            let (header, payload) = self.packet();
            if !matches!(header.op, op::OP_CREDIT_REQUEST | op::OP_CREDIT_UPDATE) {
                assert_eq!(header.op, wanted, "{header:?}");
                return (header, payload);
            }
        }
    }

    /// A program that is connected to port 1024 of the guest, and the host's port.
    fn client(&mut self) -> (UnixStream, u32) {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"CONNECT 1024\n").unwrap();
        let (request, _) = self.expect(op::OP_REQUEST);
        assert_eq!(request.dst_port, 1024);
        self.send(request.src_port, 1024, op::OP_RESPONSE, 0, &[]);
        assert_eq!(line(&mut client), format!("OK {}", request.src_port));
        (client, request.src_port)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.muxer.take());
        assert!(!self.path.exists(), "the socket is gone with the muxer");
        let _ = std::fs::remove_dir_all(self.path.parent().unwrap());
    }
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_program_reaches_the_guest_and_both_half_close() {
    let mut bench = Bench::new();
    let (mut client, port) = bench.client();
    client.write_all(b"input").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.expect(op::OP_RW).1, b"input");
    let (shutdown, _) = bench.expect(op::OP_SHUTDOWN);
    assert_eq!(shutdown.flags, op::SHUTDOWN_SEND, "the guest sees the end of input and may go on");
    bench.send(port, 1024, op::OP_RW, 0, b"all of the output");
    bench.send(port, 1024, op::OP_SHUTDOWN, 3, &[]);
    assert_eq!(rest(&mut client), b"all of the output");
    bench.expect(op::OP_RST);
    assert!(bench.interrupts.load(Ordering::Relaxed) > 0);
}

#[test]
fn bytes_behind_the_greeting_are_for_the_guest() {
    let mut bench = Bench::new();
    let mut client = UnixStream::connect(&bench.path).unwrap();
    client.write_all(b"CONNECT 7\nearly").unwrap();
    let (request, _) = bench.expect(op::OP_REQUEST);
    bench.send(request.src_port, 7, op::OP_RESPONSE, 0, &[]);
    assert_eq!(bench.expect(op::OP_RW).1, b"early");
}

#[test]
fn a_refusal_and_a_bad_greeting_are_the_end_of_file() {
    let mut bench = Bench::new();
    let mut client = UnixStream::connect(&bench.path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"CONNECT 9\n").unwrap();
    let (request, _) = bench.expect(op::OP_REQUEST);
    bench.send(request.src_port, 9, op::OP_RST, 0, &[]);
    assert_eq!(rest(&mut client), b"");
    for greeting in
        ["GET / HTTP/1.1\r\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", &"y".repeat(100)]
    {
        let mut client = UnixStream::connect(&bench.path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(greeting.as_bytes()).unwrap();
        let mut byte = [0];
        // Unread input makes the end a reset.
        assert!(matches!(client.read(&mut byte), Ok(0) | Err(_)), "{greeting:?}");
    }
}

#[test]
fn the_guest_reaches_a_program_that_listens() {
    let mut bench = Bench::new();
    bench.send(52, 5000, op::OP_REQUEST, 0, &[]);
    bench.expect(op::OP_RST);
    let mut name = bench.path.clone().into_os_string();
    name.push("_52");
    let listener = UnixListener::bind(&name).unwrap();
    bench.send(52, 5000, op::OP_REQUEST, 0, &[]);
    let (mut program, _) = listener.accept().unwrap();
    bench.expect(op::OP_RESPONSE);
    bench.send(52, 5000, op::OP_RW, 0, b"question");
    let mut question = [0; 8];
    program.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question");
    program.write_all(b"answer").unwrap();
    assert_eq!(bench.expect(op::OP_RW).1, b"answer");
    drop(program);
    // Its end may be read before it is seen that it has gone altogether: the guest is told of one direction first, then.
    let mut flags = 0;
    while flags != 3 {
        flags |= bench.expect(op::OP_SHUTDOWN).0.flags;
    }
}

#[test]
fn a_program_that_dies_with_output_unread_resets_the_stream() {
    let mut bench = Bench::new();
    let (client, port) = bench.client();
    bench.send(port, 1024, op::OP_RW, 0, &[0; 4096]);
    let start = Instant::now();
    while bench.interrupts.load(Ordering::Relaxed) < 2 && start.elapsed() < Duration::from_millis(200) {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(client);
    let (header, _) = bench.packet();
    assert!(matches!(header.op, op::OP_RST | op::OP_SHUTDOWN), "{header:?}");
    if header.op == op::OP_SHUTDOWN {
        assert_eq!(header.flags, 3);
        bench.send(port, 1024, op::OP_RW, 0, b"still there?");
        bench.expect(op::OP_RST);
    }
}

#[test]
fn a_slow_program_stops_its_own_stream_only() {
    let mut bench = Bench::new();
    let (mut slow, slow_port) = bench.client();
    let (mut quick, quick_port) = bench.client();
    // As much as the credit allows, and then what credit updates give, until everything on the way is full.
    let mut sent = 0u32;
    let mut taken = 0u32;
    let quiet = |bench: &mut Bench, taken: &mut u32| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            if let Some((header, _)) = bench.guest.receive() {
                assert_eq!(header.op, op::OP_CREDIT_UPDATE);
                *taken = header.fwd_cnt;
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    };
    loop {
        while sent - taken + (32 << 10) <= 256 << 10 {
            bench.send(slow_port, 1024, op::OP_RW, 0, &[7; 32 << 10]);
            sent += 32 << 10;
        }
        if !quiet(&mut bench, &mut taken) {
            break;
        }
        assert!(sent < 16 << 20, "the host takes everything although nobody reads");
    }
    bench.send(quick_port, 1024, op::OP_RW, 0, b"quick");
    let mut five = [0; 5];
    quick.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"quick");
    bench.send(slow_port, 1024, op::OP_SHUTDOWN, 3, &[]);
    assert_eq!(rest(&mut slow).len(), sent as usize, "not a byte is lost");
}

#[test]
fn a_slow_guest_stops_the_program_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.guest.buf_alloc = 8 << 10;
    let (mut client, port) = bench.client();
    let total = 3 << 20;
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..total).map(|i| (i % 253) as u8).collect();
        client.write_all(&bytes).unwrap();
        client
    });
    let mut got = Vec::new();
    while got.len() < total {
        let (header, payload) = bench.packet();
        match header.op {
            op::OP_RW => {
                got.extend(payload);
                bench.guest.fwd_cnt = got.len() as u32;
                bench.send(port, 1024, op::OP_CREDIT_UPDATE, 0, &[]);
            }
            other => assert_eq!(other, op::OP_CREDIT_REQUEST),
        }
    }
    assert!(got.iter().enumerate().all(|(i, byte)| *byte == (i % 253) as u8));
    drop(writer.join().unwrap());
    assert_eq!(bench.expect(op::OP_SHUTDOWN).0.flags, 3);
}

#[test]
fn a_guest_that_finishes_and_then_closes_is_noticed() {
    let mut bench = Bench::new();
    let (mut client, port) = bench.client();
    bench.send(port, 1024, op::OP_SHUTDOWN, op::SHUTDOWN_SEND, &[]);
    assert_eq!(rest(&mut client), b"");
    client.write_all(b"still for the guest").unwrap();
    assert_eq!(bench.expect(op::OP_RW).1, b"still for the guest");
    bench.send(port, 1024, op::OP_SHUTDOWN, 3, &[]);
    bench.expect(op::OP_RST);
    let start = Instant::now();
    while client.write_all(b"to nobody").is_ok() {
        assert!(start.elapsed() < PATIENCE, "the program is never told");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn many_programs_at_a_time() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..100).map(|_| bench.client()).collect();
    for (index, (client, _)) in clients.iter_mut().enumerate() {
        client.write_all(&[index as u8; 3]).unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..clients.len() {
        let (header, payload) = bench.expect(op::OP_RW);
        let (_, port) = clients[usize::from(payload[0])];
        assert_eq!((header.src_port, payload.len()), (port, 3));
        seen.push(payload[0]);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 100);
}

#[test]
fn the_end_of_the_guest_is_the_end_of_file() {
    let mut bench = Bench::new();
    let (mut client, port) = bench.client();
    bench.send(port, 1024, op::OP_RW, 0, b"last words");
    {
        let mut device = bench.device.lock().unwrap();
        PciFunction::reset(&mut *device);
        wake_if_needed(&mut device, &bench.waker);
    }
    assert_eq!(rest(&mut client), b"last words");
}

#[test]
fn a_dead_process_socket_is_replaced_but_a_live_one_is_not() {
    let bench = Bench::new();
    let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
    let device = Arc::new(Mutex::new(VirtioPci::new(Vsock::new(3), memory, 10)));
    let start = |path: &PathBuf| {
        let waker = Waker::new().unwrap();
        let interrupts = Arc::default();
        let sockets = GuestSockets(Counted { device: device.clone(), interrupts, waker: waker.clone() });
        VsockMuxer::start(path, Arc::new(sockets), waker)
    };
    let error = start(&bench.path).unwrap_err();
    assert!(error.to_string().contains("vsock.sock"), "{error}");
    let stale = bench.path.with_file_name("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    start(&stale).unwrap();
}
