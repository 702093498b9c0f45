//! The control socket: JSON lines, an answer for each request.
use crate::footprint;
use crate::life::Life;
use std::os::unix::net::UnixStream;
use viv_api::passed::answer_lines;
use viv_api::runner::{Ask, LINE_MAX, Reply};
use viv_cell::follow;
use viv_model::{Fault, Kind};

/// Answers the requests of one connection.
pub(crate) fn answer(life: &Life, connection: UnixStream) {
    let mut changed = false;
    let follower = connection.try_clone();
    answer_lines(connection, LINE_MAX, |asked, files| match asked {
        Ok(Ask::Follow) => {
            if let Ok(follower) = &follower {
                follow(follower, |known, limit| life.other_than(known, limit));
            }
            // Nobody is there any more who would read it.
            Reply::Ok(life.status())
        }
        Ok(ask) => {
            changed |= !matches!(ask, Ask::Status | Ask::Stats);
            life.ask(ask, files)
        }
        // Files that came with what is not understood are closed here.
        Err(error) => Reply::Refused(Fault::new(
            Kind::Usage,
            format!("a request to the VM's process was not understood: {error}"),
            "use the command of the same version as the VM's process, or start the VM anew",
        )),
    });
    if changed {
        footprint::give_back();
    }
}
