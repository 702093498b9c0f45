//! The names of the endpoints.

/// Names an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// See [`TABLE`]; so for all of them.
    Info,
    /// This contract.
    OpenApi,
    /// What Prometheus reads.
    Metrics,
    /// Whom to trust.
    Authority,
    /// List tokens and certificates.
    TokenList,
    /// Make a token.
    TokenCreate,
    /// Take a token or certificate back.
    TokenRemove,
    /// Make a ticket for a WebSocket.
    TicketCreate,
    /// Issue a client's certificate.
    CertificateIssue,
    /// What was done.
    AuditList,
    /// Whether what was done is all there.
    AuditVerify,
    /// What happens.
    Events,
    /// How much VMs may have.
    LimitsGet,
    /// Let VMs have more or less.
    LimitsSet,
    /// List projects.
    ProjectList,
    /// Make a project.
    ProjectCreate,
    /// One project.
    ProjectGet,
    /// Remove a project.
    ProjectRemove,
    /// List VMs.
    VmList,
    /// Create a VM.
    VmCreate,
    /// One VM.
    VmGet,
    /// Remove a VM.
    VmRemove,
    /// Change a VM.
    VmUpdate,
    /// Start a VM.
    VmStart,
    /// Pause a VM.
    VmPause,
    /// Resume a VM.
    VmResume,
    /// How fast a VM's disk may be.
    VmDiskLimits,
    /// Resize a VM's disk.
    VmDiskSize,
    /// Stop a VM.
    VmStop,
    /// Attach a disk.
    VmDiskAttach,
    /// Detach a disk.
    VmDiskDetach,
    /// Attach a shared directory.
    VmShareAttach,
    /// Detach a shared directory.
    VmShareDetach,
    /// Attach a network card.
    VmNicAttach,
    /// Detach a network card.
    VmNicDetach,
    /// Resize a VM's memory.
    VmMemory,
    /// Kill a VM.
    VmKill,
    /// Make an image of a VM.
    VmCommit,
    /// Write a VM's disk to a file.
    VmExport,
    /// Wait for a VM's end.
    VmWait,
    /// What a VM has used and done.
    VmStats,
    /// The serial output.
    VmLogs,
    /// The serial console.
    VmConsole,
    /// The serial console, over a WebSocket.
    VmConsoleSocket,
    /// The size of the serial console.
    VmConsoleSize,
    /// The guest agent.
    VmAgent,
    /// A command, over a WebSocket.
    VmAgentSocket,
    /// A stream to a TCP port.
    VmConnect,
    /// A stream to a TCP port, over a WebSocket.
    VmConnectSocket,
    /// List networks.
    NetworkList,
    /// Make a network.
    NetworkCreate,
    /// One network.
    NetworkGet,
    /// Remove a network.
    NetworkRemove,
    /// Plug a VM into a network.
    NetworkConnect,
    /// Take a VM out of a network.
    NetworkDisconnect,
    /// List ports.
    PortList,
    /// One VM's port.
    PortGet,
    /// How much may pass a VM's card.
    PortLimits,
    /// Another card and address for a VM.
    PortRebind,
    /// What passes a VM's port.
    PortCapture,
    /// List security groups.
    SecGroupList,
    /// Make a security group.
    SecGroupCreate,
    /// One security group.
    SecGroupGet,
    /// Remove a security group.
    SecGroupRemove,
    /// Add a rule.
    SecGroupRuleAdd,
    /// Take a rule out.
    SecGroupRuleRemove,
    /// Put a VM into a group.
    SecGroupJoin,
    /// Take a VM out of a group.
    SecGroupLeave,
    /// What decides about a flow.
    Explain,
    /// List images.
    ImageList,
    /// Build an image.
    ImageBuild,
    /// One image.
    ImageGet,
    /// What is in an image.
    ImageDetails,
    /// Check an image.
    ImageVerify,
    /// Give an image one more name.
    ImageTag,
    /// Remove what no image has.
    ImagePrune,
    /// All volumes.
    VolumeList,
    /// Make a volume.
    VolumeCreate,
    /// One volume.
    VolumeGet,
    /// Remove a volume.
    VolumeRemove,
    /// Remove what nothing that is listed has.
    Prune,
    /// Send an image to a registry.
    ImagePush,
    /// Write an image to a file.
    ImageExport,
    /// Make an image of a machine of another program.
    ImageImport,
    /// Remove an image.
    ImageRemove,
    /// Make a snapshot.
    SnapshotCreate,
    /// List snapshots.
    SnapshotList,
    /// One snapshot.
    SnapshotGet,
    /// Remove a snapshot.
    SnapshotRemove,
    /// Verify a snapshot.
    SnapshotVerify,
    /// Compare snapshots.
    SnapshotDiff,
    /// Write a snapshot to a file.
    SnapshotExport,
    /// Take a snapshot from a file.
    SnapshotImport,
    /// Go on from a snapshot.
    SnapshotRestore,
    /// Let a VM go on from a snapshot of it.
    VmRollback,
    /// Fork a VM.
    VmFork,
    /// List long works.
    OperationList,
    /// One long work.
    OperationGet,
    /// How a long work goes on.
    OperationFollow,
    /// Give up a long work.
    OperationCancel,
}
