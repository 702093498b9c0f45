//! What VMs have of this host, and whether there is room for one more.
//!
//! Two sums are kept: of all VMs that are described, against the operator's quota, and of those that run, against the
//! host; disks are there before a VM runs, and count as soon as it is described. A VM's share is taken before it is remembered or started, in one step with the look at what is left, and given
//! back when that fails: so any number of requests at once get what there is, and no more. Of the first sum each project has a part with
//! a quota of its own, taken in the same step.
use crate::projects::{Kept, Projects, unknown};
use crate::vms::lock;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use viv_model::{Fault, Kind, Limits, Need, ProjectName};

/// What is taken.
#[derive(Default)]
pub(crate) struct Admission {
    /// The directory of VMs, on whose file system disks are.
    place: PathBuf,
    taken: Mutex<Taken>,
    /// One change of projects, or of who is bound to one, at a time.
    changing: Mutex<()>,
}

#[derive(Default)]
struct Taken {
    limits: Limits,
    projects: Projects,
    described: HashMap<String, Claim>,
    running: HashMap<String, Claim>,
}

/// What a VM has, or wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) project: ProjectName,
    pub(crate) need: Need,
}

/// Which of the two sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Of a VM that is described.
    Described,
    /// Of a VM that runs.
    Running,
}

/// A share that is as it was before unless it is kept.
pub(crate) struct Reservation<'a> {
    admission: &'a Admission,
    share: Share,
    id: String,
    before: Option<Claim>,
    kept: bool,
}

impl Reservation<'_> {
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        match self.before.take() {
            _ if self.kept => {}
            Some(before) => self.admission.take(self.share, &self.id, before),
            None => self.admission.give_back(self.share, &self.id),
        }
    }
}

/// What there is on the file system of a directory, MiB; as much as one likes if that is not known.
fn disk_mib(place: &Path) -> u64 {
    let found = rustix::fs::statvfs(place);
    found.map_or(u64::MAX, |found| found.f_blocks.saturating_mul(found.f_frsize) >> 20)
}

/// What all have together, or those of a project.
fn sum(of: &HashMap<String, Claim>, project: Option<&ProjectName>) -> Need {
    let counted = of.values().filter(|claim| project.is_none_or(|project| claim.project == *project));
    counted.fold(Need::default(), |sum, claim| sum.and(claim.need))
}

impl Taken {
    fn of(&mut self, share: Share) -> &mut HashMap<String, Claim> {
        match share {
            Share::Described => &mut self.described,
            Share::Running => &mut self.running,
        }
    }

    fn most(&self, share: Share, place: &Path) -> Need {
        match share {
            Share::Described => self.limits.quota(disk_mib(place)),
            Share::Running => {
                let cpus = std::thread::available_parallelism().map_or(1, |number| number.get() as u64);
                self.limits.capacity(cpus, crate::info::room().total_mib)
            }
        }
    }

    fn fits(&mut self, share: Share, id: &str, claim: &Claim, place: &Path) -> Result<(), Fault> {
        let (all, project) = (self.most(share, place), self.quota(&claim.project));
        let of = self.of(share);
        let before = of.remove(id);
        let need_before = before.as_ref().map(|claim| claim.need).unwrap_or_default();
        let (taken, taken_here) = (sum(of, None), sum(of, Some(&claim.project)));
        // What others have is told to nobody.
        let alone = taken == taken_here;
        let check = || {
            if share == Share::Described {
                let quota = project.ok_or_else(|| unknown(claim.project.as_str()))?;
                within(Sum::Project(&claim.project), claim.need, need_before, taken_here, quota)?;
            }
            within(Sum::Host { share, alone }, claim.need, need_before, taken, all)
        };
        let outcome = check();
        if let Some(before) = before {
            of.insert(id.to_string(), before);
        }
        outcome
    }

    /// What is remembered of a project, if it is there.
    fn project(&self, name: &ProjectName) -> Option<Kept> {
        self.projects.get(name).cloned().or_else(|| name.is_default().then(Kept::default))
    }

    /// What the VMs of a project may have together.
    fn quota(&self, name: &ProjectName) -> Option<Need> {
        self.project(name).map(|kept| kept.limits.quota(u64::MAX))
    }
}

