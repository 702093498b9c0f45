//! The service is killed at random moments under a random client: nothing that it has acknowledged is lost or half done.
//!
//! CI does 25 kills; `VIV_KILLS=1000 cargo test --release -p viv-e2e --test service_kills` any number.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use viv_e2e::{Home, tool};

/// Numbers that are the same for the same seed (SplitMix64, by Steele, Lea and Flood).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below
    }
}

/// What a client knows of a VM of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// It was told that it is there, with so much memory.
    There(u64),
    /// It was told that it is gone.
    Gone,
    /// It was told nothing: either may be.
    Either(u64),
}

/// Describes and removes VMs until it is told to stop.
fn client(home: &Home, number: u64, seed: u64, stop: &AtomicBool, known: &Mutex<BTreeMap<String, Known>>) {
    let mut random = Random(seed ^ number.wrapping_mul(0x1234_5678_9abc_def1));
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let mine: Vec<(String, Known)> = {
            let known = known.lock().unwrap();
            let prefix = format!("c{number}-");
            known
                .iter()
                .filter(|(name, _)| name.starts_with(&prefix))
                .map(|(name, k)| (name.clone(), *k))
                .collect()
        };
        let there: Vec<_> = mine.iter().filter(|(_, known)| matches!(known, Known::There(_))).collect();
        if there.len() < 6 || random.next(2) == 0 && there.len() < 20 {
            let (name, memory) = (format!("c{number}-{count}"), 64 + 2 * random.next(64));
            count += 1;
            let body = format!(
                r#"{{"name": "{name}", "kernel": "/bin/true", "accel": "soft", "memory_mib": {memory}}}"#
            );
            let key = format!("Idempotency-Key: {seed}-{name}\r\n");
            known.lock().unwrap().insert(name.clone(), Known::Either(memory));
            match home.try_ask("POST /v1/vms", &key, &body) {
                Some(answer) => {
                    assert_eq!(answer.status, 200, "{name}: {answer:?}");
                    assert_eq!(answer.body["name"], name.as_str());
                    known.lock().unwrap().insert(name, Known::There(memory));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        } else {
            let (name, was) = there[random.next(there.len() as u64) as usize];
            let Known::There(memory) = *was else { unreachable!("only those are taken") };
            known.lock().unwrap().insert(name.clone(), Known::Either(memory));
            match home.try_ask(&format!("DELETE /v1/vms/{name}"), "", "") {
                Some(answer) => {
                    assert_eq!(answer.status, 200, "{name}: {answer:?}");
                    known.lock().unwrap().insert(name.clone(), Known::Gone);
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_service_is_killed() {
    let kills: u32 = std::env::var("VIV_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let seed: u64 = std::env::var("VIV_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let home = Home::new("service-kills");
    // Its process must not notice anything of all this.
    home.run(&["run", "-d", "--accel", "soft", "--memory", "128M", "--name", "witness"]).ok();
    let pid = home.json(&["inspect", "witness"])[0]["pid"].clone();
    home.run(&[
        "exec",
        "witness",
        "sh",
        "-c",
        "(while :; do cut -d' ' -f1 /proc/uptime >> /tmp/beats; done) </dev/null >/dev/null 2>&1 &",
    ])
    .ok();
    let known = Arc::new(Mutex::new(BTreeMap::new()));
    let mut random = Random(seed);
    let mut revision = 0;
    let start = Instant::now();
    for kill in 0..kills {
        let service = home.service();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (home, stop, known, seed) = (&home, &stop, &known, seed + u64::from(kill) * 1000);
                scope.spawn(move || client(home, u64::from(kill) * 10 + number, seed, stop, known));
            }
            std::thread::sleep(Duration::from_micros(random.next(60_000)));
            tool("kill", &["-9", &service]);
            stop.store(true, Ordering::Relaxed);
        });
        // What the next service says is what was acknowledged.
        let listed = home.json(&["ps", "-a"]);
        let listed: BTreeMap<&str, u64> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|vm| (vm["name"].as_str().unwrap(), vm["machine"]["memory_mib"].as_u64().unwrap()))
            .collect();
        let mut known = known.lock().unwrap();
        for (name, was) in known.iter_mut() {
            let now = listed.get(name.as_str()).copied();
            let is_true = match *was {
                Known::There(memory) => now == Some(memory),
                Known::Gone => now.is_none(),
                Known::Either(memory) => now.is_none_or(|now| now == memory),
            };
            assert!(is_true, "kill {kill}, seed {seed}: {name} was {was:?}, and is {now:?}");
            *was = now.map_or(Known::Gone, Known::There);
        }
        assert!(
            listed.keys().all(|name| *name == "witness" || known.contains_key(*name)),
            "none that nobody asked for"
        );
        let directories = std::fs::read_dir(home.path("state/vms")).unwrap().count();
        assert_eq!(directories, listed.len(), "a directory for each, and no other");
        // Events are without a gap, and tell the same.
        let told = home.run(&["events", "--since", &revision.to_string(), "--json"]).ok().out;
        for line in told.lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["revision"], revision + 1, "kill {kill}");
            revision += 1;
        }

        known.retain(|_, known| *known != Known::Gone);
        let names: Vec<String> =
            listed.keys().filter(|name| **name != "witness").map(|name| name.to_string()).collect();
        if names.len() > 60 {
            let words: Vec<&str> = names.iter().map(String::as_str).collect();
            home.run(&[&["rm"], words.as_slice()].concat()).ok();
            known.clear();
        }
    }
    println!("{kills} kills in {:?}", start.elapsed());
    assert_eq!(home.json(&["inspect", "witness"])[0]["pid"], pid);
    let beats = home.run(&["exec", "witness", "cat", "/tmp/beats"]).ok().out;
    let beats: Vec<f64> = beats.lines().filter_map(|line| line.parse().ok()).collect();
    let gap = beats.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    println!(
        "the longest gap that the witness has seen between two beats: {:.1} ms of {} beats",
        gap * 1000.0,
        beats.len()
    );
    assert!(beats.len() > 10);
}
