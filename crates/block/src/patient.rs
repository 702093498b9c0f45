//! A disk that waits for room: when the host's file system is full, a change waits until there is room again, and
//! the guest never learns of it. Whoever runs the guest sees that its disks wait, and lets it stand still meanwhile.

use crate::Disk;
use crate::watched::{Watch, Watched};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a change is tried anew by itself.
const RETRY: Duration = Duration::from_secs(1);

/// The disks of a machine that wait for room.
#[derive(Debug, Default)]
pub struct Shortage {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inside {
    /// One for each change that waits.
    waiting: Vec<PathBuf>,
    /// Counts what happened to `waiting`, and tries that found no room.
    changes: u64,
    /// Counts the wishes to try anew.
    wishes: u64,
    ended: bool,
}

impl Shortage {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Names and numbers: a panic elsewhere leaves nothing half done.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, act: impl FnOnce(&mut Inside)) {
        let mut inside = self.inside();
        act(&mut inside);
        inside.changes += 1;
        self.changed.notify_all();
    }

    /// Lets all that wait try at once.
    pub fn retry(&self) {
        self.change(|inside| inside.wishes += 1);
    }

    /// Nobody waits any more: the machine ends.
    pub fn end(&self) {
        self.change(|inside| inside.ended = true);
    }

    /// The disks that wait, each once.
    pub fn waiting(&self) -> Vec<PathBuf> {
        distinct(&self.inside().waiting)
    }

    /// Waits until something has happened since the moment that is called `seen` (0 is the beginning). Gives the present
    /// moment, and the disks that wait now; nothing at the end.
    pub fn wait_for_change(&self, seen: u64) -> Option<(u64, Vec<PathBuf>)> {
        let unchanged = |inside: &mut Inside| !inside.ended && inside.changes == seen;
        let inside =
            self.changed.wait_while(self.inside(), unchanged).unwrap_or_else(PoisonError::into_inner);
        (!inside.ended).then(|| (inside.changes, distinct(&inside.waiting)))
    }

    /// Waits until it is worth while to try anew; false at the end.
    fn wait(&self) -> bool {
        let begin = Instant::now();
        let mut inside = self.inside();
        let wishes = inside.wishes;
        while !inside.ended && inside.wishes == wishes {
            let Some(left) = RETRY.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) else { break };
            inside = self.changed.wait_timeout(inside, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !inside.ended
    }
}

fn distinct(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut paths = paths.to_vec();
    paths.sort();
    paths.dedup();
    paths
}

/// A disk whose changes wait for room.
pub type Patient = Watched<Patience>;

/// Waits for room for one disk.
pub struct Patience {
    path: PathBuf,
    shortage: Arc<Shortage>,
}

/// Whether only room is missing: of the file system, or of what the user may use of it.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Patient {
    /// The disk, which is called `path`.
    pub fn new(disk: Arc<dyn Disk>, path: &Path, shortage: Arc<Shortage>) -> Patient {
        Watched::over(disk, Patience { path: path.to_owned(), shortage })
    }
}

impl Watch for Patience {
    /// Does it until it is not for lack of room that it fails.
    fn change(
        &self,
        _disk: &dyn Disk,
        _range: Range<u64>,
        act: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = act();
        if !done.as_ref().is_err_and(is_shortage) {
            return done;
        }
        self.shortage.change(|inside| inside.waiting.push(self.path.clone()));
        while done.as_ref().is_err_and(is_shortage) && self.shortage.wait() {
            done = act();
            self.shortage.change(|_| ());
        }
        self.shortage.change(|inside| {
            if let Some(place) = inside.waiting.iter().position(|path| *path == self.path) {
                inside.waiting.remove(place);
            }
        });
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDisk;
    use std::thread;

    fn patient() -> (Arc<MemoryDisk>, Arc<Patient>, Arc<Shortage>) {
        let (disk, shortage) = (Arc::new(MemoryDisk::zeroed(8)), Arc::<Shortage>::default());
        let patient = Patient::new(disk.clone(), Path::new("/d"), shortage.clone());
        (disk, Arc::new(patient), shortage)
    }

    /// Waits until so many disks wait.
    fn wait_for(shortage: &Shortage, disks: usize) {
        let mut seen = 0;
        while shortage.waiting().len() != disks {
            seen = shortage.wait_for_change(seen).expect("the machine goes on").0;
        }
    }

    #[test]
    fn a_write_waits_until_there_is_room_and_is_whole_then() {
        let (disk, patient, shortage) = patient();
        disk.set_full(true);
        let writers: Vec<_> = (0..4u8)
            .map(|n| {
                let patient = patient.clone();
                thread::spawn(move || patient.write(u64::from(n) * 512, &[n + 1; 512]))
            })
            .collect();
        wait_for(&shortage, 1);
        assert_eq!(shortage.waiting(), [Path::new("/d")], "each disk once");
        assert!(patient.read(0, &mut [0; 8]).is_ok(), "reads go on");
        // In vain.
        let before = shortage.wait_for_change(0).unwrap().0;
        shortage.retry();
        assert!(shortage.wait_for_change(before).is_some());
        disk.set_full(false);
        shortage.retry();
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
        wait_for(&shortage, 0);
        let content = disk.content();
        assert!((0..4).all(|n| content[n * 512..][..512] == [n as u8 + 1; 512]));
    }

    #[test]
    fn it_goes_on_by_itself_when_there_is_room() {
        let (disk, patient, shortage) = patient();
        disk.set_full(true);
        let flusher = {
            let patient = patient.clone();
            thread::spawn(move || patient.write_zeroes(0, 512, false).and_then(|()| patient.flush()))
        };
        wait_for(&shortage, 1);
        disk.set_full(false);
        flusher.join().unwrap().unwrap();
        assert!(shortage.waiting().is_empty());
    }

    #[test]
    fn another_error_is_the_guests_and_the_end_ends_the_wait() {
        let (disk, patient, shortage) = patient();
        disk.fail_write(1);
        assert_eq!(patient.write(0, &[1; 512]).unwrap_err().kind(), io::ErrorKind::Other);
        disk.set_full(true);
        let writer = {
            let patient = patient.clone();
            thread::spawn(move || patient.write(0, &[1; 512]))
        };
        wait_for(&shortage, 1);
        shortage.end();
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(shortage.wait_for_change(0), None);
        assert!(patient.write(0, &[1; 512]).is_err(), "nothing waits after the end");
    }
}
