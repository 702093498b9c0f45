use super::*;
use crate::images::Images;
use crate::lists::{Span, WantedVms};
use crate::networks::Networks;
use crate::places::Places;
use crate::store::conformance::record;
use crate::store::{MemoryStore, VmRecord};
use crate::vms::Hooks;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use viv_api::event::What;

const PROJECTS: [&str; 3] = ["default", "a", "b"];
/// Some names are what identities are.
const NAMES: [&str; 5] = ["web", "db", "cafe", "cafe00000001", "beef00000002"];
const IDS: [&str; 5] = ["cafe00000001", "cafe00000002", "cafe10000001", "beef00000002", "beef00000001"];
const ASKED: [&str; 12] = [
    "web",
    "db",
    "cafe",
    "cafe0",
    "cafe00000001",
    "cafe00000002",
    "beef",
    "beef00000002",
    "beef0000000",
    "caf",
    "nothing",
    "",
];

fn project(name: &str) -> ProjectName {
    name.parse().unwrap()
}

/// Small numbers, the same for a seed (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll<T: Copy>(&mut self, sides: &[T]) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        sides[(self.0 % sides.len() as u64) as usize]
    }
}

/// A host with nothing on it but what a test puts into its store.
struct Host {
    vms: Vms,
    root: PathBuf,
}

