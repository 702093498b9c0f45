//! What is remembered of a VM, and of a long work.
use crate::admission::Claim;
use crate::operations::Task;
use serde::{Deserialize, Serialize};
use viv_api::agent::Exec;
use viv_api::event::{Event, What};
use viv_api::image::ImageProcess;
use viv_api::operation::{Operation, OperationState};
use viv_api::timestamp::Timestamp;
use viv_api::vm::{OnReboot, Process};
use viv_model::{FileSpec, HealthAsk, Label, MachineSpec, Need, ProgramSpec, ProjectName, Restart};

/// One VM, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its identity.
    pub id: String,
    /// Its name; unique in its project.
    pub name: String,
    /// The project that it belongs to.
    #[serde(default, skip_serializing_if = "ProjectName::is_default")]
    pub project: ProjectName,
    /// When it was described.
    pub created_at: Timestamp,
    /// The image that it was made from.
    pub image: Option<String>,
    /// Words that its user has added to the image's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Its machine.
    pub machine: MachineSpec,
    /// What its disks may be filled with, MiB, as they were when it was last looked.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub disk_mib: u64,
    /// The security groups that it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// It is forgotten when it ends.
    pub remove: bool,
    /// The command for which it exists.
    pub command: Option<Exec>,
    /// What runs in the place of its image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// Volumes that it has besides its image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Files of the host that it has in its image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileSpec>,
    /// How to see whether its guest is well, besides what its image says.
    #[serde(default, skip_serializing_if = "HealthAsk::is_usual")]
    pub health: HealthAsk,
    /// How its image has programs started, if that is one of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ImageProcess>,
    /// The program that it is, if it is no whole computer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramSpec>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// The process whose end is its end.
    pub attended_by: Option<Process>,
    /// It boots the kernel that is on its image's disks, which its guest may change; so does a VM of a disk's file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub boots_itself: bool,
    /// The snapshot that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// When it is started again after it has ended.
    #[serde(default, skip_serializing_if = "Restart::is_never")]
    pub restart: Restart,
    /// Its user wants it to run: it was started, and not stopped since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wanted: bool,
    /// The request that described it, if that may be repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
}

/// A request that has its effect once, however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What its sender calls it.
    pub key: String,
    /// What was asked, to tell another request with the same key.
    pub digest: String,
}

/// What a VM is besides its machine: what one that goes on from a snapshot of it is, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    append: Option<String>,
    #[serde(skip_serializing_if = "is_usual")]
    on_reboot: OnReboot,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Exec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<String>,
    #[serde(skip_serializing_if = "HealthAsk::is_usual")]
    health: HealthAsk,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ImageProcess>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    boots_itself: bool,
}

fn is_usual(on_reboot: &OnReboot) -> bool {
    *on_reboot == OnReboot::default()
}

impl Asked {
    /// For a manifest; nothing if all of it is as usual.
    pub(crate) fn to_value(&self) -> Option<serde_json::Value> {
        (*self != Asked::default()).then(|| serde_json::to_value(self).unwrap_or_default())
    }

    /// What a manifest has.
    pub(crate) fn of(value: &serde_json::Value) -> Result<Asked, serde_json::Error> {
        Asked::deserialize(value)
    }
}

impl Request {
    /// That of the VM with this number, of several that one request makes.
    pub(crate) fn numbered(&self, number: u32) -> Request {
        Request { key: format!("{}#{number}", self.key), digest: self.digest.clone() }
    }
}

fn is_nothing(number: &u64) -> bool {
    *number == 0
}

impl VmRecord {
    /// What it needs of its host, and of its project.
    pub(crate) fn claim(&self) -> Claim {
        Claim { project: self.project.clone(), need: Need::of(&self.machine, self.disk_mib) }
    }

    /// An event that tells of it.
    pub(crate) fn event(&self, what: What) -> Event {
        Event::new(what, Some(&self.id), &self.name).within(&self.project)
    }

    /// What it is besides its machine.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            append: self.append.clone(),
            // What ends with somebody's command ends with its reboot, too.
            on_reboot: if self.attended_by.is_some() { OnReboot::default() } else { self.on_reboot },
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            volumes: self.volumes.clone(),
            health: self.health.clone(),
            process: self.process.clone(),
            boots_itself: self.boots_itself,
        }
    }

    /// The same, but as another one was asked for.
    pub(crate) fn with(self, asked: Asked) -> VmRecord {
        let Asked { append, on_reboot, command, entrypoint, volumes, health, process, boots_itself } = asked;
        VmRecord { append, on_reboot, command, entrypoint, volumes, health, process, boots_itself, ..self }
    }

    /// A VM with this machine, described now, and nothing else.
    pub(crate) fn new(id: &str, name: &str, machine: MachineSpec) -> VmRecord {
        VmRecord {
            id: id.to_string(),
            name: name.to_string(),
            project: ProjectName::default(),
            created_at: Timestamp::now(),
            image: None,
            append: None,
            machine,
            disk_mib: 0,
            groups: Vec::new(),
            labels: Vec::new(),
            on_reboot: OnReboot::default(),
            remove: false,
            command: None,
            entrypoint: None,
            volumes: Vec::new(),
            files: Vec::new(),
            health: HealthAsk::default(),
            process: None,
            program: None,
            started_at: None,
            attended_by: None,
            boots_itself: false,
            snapshot: None,
            restart: Restart::default(),
            wanted: false,
            request: None,
        }
    }
}

/// One long work, as it is shown and with all that it takes to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// How it is.
    pub operation: Operation,
    /// What there is to do.
    pub(crate) task: Task,
}

impl OperationRecord {
    /// A work that waits to begin; of a project, if whoever asks for it is bound to one.
    pub(crate) fn new(id: u64, task: Task, detached: bool, project: Option<ProjectName>) -> OperationRecord {
        let operation = Operation {
            id,
            kind: task.kind(),
            subject: task.subject(),
            project,
            state: OperationState::Waiting,
            detached,
            started_at: Timestamp::now(),
            ended_at: None,
            runs: 1,
            progress: None,
            waits_for: None,
            result: None,
            fault: None,
        };
        OperationRecord { operation, task }
    }

    /// What is told of it.
    pub(super) fn event(&self) -> Event {
        let Operation { id, kind, subject, state, fault, .. } = &self.operation;
        let (what, message) = match (state.is_over(), fault) {
            (false, _) => (What::OperationStarted, format!("{kind} {subject}")),
            (true, None) => (What::OperationEnded, format!("{kind} {subject}: {state}")),
            (true, Some(fault)) => {
                (What::OperationEnded, format!("{kind} {subject}: {state}: {}", fault.message))
            }
        };
        let project = self.operation.project.clone();
        Event { message: Some(message), project, ..Event::new(what, None, &id.to_string()) }
    }

    /// Whether it need not be kept any more when one with this number is there.
    pub(super) fn is_old_beside(&self, newest: u64) -> bool {
        self.operation.state.is_over() && newest.saturating_sub(self.operation.id) > super::OPERATIONS_KEPT
    }
}
