//! What has happened on a host, in order.
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use viv_model::{End, ProjectName, State};

/// The kind of a thing that has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum What {
    /// A VM was described.
    #[serde(rename = "vm.created")]
    VmCreated,
    /// Its description was changed.
    #[serde(rename = "vm.changed")]
    VmChanged,
    /// It is in another state than before.
    #[serde(rename = "vm.state")]
    VmState,
    /// Its guest has booted anew.
    #[serde(rename = "vm.rebooted")]
    VmRebooted,
    /// Its guest's health is another one, which is the message: `starting`, `healthy` or `unhealthy`.
    #[serde(rename = "vm.health")]
    VmHealth,
    /// The host has no room for its disks, which are the message: it stands still.
    #[serde(rename = "vm.disk-full")]
    VmDiskFull,
    /// The host has room for its disks again.
    #[serde(rename = "vm.disk-room")]
    VmDiskRoom,
    /// It will be started again, by its restart policy.
    #[serde(rename = "vm.restarting")]
    VmRestarting,
    /// It was forgotten.
    #[serde(rename = "vm.removed")]
    VmRemoved,
    /// An image was made, or has another name.
    #[serde(rename = "image.changed")]
    ImageChanged,
    /// An image was removed.
    #[serde(rename = "image.removed")]
    ImageRemoved,
    /// A snapshot was made.
    #[serde(rename = "snapshot.created")]
    SnapshotCreated,
    /// A snapshot was removed.
    #[serde(rename = "snapshot.removed")]
    SnapshotRemoved,
    /// A network was made.
    #[serde(rename = "network.created")]
    NetworkCreated,
    /// VMs came to a network or left it.
    #[serde(rename = "network.changed")]
    NetworkChanged,
    /// A network was removed.
    #[serde(rename = "network.removed")]
    NetworkRemoved,
    /// A security group was made.
    #[serde(rename = "secgroup.created")]
    SecgroupCreated,
    /// Its rules or its VMs were changed.
    #[serde(rename = "secgroup.changed")]
    SecgroupChanged,
    /// A security group was removed.
    #[serde(rename = "secgroup.removed")]
    SecgroupRemoved,
    /// A volume was made.
    #[serde(rename = "volume.created")]
    VolumeCreated,
    /// A volume was removed.
    #[serde(rename = "volume.removed")]
    VolumeRemoved,
    /// A long work was begun, or goes on after the service began anew; the message says what it does.
    #[serde(rename = "operation.started")]
    OperationStarted,
    /// It has ended; the message says how.
    #[serde(rename = "operation.ended")]
    OperationEnded,
    /// The limits of the host were changed.
    #[serde(rename = "limits.changed")]
    LimitsChanged,
}

impl What {
    /// Every kind.
    pub const ALL: [What; 24] = [
        What::VmCreated,
        What::VmChanged,
        What::VmState,
        What::VmRebooted,
        What::VmHealth,
        What::VmDiskFull,
        What::VmDiskRoom,
        What::VmRestarting,
        What::VmRemoved,
        What::ImageChanged,
        What::ImageRemoved,
        What::SnapshotCreated,
        What::SnapshotRemoved,
        What::NetworkCreated,
        What::NetworkChanged,
        What::NetworkRemoved,
        What::SecgroupCreated,
        What::SecgroupChanged,
        What::SecgroupRemoved,
        What::VolumeCreated,
        What::VolumeRemoved,
        What::OperationStarted,
        What::OperationEnded,
        What::LimitsChanged,
    ];

