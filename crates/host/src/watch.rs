//! VMs as they change: a list that goes on, as server-sent events (WHATWG HTML, 9.2).
//!
//! `put` has a VM as it is now, `delete` names one that is gone or not wanted any more, `listed` ends the list that comes first.
//! Whoever comes back with the last `id` gets what has changed since; where that is not known any more, `gap` and the list come first.
use crate::blocking::blocking;
use crate::events::{ALIVE, PIECE, SIGN_OF_LIFE};
use crate::lists::WantedVms;
use crate::vms::Vms;
use hyper::body::Bytes;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use viv_api::event::{Event, What};
use viv_api::vm::Vm;
use viv_model::{Fault, Kind};

/// What the one who watches does not know any more.
const GAP: &str = "event: gap\ndata: {\"fix\":\"forget what you know: all of it follows\"}\n\n";

/// The revision after which somebody goes on: `since` of the query, or the header `Last-Event-ID`.
pub(crate) fn since(query: Option<String>, last: Option<&str>) -> Result<Option<u64>, Fault> {
    let Some(text) = last.map(str::to_string).or(query).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        Fault::new(
            Kind::Usage,
            format!("{text:?} is no revision"),
            "use the id of the last event, or leave it out",
        )
    })
}

/// Somebody who watches.
struct Watch {
    vms: Arc<Vms>,
    wanted: WantedVms,
    /// The identities that were told, if all of them are known.
    told: Option<HashSet<String>>,
    /// The last revision that was looked at.
    after: u64,
}

/// Sends VMs as they change until nobody listens.
pub(crate) fn stream(vms: Arc<Vms>, wanted: WantedVms, since: Option<u64>) -> mpsc::Receiver<Bytes> {
    let (sender, pieces) = mpsc::channel(4);
    let mut newest = vms.store.newest();
    let now = *newest.borrow_and_update();
    // One who was told of more than there is knows another store.
    let lost = since.is_some_and(|since| since > now);
    let goes_on = since.filter(|_| !lost);
    tokio::spawn(async move {
        let mut watch = Watch { vms, wanted, told: None, after: goes_on.unwrap_or(now) };
        let mut lists = goes_on.is_none();
        if lost && sender.send(GAP.into()).await.is_err() {
            return;
        }
        loop {
            let step = match lists {
                true => watch.list().await,
                false => watch.changes().await,
            };
            let Ok(step) = step else { return };
            lists = step.has_gap;
            if !step.text.is_empty() && sender.send(step.text.into()).await.is_err() {
                return;
            }
            if lists || step.has_more {
                continue;
            }
            match tokio::time::timeout(ALIVE, newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) if sender.send(Bytes::from_static(SIGN_OF_LIFE)).await.is_err() => return,
                Err(_) => {}
            }
        }
    });
    pieces
}

/// What comes next.
struct Step {
    text: String,
    has_gap: bool,
    has_more: bool,
}

impl Watch {
    /// All of them. The revision comes last: whoever was cut off before begins anew.
    async fn list(&mut self) -> Result<Step, Fault> {
        let (vms, wanted) = (self.vms.clone(), self.wanted.clone());
        let (after, all) = blocking(move || {
            let after = *vms.store.newest().borrow();
            Ok((after, vms.all_wanted(&wanted)?))
        })
        .await?;
        self.after = after;
        let mut text: String = all.iter().map(|vm| put(vm, None)).collect();
        text.push_str(&format!("id: {after}\nevent: listed\ndata: {{\"revision\":{after}}}\n\n"));
        self.told = Some(all.into_iter().map(|vm| vm.id).collect());
        Ok(Step { text, has_gap: false, has_more: true })
    }

    /// Those that have changed since.
    async fn changes(&mut self) -> Result<Step, Fault> {
        let (vms, from) = (self.vms.clone(), self.after);
        let past = blocking(move || Ok(vms.store.events(from, PIECE)?)).await?;
        if past.has_gap {
            return Ok(Step { text: GAP.to_string(), has_gap: true, has_more: false });
        }
        let mut text = String::new();
        for event in last_of_each(&past.events) {
            let Some(id) = event.id.clone().filter(|_| self.wanted.hears(&event)) else { continue };
            let (vms, wanted) = (self.vms.clone(), self.wanted.clone());
            let vm = blocking(move || vms.wanted(&wanted, &id)).await?;
            text.push_str(&self.told(&event, vm));
        }
        self.after = past.events.last().map_or(from, |event| event.revision);
        Ok(Step { text, has_gap: false, has_more: !past.events.is_empty() })
    }

    /// What is told of a VM that an event tells of.
    fn told(&mut self, event: &Event, vm: Option<Vm>) -> String {
        let id = event.id.clone().unwrap_or_default();
        match (vm, &mut self.told) {
            (Some(vm), told) => {
                if let Some(told) = told {
                    told.insert(id);
                }
                put(&vm, Some(event.revision))
            }
            (None, told) => {
                // One who goes on may know it.
                if told.as_mut().is_some_and(|told| !told.remove(&id)) {
                    return String::new();
                }
                let gone = json!({"id": id, "name": event.name, "revision": event.revision});
                format!("id: {}\nevent: delete\ndata: {gone}\n\n", event.revision)
            }
        }
    }
}

fn put(vm: &Vm, revision: Option<u64>) -> String {
    let id = revision.map(|revision| format!("id: {revision}\n")).unwrap_or_default();
    format!("{id}event: put\ndata: {}\n\n", serde_json::to_string(vm).unwrap_or_default())
}

/// The last event of each VM, in order.
fn last_of_each(events: &[Arc<Event>]) -> Vec<Arc<Event>> {
    let is_of_vm = |event: &&Arc<Event>| event.event.noun() == What::VmCreated.noun();
    let last: HashMap<_, _> =
        events.iter().filter(is_of_vm).map(|event| (event.id.as_deref(), event.revision)).collect();
    let is_last = |event: &&Arc<Event>| last.get(&event.id.as_deref()) == Some(&event.revision);
    events.iter().filter(is_of_vm).filter(is_last).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_is_looked_at_once_by_its_last_event() {
        let event =
            |revision, what, id: Option<&str>| Arc::new(Event { revision, ..Event::new(what, id, "x") });
        let events = [
            event(5, What::VmCreated, Some("a")),
            event(6, What::VmCreated, Some("b")),
            event(7, What::ImageChanged, None),
            event(9, What::VmState, Some("a")),
        ];
        let seen: Vec<u64> = last_of_each(&events).iter().map(|event| event.revision).collect();
        assert_eq!(seen, [6, 9]);
    }

    #[test]
    fn somebody_goes_on_after_a_revision() {
        assert_eq!(since(Some("5".into()), Some("9")), Ok(Some(9)), "the browser knows better");
        assert_eq!((since(Some("5".into()), None), since(None, None)), (Ok(Some(5)), Ok(None)));
        assert_eq!(since(Some("10m".into()), None).unwrap_err().kind, Kind::Usage);
    }
}
