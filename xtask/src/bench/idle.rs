//! What a VM costs that does nothing.
use super::{clock, guest, machine::VM};
use std::time::{Duration, Instant};

/// Starts a default guest, and prints how long it takes and what it costs afterwards.
pub(super) fn print() -> Result<(), String> {
    let start = Instant::now();
    guest::viv_output(&["run", "-d", "--accel", "soft", "--name", VM])?;
    guest::viv_output(&["exec", VM, "true"])?;
    println!("default guest, from the command to its first answer: {:.1} s", start.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(3));
    let pid = guest::runner(VM).ok_or("the runner is gone")?;
    let before = clock::cpu_seconds(pid).ok_or("the runner is gone")?;
    std::thread::sleep(Duration::from_secs(10));
    let used = clock::cpu_seconds(pid).ok_or("the runner is gone")? - before;
    guest::viv_output(&["rm", "-f", VM])?;
    println!("idle default guest: {:.1} % of a core", used * 10.0);
    Ok(())
}
