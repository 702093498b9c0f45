//! What VMs have of this host, and whether there is room for one more.
//!
//! Two sums are kept: of all VMs that are described, against the operator's quota, and of those that run, against the
//! host. A VM's share is taken before it is remembered or started, in one step with the look at what is left, and given
//! back when that fails: so any number of requests at once get what there is, and no more.
use crate::vms::lock;
use std::collections::HashMap;
use std::sync::Mutex;
use viv_model::{Fault, Kind, Limits, MachineSpec, Need};

/// What is taken.
#[derive(Default)]
pub(crate) struct Admission {
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

/// A share that is given back unless it is kept.
pub(crate) struct Reservation<'a> {
    admission: &'a Admission,
    share: Share,
    id: String,
    kept: bool,
}

impl Reservation<'_> {
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.admission.give_back(self.share, &self.id);
        }
    }
}

/// What a machine needs.
pub(crate) fn need(machine: &MachineSpec) -> Need {
    let memory_mib = machine.memory_max_mib.unwrap_or(machine.memory_mib).max(machine.memory_mib);
    Need { vms: 1, cpus: u64::from(machine.cpus), memory_mib }
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

    fn most(&self, share: Share) -> Need {
        match share {
            Share::Described => self.limits.quota(),
            Share::Running => {
                let cpus = std::thread::available_parallelism().map_or(1, |number| number.get() as u64);
                self.limits.capacity(cpus, crate::info::room().total_mib)
            }
        }
    }

    fn fits(&mut self, share: Share, id: &str, need: Need) -> Result<(), Fault> {
        let most = self.most(share);
        let of = self.of(share);
        let before = of.remove(id);
        let taken = sum(of);
        let outcome = within(share, need, taken, most);
        if let Some(before) = before {
            of.insert(id.to_string(), before);
        }
        outcome
    }
}

fn within(share: Share, need: Need, taken: Need, most: Need) -> Result<(), Fault> {
    let all = taken.and(need);
    let (what, of, unit) = match (all.cpus > most.cpus, all.memory_mib > most.memory_mib) {
        (true, _) => (need.cpus, [taken.cpus, most.cpus], "vCPUs"),
        (_, true) => (need.memory_mib, [taken.memory_mib, most.memory_mib], "MiB of memory"),
        _ if all.vms > most.vms => (need.vms, [taken.vms, most.vms], "VMs"),
        _ => return Ok(()),
    };
    let [taken, most] = of;
    let (text, fix) = match share {
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
    /// Takes a share, if there is room; `gone` says which of those who have one have ended unnoticed.
    pub(crate) fn reserve(
        &self,
        share: Share,
        id: &str,
        need: Need,
        gone: &dyn Fn(&str) -> bool,
    ) -> Result<Reservation<'_>, Fault> {
        let mut taken = lock(&self.taken);
        if let Err(fault) = taken.fits(share, id, need) {
            let before = taken.of(share).len();
            taken.of(share).retain(|id, _| !gone(id));
            if taken.of(share).len() == before {
                return Err(fault);
            }
            taken.fits(share, id, need)?;
        }
        taken.of(share).insert(id.to_string(), need);
        Ok(Reservation { admission: self, share, id: id.to_string(), kept: false })
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
        let most = taken.most(share);
        (sum(taken.of(share)), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Need {
        Need { vms: 1, cpus: 1, memory_mib: 1 }
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
        let quota = of_quota(0).reserve(Share::Described, "a", one(), &|_| false).map(drop).unwrap_err();
        assert!(quota.message.contains("1 more VMs") && quota.fix.contains("viv limits"), "{quota}");
    }
}
