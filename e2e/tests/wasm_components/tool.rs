//! What a Rust program does by the standard library, one thing for each word.
use std::io::{Read, Write};
use std::net::{TcpListener, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["words", rest @ ..] => println!("{rest:?} {:?}", std::env::var("A")),
        ["copy"] => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).unwrap();
            std::io::stdout().write_all(&bytes).unwrap();
        }
        ["write", file] => std::fs::write(file, "note").unwrap(),
        ["read", file] => println!("{:?}", std::fs::read_to_string(file).map_err(|error| error.kind())),
        ["list", dir] => {
            let mut names: Vec<_> =
                std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            println!("{names:?}");
        }
        ["sleep", ms] => {
            let (begin, time) = (Instant::now(), Duration::from_millis(ms.parse().unwrap()));
            std::thread::sleep(time);
            println!("{}", begin.elapsed() >= time);
        }
        ["same"] => {
            let set: std::collections::HashSet<u32> = (0..20).collect();
            std::thread::sleep(Duration::from_secs(1000));
            println!("{set:?} {:?}", SystemTime::now().duration_since(UNIX_EPOCH));
        }
        ["network"] => println!(
            "{} {} {}",
            TcpListener::bind("127.0.0.1:0").is_err(),
            UdpSocket::bind("127.0.0.1:0").is_err(),
            "localhost:1".to_socket_addrs().is_err(),
        ),
        ["fail"] => std::process::exit(1),
        _ => panic!("no such word"),
    }
}
