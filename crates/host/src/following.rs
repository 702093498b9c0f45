//! What VMs do by themselves, told as it happens: their processes say how they are whenever that changes ([`Ask::Follow`]).
use crate::blocking::blocking;
use crate::events::tell;
use crate::vms::Vms;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use viv_api::event::{Event, What};
use viv_api::runner::{Ask, CONTROL, LINE_MAX, Reply, Status};
use viv_api::socket;
use viv_model::HealthState;

/// After how long a VM is asked again whose process is of a release that does not tell by itself.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After how long a process is connected to again that has closed the connection or was too busy.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);

/// Tells what the VM does until nobody polls this any more: its process has ended then.
pub(crate) async fn follow(vms: Arc<Vms>, id: String) {
    let mut before = None;
    loop {
        let _ = listen(&vms, &id, &mut before).await;
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

/// Listens to the process for as long as it speaks.
async fn listen(vms: &Arc<Vms>, id: &str, before: &mut Option<Status>) -> io::Result<()> {
    let path = vms.places.vms().join(id).join(CONTROL);
    let socket = socket::connect(&path)?;
    socket.set_nonblocking(true)?;
    let (reader, mut writer) = UnixStream::from_std(socket)?.into_split();
    let mut reader = BufReader::new(reader);
    let mut ask = Ask::Follow;
    loop {
        let mut line = serde_json::to_vec(&ask)?;
        line.push(b'\n');
        writer.write_all(&line).await?;
        loop {
            let mut answer = Vec::new();
            if (&mut reader).take(LINE_MAX as u64).read_until(b'\n', &mut answer).await? == 0 {
                return Ok(());
            }
            match serde_json::from_slice(&answer)? {
                Reply::Ok(status) => take(vms, id, before, status).await,
                // A process of a release before has not understood it.
                Reply::Refused(_) => ask = Ask::Status,
                Reply::Stats(_) | Reply::Saved(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
            if ask == Ask::Status {
                break;
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn take(vms: &Arc<Vms>, id: &str, before: &mut Option<Status>, now: Status) {
    let events = changes(before.as_ref(), &now);
    *before = Some(now);
    let (vms, id) = (vms.clone(), id.to_string());
    let _ = blocking(move || {
        let Some(record) = vms.store.by_id(&id)? else { return Ok(()) };
        for (what, message) in events {
            tell(&*vms.store, Event { message, ..Event::new(what, Some(&id), &record.name) });
        }
        // As it is by now, not as it was when this was sent: a user's change may have been told meanwhile.
        vms.look(record);
        Ok(())
    })
    .await;
}

/// What has happened besides a change of its state. Of a VM that is met for the first time only what is not as it should be, and its health.
fn changes(before: Option<&Status>, now: &Status) -> Vec<(What, Option<String>)> {
    let mut changes = Vec::new();
    let health = |status: &Status| status.health.as_ref().map(|health| health.state);
    if before.is_some_and(|before| before.boots < now.boots) {
        changes.push((What::VmRebooted, None));
    }
    if let Some(state) = health(now)
        && before.map_or(Some(HealthState::Starting), health) != Some(state)
    {
        changes.push((What::VmHealth, Some(state.to_string())));
    }
    let was_full = before.is_some_and(|before| !before.full_disks.is_empty());
    match (was_full, now.full_disks.is_empty()) {
        (false, false) => {
            let disks = now.full_disks.iter().map(|disk| disk.display().to_string());
            changes.push((What::VmDiskFull, Some(disks.collect::<Vec<_>>().join(", "))));
        }
        (true, true) => changes.push((What::VmDiskRoom, None)),
        _ => {}
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::vm::Process;
    use viv_model::{Accel, Health, State};

    fn status() -> Status {
        Status {
            state: State::Running,
            process: Process { pid: 1, start_ticks: 1 },
            accel: Accel::Soft,
            boots: 1,
            panicked: false,
            sandbox: Vec::new(),
            full_disks: Vec::new(),
            health: None,
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let kinds = |before: Option<&Status>, now: &Status| {
            changes(before, now).into_iter().map(|(what, _)| what).collect::<Vec<_>>()
        };
        let plain = status();
        assert_eq!(kinds(None, &plain), []);
        assert_eq!(kinds(Some(&plain), &plain), []);
        let again = Status { boots: 2, ..status() };
        assert_eq!(kinds(Some(&plain), &again), [What::VmRebooted]);
        assert_eq!(kinds(None, &again), [], "it may have been told by the service before");
        let full = Status { full_disks: vec!["/a".into(), "/b".into()], ..status() };
        assert_eq!(changes(Some(&plain), &full), [(What::VmDiskFull, Some("/a, /b".to_string()))]);
        assert_eq!(kinds(Some(&full), &full), []);
        assert_eq!(kinds(Some(&full), &plain), [What::VmDiskRoom]);
        let well = |state| Status { health: Some(Health { state, ..Health::default() }), ..status() };
        let (starting, healthy) = (well(HealthState::Starting), well(HealthState::Healthy));
        assert_eq!(kinds(None, &starting), []);
        assert_eq!(changes(Some(&starting), &healthy), [(What::VmHealth, Some("healthy".to_string()))]);
        assert_eq!(kinds(None, &healthy), [What::VmHealth]);
        assert_eq!(kinds(Some(&healthy), &healthy), []);
    }
}
