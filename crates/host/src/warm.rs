//! Warm starts: a VM of an image goes on from where another guest of the same image, with the same machine, had booted. That other one is
//! booted for nothing else, before anything of a user's runs in it, and kept as a template.
use crate::blocking::{blocking, defect};
use crate::events::telling;
use crate::images::need_space;
use crate::prune::Gone;
use crate::service::{Busy, Service};
use crate::snapshots::of_one_vm;
use crate::store::Request;
use crate::streams;
use crate::tokens::sha256;
use crate::vms::lock;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use viv_api::event::What;
use viv_api::image::DEFAULT;
use viv_api::snapshot::{Snapshot, SnapshotCreate};
use viv_api::vm::{Process, Vm, VmCreate};
use viv_model::{Fault, Kind, NetKind, NicCreate, ProjectName, without_hostname};

/// What begins the name of such a template; digits for what boots and for its machine follow.
const PREFIX: &str = "warm-";
/// How many of the two.
const DIGITS: (usize, usize) = (12, 8);
/// How long a guest may take until its agent answers.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Most templates that are kept; the one that was used longest ago goes.
const KEPT_MAX: usize = 8;

/// Most that came to nothing which are remembered.
const FAILED_MAX: usize = 1000;

/// How much a VM is to start warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warm {
    /// If it can; else it boots.
    IfItCan,
    /// Or not at all.
    Always,
}

impl Warm {
    /// What a request says, if it says it.
    pub(crate) fn of(said: Option<&str>) -> Option<Warm> {
        match said? {
            "auto" => Some(Warm::IfItCan),
            "false" => None,
            _ => Some(Warm::Always),
        }
    }
}

/// Templates that could not be made or used since the service was started: whoever does not insist boots.
#[derive(Default)]
pub(crate) struct Failed(Mutex<HashSet<String>>);

impl Failed {
    fn has(&self, template: &str) -> bool {
        lock(&self.0).contains(template)
    }

    /// Tells of one, once. What there is no room for now is tried again.
    pub(crate) fn note(&self, template: &str, fault: &Fault) {
        if matches!(fault.kind, Kind::Usage | Kind::NoCapacity) {
            return;
        }
        let mut failed = lock(&self.0);
        if failed.len() >= FAILED_MAX {
            failed.clear();
        }
        if failed.insert(template.to_string()) {
            viv_api::complain!("viv serve: VMs of {template} boot, and do not start warm: {fault}");
        }
    }
}

/// A template that is wanted.
struct Wanted {
    project: ProjectName,
    name: String,
    image: String,
    /// Whether the image is one of containers; else it is the default guest's.
    is_container: bool,
    /// Its VM, without what is of one VM alone.
    machine: VmCreate,
}

/// The template from which a VM begins.
pub(crate) struct Template {
    name: String,
    warm: Warm,
}

impl Template {
    /// That for a VM that is asked for so; made if it is not there. None: it is one that is asked for, or it boots.
    pub(crate) async fn of(
        service: &Arc<Service>,
        project: &ProjectName,
        ask: &VmCreate,
        warm: Warm,
    ) -> Result<Option<Template>, Fault> {
        let name = template(service, project, ask, warm).await?;
        Ok(name.map(|name| Template { name, warm }))
    }

    /// The VM; one that boots, if the template is of no use and it need not start warm.
    pub(crate) fn create(
        &self,
        service: &Service,
        project: &ProjectName,
        ask: VmCreate,
        request: Option<Request>,
    ) -> Result<Vm, Fault> {
        match service.snapshots.create_warm(project, &self.name, &ask, request.clone()) {
            // What is wrong with what was asked for is said of a boot, too.
            Err(fault) if self.warm == Warm::IfItCan => {
                let made = service.vms.create(ask, request, false);
                made.inspect(|_| service.failed.note(&self.name, &fault))
            }
            made => made,
        }
    }
}

