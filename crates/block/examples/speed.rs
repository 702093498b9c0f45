//! How fast raw and qcow2 disks are: 4 KiB at random places of a file in the page cache, with one and with four threads.
//!
//! ```text
//! cargo run --release -p viv-block --example speed [DIRECTORY]
//! ```
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use viv_block::{CreateOptions, Disk, Qcow2, RawDisk};

const SIZE: u64 = 256 << 20;
const BLOCK: usize = 4096;
const TIME: Duration = Duration::from_millis(500);
const RUNS: usize = 7;

fn requests_a_second(disk: &Arc<dyn Disk>, threads: u64, write: bool) -> f64 {
    let begin = Instant::now();
    let work = (0..threads).map(|thread| {
        let disk = disk.clone();
        std::thread::spawn(move || {
            let (mut seed, mut done, mut data) = (thread + 1, 0u64, vec![1; BLOCK]);
            while done % 64 != 0 || begin.elapsed() < TIME {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let offset = (seed >> 33) % (SIZE / BLOCK as u64) * BLOCK as u64;
                let outcome = if write { disk.write(offset, &data) } else { disk.read(offset, &mut data) };
                outcome.expect("the disk works");
                done += 1;
            }
            done
        })
    });
    let done: u64 = work.collect::<Vec<_>>().into_iter().map(|thread| thread.join().expect("no panic")).sum();
    done as f64 / begin.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = |name: &str| dir.join(format!("viv-speed-{}.{name}", std::process::id()));
    let (raw_path, cow_path) = (path("raw"), path("qcow2"));
    let raw: Arc<dyn Disk> = Arc::new(RawDisk::create(&raw_path, SIZE).expect("a raw disk"));
    let cow = Qcow2::create(&cow_path, &CreateOptions::new(SIZE)).expect("a qcow2 disk");
    let cow: Arc<dyn Disk> = Arc::new(cow);
    for disk in [&raw, &cow] {
        for at in (0..SIZE).step_by(1 << 20) {
            disk.write(at, &vec![1; 1 << 20]).expect("the disk has room");
        }
        disk.flush().expect("the disk can flush");
    }
    println!("requests a second, median of {RUNS}     raw    qcow2   qcow2/raw");
    for (threads, write) in [(1, false), (4, false), (1, true), (4, true)] {
        let (mut of_raw, mut of_cow) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            of_raw.push(requests_a_second(&raw, threads, write));
            of_cow.push(requests_a_second(&cow, threads, write));
        }
        let (of_raw, of_cow) = (median(of_raw), median(of_cow));
        let what = if write { "write" } else { "read" };
        println!("{threads} thread(s), {what:<6} {of_raw:21.0} {of_cow:8.0} {:8.2}", of_cow / of_raw);
    }
    drop((raw, cow));
    remove(&raw_path);
    remove(&cow_path);
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        eprintln!("{}: {error}", path.display());
    }
}