/// Of what there is too little.
enum Sum<'a> {
    /// Of what the host has or allows; `alone`: nobody of another project has any of it.
    Host { share: Share, alone: bool },
    /// Of what a project may have.
    Project(&'a ProjectName),
}

/// Whether there is room for what a VM needs that had `before`: what it has it keeps, also beyond limits that came later.
fn within(sum: Sum<'_>, need: Need, before: Need, taken: Need, most: Need) -> Result<(), Fault> {
    type Amount = (&'static str, fn(&Need) -> u64);
    let amounts: [Amount; 8] = [
        ("vCPUs", |need| need.cpus),
        ("MiB of memory", |need| need.memory_mib),
        ("VMs", |need| need.vms),
        ("MiB of disks", |need| need.disk_mib),
        ("requests of disks a second", |need| need.disk_iops),
        ("bytes of disks a second", |need| need.disk_bps),
        ("bytes of network cards a second", |need| need.net_bps),
        ("ports", |need| need.ports),
    ];
    let all = taken.and(need);
    let missing = amounts.into_iter().find(|(_, of)| of(&all) > of(&most) && of(&need) > of(&before));
    let Some((unit, of)) = missing else { return Ok(()) };
    let [what, taken, most] = [of(&need), of(&taken), of(&most)];
    if let Sum::Project(project) = sum {
        let (text, fix) = match what {
            u64::MAX => (
                format!(
                    "no room for {unit} without a limit: the quota of the project {project} allows {most}"
                ),
                "give each disk and network card a limit: iops=, bps=; or ask whoever runs the host for more",
            ),
            _ => (
                format!(
                    "no room for {what} more {unit}: the VMs of the project {project} have {taken} of the {most} that its quota allows"
                ),
                "remove a VM: viv rm; or ask whoever runs the host for more: viv limits --project",
            ),
        };
        return Err(Fault::new(Kind::NoCapacity, text, fix));
    }
    let Sum::Host { share, alone } = sum else { return Ok(()) };
    let (text, fix) = match share {
        _ if !alone => (
            format!("no room for {what} more {unit}: VMs of other projects have some of what this host has"),
            "give this one less, or try again later; what there is: viv limits",
        ),
        Share::Described if what == u64::MAX => (
            format!("no room for {unit} without a limit: the quota allows {most}"),
            "give each disk and network card a limit: iops=, bps=; or let the operator allow more: viv limits --help",
        ),
        Share::Described => (
            format!(
                "no room for {what} more {unit}: all VMs have {taken} of the {most} that the quota allows"
            ),
            "remove a VM: viv rm, or let the operator allow more: viv limits --help",
        ),
        Share::Running => (
            format!("no room for {what} more {unit}: VMs that run have {taken} of {most} on this host"),
            "stop a VM: viv stop, or give this one less; how far the host is overcommitted: viv limits",
        ),
    };
    Err(Fault::new(Kind::NoCapacity, text, fix))
}

impl Admission {
    /// For VMs whose directories are in `place`.
    pub(crate) fn new(place: PathBuf) -> Admission {
        Admission { place, ..Admission::default() }
    }

    /// Takes a share, if there is room; `gone` says which of those who have one have ended unnoticed.
    pub(crate) fn reserve(
        &self,
        share: Share,
        id: &str,
        claim: Claim,
        gone: &dyn Fn(&str) -> bool,
    ) -> Result<Reservation<'_>, Fault> {
        let mut taken = lock(&self.taken);
        if let Err(fault) = taken.fits(share, id, &claim, &self.place) {
            let before = taken.of(share).len();
            taken.of(share).retain(|id, _| !gone(id));
            if taken.of(share).len() == before {
                return Err(fault);
            }
            taken.fits(share, id, &claim, &self.place)?;
        }
        let before = taken.of(share).insert(id.to_string(), claim);
        Ok(Reservation { admission: self, share, id: id.to_string(), before, kept: false })
    }

    /// Takes a share for what is there already, also beyond the limits.
    pub(crate) fn take(&self, share: Share, id: &str, claim: Claim) {
        lock(&self.taken).of(share).insert(id.to_string(), claim);
    }

    /// Gives a share back.
    pub(crate) fn give_back(&self, share: Share, id: &str) {
        lock(&self.taken).of(share).remove(id);
    }

    pub(crate) fn limits(&self) -> Limits {
        lock(&self.taken).limits
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        lock(&self.taken).limits = limits;
    }

    /// What is taken of a share, and how much there is: of all, or in a project.
    pub(crate) fn use_of(&self, share: Share, project: Option<&ProjectName>) -> (Need, Need) {
        let mut taken = lock(&self.taken);
        let most = match (project, share) {
            (None, _) => taken.most(share, &self.place),
            (Some(project), Share::Described) => taken.quota(project).unwrap_or_default(),
            (Some(_), Share::Running) => Need::WITHOUT_LIMIT,
        };
        (sum(taken.of(share), project), most)
    }

    /// While it is held, no project goes.
    pub(crate) fn hold_projects(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    /// What is remembered of a project, if it is there.
    pub(crate) fn project(&self, name: &ProjectName) -> Option<Kept> {
        lock(&self.taken).project(name)
    }

    /// What is remembered of all.
    pub(crate) fn projects(&self) -> Projects {
        lock(&self.taken).projects.clone()
    }

    /// Takes over those of an earlier service.
    pub(crate) fn set_projects(&self, projects: Projects) {
        lock(&self.taken).projects = projects;
    }

    /// Changes projects, and nothing if `change` fails. No VM is described meanwhile; `change` is told how many a project has.
    pub(crate) fn change_projects(
        &self,
        change: impl FnOnce(&mut Projects, &dyn Fn(&ProjectName) -> u64) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut taken = lock(&self.taken);
        let mut projects = taken.projects.clone();
        change(&mut projects, &|project| sum(&taken.described, Some(project)).vms)?;
        taken.projects = projects;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Need {
        Need { vms: 1, cpus: 1, memory_mib: 1, ..Need::default() }
    }

    fn claim(need: Need) -> Claim {
        Claim { project: ProjectName::default(), need }
    }

    fn of_quota(vms: u64) -> Admission {
        let admission = Admission::default();
        admission.set_limits(Limits { vms: Some(vms), ..Limits::default() });
        admission
    }

    #[test]
    fn a_thousand_at_once_get_what_there_is_and_no_more() {
        let admission = of_quota(100);
        let got = Mutex::new(0);
        std::thread::scope(|scope| {
            for client in 0..20 {
                let (admission, got) = (&admission, &got);
                scope.spawn(move || {
                    for number in 0..50 {
                        let id = format!("{client}-{number}");
                        let claim = claim(one());
                        if let Ok(reservation) = admission.reserve(Share::Described, &id, claim, &|_| false) {
                            // Every third fails later.
                            if number % 3 != 0 {
                                reservation.keep();
                                *lock(got) += 1;
                            }
                        }
                    }
                });
            }
        });
        let (taken, most) = admission.use_of(Share::Described, None);
        assert_eq!(
            (taken.vms, most.vms, *lock(&got)),
            (100, 100, 100),
            "also none was refused while there was room"
        );
    }

    /// Two projects with quotas on a host with one: many at once, and every sum holds at every moment.
    #[test]
    fn a_project_gets_what_its_quota_and_the_host_allow() {
        let admission = of_quota(100);
        let [a, b]: [ProjectName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let kept = |vms| Kept { limits: Limits { vms, ..Limits::default() }, ..Kept::default() };
        admission.set_projects([(a.clone(), kept(Some(30))), (b.clone(), kept(None))].into());
        let got = Mutex::new(HashMap::<ProjectName, u64>::new());
        std::thread::scope(|scope| {
            for client in 0..16 {
                let (admission, got) = (&admission, &got);
                let project = if client % 2 == 0 { &a } else { &b };
                scope.spawn(move || {
                    for number in 0..40 {
                        let claim = Claim { project: project.clone(), need: one() };
                        let id = format!("{client}-{number}");
                        if let Ok(share) = admission.reserve(Share::Described, &id, claim, &|_| false)
                            && number % 3 != 0
                        {
                            share.keep();
                            *lock(got).entry(project.clone()).or_default() += 1;
                        }
                        assert!(admission.use_of(Share::Described, Some(project)).0.vms <= 100);
                    }
                });
            }
        });
        let vms = |project| admission.use_of(Share::Described, Some(project)).0.vms;
        assert_eq!(*lock(&got), [(a.clone(), vms(&a)), (b.clone(), vms(&b))].into());
        assert!(vms(&a) <= 30 && vms(&a) + vms(&b) == 100, "all that there is: {} {}", vms(&a), vms(&b));
        let refused = |project: &ProjectName| {
            let claim = Claim { project: project.clone(), need: one() };
            admission.reserve(Share::Described, "x", claim, &|_| false).map(drop).unwrap_err()
        };
        let full = refused(&b).message;
        assert!(
            !full.contains(|letter: char| ('2'..='9').contains(&letter)),
            "nothing of the others: {full}"
        );
        admission.set_projects([(a.clone(), kept(Some(0))), (b.clone(), kept(None))].into());
        assert!(refused(&a).message.contains("of the 0 that its quota allows"), "{}", refused(&a));
        let gone = refused(&"gone".parse().unwrap());
        assert_eq!((gone.kind, gone.message.as_str()), (Kind::NotFound, "no project is called \"gone\""));
    }

    #[test]
    fn what_has_ended_unnoticed_makes_room() {
        let admission = of_quota(1);
        admission.take(Share::Described, "old", claim(one()));
        assert!(admission.reserve(Share::Described, "new", claim(one()), &|_| false).is_err());
        admission.reserve(Share::Described, "new", claim(one()), &|id| id == "old").unwrap().keep();
        assert_eq!(admission.use_of(Share::Described, None).0.vms, 1);
        assert!(
            admission.reserve(Share::Described, "new", claim(one()), &|_| false).is_ok(),
            "one that has it needs no more"
        );
        let grown = Need { cpus: 5, ..one() };
        drop(admission.reserve(Share::Described, "new", claim(grown), &|_| false).unwrap());
        assert_eq!(
            admission.use_of(Share::Described, None).0,
            one(),
            "growth that failed is given back, and no more"
        );
        admission.set_limits(Limits { vms: Some(0), cpus: Some(0), ..Limits::default() });
        let again = |need| admission.reserve(Share::Described, "new", claim(need), &|_| false).is_ok();
        assert!(again(one()), "limits that came later take nothing away");
        assert!(again(Need { memory_mib: 9, ..one() }), "nor room for something else");
        assert!(!again(grown));
        admission.give_back(Share::Described, "new");
        assert_eq!(admission.use_of(Share::Described, None).0, Need::default());
    }

    #[test]
    fn a_refusal_says_of_what_there_is_too_little() {
        let admission = Admission::default();
        let (_, most) = admission.use_of(Share::Running, None);
        let refused = |need| match admission.reserve(Share::Running, "a", claim(need), &|_| false) {
            Ok(_) => panic!("{need:?} fits"),
            Err(fault) => {
                assert_eq!(fault.kind, Kind::NoCapacity);
                fault.message
            }
        };
        assert!(refused(Need { cpus: most.cpus + 1, ..one() }).contains("vCPUs"));
        assert!(refused(Need { memory_mib: u64::MAX, ..one() }).contains("MiB of memory"));
        let admission = Admission::default();
        admission.set_limits(Limits { disk_iops: Some(100), disk_mib: Some(10), ..Limits::default() });
        let refused = |need| {
            let refused = admission.reserve(Share::Described, "a", claim(need), &|_| false).map(drop);
            refused.unwrap_err().message
        };
        assert!(refused(Need { disk_iops: 101, ..one() }).contains("101 more requests of disks a second"));
        assert!(refused(Need { disk_iops: u64::MAX, ..one() }).contains("without a limit"));
        assert!(refused(Need { disk_mib: 11, ..one() }).contains("MiB of disks"));
        let quota =
            of_quota(0).reserve(Share::Described, "a", claim(one()), &|_| false).map(drop).unwrap_err();
        assert!(quota.message.contains("1 more VMs") && quota.fix.contains("viv limits"), "{quota}");
    }
}
