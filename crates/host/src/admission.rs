//! What VMs have of this host, and whether there is room for one more.
//!
//! Two sums are kept: of all VMs that are described, against the operator's quota, and of those that run, against the
//! host; disks are there before a VM runs, and count as soon as it is described. A VM's share is taken before it is remembered or started, in one step with the look at what is left, and given
//! back when that fails: so any number of requests at once get what there is, and no more.
use crate::vms::lock;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use viv_model::{Fault, Kind, Limits, Need};

/// What is taken.
#[derive(Default)]
pub(crate) struct Admission {
    /// The directory of VMs, on whose file system disks are.
    place: PathBuf,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    limits: Limits,
    described: HashMap<String, Need>,
    running: HashMap<String, Need>,
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
    before: Option<Need>,
    kept: bool,
}

impl Reservation<'_> {
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        match self.before {
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

fn sum(of: &HashMap<String, Need>) -> Need {
    of.values().fold(Need::default(), |sum, need| sum.and(*need))
}

impl Taken {
    fn of(&mut self, share: Share) -> &mut HashMap<String, Need> {
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

    fn fits(&mut self, share: Share, id: &str, need: Need, place: &Path) -> Result<(), Fault> {
        let most = self.most(share, place);
        let of = self.of(share);
        let before = of.remove(id);
        let taken = sum(of);
        let outcome = within(share, need, before.unwrap_or_default(), taken, most);
        if let Some(before) = before {
            of.insert(id.to_string(), before);
        }
        outcome
    }
}

/// Whether there is room for what a VM needs that had `before`: what it has it keeps, also beyond limits that came later.
fn within(share: Share, need: Need, before: Need, taken: Need, most: Need) -> Result<(), Fault> {
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
    let (text, fix) = match share {
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
        Admission { place, taken: Mutex::default() }
    }

    /// Takes a share, if there is room; `gone` says which of those who have one have ended unnoticed.
    pub(crate) fn reserve(
        &self,
        share: Share,
        id: &str,
        need: Need,
        gone: &dyn Fn(&str) -> bool,
    ) -> Result<Reservation<'_>, Fault> {
        let mut taken = lock(&self.taken);
        if let Err(fault) = taken.fits(share, id, need, &self.place) {
            let before = taken.of(share).len();
            taken.of(share).retain(|id, _| !gone(id));
            if taken.of(share).len() == before {
                return Err(fault);
            }
            taken.fits(share, id, need, &self.place)?;
        }
        let before = taken.of(share).insert(id.to_string(), need);
        Ok(Reservation { admission: self, share, id: id.to_string(), before, kept: false })
    }

    /// Takes a share for what is there already, also beyond the limits.
    pub(crate) fn take(&self, share: Share, id: &str, need: Need) {
        lock(&self.taken).of(share).insert(id.to_string(), need);
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

    /// What is taken of a share, and how much there is.
    pub(crate) fn use_of(&self, share: Share) -> (Need, Need) {
        let mut taken = lock(&self.taken);
        let most = taken.most(share, &self.place);
        (sum(taken.of(share)), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Need {
        Need { vms: 1, cpus: 1, memory_mib: 1, ..Need::default() }
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
                        if let Ok(reservation) = admission.reserve(Share::Described, &id, one(), &|_| false) {
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
        let (taken, most) = admission.use_of(Share::Described);
        assert_eq!(
            (taken.vms, most.vms, *lock(&got)),
            (100, 100, 100),
            "also none was refused while there was room"
        );
    }

    #[test]
    fn what_has_ended_unnoticed_makes_room() {
        let admission = of_quota(1);
        admission.take(Share::Described, "old", one());
        assert!(admission.reserve(Share::Described, "new", one(), &|_| false).is_err());
        admission.reserve(Share::Described, "new", one(), &|id| id == "old").unwrap().keep();
        assert_eq!(admission.use_of(Share::Described).0.vms, 1);
        assert!(
            admission.reserve(Share::Described, "new", one(), &|_| false).is_ok(),
            "one that has it needs no more"
        );
        let grown = Need { cpus: 5, ..one() };
        drop(admission.reserve(Share::Described, "new", grown, &|_| false).unwrap());
        assert_eq!(
            admission.use_of(Share::Described).0,
            one(),
            "growth that failed is given back, and no more"
        );
        admission.set_limits(Limits { vms: Some(0), cpus: Some(0), ..Limits::default() });
        let again = |need| admission.reserve(Share::Described, "new", need, &|_| false).is_ok();
        assert!(again(one()), "limits that came later take nothing away");
        assert!(again(Need { memory_mib: 9, ..one() }), "nor room for something else");
        assert!(!again(grown));
        admission.give_back(Share::Described, "new");
        assert_eq!(admission.use_of(Share::Described).0, Need::default());
    }

    #[test]
    fn a_refusal_says_of_what_there_is_too_little() {
        let admission = Admission::default();
        let (_, most) = admission.use_of(Share::Running);
        let refused = |need| match admission.reserve(Share::Running, "a", need, &|_| false) {
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
            let refused = admission.reserve(Share::Described, "a", need, &|_| false).map(drop);
            refused.unwrap_err().message
        };
        assert!(refused(Need { disk_iops: 101, ..one() }).contains("101 more requests of disks a second"));
        assert!(refused(Need { disk_iops: u64::MAX, ..one() }).contains("without a limit"));
        assert!(refused(Need { disk_mib: 11, ..one() }).contains("MiB of disks"));
        let quota = of_quota(0).reserve(Share::Described, "a", one(), &|_| false).map(drop).unwrap_err();
        assert!(quota.message.contains("1 more VMs") && quota.fix.contains("viv limits"), "{quota}");
    }
}
