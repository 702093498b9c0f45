//! How exact a disk's limits are: what passes in each of three seconds, of requests of several sizes that four threads
//! make as fast as they may. The third second has half the limit, set while they wait.
//!
//! ```text
//! cargo run --release -p viv-block --example limits
//! ```
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use viv_block::{Disk, Gate, MemoryDisk, Throttled};
use viv_model::DiskLimits;

const SECOND: Duration = Duration::from_secs(1);
const THREADS: usize = 4;
const SECTORS: u64 = 4 << 11;
const MIB: u64 = 1 << 20;

fn main() {
    println!("limit a second      request   first second     off   second     off   halved     off");
    let cases = [
        ("requests", 500, 4096),
        ("requests", 5_000, 512),
        ("requests", 5_000, 65_536),
        ("requests", 50_000, 4096),
        ("bytes", 2 * MIB, 512),
        ("bytes", 20 * MIB, 4096),
        ("bytes", 20 * MIB, 131_072),
        ("bytes", 200 * MIB, 1_048_576),
        ("bytes", 1_000 * MIB, 65_536),
    ];
    for (unit, limit, size) in cases {
        let of = |limit| match unit {
            "requests" => DiskLimits { iops: Some(limit), ..DiskLimits::default() },
            _ => DiskLimits { bps: Some(limit), ..DiskLimits::default() },
        };
        let each = if unit == "bytes" { size as u64 } else { 1 };
        let gate = Arc::new(Gate::new(&of(limit)));
        let disk = Arc::new(Throttled::new(Arc::new(MemoryDisk::zeroed(SECTORS)), gate.clone()));
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let work = (0..THREADS).map(|_| {
            let (disk, done, stop) = (disk.clone(), done.clone(), stop.clone());
            thread::spawn(move || {
                let mut data = vec![0; size];
                while !stop.load(Ordering::Relaxed) {
                    disk.admit(size as u64);
                    disk.read(0, &mut data).expect("the disk can be read");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let work: Vec<_> = work.collect();
        print!("{limit:>10} {unit:<8} {size:>8}");
        for second in 0..3u64 {
            let wanted = if second == 2 { limit / 2 } else { limit };
            if second == 2 {
                gate.set(&of(wanted));
            }
            let (begin, before) = (Instant::now(), done.load(Ordering::Relaxed));
            thread::sleep(SECOND);
            let passed = (done.load(Ordering::Relaxed) - before) * each;
            let passed = passed as f64 / begin.elapsed().as_secs_f64();
            print!(" {passed:>12.0} {:>+6.2}%", (passed / wanted as f64 - 1.0) * 100.0);
        }
        println!();
        stop.store(true, Ordering::Relaxed);
        gate.open();
        work.into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}