async fn template(
    service: &Arc<Service>,
    project: &ProjectName,
    ask: &VmCreate,
    warm: Warm,
) -> Result<Option<String>, Fault> {
    let (with, project, ask) = (service.clone(), project.clone(), ask.clone());
    let looked = blocking(move || {
        if ask.image.as_ref().is_some_and(|image| with.snapshots.is_template(&project, image)) {
            return Ok(None);
        }
        let wanted = match (wanted(&with, project, &ask), warm) {
            (Ok(wanted), Warm::IfItCan) if !wanted.is_container || with.failed.has(&wanted.name) => {
                return Ok(None);
            }
            (Err(_), Warm::IfItCan) => return Ok(None),
            (wanted, _) => wanted?,
        };
        let is_there = with.snapshots.is_warm(&wanted.project, &wanted.name);
        Ok(Some((wanted, is_there)))
    });
    let wanted = match looked.await? {
        None => return Ok(None),
        Some((wanted, true)) => return Ok(Some(wanted.name)),
        Some((wanted, false)) => wanted,
    };
    // Who asked may go away: what is begun is done.
    let (with, name) = (service.clone(), wanted.name.clone());
    let making = tokio::spawn(async move {
        let _busy = Busy::new(&with.work);
        make(&with, wanted, warm).await
    });
    match making.await.map_err(|error| defect(&error.to_string()))? {
        Err(fault) if warm == Warm::IfItCan => {
            service.failed.note(&name, &fault);
            Ok(None)
        }
        made => made.map(Some),
    }
}

/// Boots a guest and keeps what it then is, unless somebody else just has. VMs can come from it before the host's disk has it.
async fn make(service: &Arc<Service>, wanted: Wanted, warm: Warm) -> Result<String, Fault> {
    let _turn = service.warming.lock().await;
    let with = service.clone();
    let begun = blocking(move || {
        if with.snapshots.is_warm(&wanted.project, &wanted.name) {
            return Ok((wanted, None));
        }
        if warm == Warm::IfItCan {
            // Nobody has asked for it: it takes no room that somebody may miss.
            let memory = wanted.machine.machine().memory_mib << 20;
            need_space(&with.places.snapshots(), memory)?;
        }
        // What a service that was killed has left.
        if let Ok(left) = with.vms.named(&wanted.project, &wanted.name)
            && left.remove
        {
            with.vms.remove(&left.id, true)?;
        }
        let vm = with.vms.create(wanted.machine.clone(), None, false)?;
        Ok((wanted, Some(vm)))
    });
    let (wanted, vm) = begun.await?;
    let Some(vm) = vm else { return Ok(wanted.name) };
    let (_, runner) = service.vms.find(&vm.id)?;
    let booted = streams::agent(&vm.name, &runner, BOOT_LIMIT, BOOT_LIMIT).await.map(drop);
    let (with, name) = (service.clone(), wanted.name.clone());
    let (tell, told) = oneshot::channel();
    let keeping = tokio::task::spawn_blocking(move || {
        let _busy = Busy::new(&with.work);
        let mut tell = Some(tell);
        let is_there = || {
            let removed = with.vms.remove(&vm.id, true);
            drop(tell.take().map(|tell| tell.send(removed.map(drop))));
        };
        let kept = booted.and_then(|()| keep(&with, &wanted, &vm, is_there));
        match (kept, tell) {
            (Ok(()), _) => {}
            // Somebody goes on from it already.
            (Err(fault), None) => with.failed.note(&wanted.name, &fault),
            (Err(fault), Some(tell)) => {
                let _ = with.vms.remove(&vm.id, true);
                let _ = tell.send(Err(fault));
            }
        }
    });
    match told.await {
        Ok(told) => told.map(|()| name),
        Err(_) => Err(defect(&keeping.await.err().map(|error| error.to_string()).unwrap_or_default())),
    }
}

/// Keeps the guest as it is, in the place of those of what the image was before.
fn keep(service: &Service, wanted: &Wanted, vm: &Vm, is_there: impl FnOnce()) -> Result<(), Fault> {
    let ask = SnapshotCreate {
        name: Some(wanted.name.clone()),
        comment: format!("where VMs of {} begin warm", wanted.image),
        template: true,
        full: true,
        drop_sockets: false,
    };
    let keep = || service.snapshots.keep_warm(&vm.id, &ask, is_there);
    let store = &*service.vms.store;
    telling(store, What::SnapshotCreated, Some(&wanted.project), keep, |()| wanted.name.clone())?;
    if service.images.get(&wanted.image).is_err() {
        return forget_image(service, &wanted.image); // it was removed meanwhile
    }
    let old = |made: &Snapshot| {
        made.image.as_ref() == Some(&wanted.image) && what_boots(&made.name) != what_boots(&wanted.name)
    };
    forget(service, |project| *project == wanted.project, old, &mut Gone::default())?;
    forget_unused(service)
}

