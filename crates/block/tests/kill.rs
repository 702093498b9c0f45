//! A process that writes to an image is killed at any moment: no acknowledged flush is lost, and the image is sound.

mod scratch;

use scratch::history::{BLOCK, BLOCKS, expected, write_number};
use scratch::{Directory, qemu_img, qemu_img_is_there};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use viv_block::{CreateOptions, Qcow2, RawDisk, Source, open};

/// Names the image to the process that is to be killed.
const VICTIM: &str = "VIV_TEST_VICTIM";
const ROUNDS: u64 = if cfg!(debug_assertions) { 8 } else { 25 };

/// The process that writes: each block says which write it was; what was flushed is told on standard output.
fn write_for_ever(path: &str) -> ! {
    let disk = open(&Source::new(Path::new(path), false)).unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\nflushed 0").unwrap();
    for number in 1.. {
        write_number(&*disk, number);
        if number % 23 == 0 {
            disk.flush().unwrap();
            writeln!(out, "\nflushed {number}").unwrap();
        }
    }
    unreachable!("it is killed");
}

#[test]
fn no_acknowledged_flush_is_lost() {
    if let Ok(path) = std::env::var(VICTIM) {
        write_for_ever(&path);
    }
    let dir = Directory::new("kill");
    for round in 0..ROUNDS {
        let path = dir.file(&format!("{round}.qcow2"));
        let backing = (round % 2 == 0).then(|| ("zero.raw".to_string(), "raw".to_string()));
        if round == 0 {
            RawDisk::create(&dir.file("zero.raw"), BLOCKS * BLOCK).unwrap();
        }
        let cluster = [4096, 65536, 512 << 10][round as usize % 3];
        let options = CreateOptions { cluster, backing, ..CreateOptions::new(BLOCKS * BLOCK) };
        drop(Qcow2::create(&path, &options).unwrap());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--exact", "no_acknowledged_flush_is_lost"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let number = |line: String| line.strip_prefix("flushed ").and_then(|number| number.parse().ok());
        let first: Option<u64> = lines.by_ref().find_map(number);
        assert_eq!(first, Some(0), "the process that writes did not begin");
        std::thread::sleep(Duration::from_millis(20 + round * 13 % 200));
        child.kill().unwrap();
        child.wait().unwrap();
        let flushed = lines.filter_map(number).last().unwrap_or(0);
        let report = Qcow2::check(&path, false).unwrap();
        assert_eq!(report.corruptions, 0, "{report:?}");
        let disk = open(&Source::new(&path, false)).unwrap();
        // Before the next flush there were at most 23 more writes; and that one may not have been told any more.
        let expected = expected(flushed, flushed + 46);
        let mut data = vec![0; BLOCK as usize];
        for (block, allowed) in expected.iter().enumerate() {
            disk.read(block as u64 * BLOCK, &mut data).unwrap();
            let (numbers, _) = data.as_chunks::<8>();
            let seen = u64::from_le_bytes(numbers[0]);
            assert!(allowed.contains(&seen), "block {block} after {flushed} writes: {seen}, not {allowed:?}");
        }
        drop(disk);
        assert!(Qcow2::check(&path, true).unwrap().is_clean());
        if qemu_img_is_there() {
            qemu_img(&["check", "-q"], &[&path]);
        }
    }
}
