//! What happens, told in order: as a stream of server-sent events (WHATWG HTML, 9.2) that can be resumed.
use crate::blocking::blocking;
use crate::projects::Scope;
use crate::store::Store;
use crate::vms::Vms;
use hyper::body::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use viv_api::endpoint::query_value;
use viv_api::event::{Event, Since, What};
use viv_model::{End, Fault, Kind, ProjectName, State};

/// Events that are read at once.
pub(crate) const PIECE: usize = 256;
/// After how long without an event a sign of life is sent.
pub(crate) const ALIVE: Duration = Duration::from_secs(15);
/// The sign of life: a comment, which readers pass over.
pub(crate) const SIGN_OF_LIFE: &[u8] = b": nothing new\n\n";
/// Told in the place of events that are not kept any more.
const GAP: &str =
    "event: gap\ndata: {\"fix\":\"events from before are not kept any more: read again what there is\"}\n\n";

/// Which events somebody wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    since: Since,
    follow: bool,
    kinds: Vec<What>,
    nouns: Vec<String>,
    /// Names or identities.
    of: Option<String>,
    scope: Scope,
}

impl Wanted {
    /// What the query and the header `Last-Event-ID` say, of what the scope hears.
    pub(crate) fn of(query: &str, last: Option<&str>, scope: Scope) -> Result<Wanted, Fault> {
        let usage = |text: String| Fault::new(Kind::Usage, text, "see: viv events --help");
        let since = match (last, query_value(query, "since")) {
            (Some(last), _) => {
                let revision = last.trim().parse().map_err(|_| usage(format!("{last:?} is no revision")))?;
                Since::Revision(revision)
            }
            (None, Some(text)) => text.parse().map_err(usage)?,
            (None, None) => Since::default(),
        };
        let mut wanted = Wanted {
            since,
            follow: query_value(query, "follow").is_some_and(|value| value != "false"),
            of: query_value(query, "of").filter(|name| !name.is_empty()),
            scope,
            ..Wanted::default()
        };
        let kinds = query_value(query, "event").unwrap_or_default();
        for kind in kinds.split(',').filter(|kind| !kind.is_empty()) {
            match What::ALL.iter().any(|what| what.noun() == kind) {
                true => wanted.nouns.push(kind.to_string()),
                false => wanted.kinds.push(kind.parse().map_err(usage)?),
            }
        }
        Ok(wanted)
    }

    fn is(&self, event: &Event) -> bool {
        let kind = self.kinds.is_empty() && self.nouns.is_empty()
            || self.kinds.contains(&event.event)
            || self.nouns.iter().any(|noun| noun == event.event.noun());
        kind && self.scope.hears(event)
            && self.of.as_ref().is_none_or(|of| event.name == *of || event.id.as_ref() == Some(of))
    }
}

/// Sends events until there are no more, or, to those who follow, until nobody listens.
pub(crate) async fn stream(vms: Arc<Vms>, wanted: Wanted) -> Result<mpsc::Receiver<Bytes>, Fault> {
    let mut newest = vms.store.newest();
    let now = *newest.borrow_and_update();
    let mut after = match wanted.since {
        Since::Now => now,
        Since::Revision(revision) => revision,
        Since::Moment(moment) => {
            let vms = vms.clone();
            blocking(move || Ok(vms.store.revision_at(moment)?)).await?
        }
    };
    let (sender, pieces) = mpsc::channel(4);
    // One who was told of more than there is knows another store.
    let mut has_gap = after > now;
    after = after.min(now);
    tokio::spawn(async move {
        loop {
            let (reader, from) = (vms.clone(), after);
            let Ok(past) = blocking(move || Ok(reader.store.events(from, PIECE)?)).await else { return };
            let mut text = String::new();
            if has_gap || past.has_gap && wanted.since != Since::Now {
                text.push_str(GAP);
                has_gap = false;
            }
            for event in &past.events {
                after = event.revision;
                if wanted.is(event) {
                    let data = serde_json::to_string(&**event).unwrap_or_default();
                    text.push_str(&format!("id: {after}\nevent: {}\ndata: {data}\n\n", event.event));
                }
            }
            if !text.is_empty() && sender.send(text.into()).await.is_err() {
                return;
            }
            if !past.events.is_empty() {
                continue;
            }
            if !wanted.follow {
                return;
            }
            match tokio::time::timeout(ALIVE, newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    if sender.send(Bytes::from_static(SIGN_OF_LIFE)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    Ok(pieces)
}

/// Tells of something that has been done. That it cannot be told does not undo it.
pub(crate) fn tell(store: &dyn Store, event: Event) {
    if let Err(error) = store.tell(event) {
        viv_api::complain!("viv serve: cannot write down an event: {error}");
    }
}

/// Does it, and tells of it: in a project, or of the host.
pub(crate) fn telling<T>(
    store: &dyn Store,
    what: What,
    project: Option<&ProjectName>,
    act: impl FnOnce() -> Result<T, Fault>,
    name: impl FnOnce(&T) -> String,
) -> Result<T, Fault> {
    let done = act()?;
    tell(store, Event { project: project.cloned(), ..Event::new(what, None, &name(&done)) });
    Ok(done)
}

/// Tells that a VM is in another state than was told last.
pub(crate) fn tell_state(store: &dyn Store, id: &str, name: &str, state: State, end: Option<End>) {
    if store.told(id) != Some(state) {
        tell(store, Event { state: Some(state), end, ..Event::new(What::VmState, Some(id), name) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_told_by_kind_noun_and_name() {
        let event = |what, id: Option<&str>, name: &str| Event::new(what, id, name);
        let web = event(What::VmState, Some("a1"), "web");
        let network = event(What::NetworkCreated, None, "web");
        let is = |query: &str, event: &Event| Wanted::of(query, None, Scope::default()).unwrap().is(event);
        assert!(is("", &web) && is("", &network));
        assert!(is("event=vm", &web) && !is("event=vm", &network));
        assert!(is("event=vm.created,vm.state&of=web", &web) && !is("event=vm.created", &web));
        assert!(is("of=a1", &web) && !is("of=a1", &network) && is("of=web", &network));
        assert_eq!(
            Wanted::of("since=5", Some("9"), Scope::default()).unwrap().since,
            Since::Revision(9),
            "it goes on"
        );
        for (query, last) in [("since=x", None), ("event=vm.exploded", None), ("", Some("x"))] {
            assert_eq!(Wanted::of(query, last, Scope::default()).unwrap_err().kind, Kind::Usage);
        }
    }
}
