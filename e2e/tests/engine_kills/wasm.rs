//! A WebAssembly program that is saved at any moment, killed, and goes on: the next link of its chain is the one after its last.
use crate::{LONG, Pids, Random, Whom, begin, end, rounds, shown};
use std::fs::{self, OpenOptions};
use std::time::{Duration, Instant};
use viv_e2e::{Directory, Home, until};

const PROGRAM: &str = include_str!("chain.wat");
/// Bytes of a link.
const LINK: usize = 24;

/// What the program computes, link by link.
struct Chain {
    hash: u64,
    table: Vec<u64>,
    text: String,
}

impl Chain {
    fn new() -> Chain {
        Chain { hash: 0xcbf2_9ce4_8422_2325, table: vec![0; 0x4_0000], text: String::new() }
    }

    fn walk(&mut self, depth: u32, key: u64) -> u64 {
        if depth > 0 {
            let left = self.walk(depth - 1, key << 1);
            return left.wrapping_add(self.walk(depth - 1, key << 1 | 1));
        }
        self.hash = (self.hash ^ key).wrapping_mul(0x100_0000_01b3);
        let at = (self.hash >> 20 & 0x3_ffff) as usize;
        self.hash ^= self.table[at];
        self.table[at] = self.table[at].wrapping_add(self.hash);
        self.hash.rotate_left(7)
    }

    /// The first so many links.
    fn links(&mut self, count: usize) -> &str {
        while self.text.len() < count * LINK {
            let (number, before) = (self.text.len() / LINK, self.hash);
            self.hash = self.walk(12, number as u64).wrapping_add(before);
            self.text += &format!("{:06} {:016x}\n", number + 1, self.hash);
        }
        &self.text[..count * LINK]
    }
}

/// A snapshot from which the program can go on, and between which links: its first one there is one of these.
#[derive(Clone)]
struct Saved {
    name: String,
    vm: String,
    first: (usize, usize),
}

struct World {
    home: Home,
    shared: Directory,
    chain: Chain,
    random: Random,
    /// The VM that runs, and where in its log what has not been looked at begins.
    vm: String,
    read: usize,
    count: usize,
    /// How long a command took last.
    took: Duration,
    /// How often each end of a command that was cut off came: done, refused.
    cut: [u32; 2],
}

impl World {
    fn new() -> World {
        let (home, shared) = (Home::bare("engine-kills-wasm"), Directory::new("engine-kills-links"));
        let program = home.path("chain.wat");
        fs::write(&program, PROGRAM).unwrap();
        let share = format!("{}:/data", shared.0.display());
        home.run(&["run", "-d", "--name", "vm-0", "-v", &share, &program]).ok();
        let took = Duration::from_millis(200);
        let (chain, random, vm) = (Chain::new(), Random::new(), "vm-0".to_string());
        World { home, shared, chain, random, vm, read: 0, count: 0, took, cut: [0; 2] }
    }

    fn name(&mut self, of: &str) -> String {
        self.count += 1;
        format!("{of}-{}", self.count)
    }

    /// The links in the file; all are what they must be. The last may be half written by whoever writes it now.
    #[track_caller]
    fn links(&mut self) -> usize {
        let text = fs::read_to_string(self.shared.path("links")).unwrap_or_default();
        let count = text.len() / LINK;
        assert!(text[..count * LINK] == *self.chain.links(count), "the file is not the chain:\n{text}");
        count
    }

    /// What the VM has said since the last look, without a gap; gives its first and last link.
    #[track_caller]
    fn said(&mut self) -> Option<(usize, usize)> {
        let log = self.home.run(&["logs", &self.vm]).ok().out;
        let new = log.get(self.read..).unwrap_or_default();
        let new = &new[..new.len() / LINK * LINK];
        if new.is_empty() {
            return None;
        }
        let first: usize = new[..6].parse().unwrap_or_else(|_| panic!("{} says no link: {new:?}", self.vm));
        let last = first + new.len() / LINK - 1;
        let must = &self.chain.links(last)[(first - 1) * LINK..];
        assert!(*new == *must, "what {} says is not the chain:\n{new}\ninstead of\n{must}", self.vm);
        Some((first, last))
    }

