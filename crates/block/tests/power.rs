//! The power is cut anywhere between two calls to the host, and of what was not synced any sectors are lost: no
//! acknowledged flush is lost, and the image has no errors but clusters that nobody uses.

mod scratch;

use scratch::history::{BLOCK, BLOCKS, expected, write_number};
use scratch::{Directory, qemu_img, qemu_img_is_there};
use std::path::Path;
use viv_block::journal::{self, after_power_cut};
use viv_block::{CreateOptions, Qcow2, RawDisk, Source, open};

/// Writes of a life, cuts of each.
const WRITES: u64 = 300;
const CUTS: usize = 60;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Lives with the image at `path`, and cuts its life off anywhere.
fn cut(path: &Path, seed: u64) {
    let before = std::fs::read(path).unwrap();
    let mut dice = Dice(seed);
    journal::begin();
    // When each write had begun, and which writes each flush has made durable.
    let (mut begun, mut flushed) = (Vec::new(), vec![(0, 0)]);
    let disk = open(&Source::new(path, false)).unwrap();
    for number in 1..=WRITES {
        begun.push(journal::len());
        write_number(&*disk, number);
        if dice.below(20) == 0 {
            disk.flush().unwrap();
            flushed.push((journal::len(), number));
        }
    }
    drop(disk);
    let events = journal::end();
    let copy = path.with_extension("cut");
    for _ in 0..CUTS {
        let at = dice.below(events.len() + 1);
        let luck = dice.below(3);
        let image = after_power_cut(before.clone(), &events[..at], || match luck {
            0 => true,
            1 => false,
            _ => dice.below(2) == 0,
        });
        std::fs::write(&copy, image).unwrap();
        let report = Qcow2::check(&copy, false).unwrap();
        assert_eq!(report.corruptions, 0, "cut at {at} of {}: {report:?}", events.len());
        let durable = flushed.iter().rev().find(|(event, _)| *event <= at).map_or(0, |(_, number)| *number);
        let last = begun.iter().filter(|event| **event <= at).count() as u64;
        let disk = open(&Source::new(&copy, false)).unwrap();
        let mut data = vec![0; BLOCK as usize];
        for (block, allowed) in expected(durable, last).iter().enumerate() {
            disk.read(block as u64 * BLOCK, &mut data).unwrap();
            for sector in data.chunks(512) {
                let seen = u64::from_le_bytes(sector[..8].try_into().unwrap());
                assert!(allowed.contains(&seen), "block {block}, cut at {at}: {seen}, not {allowed:?}");
            }
        }
        drop(disk);
        assert!(Qcow2::check(&copy, true).unwrap().is_clean());
    }
}

#[test]
fn the_power_may_be_cut_anywhere() {
    let dir = Directory::new("power");
    RawDisk::create(&dir.file("zero.raw"), BLOCKS * BLOCK).unwrap();
    for round in 0..8 {
        let path = dir.file(&format!("{round}.qcow2"));
        let backing = (round % 2 == 1).then(|| ("zero.raw".to_string(), "raw".to_string()));
        let cluster = [4096, 16384, 65536, 8192][round as usize % 4];
        let options = CreateOptions { cluster, backing, ..CreateOptions::new(BLOCKS * BLOCK) };
        drop(Qcow2::create(&path, &options).unwrap());
        cut(&path, 0x1357_9bdf + round);
    }
}

/// Tables that grow, and clusters that are shared with snapshots.
#[test]
fn also_where_tables_move() {
    if !qemu_img_is_there() {
        return;
    }
    let dir = Directory::new("power-qemu");
    let size = (BLOCKS * BLOCK).to_string();
    for (round, options) in
        ["cluster_size=512,refcount_bits=64", "cluster_size=4096", "compat=0.10"].into_iter().enumerate()
    {
        let path = dir.file(&format!("{round}.qcow2"));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options], &[&path, Path::new(&size)]);
        let disk = open(&Source::new(&path, false)).unwrap();
        disk.write(0, &[0; 1 << 20]).unwrap();
        drop(disk);
        qemu_img(&["snapshot", "-c", "before"], &[&path]);
        cut(&path, 0x2468_ace0 + round as u64);
    }
}