/// Removes those that were used longest ago, if there are too many.
fn forget_unused(service: &Service) -> Result<(), Fault> {
    let mut all: Vec<_> = service.snapshots.list(|_| true)?.into_iter().filter(is_one).collect();
    all.sort_by_key(|made| Reverse(service.snapshots.used_at(&made.id)));
    let unused: HashSet<_> = all.into_iter().skip(KEPT_MAX).map(|made| made.id).collect();
    forget(service, |_| true, |made| unused.contains(&made.id), &mut Gone::default())
}

/// Removes those of all projects that come from this image.
pub(crate) fn forget_image(service: &Service, name: &str) -> Result<(), Fault> {
    forget(service, |_| true, |made| made.image.as_deref() == Some(name), &mut Gone::default())
}

/// Removes all.
pub(crate) fn forget_all(service: &Service, gone: &mut Gone) -> Result<(), Fault> {
    forget(service, |_| true, |_| true, gone)
}

fn forget(
    service: &Service,
    of: impl Fn(&ProjectName) -> bool,
    which: impl Fn(&Snapshot) -> bool,
    gone: &mut Gone,
) -> Result<(), Fault> {
    for made in service.snapshots.list(of)?.into_iter().filter(|made| is_one(made) && which(made)) {
        let remove = || service.snapshots.remove(&made.project, &made.id);
        let store = &*service.vms.store;
        telling(store, What::SnapshotRemoved, Some(&made.project), remove, |made| made.name.clone())?;
        gone.count(made.data_bytes);
    }
    Ok(())
}

fn is_one(made: &Snapshot) -> bool {
    made.template && is_name(&made.name)
}

/// Whether only templates for warm starts are called so.
fn is_name(name: &str) -> bool {
    what_boots(name).is_some()
}

/// Refuses such a name to a user's snapshot.
pub(crate) fn check_name(name: Option<&str>) -> Result<(), Fault> {
    match name {
        Some(name) if is_name(name) => {
            let text = format!("a snapshot cannot be called {name:?}: so are those for warm starts");
            Err(Fault::new(Kind::Usage, text, "choose another name"))
        }
        _ => Ok(()),
    }
}

/// The digits of what boots in a template for warm starts that is called so.
fn what_boots(name: &str) -> Option<&str> {
    let (boots, machine) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    ((boots.len(), machine.len()) == DIGITS && is_digits(boots) && is_digits(machine)).then_some(boots)
}

/// The first so many digits of a digest of this.
fn digits(of: &str, count: usize) -> String {
    sha256(of.as_bytes()).chars().take(count).collect()
}

/// The template that is wanted for a VM; refuses what can only be had at boot.
fn wanted(service: &Service, project: ProjectName, ask: &VmCreate) -> Result<Wanted, Fault> {
    let image = service.images.get(ask.image.as_deref().unwrap_or(DEFAULT))?;
    if image.manifest.boots_itself() || image.manifest.program.is_some() || !image.manifest.disks.is_empty() {
        return Err(Fault::new(
            Kind::Usage,
            format!(
                "{} cannot start warm: it boots a system of its own, and when that is ready is its own business",
                image.name
            ),
            "leave out --warm, or make a template of a VM of it when it is ready: viv template create",
        ));
    }
    let mut machine = machine(ask)?;
    // Containers have the default guest's kernel.
    let kernel = service.images.get(DEFAULT)?.digest;
    let text = serde_json::to_string(&machine).map_err(|error| defect(&error.to_string()))?;
    let boots = digits(&format!("{} {kernel}", image.digest), DIGITS.0);
    let name = format!("{PREFIX}{boots}-{}", digits(&text, DIGITS.1));
    machine.name = Some(name.clone());
    machine.project = Some(project.clone()).filter(|project| !project.is_default());
    machine.start = true;
    machine.remove = true;
    // It ends with us.
    machine.attended_by = Some(Process::current().map_err(|error| {
        let text = format!("cannot see when the service was started: {error}");
        Fault::new(Kind::Error, text, "see that there is memory for it, or leave out --warm")
    })?);
    let is_container = image.manifest.process().is_some();
    Ok(Wanted { project, name, image: image.name, is_container, machine })
}

