//! The nouns of Vivarium: what a VM is asked to be ([`MachineSpec`]), where it is in its life
//! ([`State`], [`next`]), how it ended ([`End`]), and errors that say what to do ([`Fault`]).
//!
//! No I/O, no threads, no clock: plain data that every other crate shares.
#![forbid(unsafe_code)]

mod console;
mod end;
mod fault;
mod file;
mod guest_name;
mod health;
mod lifecycle;
mod limits;
mod network;
mod nic;
mod prefix6;
mod program;
mod project;
mod restart;
mod room;
mod secgroup;
mod share;
mod snapshot;
mod spec;
mod tmpfs;
mod volume;

pub use console::{CONSOLE_PORTS_MAX, ConsolePortSpec};
pub use end::End;
pub use fault::{Fault, Kind};
pub use file::{FILES_MAX, FileSpec};
pub use guest_name::{
    HOSTNAME_PARAMETER, check_hostname, hostname_in, hostname_of, hostname_word, without_hostname,
};
pub use health::{HEALTH_OUTPUT_MAX, Health, HealthAsk, HealthCheck, HealthLook, HealthState};
pub use lifecycle::{Ask, Refused, State, next};
pub use limits::{CPU_RATIO_USUAL, DISK_RATIO_USUAL, Limits, MEMORY_RATIO_USUAL, Need};
pub use network::{
    Attachment, NetworkSpec, PACKET_BYTES, PortCounters, RuleCounter, Subnet, SwitchCounters, Traffic,
};
pub use nic::{CARDS_MAX, NetKind, NicCreate, NicLimits, NicSpec, PORTS_MAX, PortSpec, Protocol};
pub use prefix6::Prefix6;
pub use program::{CHAIN_PORT, GuestKind, PROGRAM_MEMORY_MIB_USUAL, ProgramSpec};
pub use project::ProjectName;
pub use restart::Restart;
pub use room::Room;
pub use secgroup::{Carrier, Direction, GROUPS_MAX, Label, Peer, RULES_MAX, Rule, SecGroup};
pub use share::{SHARES_MAX, ShareMount, ShareSpec};
pub use snapshot::{Content, DiskContent, Layer, Manifest, Plain, SavedParts, Section};
pub use spec::{
    Accel, CPU_LIMIT_MIN, CPU_WEIGHT_USUAL, CPU_WEIGHTS, CPUS_MAX, DISK_TIMES_NS, DiskFormat, DiskLimits,
    DiskSpec, ImageDiskSpec, MEMORY_MIB_MIN, MEMORY_MIB_USUAL, MEMORY_STEP_MIB, MachineSpec, OnFull,
    SoftSpec, check_processor_time,
};
pub use tmpfs::{TMPFS_PARAMETER, TmpfsMount};
pub use volume::{
    VOLUME_DISK_PARAMETER, VOLUME_PARAMETER, VOLUMES_MAX, VolumeMount, check_volume, check_volume_name,
    check_volumes, volume_disk_of, volume_of, volume_word,
};
