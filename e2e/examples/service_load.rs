//! How much the host service takes: `cargo run --release -p viv-e2e --example service_load [VMS]`, after
//! `cargo build --release -p viv`.
//!
//! VMs are described and not started, so that only the service and its store are measured: durable creates by one client and by
//! 64, the list of all, changes seen by a follower, memory, and removal.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use viv_e2e::Home;
use viv_e2e::client::{Client, Service, resident};

fn create(client: &mut Client, name: &str) {
    let body = format!(r#"{{"name": "{name}", "kernel": "/bin/true", "accel": "soft", "memory_mib": 64}}"#);
    client.must("POST /v1/vms", &body);
}

/// Creates from so many clients for so long; gives how many a second.
fn creates(home: &Home, clients: usize, limit: Duration, made: &AtomicUsize) -> f64 {
    let (start, before) = (Instant::now(), made.load(Ordering::Relaxed));
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::new(home);
                while start.elapsed() < limit {
                    let number = made.fetch_add(1, Ordering::Relaxed);
                    create(&mut client, &format!("load-{number}"));
                }
            });
        }
    });
    (made.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let most: usize = std::env::args().nth(1).map_or(10_000, |count| count.parse().expect("a number of VMs"));
    let home = Home::new("service-load");
    let service = Service::start(&home);
    let pid = service.pid();
    println!("service with no VM: {} MiB resident", resident(pid));

    let made = AtomicUsize::new(0);
    for clients in [1, 8, 64] {
        let rate = creates(&home, clients, Duration::from_secs(3), &made);
        println!("durable creates, {clients:2} clients: {rate:.0} a second");
    }
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let mut client = Client::new(&home);
                loop {
                    let number = made.fetch_add(1, Ordering::Relaxed);
                    if number >= most {
                        return;
                    }
                    create(&mut client, &format!("load-{number}"));
                }
            });
        }
    });
    let mut client = Client::new(&home);
    let mut took: Vec<Duration> = Vec::new();
    let mut count = 0;
    for _ in 0..7 {
        let start = Instant::now();
        let (status, body) = client.ask("GET /v1/vms", "");
        took.push(start.elapsed());
        assert_eq!(status, 200);
        count = serde_json::from_slice::<serde_json::Value>(&body).unwrap().as_array().unwrap().len();
    }
    took.sort();
    println!("list of {count} VMs: {:?} (median)", took[took.len() / 2]);
    let mut one: Vec<Duration> = (0..200)
        .map(|number| {
            let start = Instant::now();
            client.ask(&format!("GET /v1/vms/load-{number}"), "");
            start.elapsed()
        })
        .collect();
    one.sort();
    println!("one of them: {:?} (median)", one[one.len() / 2]);
    println!("service with {count} VMs: {} MiB resident", resident(pid));

    let start = Instant::now();
    drop(service);
    let service = Service::start(&home);
    Client::new(&home).ask("GET /v1/vms/load-0", "");
    println!("killed, and answers again: {:?} after", start.elapsed());
    println!("the next service: {} MiB resident", resident(service.pid()));
    let start = Instant::now();
    let left = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let mut client = Client::new(&home);
                loop {
                    let number = left.fetch_add(1, Ordering::Relaxed);
                    if number >= most {
                        return;
                    }
                    client.ask(&format!("DELETE /v1/vms/load-{number}"), "");
                }
            });
        }
    });
    println!("removals, 64 clients: {:.0} a second", most as f64 / start.elapsed().as_secs_f64());
}
