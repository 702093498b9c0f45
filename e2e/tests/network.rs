//! A VM's own network with the default guest: only the host's loopback is at its other end.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;
use viv_e2e::{Vm, run, until};

const WAIT: Duration = Duration::from_secs(60);

fn soft(command: &str) -> Vec<&str> {
    vec!["run", "--rm", "--accel", "soft", "--net", "user,host", "--", "sh", "-c", command]
}

/// A port that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn the_guest_has_an_address_and_reaches_the_host_as_its_gateway() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let body = "0123456789abcdef".repeat(1 << 16);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    let closed = free_port();
    let command = format!(
        "ip -4 addr show eth0 | grep -o 'inet [^ ]*'; cat /etc/resolv.conf; ping -c 1 -W 5 10.0.2.2 > /dev/null && echo pong; \
         ip link set eth0 mtu 1500; ping -c 1 -W 20 -s 20000 10.0.2.2 | grep -o '^20008 bytes'; wget -qO- http://10.0.2.2:{port}/ | md5sum; wget -qO- http://10.0.2.2:{closed}/ 2>&1 | grep -o 'refused'"
    );
    let done = run(&soft(&command), "").ok();
    let sum = "14d785daab3823736c981ca82a750c98";
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines[..3], ["inet 10.0.2.15/24", "nameserver 10.0.2.3", "pong"], "{done:?}");
    // The second one, in fragments.
    assert_eq!(lines[3], "20008 bytes", "{done:?}");
    assert_eq!(lines[4..], [&format!("{sum}  -"), "refused"], "{done:?}");
}

#[test]
fn ipv6_reaches_the_host_and_what_is_not_there_is_told_at_once() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return eprintln!("this host has no IPv6") };
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            write!(stream, "HTTP/1.0 200 OK\r\n\r\nsix\n").unwrap();
        }
    });
    let closed = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap().port();
    let gateway = "fd76:6976:a00:200::2";
    // The address is the card's own, once nobody else is found to have it.
    let command = format!(
        "for i in $(seq 100); do ip -6 addr show dev eth0 scope global | grep -qv tentative && break; sleep 0.2; done; \
         ip -6 addr show dev eth0 scope global | grep -o 'inet6 fd76:6976:a00:200:'; \
         ping6 -c 1 -W 20 {gateway} > /dev/null && echo pong; \
         ip link set eth0 mtu 1500; ping6 -c 1 -W 20 -s 20000 {gateway} | grep -o '^20008 bytes'; timeout 60 wget -qO- http://[{gateway}]:{port}/; \
         timeout 60 wget -qO- http://[{gateway}]:{closed}/ 2>&1 | grep -o refused; \
         timeout 60 wget -qO- http://[fd76:6976:a76:100::5]/ 2>&1 | grep -c connect"
    );
    let done = run(&soft(&command), "").ok();
    assert_eq!(done.out, "inet6 fd76:6976:a00:200:\npong\n20008 bytes\nsix\nrefused\n1\n", "{done:?}");
}

/// A name server that knows one address, by the protocol's letter (RFC 1035 §4): the question comes back with it.
fn serve_names() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..len].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            // Type A, and only that, has an answer.
            if buffer[len - 4..len] == [0, 1, 0, 1] {
                answer[6..8].copy_from_slice(&[0, 1]);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    port
}

#[test]
fn datagrams_reach_a_name_server_and_come_back() {
    let port = serve_names();
    let done = run(&soft(&format!("nslookup viv.test 10.0.2.2:{port}")), "").ok();
    assert!(done.out.contains("192.0.2.7"), "{done:?}");
}

#[test]
fn the_host_is_not_reached_unless_it_is_asked_for() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let command = format!("timeout 60 wget -qO- http://10.0.2.2:{port}/ 2>&1 | grep -o refused");
    let words = ["run", "--rm", "--accel", "soft", "--net", "user", "--", "sh", "-c", &command];
    let done = run(&words, "").ok();
    assert_eq!(done.out, "refused\n", "{done:?}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody came");
}

#[test]
fn without_a_network_there_is_none() {
    let words = ["run", "--rm", "--accel", "soft", "--", "ls", "/sys/class/net"];
    let done = run(&words, "").ok();
    assert_eq!(done.out, "lo\n", "{done:?}");
    let wrong = run(&["run", "--net", "none", "-p", "8080:80", "--", "true"], "");
    assert_eq!(wrong.status, 2, "{wrong:?}");
    assert!(wrong.err.contains("--net user"), "{wrong:?}");
}

#[test]
fn published_ports_lead_into_the_guest_and_each_refusal_has_a_way_out() {
    let (web, datagrams) = (free_port(), free_port());
    let (web_spec, datagram_spec) = (format!("127.0.0.1:{web}:80"), format!("127.0.0.1:{datagrams}:7/udp"));
    let _vm = Vm("e2e-net");
    run(&["run", "-d", "--accel", "soft", "--name", "e2e-net", "-p", &web_spec, "-p", &datagram_spec], "")
        .ok();
    let shown = run(&["ps"], "").ok().out;
    assert!(shown.contains(&web_spec) && shown.contains(&datagram_spec), "{shown}");
    let serve = "mkdir /www && echo hello > /www/index.html && httpd -h /www";
    run(&["exec", "e2e-net", "sh", "-c", serve], "").ok();

    let mut answer = String::new();
    until("the web page", WAIT, || {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, web)) else { return false };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        answer.clear();
        stream.read_to_string(&mut answer).is_ok() && answer.ends_with("hello\n")
    });
    // Busybox has no server of datagrams: that they come is what the guest's kernel counts.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    until("a datagram", WAIT, || {
        socket.send_to(b"marco", (Ipv4Addr::LOCALHOST, datagrams)).unwrap();
        let counts = run(&["exec", "e2e-net", "grep", "Udp: [0-9]", "/proc/net/snmp"], "").ok().out;
        counts.split_whitespace().nth(2).is_some_and(|ports_without_server| ports_without_server != "0")
    });

    let taken = run(&["run", "--rm", "-p", &web_spec, "--", "true"], "");
    assert_eq!(taken.status, 4, "{taken:?}");
    assert!(taken.err.contains("in use"), "{taken:?}");
    let malformed = run(&["run", "--rm", "-p", "8080:", "--", "true"], "");
    assert_eq!(malformed.status, 2, "{malformed:?}");
    assert!(malformed.err.contains("-p HOST:GUEST"), "{malformed:?}");

    // Without a port of the host it is a free one, which is told.
    let _free = Vm("e2e-net-free");
    run(&["run", "-d", "--accel", "soft", "--name", "e2e-net-free", "-p", "127.0.0.1::80"], "").ok();
    let shown = run(&["ps"], "").ok().out;
    let line = shown.lines().find(|line| line.starts_with("e2e-net-free")).unwrap();
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    assert_ne!(port.parse::<u16>().unwrap(), 0, "{line}");
    run(&["exec", "e2e-net-free", "sh", "-c", serve], "").ok();
    until("the page at the free port", WAIT, || {
        TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).is_ok_and(|mut stream| {
            let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).is_ok() && answer.ends_with("hello\n")
        })
    });
}
