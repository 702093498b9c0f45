//! Waiting for a network, and not longer than somebody waits for it.
use crate::source::Watch;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How often it is looked whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Does what a network may hold up on a thread of its own. Nothing if it is given up before: then the thread ends by the
/// time limits of what it does, and what it gets is dropped. So it is, too, where there is no thread to be had, or it breaks off.
pub(crate) fn while_wanted<T: Send + 'static>(
    watch: &dyn Watch,
    act: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, done) = channel();
    let thread = thread::Builder::new().name("registry".into());
    thread.spawn(move || drop(sender.send(act()))).ok()?;
    loop {
        match done.recv_timeout(LOOK) {
            Ok(done) => return Some(done),
            Err(RecvTimeoutError::Timeout) if !watch.cancelled() => {}
            Err(_) => return None,
        }
    }
}

/// Waits; false if it was given up.
pub(crate) fn wait(pause: Duration, watch: &dyn Watch) -> bool {
    let mut left = pause;
    while !left.is_zero() && !watch.cancelled() {
        let step = left.min(LOOK);
        thread::sleep(step);
        left -= step;
    }
    !watch.cancelled()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    struct Wanted(bool);

    impl Watch for Wanted {
        fn bytes(&self, _: i64) {}
        fn note(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            !self.0
        }
    }

    #[test]
    fn what_nobody_waits_for_is_left_to_itself() {
        assert_eq!(while_wanted(&Wanted(true), || 5), Some(5));
        let start = Instant::now();
        let long = || thread::sleep(Duration::from_secs(30));
        assert_eq!(while_wanted(&Wanted(false), long), None);
        assert!(!wait(Duration::from_secs(30), &Wanted(false)));
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(while_wanted(&Wanted(true), || -> u8 { panic!("as a defect would") }), None);
    }
}
