//! Lets the file systems that are on disks stand still, whole, for as long as the host holds a connection: it is just making a
//! snapshot.
use crate::hurry::Hurry;
use crate::shares::Mount;
use crate::sys::{self, Watch};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Longest time that they stand still, whatever the host does.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// File systems that stand still. They go on when this is dropped.
pub(crate) struct Frozen(Vec<File>);

/// Has them write out what they have and stand still, the last mounted first: one may be a file in another. Those that cannot are
/// left alone.
pub(crate) fn freeze() -> Frozen {
    let _hurry = Hurry::begin();
    let mut frozen = Frozen(Vec::new());
    for mount in Mount::all().iter().rev().filter(|mount| mount.is_on_disk()) {
        if let Ok(dir) = File::open(&mount.target)
            && sys::freeze(dir.as_fd()).is_ok()
        {
            frozen.0.push(dir);
        }
    }
    frozen
}

impl Frozen {
    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Holds them until the other end of the connection is closed. In the guest that goes on from a snapshot of this moment, it
    /// is: no connection outlives that.
    pub(crate) fn hold(self, mut connection: File) -> io::Result<()> {
        let begin = Instant::now();
        let mut byte = [0];
        loop {
            let left = HOLD_LIMIT.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
            let ready = sys::poll(&[Watch::readable(connection.as_fd())], ms)?;
            if ready.contains(&true) && connection.read(&mut byte)? == 0 {
                return Ok(());
            }
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The first mounted first.
        for dir in self.0.iter().rev() {
            let _ = sys::thaw(dir.as_fd());
        }
    }
}