    /// Waits for the VM's next links; gives the first.
    #[track_caller]
    fn next(&mut self) -> usize {
        let start = Instant::now();
        loop {
            if let Some((first, _)) = self.said() {
                return first;
            }
            assert!(start.elapsed() < LONG, "{} says nothing: {:?}", self.vm, shown(&self.home, &self.vm));
        }
    }

    /// The VM goes on with its work, until nothing in the file is of an earlier one that had come further.
    #[track_caller]
    fn goes_on(&mut self) {
        self.next();
        let far = self.links().max(self.said().expect("it has said something").1 + 2);
        until("it goes on", LONG, || self.said().is_some_and(|(_, last)| last > far));
    }

    /// The VM is killed if it is not yet, and goes on from a snapshot: as another VM, or rolled back.
    #[track_caller]
    fn go_on(&mut self, saved: &Saved) {
        let old = self.vm.clone();
        if saved.vm != old || self.random.next(2) == 0 {
            self.home.run(&["rm", "-f", &old]).ok();
            self.vm = self.name("vm");
            self.read = 0;
            self.home.run(&["restore", &saved.name, "--name", &self.vm]).ok();
        } else {
            // Nothing of its process of before comes into the log any more.
            Pids::of(&self.home, &old).kill(Whom::Vm);
            until("it is known to be dead", LONG, || {
                shown(&self.home, &old).is_some_and(|vm| vm["pid"].is_null())
            });
            self.read = self.home.run(&["logs", &old]).ok().out.len();
            self.home.run(&["rollback", &old, &saved.name]).ok();
        }
        self.is_next(saved);
    }

    /// What the VM says first is what comes after the snapshot.
    #[track_caller]
    fn is_next(&mut self, saved: &Saved) {
        let first = self.next();
        let (least, most) = saved.first;
        assert!(
            (least..=most).contains(&first),
            "{} was saved before link {least} to {most}, and goes on with {first}",
            saved.name
        );
        self.goes_on();
    }

    /// A snapshot, taken while the program runs or stands still.
    #[track_caller]
    fn save(&mut self, still: bool) -> Saved {
        if still {
            self.home.run(&["pause", &self.vm]).ok();
        }
        let name = self.name("s");
        let before = self.links();
        let outcome = self.home.run(&["snapshot", "create", &self.vm, &name]).ok();
        self.took = outcome.took;
        let after = self.links();
        assert!(!still || before == after, "it works while it stands still");
        // A link is in the file before it is said; and one that is in the file may not be whole in the snapshot yet.
        Saved { name, vm: self.vm.clone(), first: (before.max(1), after + 1) }
    }