    /// Its name, as it is on the wire: the noun, a dot, and what became of it.
    pub fn name(self) -> &'static str {
        match self {
            What::VmCreated => "vm.created",
            What::VmChanged => "vm.changed",
            What::VmState => "vm.state",
            What::VmRebooted => "vm.rebooted",
            What::VmHealth => "vm.health",
            What::VmDiskFull => "vm.disk-full",
            What::VmDiskRoom => "vm.disk-room",
            What::VmRestarting => "vm.restarting",
            What::VmRemoved => "vm.removed",
            What::ImageChanged => "image.changed",
            What::ImageRemoved => "image.removed",
            What::SnapshotCreated => "snapshot.created",
            What::SnapshotRemoved => "snapshot.removed",
            What::NetworkCreated => "network.created",
            What::NetworkChanged => "network.changed",
            What::NetworkRemoved => "network.removed",
            What::SecgroupCreated => "secgroup.created",
            What::SecgroupChanged => "secgroup.changed",
            What::SecgroupRemoved => "secgroup.removed",
            What::VolumeCreated => "volume.created",
            What::VolumeRemoved => "volume.removed",
            What::OperationStarted => "operation.started",
            What::OperationEnded => "operation.ended",
            What::LimitsChanged => "limits.changed",
        }
    }

    /// The noun that it happened to: `vm`, `image` …
    pub fn noun(self) -> &'static str {
        self.name().split('.').next().unwrap_or_default()
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<What, String> {
        What::ALL.into_iter().find(|what| what.name() == text).ok_or_else(|| {
            let names = What::ALL.map(What::name).join(", ");
            format!("nothing that happens is called {text:?}; there are: {names}")
        })
    }
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Its place in the order of all: later ones have greater numbers, also after the service began anew.
    pub revision: u64,
    /// When it was seen.
    pub at: Timestamp,
    /// What it was.
    pub event: What,
    /// The identity of the VM or snapshot; nothing for what has only a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name of what it happened to.
    pub name: String,
    /// The project of what it happened to; none if it is the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// The state that a VM is in now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// How it ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// What there is to say besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Event {
    /// Something that is not in the order yet: the store gives it its place.
    pub fn new(event: What, id: Option<&str>, name: &str) -> Event {
        Event {
            revision: 0,
            at: Timestamp::now(),
            event,
            id: id.map(str::to_string),
            name: name.to_string(),
            project: None,
            state: None,
            end: None,
            message: None,
        }
    }

    /// The same, in a project.
    pub fn within(self, project: &ProjectName) -> Event {
        Event { project: Some(project.clone()), ..self }
    }

    /// Whether it tells of something in this project. Those of releases before projects say none, and are of `default`.
    pub fn is_of(&self, project: &ProjectName) -> bool {
        match &self.project {
            Some(of) => of == project,
            None => project.is_default() && !self.is_of_host(),
        }
    }

    /// Whether it tells of what is in no project.
    pub fn is_of_host(&self) -> bool {
        self.project.is_none()
            && !["vm", "snapshot", "network", "secgroup", "volume"].contains(&self.event.noun())
    }
}

/// Where a stream of events begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Since {
    /// With what happens from now on.
    #[default]
    Now,
    /// With what comes after a revision.
    Revision(u64),
    /// With what happened from that moment on.
    Moment(Timestamp),
}

impl FromStr for Since {
    type Err = String;

    /// A revision, or how long ago: `90s`, `10m`, `2h`, `1d`.
    fn from_str(text: &str) -> Result<Since, String> {
        let wrong = || format!("{text:?} is no revision like 1234, and no time like 90s, 10m, 2h or 1d");
        if let Ok(revision) = text.parse() {
            return Ok(Since::Revision(revision));
        }
        let unit = text.chars().last().ok_or_else(wrong)?;
        let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| wrong())?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        let ago = number.saturating_mul(seconds);
        Ok(Since::Moment(Timestamp { unix_s: Timestamp::now().unix_s.saturating_sub(ago) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_wire() {
        for what in What::ALL {
            assert_eq!(serde_json::to_string(&what).unwrap(), format!("{:?}", what.name()));
            assert_eq!(what.name().parse(), Ok(what));
        }
        assert!("vm.exploded".parse::<What>().unwrap_err().contains("vm.created"));
        assert_eq!(What::SecgroupChanged.noun(), "secgroup");
    }

    #[test]
    fn an_event_is_of_one_project_or_of_the_host() {
        let (default, acme) = (ProjectName::default(), "acme".parse::<ProjectName>().unwrap());
        for what in What::ALL {
            let event = Event::new(what, None, "x");
            let is_of_host = ["image", "operation", "limits"].contains(&what.noun());
            assert_eq!(event.is_of_host(), is_of_host, "{what}");
            assert_eq!((event.is_of(&default), event.is_of(&acme)), (!is_of_host, false), "{what}");
            let event = event.within(&acme);
            assert_eq!((event.is_of(&default), event.is_of(&acme)), (false, true), "{what}");
            assert!(!event.is_of_host());
        }
    }

    #[test]
    fn a_beginning_is_a_revision_or_a_time() {
        assert_eq!("17".parse(), Ok(Since::Revision(17)));
        let Ok(Since::Moment(then)) = "2h".parse::<Since>() else { panic!() };
        assert!(Timestamp::now().unix_s - then.unix_s >= 7200);
        assert!("99999999999999999999d".parse::<Since>().is_err(), "no number");
        assert_eq!("9999999999999999999d".parse(), Ok(Since::Moment(Timestamp { unix_s: 0 })));
        for wrong in ["", "h", "-3", "3 h", "3w", "1.5h", "é"] {
            assert!(wrong.parse::<Since>().is_err(), "{wrong}");
        }
    }
}
