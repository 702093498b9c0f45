//! Another machine for a VM that does not run, and other labels and policies for any.
use crate::creation::fits;
use crate::programs;
use crate::store::VmRecord;
use crate::vms::Vms;
use viv_api::runner::Ask;
use viv_api::vm::{Vm, VmUpdate};
use viv_model::{CPU_WEIGHT_USUAL, Fault, Kind, MachineSpec};

impl Vms {
    /// Changes what is said of it; what is not said stays.
    pub(crate) fn update(&self, id: &str, ask: &VmUpdate) -> Result<Vm, Fault> {
        let mut share = None;
        let outcome = self.change_member(id, |record| {
            if ask.is_of_machine() {
                self.may_change_machine(record)?;
            }
            let mut machine = record.machine.clone();
            machine.cpus = ask.cpus.unwrap_or(machine.cpus);
            machine.memory_mib = ask.memory_mib.unwrap_or(machine.memory_mib);
            machine.memory_max_mib = ask.memory_max_mib.or(machine.memory_max_mib);
            if let Some(milli) = ask.cpu_limit_milli {
                machine.cpu_limit_milli = Some(milli).filter(|milli| *milli > 0);
            }
            if let Some(weight) = ask.cpu_weight {
                machine.cpu_weight = Some(weight).filter(|weight| *weight > 0);
            }
            machine.accel = ask.accel.unwrap_or(machine.accel);
            match record.program.is_some() {
                true => programs::check(&machine)?,
                false => machine.check()?,
            }
            let most = |machine: &MachineSpec| machine.memory_max_mib.unwrap_or(machine.memory_mib);
            if most(&machine) > most(&record.machine) {
                fits(most(&machine))?;
            }
            share = Some(self.describe(&VmRecord { machine: machine.clone(), ..record.clone() })?);
            if machine.cpu_limit_milli != record.machine.cpu_limit_milli && self.is_live(record) {
                self.runner(record).ask(&Ask::LimitCpu { milli: machine.cpu_limit_milli })?;
            }
            if machine.cpu_weight != record.machine.cpu_weight {
                self.weigh(record, machine.cpu_weight)?;
            }
            record.machine = machine;
            record.on_reboot = ask.on_reboot.unwrap_or(record.on_reboot);
            if let Some(labels) = &ask.labels {
                record.labels = labels.clone();
            }
            if let Some(restart) = ask.restart {
                if !restart.is_never()
                    && (record.remove || record.attended_by.is_some_and(|it| it.is_alive()))
                {
                    return Err(Fault::new(
                        Kind::Conflict,
                        format!("VM {:?} ends with its command, or is forgotten when it ends", record.name),
                        "describe one without --rm, and run it with -d",
                    ));
                }
                record.restart = restart;
                record.wanted = !restart.is_never() && self.is_live(record);
                self.restarts.forget(&record.id);
            }
            Ok(())
        });
        if let (Ok(_), Some(share)) = (&outcome, share) {
            share.keep();
        }
        outcome
    }

    /// Has a VM weigh so much from now on; none: as any process.
    fn weigh(&self, record: &VmRecord, weight: Option<u32>) -> Result<(), Fault> {
        let Some(process) = self.runner(record).process() else { return Ok(()) };
        // It stays in the group that it was put into.
        let Some(group) = self.control_groups.of(&record.id, Some(weight.unwrap_or(CPU_WEIGHT_USUAL)))?
        else {
            return Ok(());
        };
        group.take(process.pid).map_err(|error| {
            let text = format!("cannot give VM {:?} another weight: {error}", record.name);
            Fault::new(Kind::Error, text, "try again, or stop and start it")
        })
    }

    fn may_change_machine(&self, record: &VmRecord) -> Result<(), Fault> {
        let name = &record.name;
        let (why, fix) = if self.is_live(record) {
            ("it runs", format!("stop it first: viv stop {name}; memory of one that runs: viv resize-memory"))
        } else if self.runner(record).resumes() {
            (
                "it goes on from a snapshot, whose machine it has",
                format!("start and stop it first: viv start {name}"),
            )
        } else {
            return Ok(());
        };
        Err(Fault::new(Kind::Conflict, format!("cannot change the machine of VM {name:?}: {why}"), fix))
    }
}
