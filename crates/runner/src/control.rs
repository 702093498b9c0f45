//! The control socket: what a machine answers.
use crate::footprint;
use crate::life::Life;
use std::os::unix::net::UnixStream;
use viv_api::runner::Ask;

/// Answers the requests of one connection.
pub(crate) fn answer(life: &Life, connection: UnixStream) {
    let mut changed = false;
    let other_than = |known: Option<&_>, limit| life.other_than(known, limit);
    viv_cell::answer(connection, other_than, |ask, files, asker| {
        changed |= !matches!(ask, Ask::Status | Ask::Stats);
        life.ask(ask, files, asker)
    });
    if changed {
        footprint::give_back_soon();
    }
}