    /// Nothing is listed that is not whole; gives their names.
    #[track_caller]
    fn snapshots(&self) -> Vec<String> {
        let listed = self.home.json(&["snapshot", "ls"]);
        let names = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_string());
        let names: Vec<String> = names.collect();
        for name in &names {
            self.home.run(&["snapshot", "verify", name]).ok();
        }
        names
    }

    /// Killed at some moment after the snapshot.
    fn after(&mut self, whom: Whom) {
        let still = self.random.next(2) == 0;
        let saved = self.save(still);
        if self.random.next(2) == 0 {
            self.random.wait(Duration::from_millis(30));
        }
        Pids::of(&self.home, &self.vm).kill(whom);
        if still && whom != Whom::Service {
            // The links of this file that come after are written anew, at their places.
            let file = OpenOptions::new().write(true).open(self.shared.path("links")).unwrap();
            file.set_len((saved.first.1 - 1) as u64 * LINK as u64).unwrap();
        }
        self.go_on(&saved);
        self.home.run(&["snapshot", "rm", &saved.name]).ok();
    }

    /// Killed while a snapshot is made.
    fn in_create(&mut self, whom: Whom) {
        let good = self.save(false);
        let pids = Pids::of(&self.home, &self.vm);
        let (name, before) = (self.name("s"), self.links());
        let work = begin(&self.home, &["snapshot", "create", &self.vm, &name]);
        self.random.wait(self.took * 5 / 4);
        pids.kill(whom);
        let outcome = end(work);
        let after = self.links();
        self.cut[usize::from(outcome.status != 0)] += 1;
        let listed = self.snapshots();
        assert!(listed.contains(&good.name), "{listed:?}");
        assert!(outcome.status != 0 || listed.contains(&name), "{name} was said to be there: {listed:?}");
        if whom == Whom::Service {
            let vm = shown(&self.home, &self.vm).expect("it is there");
            assert_eq!(Some(vm["pid"].to_string()), pids.vm, "{vm}");
            self.goes_on();
        }
        if listed.contains(&name) {
            let (vm, first) = (self.vm.clone(), (before.max(1), after + 1));
            self.go_on(&Saved { name: name.clone(), vm, first });
            self.home.run(&["snapshot", "rm", &name]).ok();
        }
        if !listed.contains(&name) || self.random.next(2) == 0 {
            self.go_on(&good);
        }
        self.home.run(&["snapshot", "rm", &good.name]).ok();
    }

    /// Killed while it goes on from a snapshot.
    fn in_going_on(&mut self, whom: Whom) {
        let saved = self.save(false);
        let restore = self.random.next(2) == 0;
        let service = self.home.service();
        let (old, new) = (self.vm.clone(), self.name("vm"));
        let mut pids = Pids::of(&self.home, &old);
        let words = match restore {
            true => vec!["restore", &saved.name, "--name", &new],
            false => vec!["rollback", &old, &saved.name],
        };
        let start = Instant::now();
        let work = begin(&self.home, &words);
        self.random.wait(self.took * 5 / 4);
        let target = if restore { &new } else { &old };
        // The process that goes on may have just come.
        if whom != Whom::Service {
            let found = newest_child(&service);
            pids.vm = found.or(pids.vm);
        }
        pids.kill(whom);
        let outcome = end(work);
        self.took = start.elapsed();
        self.cut[usize::from(outcome.status != 0)] += 1;
        assert!(self.snapshots().contains(&saved.name));
        let there = shown(&self.home, target);
        let runs = there.is_some_and(|vm| vm["state"] == "running");
        assert!(outcome.status != 0 || whom != Whom::Service || runs, "{target} was said to be there");
        if restore && runs {
            // What goes on beside the first is the same program.
            self.home.run(&["rm", "-f", &old]).ok();
            (self.vm, self.read) = (new, 0);
            self.is_next(&saved);
        } else if restore {
            self.home.run(&["rm", "-f", &new]);
        }
        self.go_on(&saved);
        self.home.run(&["snapshot", "rm", &saved.name]).ok();
    }
}

/// The process that another one has started last.
fn newest_child(of: &str) -> Option<String> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    children.split_whitespace().last().map(str::to_string)
}

#[test]
fn a_program_goes_on_with_the_next_link_wherever_it_is_killed() {
    let start = Instant::now();
    let mut world = World::new();
    until("it is on its way", LONG, || world.links() > 3);
    let rounds = rounds(4);
    for round in 0..rounds {
        world.random.wait(Duration::from_millis(50));
        let whom = Whom::any(&mut world.random);
        let kind = world.random.next(3);
        println!("{round}: {whom:?} {}", ["after", "in create", "in going on"][kind as usize]);
        match kind {
            0 => world.after(whom),
            1 => world.in_create(whom),
            _ => world.in_going_on(whom),
        }
    }
    let [done, refused] = world.cut;
    println!(
        "{rounds} kills, {} links, {done} works done and {refused} cut off by them, {:.1} s",
        world.links(),
        start.elapsed().as_secs_f64()
    );
}
