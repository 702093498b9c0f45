//! What a component does in a network, by Rust's standard library.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (verb, words) = args.split_first().expect("a verb");
    match verb.as_str() {
        // Says of each address what a connection to it comes to.
        "tries" => {
            for to in words {
                let address: SocketAddr = to.parse().expect("an address");
                match TcpStream::connect(address) {
                    Ok(_) => println!("{to} connected"),
                    Err(error) => println!("{to} {:?}", error.kind()),
                }
            }
        }
        "names" => {
            for name in words {
                match (name.as_str(), 80).to_socket_addrs() {
                    Ok(found) => println!(
                        "{name} {}",
                        found.map(|at| at.ip().to_string()).collect::<Vec<_>>().join(" ")
                    ),
                    Err(_) => println!("{name} unknown"),
                }
            }
        }
        // Sends back what comes, one connection after the other.
        "serve" => {
            let listener =
                TcpListener::bind(("0.0.0.0", words[0].parse().expect("a port"))).expect("a listener");
            println!("listens");
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut piece = vec![0; 65536];
                while let Ok(count @ 1..) = stream.read(&mut piece) {
                    if stream.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
            }
        }
        "udp" => {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(b"hello", &*words[0]).expect("it is sent");
            let mut piece = [0; 100];
            let (count, from) = socket.recv_from(&mut piece).expect("an answer");
            println!("{from} {}", String::from_utf8_lossy(&piece[..count]));
        }
        // As many sockets as it gets.
        "exhaust" => {
            let all: Vec<UdpSocket> = std::iter::from_fn(|| UdpSocket::bind("0.0.0.0:0").ok()).collect();
            println!("{}", all.len());
        }
        other => panic!("{other}?"),
    }
}