impl Host {
    fn new() -> Host {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("viv-projects-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        let places = Places { state: root.clone(), data: root.join("data"), runtime: root.join("run") };
        for place in [places.images(), places.networks(), places.secgroups(), places.vms()] {
            std::fs::create_dir_all(place).unwrap();
        }
        let images = Arc::new(Images::open(places.images()).unwrap());
        let networks = Networks::new(&places, Box::new(|_, _| ()));
        let hooks = Hooks { watch: Box::new(|_, _| ()), later: Box::new(|_, _| ()) };
        let vms = Vms::new(Box::new(MemoryStore::default()), places, images, networks, hooks);
        for name in PROJECTS.into_iter().filter(|name| *name != "default") {
            vms.create_project(&ProjectCreate { name: name.into(), ..ProjectCreate::default() }).unwrap();
        }
        Host { vms, root }
    }

    fn has(&self, name: &ProjectName) -> bool {
        self.vms.has_project(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A change of the store.
#[derive(Clone, Debug)]
enum Step {
    Insert(Box<VmRecord>),
    Remove(&'static str),
    Tell(&'static str),
    Snapshot(ProjectName, &'static str),
}

impl Step {
    fn roll(dice: &mut Dice) -> Step {
        let id = dice.roll(&IDS);
        match dice.roll(&[0, 0, 0, 1, 2, 3]) {
            0 => {
                let project = project(dice.roll(&PROJECTS));
                Step::Insert(Box::new(VmRecord { project, ..record(id, dice.roll(&NAMES), 7) }))
            }
            1 => Step::Remove(id),
            2 => Step::Tell(id),
            _ => Step::Snapshot(project(dice.roll(&PROJECTS)), dice.roll(&NAMES)),
        }
    }

    /// Does it; whether it was done. An identity that is there is not made again: they are random.
    fn run(&self, vms: &Vms) -> bool {
        let store = &*vms.store;
        let is_there = |id: &str| store.by_id(id).unwrap().is_some();
        match self {
            Step::Insert(record) => !is_there(&record.id) && store.insert(record).is_ok(),
            Step::Remove(id) => store.remove(id).is_ok(),
            Step::Tell(id) => is_there(id) && store.tell(Event::new(What::VmRebooted, Some(id), "x")).is_ok(),
            Step::Snapshot(project, name) => {
                store.tell(Event::new(What::SnapshotCreated, None, name).within(project)).is_ok()
            }
        }
    }

    fn project(&self, vms: &Vms) -> Option<ProjectName> {
        match self {
            Step::Insert(record) => Some(record.project.clone()),
            Step::Snapshot(project, _) => Some(project.clone()),
            Step::Remove(id) | Step::Tell(id) => Some(vms.store.by_id(id).unwrap()?.project),
        }
    }
}

/// All that somebody learns who may look at everything in his scope.
fn learned(vms: &Vms, scope: &Scope) -> Vec<String> {
    let mut learned = Vec::new();
    for name in ASKED {
        let found = vms.named(&scope.project, name).map(|record| record.id);
        learned.push(format!("{name}: {found:?}"));
    }
    for query in ["", "name=*", "name=web", "all-projects=true"] {
        let wanted = WantedVms::of(query, scope.clone()).unwrap();
        let ids: Vec<String> = vms.all_wanted(&wanted).unwrap().into_iter().map(|vm| vm.id).collect();
        learned.push(format!("{query}: {ids:?}"));
        let part = vms.listed(&wanted, &Span::of("limit=1")).unwrap();
        learned.push(format!("{part:?}").replace(&vms.places.state.display().to_string(), ""));
        for id in IDS {
            learned.push(format!("{id}: {}", vms.wanted(&wanted, id).unwrap().is_some()));
        }
    }
    let past = vms.store.events(0, 1000).unwrap().events;
    for event in past.iter().filter(|event| scope.hears(event)) {
        learned.push(format!("{} {:?} {} {:?}", event.event, event.id, event.name, event.project));
    }
    let count = vms.count(scope.only()).unwrap();
    learned.push(format!("{count:?} {:?}", vms.limits(scope.only()).described));
    for name in PROJECTS.into_iter().chain(["c"]) {
        let bound = Some(&scope.project).filter(|_| scope.bound);
        learned.push(format!("{name}: {:?}", vms.project(name, bound).map(|it| (it.name, it.described))));
    }
    // Revisions are the host's: that something has happened is no secret.
    learned.iter().map(|text| without_revisions(text)).collect()
}

fn without_revisions(text: &str) -> String {
    let mut parts = text.split("revision: ");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |all, part| all + part.trim_start_matches(|digit: char| digit.is_ascii_digit()))
}

/// The rule: who is bound to a project learns on a host with others just what he would on one where there is nothing but his project.
#[test]
fn what_others_have_is_as_if_it_were_not_there() {
    for seed in 1..=20u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let host = Host::new();
        let alone: Vec<(ProjectName, Host)> =
            PROJECTS.iter().map(|name| (project(name), Host::new())).collect();
        for _ in 0..40 {
            let step = Step::roll(&mut dice);
            let of = step.project(&host.vms);
            if step.run(&host.vms) {
                let own = alone.iter().find(|(name, _)| Some(name) == of.as_ref());
                assert!(own.is_some_and(|(_, own)| step.run(&own.vms)), "{step:?}");
            } else if let (Step::Insert(record), Some((_, own))) =
                (&step, alone.iter().find(|(name, _)| Some(name) == of.as_ref()))
                && host.vms.store.by_id(&record.id).unwrap().is_none()
            {
                assert!(!step.run(&own.vms), "a name is refused only for one that he sees: {step:?}");
            }
        }
        for (name, own) in &alone {
            let scope = |host: &Host| Scope::of(Some(name), "", |name| host.has(name)).unwrap();
            assert_eq!(learned(&host.vms, &scope(&host)), learned(&own.vms, &scope(own)), "seed {seed}");
        }
        // Who is bound to none sees all, if he says so, and finds each VM in its project.
        let free = Scope::of(None, "all-projects=true", |name| host.has(name)).unwrap();
        let all = vms_of(&host.vms, &free);
        assert_eq!(all.len(), host.vms.store.count().unwrap());
        for record in host.vms.store.all().unwrap() {
            let query = format!("project={}", record.project);
            let there = Scope::of(None, &query, |name| host.has(name)).unwrap();
            assert_eq!(host.vms.named(&there.project, &record.name).unwrap().id, record.id);
            assert!(vms_of(&host.vms, &there).contains(&record.id));
        }
    }
}

fn vms_of(vms: &Vms, scope: &Scope) -> Vec<String> {
    let wanted = WantedVms::of("", scope.clone()).unwrap();
    vms.all_wanted(&wanted).unwrap().into_iter().map(|vm| vm.id).collect()
}

#[test]
fn a_request_acts_in_the_project_of_who_asks_or_in_the_one_that_it_names() {
    let exists = |name: &ProjectName| PROJECTS.contains(&name.as_str());
    let a = project("a");
    let scope = |bound: Option<&ProjectName>, query: &str| Scope::of(bound, query, exists);
    for (bound, query, acts_in) in [
        (None, "", Ok("default")),
        (None, "project=", Ok("default")),
        (None, "project=b&limit=3", Ok("b")),
        (None, "project=c", Err("c")),
        (None, "project=B", Err("B")),
        (Some(&a), "", Ok("a")),
        (Some(&a), "project=a", Ok("a")),
        (Some(&a), "project=b", Err("b")),
        (Some(&a), "project=c", Err("c")),
        (Some(&a), "project=default&all-projects=true", Err("default")),
    ] {
        match (scope(bound, query), acts_in) {
            (Ok(scope), Ok(name)) => assert_eq!(scope.project.as_str(), name, "{query}"),
            (Err(fault), Err(name)) => assert_eq!(fault, unknown(name), "{query}"),
            (scope, _) => panic!("{bound:?} {query}: {scope:?}"),
        }
    }
    // A document names one, too.
    let bound = scope(Some(&a), "").unwrap();
    assert_eq!(bound.enter("b", exists), Err(unknown("b")));
    assert_eq!(bound.enter("a", exists), Ok(a.clone()));
    assert_eq!(scope(None, "").unwrap().enter("b", exists), Ok(project("b")));
    // Numbers are of the host only for who is bound to no project and names none.
    assert_eq!(scope(None, "").unwrap().only(), None);
    assert_eq!(scope(None, "project=a").unwrap().only(), Some(&a));
    assert_eq!(bound.only(), Some(&a));
    let all = scope(Some(&a), "all-projects=true").unwrap();
    assert!(!all.shows(&project("b")) && all.shows(&a), "all that he may see is his own");
}

#[test]
fn projects_are_remembered_with_their_quotas() {
    let host = Host::new();
    let limits = Limits { vms: Some(2), ..Limits::default() };
    let ask = |name: &str| ProjectCreate { name: name.into(), comment: "of tests".into(), limits };
    assert_eq!(host.vms.create_project(&ask("c")).unwrap().limits, limits);
    for name in ["c", "a", "default"] {
        assert_eq!(host.vms.create_project(&ask(name)).unwrap_err().kind, Kind::Conflict, "{name}");
    }
    assert_eq!(host.vms.create_project(&ask("C")).unwrap_err().kind, Kind::Usage);
    host.vms.set_limits(Some(&project("default")), limits).unwrap();
    assert_eq!(host.vms.set_limits(Some(&project("d")), limits).unwrap_err(), unknown("d"));
    let names =
        |bound| host.vms.projects(bound).into_iter().map(|it| it.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(None), ["a", "b", "c", "default"]);
    assert_eq!(names(Some(&project("b"))), ["b"]);
    let before = host.vms.projects(None);
    host.vms.admission.set_projects(Projects::new());
    host.vms.load_projects().unwrap();
    assert_eq!(host.vms.projects(None), before);
    assert_eq!(before[3].limits, limits, "default has a quota, too");
}
