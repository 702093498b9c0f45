//! File systems of the guest that stand still, whole, while its disks are looked at: asked of its agent.
use crate::command::connect;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use viv_api::agent::{LINE_MAX, Reply, Request, to_line};

/// How long an agent may take to be there: a guest without one is not waited for.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long it may take to write out what is in memory.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// File systems that go on when this is dropped.
pub(crate) struct Quiet {
    _connection: UnixStream,
    /// How many.
    pub(crate) count: usize,
}

/// Has them stand still; none if the guest has no agent, or not one that answers in time. Then a disk is as it would be
/// after a loss of power.
pub(crate) fn file_systems() -> Option<Quiet> {
    ask().ok().flatten()
}

fn ask() -> io::Result<Option<Quiet>> {
    let mut connection = connect(CONNECT_LIMIT)?;
    connection.write_all(&to_line(&Request::Freeze {})?)?;
    connection.set_read_timeout(Some(FLUSH_LIMIT))?;
    let mut line = Vec::new();
    BufReader::new(&connection).take(LINE_MAX as u64).read_until(b'\n', &mut line)?;
    let Reply { error, frozen, .. } = serde_json::from_slice(&line)?;
    Ok(error.is_none().then_some(Quiet { _connection: connection, count: frozen }))
}
