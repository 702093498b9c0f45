//! The command for which the VM exists: it goes on when its client goes, for the client's process may be another by then, in
//! another VM that goes on from a snapshot. Whoever asks for it next has what it wrote meanwhile, and its end.

use crate::exec::{Session, refused};
use crate::sys::{self, Watch};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use viv_api::agent::Exec;

/// The way to the command that runs.
static DOOR: Mutex<Option<Arc<Door>>> = Mutex::new(None);

/// Where the next client waits.
struct Door {
    next: Mutex<Option<File>>,
    /// Can be read once somebody is there.
    bell: File,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    fn come(&self, client: File) -> io::Result<()> {
        *locked(&self.next) = Some(client);
        (&self.bell).write_all(&1u64.to_ne_bytes())
    }

    /// Waits for the next client.
    fn wait(&self) -> io::Result<File> {
        loop {
            sys::poll(&[Watch { fd: self.bell.as_raw_fd(), read: true, write: false }], -1)?;
            let _ = (&self.bell).read(&mut [0; 8]);
            if let Some(client) = locked(&self.next).take() {
                return Ok(client);
            }
        }
    }
}

/// Lets the client on `connection` attend to the command; starts it as `exec` says if there is none. Without that, the connection is
/// closed.
pub(crate) fn attend(mut connection: File, exec: Option<&Exec>) -> io::Result<()> {
    let mut door = locked(&DOOR);
    if let Some(door) = &*door {
        return door.come(connection);
    }
    let Some(exec) = exec else { return Ok(()) };
    let mut session = match Session::of(exec) {
        Ok(session) => session,
        Err(refusal) => return connection.write_all(&refused(refusal)),
    };
    let own = Arc::new(Door { next: Mutex::default(), bell: sys::event()? });
    *door = Some(own.clone());
    drop(door);
    let done = serve(&mut session, connection, &own);
    *locked(&DOOR) = None;
    done
}

/// Serves one client after the other until the command has ended and one of them knows.
fn serve(session: &mut Session, mut client: File, door: &Door) -> io::Result<()> {
    while session.pump(&mut client, Some(&door.bell)).is_err() {
        client = door.wait()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::children;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;
    use viv_api::agent::{Decoder, Output};

    /// A client that attends to the command.
    fn client(exec: Option<Exec>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        std::thread::spawn(move || attend(File::from(OwnedFd::from(theirs)), exec.as_ref()));
        ours
    }

    fn read(stream: &mut UnixStream, decoder: &mut Decoder) -> Option<Output> {
        decoder.read(stream).unwrap()
    }

    #[test]
    fn a_command_goes_on_with_the_next_client() {
        std::thread::spawn(|| {
            loop {
                children::bury();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // There is none yet.
        let mut nobody = client(None);
        assert_eq!(read(&mut nobody, &mut Decoder::new()), None);
        let dir = std::env::temp_dir().join(format!("viv-lasting-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let script = "echo one; while ! [ -e two ]; do sleep 0.01; done; echo two; while ! [ -e end ]; do sleep 0.01; done; exit 7";
        let mut exec = Exec::new(["sh", "-c", script]);
        exec.cwd = Some(dir.to_string_lossy().into_owned());
        let (uid, gid) = sys::who();
        exec.user = Some(format!("{uid}:{gid}"));
        let mut first = client(Some(exec.clone()));
        assert_eq!(read(&mut first, &mut Decoder::new()), Some(Output::Stdout(b"one\n".to_vec())));
        drop(first);
        std::fs::write(dir.join("two"), "").unwrap();
        // It is not started again, and what it has written meanwhile is not lost.
        let mut second = client(Some(exec));
        assert_eq!(read(&mut second, &mut Decoder::new()), Some(Output::Stdout(b"two\n".to_vec())));
        // One that comes takes the place of one that is still there.
        let mut third = client(None);
        assert_eq!(read(&mut second, &mut Decoder::new()), None);
        std::fs::write(dir.join("end"), "").unwrap();
        assert_eq!(read(&mut third, &mut Decoder::new()), Some(Output::Exit(7)));
        let _ = std::fs::remove_dir_all(&dir);
    }
}
