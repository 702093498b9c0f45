//! Looks now and then whether the guest is well, as the host has said, for as long as the host listens.
use crate::command::{Prepared, prepare};
use crate::sys::{self, Watch};
use crate::{children, root};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use viv_api::agent::{Exec, HealthWatch, to_line};
use viv_model::{HEALTH_OUTPUT_MAX, Health, HealthLook};

/// Tells the other end of the connection of each look, until that is closed.
pub(crate) fn watch(mut connection: File, asked: &HealthWatch) -> io::Result<()> {
    root::enter()?;
    let check = asked.check.clone().bounded();
    let begin = Instant::now();
    let since = || u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut health = Health::default();
    loop {
        let next = Instant::now() + Duration::from_millis(health.pause_ms(&check, since()));
        while let left @ 1.. = next.saturating_duration_since(Instant::now()).as_millis() {
            let ms = i32::try_from(left).unwrap_or(i32::MAX);
            let ready = sys::poll(&[Watch::readable(connection.as_fd())], ms)?;
            // The host says nothing more: it can only be gone.
            if ready.contains(&true) {
                return Ok(());
            }
        }
        let look = look(&asked.exec, Duration::from_millis(check.timeout_ms));
        connection.write_all(&to_line(&look)?)?;
        health.take(look, &check, since());
    }
}

/// Runs the command once.
fn look(exec: &Exec, limit: Duration) -> HealthLook {
    let prepared = match prepare(exec) {
        Ok(prepared) => prepared,
        Err((status, output)) => return HealthLook { status: Some(status), output }.bounded(),
    };
    run(&prepared, limit).unwrap_or_else(|error| {
        let status = Some(viv_api::agent::STATUS_NOT_EXECUTABLE);
        HealthLook { status, output: format!("{}: {error}", prepared.name) }.bounded()
    })
}

fn run(prepared: &Prepared, limit: Duration) -> io::Result<HealthLook> {
    use std::os::unix::process::CommandExt;
    let (mut ours, theirs) = io::pipe()?;
    let mut command = Command::new(&prepared.program);
    command.arg0(&prepared.name).args(&prepared.args).env_clear().envs(&prepared.env);
    command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    sys::as_session(&mut command, false, prepared.user.identity(&prepared.cwd))?;
    let (child, ended) = children::spawn(&mut command)?;
    // It holds the other end of the pipe.
    drop(command);
    sys::set_nonblocking(ours.as_fd())?;
    let group = -(child.id() as i32);
    let (mut output, mut open, mut status) = (Vec::new(), true, None);
    let deadline = Instant::now() + limit;
    while status.is_none() {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 {
            break;
        }
        let watches = [
            Watch { fd: ended.as_raw_fd(), read: true, write: false },
            Watch { fd: ours.as_raw_fd(), read: open, write: false },
        ];
        sys::poll(&watches, i32::try_from(left).unwrap_or(i32::MAX))?;
        open = open && take(&mut ours, &mut output);
        status = children::status(&ended);
    }
    // What it said last, and all that it started: nobody else looks after that.
    take(&mut ours, &mut output);
    let _ = sys::kill(group, libc::SIGKILL);
    Ok(HealthLook { status, output: String::from_utf8_lossy(&output).into_owned() }.bounded())
}

/// Takes what is there, and keeps the beginning; false at the end. One that writes for ever is come back to.
fn take(from: &mut impl Read, output: &mut Vec<u8>) -> bool {
    let mut piece = [0; HEALTH_OUTPUT_MAX];
    for _ in 0..16 {
        match from.read(&mut piece) {
            Ok(0) => return false,
            Ok(length) => {
                let room = HEALTH_OUTPUT_MAX.saturating_sub(output.len()).min(length);
                output.extend_from_slice(piece.get(..room).unwrap_or_default());
            }
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> HealthLook {
        std::thread::spawn(|| {
            loop {
                children::bury();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut exec = Exec::new(["sh", "-c", script]);
        let (uid, gid) = sys::who();
        (exec.cwd, exec.user) = (Some("/".into()), Some(format!("{uid}:{gid}")));
        look(&exec, limit)
    }

    #[test]
    fn a_look_has_a_status_and_words_or_is_killed() {
        let long = Duration::from_secs(60);
        let said = shell("echo well; echo indeed >&2; exit 3", long);
        assert_eq!(said, HealthLook { status: Some(3), output: "well\nindeed\n".into() });
        let begin = Instant::now();
        // What it has started does not keep anybody waiting, nor does what hangs.
        let hung = shell("echo before; sleep 1000 & sleep 1000", Duration::from_millis(500));
        assert_eq!(hung, HealthLook { status: None, output: "before\n".into() });
        assert!(begin.elapsed() < long);
        let much = shell("yes | head -c 100000; exit 0", long);
        assert_eq!((much.status, much.output.len()), (Some(0), HEALTH_OUTPUT_MAX));
        assert_eq!(look(&Exec::new(["no-such-program"]), long).status, Some(127));
    }
}
