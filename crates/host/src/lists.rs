//! Lists: those that somebody wants, so many at a time.
//!
//! A part ends with the place from which the next one goes on. A place is what the list is sorted by, so that what comes and goes
//! between two parts neither shifts the others nor shows one of them twice.
use crate::blocking::blocking;
use crate::http::{self, Body};
use crate::projects::Scope;
use crate::service::Service;
use crate::store::VmRecord;
use crate::vms::Vms;
use hyper::Response;
use hyper::header::{HeaderValue, LINK};
use serde::Serialize;
use std::sync::Arc;
use viv_api::endpoint::{Route, encode, query_value};
use viv_api::event::Event;
use viv_api::image::Image;
use viv_api::network::Network;
use viv_api::operation::{Operation, OperationState};
use viv_api::snapshot::Snapshot;
use viv_api::timestamp::Timestamp;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind, Label, NetKind, ProjectName, State};

/// Which part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    limit: Option<usize>,
    after: Option<String>,
}

impl Span {
    pub(crate) fn of(query: &str) -> Span {
        Span {
            limit: query_value(query, "limit").and_then(|limit| limit.parse().ok()),
            after: said(query, "after"),
        }
    }
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part<T> {
    items: Vec<T>,
    /// The place of the last one, if others follow.
    next: Option<String>,
}

/// What has a name and a place in its list.
pub(crate) trait Listed {
    fn name(&self) -> &str;
    fn place(&self) -> String;
}

/// By age, then by name; VMs and snapshots of several projects may be called the same.
fn place_of(created_at: Timestamp, name: &str, project: &ProjectName) -> String {
    let place = format!("{:020}.{name}", created_at.unix_s);
    if project.is_default() { place } else { format!("{place}/{project}") }
}

impl Listed for VmRecord {
    fn name(&self) -> &str {
        &self.name
    }
    fn place(&self) -> String {
        place_of(self.created_at, &self.name, &self.project)
    }
}

impl Listed for Snapshot {
    fn name(&self) -> &str {
        &self.name
    }
    fn place(&self) -> String {
        place_of(self.created_at, &self.name, &self.project)
    }
}

impl Listed for Operation {
    fn name(&self) -> &str {
        &self.subject
    }
    fn place(&self) -> String {
        format!("{:020}", self.id)
    }
}

impl Listed for Image {
    fn name(&self) -> &str {
        &self.name
    }
    fn place(&self) -> String {
        self.name.clone()
    }
}

impl Listed for Network {
    fn name(&self) -> &str {
        &self.spec.name
    }
    fn place(&self) -> String {
        self.spec.name.clone()
    }
}

/// The part of a list that is wanted. `show` finds out what is shown of one, or that it is not wanted: it is asked of no more than it must.
fn part<T: Listed, S>(span: &Span, all: Vec<T>, mut show: impl FnMut(T) -> Option<S>) -> Part<S> {
    let mut all: Vec<(String, T)> = all.into_iter().map(|item| (item.place(), item)).collect();
    all.retain(|(place, _)| span.after.as_ref().is_none_or(|after| place > after));
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut part = Part { items: Vec::new(), next: None };
    let mut last = None;
    for (place, item) in all {
        let Some(shown) = show(item) else { continue };
        if span.limit.is_some_and(|limit| part.items.len() >= limit) {
            part.next = last;
            break;
        }
        part.items.push(shown);
        last = Some(place);
    }
    part
}

/// Whether a text is like a pattern, in which `*` stands for anything.
fn is_like(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for word in middle.split('*') {
        match text.find(word) {
            Some(at) => text = text.get(at + word.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    text.ends_with(last)
}

/// A value of a query that says something.
fn said(query: &str, name: &str) -> Option<String> {
    query_value(query, name).filter(|text| !text.is_empty())
}

fn words(query: &str, name: &str) -> Vec<String> {
    let text = said(query, name).unwrap_or_default();
    text.split(',').filter(|word| !word.is_empty()).map(str::to_string).collect()
}

/// Which VMs.
#[derive(Clone, Debug, Default)]
pub(crate) struct WantedVms {
    name: Option<String>,
    states: Vec<State>,
    labels: Vec<(String, Option<String>)>,
    image: Option<String>,
    network: Option<String>,
    scope: Scope,
}

impl WantedVms {
    /// Those that the query says, of those that the scope shows.
    pub(crate) fn of(query: &str, scope: Scope) -> Result<WantedVms, Fault> {
        let state = |word: String| {
            State::ALL.into_iter().find(|state| state.name() == word).ok_or_else(|| {
                let text = format!("no state is called {word:?}");
                Fault::new(Kind::Usage, text, format!("use {}", State::ALL.map(State::name).join(", ")))
            })
        };
        let label = |word: String| match word.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (word, None),
        };
        Ok(WantedVms {
            name: said(query, "name"),
            states: words(query, "state").into_iter().map(state).collect::<Result<_, _>>()?,
            labels: words(query, "label").into_iter().map(label).collect(),
            image: said(query, "image"),
            network: said(query, "network"),
            scope,
        })
    }

    /// As far as the record tells: its process is asked only if it must be.
    fn may_be(&self, record: &VmRecord) -> bool {
        let has = |(name, value): &(String, Option<String>)| {
            let is = |label: &Label| {
                label.name == *name && value.as_ref().is_none_or(|value| label.value == *value)
            };
            record.labels.iter().any(is)
        };
        let is_in = |network: &String| {
            record.machine.nics.iter().any(|nic| matches!(&nic.net, NetKind::Named(name) if name == network))
        };
        let image = record.image.as_deref().unwrap_or_default();
        self.scope.shows(&record.project)
            && self.name.as_ref().is_none_or(|pattern| is_like(pattern, &record.name))
            && self.image.as_ref().is_none_or(|pattern| is_like(pattern, image))
            && self.labels.iter().all(has)
            && self.network.as_ref().is_none_or(is_in)
    }

    /// Whether what an event tells of may be told.
    pub(crate) fn hears(&self, event: &Event) -> bool {
        self.scope.hears(event)
    }

    fn is(&self, vm: &Vm) -> bool {
        self.states.is_empty() || self.states.contains(&vm.state)
    }
}

/// Which long works.
#[derive(Clone, Debug, Default)]
pub(crate) struct WantedOperations {
    name: Option<String>,
    states: Vec<OperationState>,
    scope: Scope,
}

impl WantedOperations {
    pub(crate) fn of(query: &str, scope: Scope) -> Result<WantedOperations, Fault> {
        let usage = |text: String| Fault::new(Kind::Usage, text, "see: viv operation ls --help");
        let states = words(query, "state").into_iter().map(|word| word.parse().map_err(usage));
        let states = states.collect::<Result<_, _>>()?;
        Ok(WantedOperations { name: said(query, "name"), states, scope })
    }

    fn is(&self, operation: &Operation) -> bool {
        self.scope.sees(operation)
            && self.scope.lists(operation)
            && self.name.as_ref().is_none_or(|pattern| is_like(pattern, &operation.subject))
            && (self.states.is_empty() || self.states.contains(&operation.state))
    }
}

impl Vms {
    /// The VMs that are wanted, as they are now, oldest first.
    pub(crate) fn listed(&self, wanted: &WantedVms, span: &Span) -> Result<Part<Vm>, Fault> {
        let mut records = self.records()?;
        records.retain(|record| wanted.may_be(record));
        Ok(part(span, records, |record| self.shown(wanted, record)))
    }

    /// All that are wanted, as they are now.
    pub(crate) fn all_wanted(&self, wanted: &WantedVms) -> Result<Vec<Vm>, Fault> {
        Ok(self.listed(wanted, &Span::default())?.items)
    }

    /// The VM with this identity as it is now, if it is one that is wanted.
    pub(crate) fn wanted(&self, wanted: &WantedVms, id: &str) -> Result<Option<Vm>, Fault> {
        let record = self.store.by_id(id)?.filter(|record| wanted.may_be(record));
        Ok(record.and_then(|record| self.shown(wanted, record)))
    }

    fn shown(&self, wanted: &WantedVms, record: VmRecord) -> Option<Vm> {
        let runner = self.runner(&record);
        Some(self.view(record, &runner)).filter(|vm| wanted.is(vm))
    }
}

/// Answers with the VMs that are wanted.
pub(crate) async fn answer_vms(
    vms: Arc<Vms>,
    wanted: WantedVms,
    query: &str,
) -> Result<Response<Body>, Fault> {
    let span = Span::of(query);
    answer_with(Route::VmList, query, move || vms.listed(&wanted, &span)).await
}

/// Answers with the long works that are wanted.
pub(crate) async fn answer_operations(
    service: Arc<Service>,
    wanted: WantedOperations,
    query: &str,
) -> Result<Response<Body>, Fault> {
    let span = Span::of(query);
    let is = move |operation| Some(operation).filter(|operation| wanted.is(operation));
    let list = move || Ok(part(&span, crate::operations::list(&service)?, is));
    answer_with(Route::OperationList, query, list).await
}

/// Answers with what a list has of what the query says.
pub(crate) async fn answer<T: Listed + Serialize + Send + 'static>(
    route: Route,
    query: &str,
    list: impl FnOnce() -> Result<Vec<T>, Fault> + Send + 'static,
) -> Result<Response<Body>, Fault> {
    let (span, name) = (Span::of(query), said(query, "name"));
    let is = move |item: T| Some(item).filter(|it| name.as_ref().is_none_or(|name| is_like(name, it.name())));
    answer_with(route, query, move || Ok(part(&span, list()?, is))).await
}

async fn answer_with<T: Serialize + Send + 'static>(
    route: Route,
    query: &str,
    make: impl FnOnce() -> Result<Part<T>, Fault> + Send + 'static,
) -> Result<Response<Body>, Fault> {
    // Long lists are written there too.
    let (mut answer, next) =
        blocking(move || make().map(|part| (http::json(&part.items), part.next))).await?;
    if let Some(next) = next
        && let Ok(value) = HeaderValue::from_str(&link(route, query, &next))
    {
        answer.headers_mut().insert(LINK, value);
    }
    Ok(answer)
}

/// Leads to the next part (RFC 8288, 3).
fn link(route: Route, query: &str, next: &str) -> String {
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("after="));
    let pairs: Vec<String> = kept.map(str::to_string).chain([format!("after={}", encode(next))]).collect();
    format!("<{}?{}>; rel=\"next\"", route.endpoint().path, pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::record;

    struct Word(&'static str);

    impl Listed for Word {
        fn name(&self) -> &str {
            self.0
        }
        fn place(&self) -> String {
            self.0.to_string()
        }
    }

    fn span(limit: usize, after: Option<&str>) -> Span {
        Span { limit: Some(limit), after: after.map(str::to_string) }
    }

    #[test]
    fn parts_follow_each_other_whatever_comes_and_goes() {
        let list = |words: &[&'static str], span: &Span| {
            part(span, words.iter().copied().map(Word).collect(), |word| (word.0 != "skip").then_some(word.0))
        };
        let all = ["d", "a", "skip", "c", "b"];
        assert_eq!(list(&all, &Span::default()), Part { items: vec!["a", "b", "c", "d"], next: None });
        assert_eq!(list(&all, &span(2, None)), Part { items: vec!["a", "b"], next: Some("b".into()) });
        // The one where the part ended is gone, and another one has come before it.
        assert_eq!(list(&["aa", "c", "d"], &span(2, Some("b"))), Part { items: vec!["c", "d"], next: None });
        assert_eq!(list(&["a", "skip"], &span(1, None)).next, None, "nothing that is wanted follows");
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in
            [("web", "web"), ("web*", "web-1"), ("*1", "web-1"), ("w*b*1", "web-1"), ("*", "")]
        {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("web", "web-1"), ("web*", "we"), ("*b*b", "ab"), ("a*a", "a"), ("", "a")] {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn records_are_told_by_name_label_image_and_network() {
        let mut record = record("a1", "web-1", 1);
        record.image = Some("debian".into());
        record.labels = vec!["tier=front".parse().unwrap()];
        let is = |query: &str| WantedVms::of(query, Scope::default()).unwrap().may_be(&record);
        assert!(is("") && is("name=web*") && is("image=deb*") && is("label=tier") && is("label=tier=front"));
        assert!(!is("name=web") && !is("label=tier=back") && !is("label=tier,zone") && !is("network=lan"));
        let fault = WantedVms::of("state=running,gone", Scope::default()).unwrap_err();
        assert!(fault.kind == Kind::Usage && fault.to_string().contains("paused"), "{fault}");
    }

    #[test]
    fn the_next_part_is_asked_for_with_the_same_words() {
        let link = link(Route::VmList, "state=running&after=x&limit=2", "0001.web 1");
        assert_eq!(link, "</v1/vms?state=running&limit=2&after=0001.web%201>; rel=\"next\"");
    }
}