/// What makes the guest that boots what it is; the rest is of one VM alone, and can be had later.
fn machine(ask: &VmCreate) -> Result<VmCreate, Fault> {
    let machine = VmCreate {
        image: ask.image.clone(),
        cpus: ask.cpus,
        memory_mib: ask.memory_mib,
        memory_max_mib: ask.memory_max_mib,
        cpu_limit_milli: ask.cpu_limit_milli,
        cpu_weight: ask.cpu_weight,
        accel: ask.accel,
        soft: ask.soft,
        append: ask.append.as_deref().and_then(without_hostname),
        ..VmCreate::default()
    };
    let known = VmCreate {
        cpus: ask.cpus,
        memory_mib: ask.memory_mib,
        memory_max_mib: ask.memory_max_mib,
        cpu_limit_milli: ask.cpu_limit_milli,
        cpu_weight: ask.cpu_weight,
        soft: ask.soft,
        append: ask.append.clone(),
        net: ask.net.clone(),
        nic_limits: ask.nic_limits,
        nics: ask.nics.clone(),
        publish_all: ask.publish_all,
        restart: ask.restart,
        entrypoint: ask.entrypoint.clone(),
        ..of_one_vm(ask)
    };
    let refused =
        |what: &str, fix: &str| Err(Fault::new(Kind::Usage, format!("a VM that starts warm {what}"), fix));
    if *ask != known {
        return refused(
            "has no directories, volumes, files, disks, kernels and console ports of its own: its guest has booted",
            "leave these options out, or --warm",
        );
    }
    if !ask.start {
        return refused("runs as soon as it is there", "use: viv run -d --warm IMAGE");
    }
    let nics = ask.cards()?;
    let plain = |card: &NicCreate| {
        matches!(card.net, NetKind::User { .. }) && card.groups.is_empty() && card.ip.is_none()
    };
    if !nics.iter().all(plain) {
        return refused(
            "has a network of its own or none: --net user, --net none",
            "use these, or leave out --warm",
        );
    }
    Ok(VmCreate { nics, ..machine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_an_image_and_a_machine() {
        let name = format!("{PREFIX}{}-{}", digits("a", DIGITS.0), digits("b", DIGITS.1));
        assert!(is_name(&name));
        assert_eq!(what_boots(&name), Some(digits("a", DIGITS.0).as_str()));
        for other in
            ["warm", "warm-", "warm-73107c95eb6b", "warm-73107c95eb6b-0a1b2c3", "warm-73107c95ebxx-0a1b2c3d"]
        {
            assert!(!is_name(other), "{other}");
        }
    }

    #[test]
    fn only_what_makes_the_guest_is_of_its_machine() {
        let ask = VmCreate { start: true, ..VmCreate::default() };
        let plain = machine(&ask).unwrap();
        let same = VmCreate {
            name: Some("a".into()),
            remove: true,
            entrypoint: Some("/x".into()),
            labels: vec!["a=b".parse().unwrap()],
            ..ask.clone()
        };
        assert_eq!(machine(&same).unwrap(), plain);
        let more = VmCreate { memory_mib: Some(512), ..ask.clone() };
        assert_ne!(machine(&more).unwrap(), plain);
        // Ports take a card.
        let ports = vec!["8080:80".parse().unwrap()];
        let with_card = machine(&VmCreate { ports, ..ask.clone() }).unwrap();
        assert_eq!((with_card.nics.len(), with_card.ports.len()), (1, 0));
        for wrong in [
            VmCreate { start: false, ..ask.clone() },
            VmCreate { volumes: vec!["data:/x".into()], ..ask.clone() },
            VmCreate { kernel: Some("/k".into()), ..ask.clone() },
            VmCreate { net: Some("blue".parse().unwrap()), ..ask.clone() },
        ] {
            assert_eq!(machine(&wrong).unwrap_err().kind, Kind::Usage);
        }
    }
}
