//! The console of the default guest: named ports as Unix sockets, and the terminal's size.
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use viv_e2e::{Vm, run, until, viv};

const LIMIT: Duration = Duration::from_secs(120);

fn shell(name: &str, script: &str) -> String {
    run(&["exec", name, "sh", "-ec", script], "").ok().out
}

/// Starts a script in the guest that goes on.
fn begin(name: &str, script: &str) -> Child {
    viv(&["exec", name, "sh", "-ec", script]).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn named_ports_are_sockets_of_the_host_one_client_after_the_other() {
    const NAME: &str = "e2e-ports";
    let _ = run(&["rm", "-f", NAME], "");
    let socket = std::env::temp_dir().join(format!("viv-e2e-port-{}.sock", std::process::id()));
    let chat = format!("chat={}", socket.display());
    let options = ["run", "-d", "--accel", "soft", "--name", NAME, "--console-port", &chat];
    run(&[&options[..], &["--console-port", "other"]].concat(), "").ok();
    let _vm = Vm(NAME);
    until("the ports", LIMIT, || {
        run(&["exec", NAME, "sh", "-c", "test -c /dev/virtio-ports/chat -a -c /dev/virtio-ports/other"], "")
            .status
            == 0
    });
    for round in 0..2 {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.set_write_timeout(Some(LIMIT)).unwrap();
        // Answers a line, sends a megabyte and a half, and counts as much: more than is buffered anywhere.
        let guest = begin(
            NAME,
            "exec 3<>/dev/virtio-ports/chat; read line <&3; echo \"heard $line\" >&3; head -c 1500000 /dev/zero >&3; \
             head -c 1500000 <&3 | md5sum",
        );
        writeln!(client, "hello {round}").unwrap();
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("heard hello {round}\n"));
        let mut zeroes = vec![1; 1_500_000];
        reader.read_exact(&mut zeroes).unwrap();
        assert!(zeroes.iter().all(|byte| *byte == 0));
        client.write_all(&vec![b'v'; 1_500_000]).unwrap();
        let output = guest.wait_with_output().unwrap();
        // `head -c 1500000 /dev/zero | tr '\\0' v | md5sum`
        assert_eq!(String::from_utf8_lossy(&output.stdout), "35f06a51db81c47bbc0a3d93577437b4  -\n");
    }
    // The guest is told when nobody is there: whoever reads sees the end, once somebody was.
    let client = UnixStream::connect(&socket).unwrap();
    let mut guest = begin(NAME, "echo ready; cat /dev/virtio-ports/chat; echo over");
    let mut lines = BufReader::new(guest.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    drop(client);
    assert_eq!(lines.next().unwrap().unwrap(), "over");
    guest.wait().unwrap();

    // Its socket is another VM's no more than a file is, and goes with the VM.
    let refused = run(&["run", "--rm", "--accel", "soft", "--console-port", &chat, "--", "true"], "");
    assert!(refused.status == 4 && refused.err.contains("another program has it"), "{refused:?}");
    run(&["kill", NAME], "").ok();
    until("the socket's end", LIMIT, || !Path::new(&socket).exists());
    fs::write(&socket, "somebody's file").unwrap();
    let refused = run(&["run", "--rm", "--accel", "soft", "--console-port", &chat, "--", "true"], "");
    assert!(refused.status == 4 && fs::read_to_string(&socket).unwrap() == "somebody's file", "{refused:?}");
    fs::remove_file(&socket).unwrap();
    let refused = run(&["run", "--rm", "--accel", "soft", "--console-port", "a b", "--", "true"], "");
    assert!(refused.status == 2 && refused.err.contains("NAME=FILE"), "{refused:?}");
}

/// `viv console` on a terminal of this size, and what it shows.
fn console(name: &str, rows: u16, cols: u16) -> (Child, Receiver<Vec<u8>>) {
    let viv = viv(&[]);
    let program = viv.get_program().to_string_lossy().into_owned();
    let command = format!("stty rows {rows} cols {cols}; exec '{program}' console {name}");
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    for (key, value) in viv.get_envs() {
        script.env(key, value.unwrap_or_default());
    }
    let mut child = script.spawn().unwrap();
    let (mut output, (send, shown)) = (child.stdout.take().unwrap(), channel());
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = output.read(&mut piece) {
            if send.send(piece[..len].to_vec()).is_err() {
                return;
            }
        }
    });
    (child, shown)
}

#[test]
fn the_size_of_the_consoles_terminal_reaches_the_guest() {
    const NAME: &str = "e2e-size";
    let _ = run(&["rm", "-f", NAME], "");
    run(&["run", "-d", "--accel", "soft", "--name", NAME], "").ok();
    let _vm = Vm(NAME);
    until("the agent", LIMIT, || run(&["exec", NAME, "true"], "").status == 0);
    for (rows, cols) in [(41, 97), (50, 132)] {
        let (mut child, shown) = console(NAME, rows, cols);
        let mut keyboard = child.stdin.take().unwrap();
        // The serial console's shell, and the virtio console: whose terminal gets its size a moment after
        // somebody opens it (Linux's hvc_resize leaves it to a worker), and loses it when the last one closes it.
        let both = format!("{rows} {cols}\n{rows} {cols}\n");
        let sizes = "stty size < /dev/ttyS0; exec < /dev/hvc0; sleep 0.2; stty size";
        until("the size", LIMIT, || shell(NAME, sizes) == both);
        keyboard.write_all(b"stty size\r").unwrap();
        let mut text = String::new();
        while !text.contains(&format!("{rows} {cols}\r\n")) {
            text += &String::from_utf8_lossy(&shown.recv_timeout(LIMIT).expect(&text));
        }
        keyboard.write_all(b"\x1dq").unwrap();
        child.wait().unwrap();
    }
}
