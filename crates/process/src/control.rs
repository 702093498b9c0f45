//! The control socket: the same questions as a machine's process gets, and what a program has no answer for.
use crate::life::Life;
use std::fs::File;
use std::os::unix::net::UnixStream;
use viv_api::runner::{Ask, Reply};
use viv_model::{Fault, GuestKind, Kind};

/// Answers the requests of one connection.
pub(crate) fn answer(life: &Life, connection: UnixStream) {
    let other_than = |known: Option<&_>, limit| life.other_than(known, limit);
    viv_cell::answer(connection, other_than, |ask, files, _| match ask {
        Ask::Snapshot(ask) => match life.snapshot(&ask, files.into_iter().map(File::from)) {
            Ok(parts) => Reply::Saved(Box::new(parts)),
            Err(fault) => Reply::Refused(fault),
        },
        ask => reply(life, ask),
    });
}

fn reply(life: &Life, ask: Ask) -> Reply {
    let done = match ask {
        Ask::Status | Ask::Settled | Ask::ConsoleSize(_) => Ok(()),
        Ask::Stats => return Reply::Stats(Box::new(life.stats())),
        Ask::Pause => life.step(viv_model::Ask::Pause),
        Ask::Resume => life.step(viv_model::Ask::Resume),
        Ask::PowerButton { end } => {
            life.stop(end);
            Ok(())
        }
        Ask::LimitCpu { milli } => {
            life.limit_cpu(milli);
            Ok(())
        }
        Ask::Kill { end } => {
            life.kill(end);
            Ok(())
        }
        other => Err(refusal(life.kind(), &other)),
    };
    match done {
        Ok(()) => Reply::Ok(life.status()),
        Err(fault) => Reply::Refused(fault),
    }
}

/// Why a program cannot do that, and what can be done instead.
fn refusal(kind: GuestKind, ask: &Ask) -> Fault {
    let (what, fix) = match ask {
        Ask::LimitDisk { .. } | Ask::ResizeDisk { .. } | Ask::AttachDisk { .. } | Ask::DetachDisk { .. } => {
            ("has no disks", "give it a directory when you start it: viv run -v DIR:PATH")
        }
        Ask::AttachShare { .. } | Ask::DetachShare { .. } => {
            ("has its directories from its start to its end", "start it anew: viv run -v DIR:PATH")
        }
        Ask::AttachCard { .. } | Ask::DetachCard { .. } | Ask::Plug { .. } | Ask::Renew { .. } => {
            ("has no network cards that come and go", "say what it reaches when you start it: viv run")
        }
        _ => ("has the memory that it was started with as its limit", "start it anew: viv run --memory"),
    };
    Fault::new(Kind::Conflict, format!("{} {what}", kind.called()), fix)
}
