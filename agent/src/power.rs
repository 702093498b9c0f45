//! Switching off: who asks for it, and how it is done without losing what was written.
use crate::hurry::Hurry;
use crate::{children, root, say, sys};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// The last thing that a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    PowerOff,
    Reboot,
}

/// Bytes of `struct input_event` on 64-bit Linux (linux/input.h).
const INPUT_EVENT_LEN: usize = 24;
/// Event type of keys (linux/input-event-codes.h).
const EV_KEY: u16 = 1;
/// The power button (linux/input-event-codes.h).
const KEY_POWER: u16 = 116;
/// How long programs have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// How long the program of an image of containers has, as with docker.
const OWN_GRACE: Duration = Duration::from_secs(10);

/// Where requests for the end go if we are process 1.
static SENDER: Mutex<Option<mpsc::Sender<Last>>> = Mutex::new(None);

/// What the image says ends its program in good order; 0 if nothing.
static STOP_SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The programs that the host has started are to be ended by this signal first.
pub(crate) fn set_stop_signal(signal: Option<i32>) {
    STOP_SIGNAL.store(signal.unwrap_or_default(), Ordering::Relaxed);
}

/// Requests for the end go to process 1's main thread from now on.
pub(crate) fn set_sender(sender: mpsc::Sender<Last>) {
    *SENDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
}

/// Asks for the end in the guest's own orderly way.
pub(crate) fn ask(last: Last) -> std::io::Result<()> {
    if let Some(sender) = SENDER.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        let _ = sender.send(last);
        return sys::kill(1, libc::SIGCHLD);
    }
    // Another program is process 1: its own commands know how to talk to it.
    let verb = if last == Last::PowerOff { "poweroff" } else { "reboot" };
    let mut result = Err(std::io::ErrorKind::NotFound.into());
    for words in [["systemctl", "--no-block", verb].as_slice(), &[verb]] {
        let mut command = std::process::Command::new(words[0]);
        command.args(&words[1..]);
        command.env("PATH", crate::exec::DEFAULT_PATH);
        sys::as_session(&mut command, false, crate::users::User::root().identity("/"))?;
        result = children::spawn(&mut command).map(drop);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Watches the input devices for the power button, in a thread of its own.
pub(crate) fn watch_button() {
    std::thread::spawn(|| {
        let mut devices = open_inputs();
        // udev or a late module may add the button after us.
        let deadline = Instant::now() + Duration::from_secs(60);
        while devices.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(500));
            devices = open_inputs();
        }
        while !devices.is_empty() {
            let watches: Vec<sys::Watch> = devices
                .iter()
                .map(|device| sys::Watch { fd: device.as_raw_fd(), read: true, write: false })
                .collect();
            let Ok(ready) = sys::poll(&watches, -1) else { return };
            let mut ready = ready.into_iter();
            let mut pressed = false;
            devices.retain_mut(|device| {
                !ready.next().unwrap_or_default()
                    || match read_key(device) {
                        Ok(key) => {
                            pressed |= key;
                            true
                        }
                        Err(_) => false,
                    }
            });
            if pressed && let Err(error) = ask(Last::PowerOff) {
                say(format_args!("the power button was pressed, and the guest cannot be ended: {error}"));
            }
        }
    });
}

fn open_inputs() -> Vec<File> {
    let Ok(entries) = fs::read_dir("/dev/input") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|entry| File::open(entry.path()).ok())
        .collect()
}

/// Whether the next events have a press of the power button among them.
fn read_key(device: &mut File) -> std::io::Result<bool> {
    let mut events = [0; INPUT_EVENT_LEN * 16];
    let length = device.read(&mut events)?;
    let events = events.get(..length).unwrap_or_default();
    Ok(events.chunks_exact(INPUT_EVENT_LEN).any(|event| {
        // struct input_event: two 64-bit words of time, type u16, code u16, value s32.
        let (kind, code) =
            (u16::from_le_bytes([event[16], event[17]]), u16::from_le_bytes([event[18], event[19]]));
        let value = i32::from_le_bytes([event[20], event[21], event[22], event[23]]);
        (kind, code, value) == (EV_KEY, KEY_POWER, 1)
    }))
}

/// Ends every program, writes everything to the disks and switches off. Only process 1 may call it.
pub(crate) fn end(last: Last) {
    if root::is_apart() {
        stop_own();
    }
    let _hurry = Hurry::begin();
    if programs_left() {
        let _ = sys::kill(-1, libc::SIGTERM);
        let _ = sys::kill(-1, libc::SIGCONT);
        // A shell at its prompt ignores SIGTERM and only hangs up.
        let _ = sys::kill(-1, libc::SIGHUP);
        let deadline = Instant::now() + GRACE;
        while programs_left() && Instant::now() < deadline {
            sys::next_signal(&[libc::SIGCHLD], 20);
            children::bury();
        }
        if programs_left() {
            let _ = sys::kill(-1, libc::SIGKILL);
            sys::next_signal(&[libc::SIGCHLD], 20);
            children::bury();
        }
    }
    unmount_all();
    end_now(last);
}

/// Sends what the host has started the signal that its image wants, and waits a while for it to end.
fn stop_own() {
    let stop = STOP_SIGNAL.load(Ordering::Relaxed);
    let stop = if stop > 0 { stop } else { libc::SIGTERM };
    for pid in children::alive() {
        let _ = sys::kill(pid, stop);
    }
    let deadline = Instant::now() + OWN_GRACE;
    while !children::alive().is_empty() && Instant::now() < deadline {
        sys::next_signal(&[libc::SIGCHLD], 20);
        children::bury();
    }
}

/// Whether a program but us still runs. Kernel threads and the dead have no `exe`.
fn programs_left() -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return true };
    entries.flatten().any(|entry| {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        pid.is_some_and(|pid| pid != 1) && fs::read_link(entry.path().join("exe")).is_ok()
    })
}

/// Unmounts every file system that has a disk behind it, the last mounted first.
fn unmount_all() {
    sys::sync();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        if let (Some(source), Some(target)) = (words.next(), words.next())
            && (source.starts_with("/dev/") || root::is_of_guest(target))
            && let Err(error) = sys::umount(target)
        {
            say(format_args!("cannot unmount {target}: {error}"));
        }
    }
}

/// Switches off at once, with nothing more than a sync.
pub(crate) fn end_now(last: Last) {
    sys::sync();
    let result = sys::reboot(match last {
        Last::PowerOff => libc::LINUX_REBOOT_CMD_POWER_OFF,
        Last::Reboot => libc::LINUX_REBOOT_CMD_RESTART,
    });
    if let Err(error) = result {
        say(format_args!("cannot switch off: {error}"));
    }
}
