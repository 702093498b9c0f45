//! Every endpoint of the host service, once: the server dispatches on [`Route`], so that one without a
//! handler does not compile, and the client builds its requests from the same line.
pub use crate::encoding::{decode, encode, query_value};
pub use crate::finding::{NoRoute, allowed, find};
pub use crate::method::Method;
pub use crate::route::Route;

/// What a successful answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One JSON document.
    Json,
    /// JSON documents, one a line, as they happen; the last one is the outcome.
    Lines,
    /// Plain bytes, as they happen.
    Bytes,
    /// Server-sent events, as they happen (WHATWG HTML, 9.2).
    Events,
    /// `101 Switching Protocols`: from then on a byte stream both ways.
    Stream,
    /// `101 Switching Protocols`: from then on a WebSocket (RFC 6455).
    Socket,
}

/// One line of the contract.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Its name in the code.
    pub route: Route,
    /// Its method.
    pub method: Method,
    /// Its path; `{…}` stands for one segment, which is percent-encoded.
    pub path: &'static str,
    /// What a successful answer is.
    pub answer: Answer,
    /// What it does, with the types of request and answer.
    pub summary: &'static str,
}

const fn line(
    route: Route,
    method: Method,
    path: &'static str,
    answer: Answer,
    summary: &'static str,
) -> Endpoint {
    Endpoint { route, method, path, answer, summary }
}

/// The upgrade protocol's name in `Upgrade:` (RFC 9110 §7.8).
pub const UPGRADE: &str = "vivarium-stream";

/// Every endpoint.
pub const TABLE: &[Endpoint] = &[
    line(Route::Info, Method::Get, "/v1/info", Answer::Json, "the service and its host (Info)"),
    line(Route::OpenApi, Method::Get, "/v1/openapi.json", Answer::Json, "this contract, as OpenAPI 3.1"),
    line(
        Route::Metrics,
        Method::Get,
        "/metrics",
        Answer::Bytes,
        "what the service and its VMs do, as Prometheus reads it (text format 0.0.4)",
    ),
    line(
        Route::Authority,
        Method::Get,
        "/v1/authority",
        Answer::Json,
        "where the service listens, and whose certificate its clients have to trust (Authority)",
    ),
    line(
        Route::TokenList,
        Method::Get,
        "/v1/tokens",
        Answer::Json,
        "the tokens and certificates that were given out, without their secrets ([Pass])",
    ),
    line(
        Route::TokenCreate,
        Method::Post,
        "/v1/tokens",
        Answer::Json,
        "make a token, which is shown this once (PassCreate -> TokenMade)",
    ),
    line(
        Route::TokenRemove,
        Method::Delete,
        "/v1/tokens/{token}",
        Answer::Json,
        "take a token or a certificate back, at once (Pass)",
    ),
    line(
        Route::TicketCreate,
        Method::Post,
        "/v1/tickets",
        Answer::Json,
        "make a ticket, for the one who asks: it opens one WebSocket at this path, once, soon (TicketCreate -> Ticket)",
    ),
    line(
        Route::CertificateIssue,
        Method::Post,
        "/v1/certificates",
        Answer::Json,
        "issue a client's certificate, whose key is shown this once (PassCreate -> CertificateMade)",
    ),
    line(
        Route::AuditList,
        Method::Get,
        "/v1/audit",
        Answer::Json,
        "the last changes, consoles and commands, oldest first; ?last=N, 1000 if it is not said ([AuditEntry])",
    ),
    line(
        Route::AuditVerify,
        Method::Get,
        "/v1/audit/verify",
        Answer::Json,
        "whether the audit log is whole and unchanged (AuditVerified)",
    ),
    line(
        Route::Events,
        Method::Get,
        "/v1/events",
        Answer::Events,
        "what happens, in order: after ?since=REVISION (or 10m, 2h), ?follow=true goes on, of ?event=KIND,… and ?of=NAME (Event…)",
    ),
    line(
        Route::LimitsGet,
        Method::Get,
        "/v1/limits",
        Answer::Json,
        "how much of the host VMs may have, and have (HostLimits)",
    ),
    line(
        Route::LimitsSet,
        Method::Post,
        "/v1/limits",
        Answer::Json,
        "let VMs have so much from now on (Limits -> HostLimits)",
    ),
    line(
        Route::ProjectList,
        Method::Get,
        "/v1/projects",
        Answer::Json,
        "the projects that who asks may see, by name ([Project])",
    ),
    line(
        Route::ProjectCreate,
        Method::Post,
        "/v1/projects",
        Answer::Json,
        "make a project (ProjectCreate -> Project)",
    ),
    line(Route::ProjectGet, Method::Get, "/v1/projects/{project}", Answer::Json, "a project (Project)"),
    line(
        Route::ProjectRemove,
        Method::Delete,
        "/v1/projects/{project}",
        Answer::Json,
        "forget a project in which nothing is left (Project)",
    ),
    line(
        Route::VmList,
        Method::Get,
        "/v1/vms",
        Answer::Json,
        "all VMs, oldest first, or those that ?name, ?state, ?label, ?image, ?network say; ?limit=N so many at a time; ?watch=true as they change ([Vm])",
    ),
    line(
        Route::VmCreate,
        Method::Post,
        "/v1/vms",
        Answer::Json,
        "describe a VM, start it if asked to; ?dry-run=true only says what it would be, ?warm=true lets it go on from where a guest of the same image had booted (VmCreate -> Vm)",
    ),
    line(
        Route::VmGet,
        Method::Get,
        "/v1/vms/{vm}",
        Answer::Json,
        "a VM by name, id or the beginning of its id (Vm)",
    ),
    line(
        Route::VmRemove,
        Method::Delete,
        "/v1/vms/{vm}",
        Answer::Json,
        "forget a VM; ?force=true kills it first (Vm)",
    ),
    line(
        Route::VmUpdate,
        Method::Post,
        "/v1/vms/{vm}/update",
        Answer::Json,
        "change what is said of it, the machine only while it does not run (VmUpdate -> Vm)",
    ),
    line(
        Route::VmStart,
        Method::Post,
        "/v1/vms/{vm}/start",
        Answer::Json,
        "start a VM that does not run (VmStart -> Vm)",
    ),
    line(Route::VmPause, Method::Post, "/v1/vms/{vm}/pause", Answer::Json, "let its vCPUs stand still (Vm)"),
    line(Route::VmResume, Method::Post, "/v1/vms/{vm}/resume", Answer::Json, "let its vCPUs go on (Vm)"),
    line(
        Route::VmDiskAttach,
        Method::Post,
        "/v1/vms/{vm}/disks",
        Answer::Json,
        "give it one more disk, also while it runs (DiskSpec -> Vm)",
    ),
    line(
        Route::VmDiskDetach,
        Method::Delete,
        "/v1/vms/{vm}/disks/{disk}",
        Answer::Json,
        "take a disk from it, when its guest lets it go; disks count from 0 (Vm)",
    ),
    line(
        Route::VmShareAttach,
        Method::Post,
        "/v1/vms/{vm}/shares",
        Answer::Json,
        "give it one more directory of the host, also while it runs; its agent mounts it (ShareSpec -> Vm)",
    ),
    line(
        Route::VmShareDetach,
        Method::Delete,
        "/v1/vms/{vm}/shares/{share}",
        Answer::Json,
        "take a directory from it, unless its guest uses it; ?force=true all the same; directories count from 0 (Vm)",
    ),
    line(
        Route::VmNicAttach,
        Method::Post,
        "/v1/vms/{vm}/nics",
        Answer::Json,
        "give it a further network card, also while it runs (NicAttach -> Vm)",
    ),
    line(
        Route::VmNicDetach,
        Method::Delete,
        "/v1/vms/{vm}/nics/{nic}",
        Answer::Json,
        "take a network card from it, when its guest lets it go; cards count from 0 (Vm)",
    ),
    line(
        Route::VmDiskLimits,
        Method::Post,
        "/v1/vms/{vm}/disks/{disk}/limits",
        Answer::Json,
        "how fast a disk may be from now on; disks count from 0 (DiskLimits -> Vm)",
    ),
    line(
        Route::VmDiskSize,
        Method::Post,
        "/v1/vms/{vm}/disks/{disk}/size",
        Answer::Json,
        "let a disk of a running VM grow, and tell its guest; disks count from 0 (DiskSize -> Vm)",
    ),
    line(
        Route::VmStop,
        Method::Post,
        "/v1/vms/{vm}/stop",
        Answer::Json,
        "power button, then kill; answers after the end (VmStop -> Vm)",
    ),
    line(
        Route::VmMemory,
        Method::Post,
        "/v1/vms/{vm}/memory",
        Answer::Json,
        "ask a running guest to get by with less memory, or let it have more (VmMemory -> Vm)",
    ),
    line(
        Route::VmKill,
        Method::Post,
        "/v1/vms/{vm}/kill",
        Answer::Json,
        "end it now; answers after the end (VmKill -> Vm)",
    ),
    line(
        Route::VmWait,
        Method::Get,
        "/v1/vms/{vm}/wait",
        Answer::Json,
        "answers when it does not run any more, or is what ?state= says: running, healthy, removed …; within ?timeout=SECONDS (Vm)",
    ),
    line(
        Route::VmStats,
        Method::Get,
        "/v1/vms/{vm}/stats",
        Answer::Json,
        "what it has used and done since its boot, or had at its end (VmStats)",
    ),
    line(
        Route::VmLogs,
        Method::Get,
        "/v1/vms/{vm}/logs",
        Answer::Bytes,
        "its serial output; ?follow=true goes on until it ends",
    ),
    line(
        Route::VmConsole,
        Method::Post,
        "/v1/vms/{vm}/console",
        Answer::Stream,
        "its serial console: the last output, then both ways",
    ),
    line(
        Route::VmConsoleSocket,
        Method::Get,
        "/v1/vms/{vm}/console",
        Answer::Socket,
        "the same over a WebSocket: binary messages both ways; {\"resize\": ConsoleSize} says how large its terminal is",
    ),
    line(
        Route::VmConsoleSize,
        Method::Post,
        "/v1/vms/{vm}/console/size",
        Answer::Json,
        "the terminal that shows its console has this size; its guest is told (ConsoleSize -> null)",
    ),
    line(
        Route::VmAgent,
        Method::Post,
        "/v1/vms/{vm}/agent",
        Answer::Stream,
        "a connection to its agent; ?wait=SECONDS waits until it is there, and on, up to ?boot=SECONDS, while the guest boots",
    ),
    line(
        Route::VmAgentSocket,
        Method::Get,
        "/v1/vms/{vm}/agent",
        Answer::Socket,
        "a command in it over a WebSocket: first {\"exec\": Exec}, then binary messages, each of which begins with a byte for standard input (0), output (1) or error (2)",
    ),
    line(
        Route::VmConnect,
        Method::Post,
        "/v1/vms/{vm}/connect/{port}",
        Answer::Stream,
        "a connection to a TCP port of it, through its network, published or not; it ends at once if nothing listens there",
    ),
    line(
        Route::VmConnectSocket,
        Method::Get,
        "/v1/vms/{vm}/connect/{port}",
        Answer::Socket,
        "the same over a WebSocket: binary messages both ways",
    ),
    line(
        Route::NetworkList,
        Method::Get,
        "/v1/networks",
        Answer::Json,
        "the networks that VMs share, with their VMs ([Network])",
    ),
    line(
        Route::NetworkCreate,
        Method::Post,
        "/v1/networks",
        Answer::Json,
        "make a network (NetworkCreate -> Network)",
    ),
    line(
        Route::NetworkGet,
        Method::Get,
        "/v1/networks/{network}",
        Answer::Json,
        "a network by name (Network)",
    ),
    line(
        Route::NetworkRemove,
        Method::Delete,
        "/v1/networks/{network}",
        Answer::Json,
        "forget a network that no VM is in (Network)",
    ),
    line(
        Route::NetworkConnect,
        Method::Post,
        "/v1/networks/{network}/vms",
        Answer::Json,
        "plug a VM into it, also while it runs: by a card that is plugged into nothing, or by a further one (NetworkConnect -> Vm)",
    ),
    line(
        Route::NetworkDisconnect,
        Method::Delete,
        "/v1/networks/{network}/vms/{vm}",
        Answer::Json,
        "take a VM out of it, at once, and its card from it when its guest lets it go (Vm)",
    ),
    line(
        Route::PortList,
        Method::Get,
        "/v1/ports",
        Answer::Json,
        "the ports of all VMs with a network card: addresses, limits, what has passed ([Port])",
    ),
    line(
        Route::PortGet,
        Method::Get,
        "/v1/vms/{vm}/port",
        Answer::Json,
        "a VM's first port, or with ?network=NAME that one, as with all that follow (Port)",
    ),
    line(
        Route::PortLimits,
        Method::Post,
        "/v1/vms/{vm}/port/limits",
        Answer::Json,
        "how much may pass a VM's card from now on (NicLimits -> Port)",
    ),
    line(
        Route::PortRebind,
        Method::Post,
        "/v1/vms/{vm}/port/rebind",
        Answer::Json,
        "give a VM's card another address, and its guest another lease, also while it runs (Port)",
    ),
    line(
        Route::PortCapture,
        Method::Get,
        "/v1/vms/{vm}/port/capture",
        Answer::Bytes,
        "what passes a VM's port, as pcapng, until it is closed or the VM's plug is pulled",
    ),
    line(
        Route::SecGroupList,
        Method::Get,
        "/v1/secgroups",
        Answer::Json,
        "the security groups, with their rules and VMs ([SecGroupInfo])",
    ),
    line(
        Route::SecGroupCreate,
        Method::Post,
        "/v1/secgroups",
        Answer::Json,
        "make a security group (SecGroupCreate -> SecGroupInfo)",
    ),
    line(
        Route::SecGroupGet,
        Method::Get,
        "/v1/secgroups/{group}",
        Answer::Json,
        "a security group by name (SecGroupInfo)",
    ),
    line(
        Route::SecGroupRemove,
        Method::Delete,
        "/v1/secgroups/{group}",
        Answer::Json,
        "forget a security group that no VM is in and no rule names (SecGroupInfo)",
    ),
    line(
        Route::SecGroupRuleAdd,
        Method::Post,
        "/v1/secgroups/{group}/rules",
        Answer::Json,
        "add a rule, which takes effect at once (RuleAdd -> SecGroupInfo)",
    ),
    line(
        Route::SecGroupRuleRemove,
        Method::Delete,
        "/v1/secgroups/{group}/rules/{number}",
        Answer::Json,
        "take a rule out, counted from 1, at once also for open flows (SecGroupInfo)",
    ),
    line(
        Route::SecGroupJoin,
        Method::Post,
        "/v1/secgroups/{group}/vms",
        Answer::Json,
        "put a VM into it, also while it runs (SecGroupJoin -> Vm)",
    ),
    line(
        Route::SecGroupLeave,
        Method::Delete,
        "/v1/secgroups/{group}/vms/{vm}",
        Answer::Json,
        "take a VM out of it, also while it runs (Vm)",
    ),
    line(
        Route::Explain,
        Method::Post,
        "/v1/explain",
        Answer::Json,
        "would a flow be let through, and what decides (Explain -> Explanation)",
    ),
    line(Route::ImageList, Method::Get, "/v1/images", Answer::Json, "the images in the store ([Image])"),
    line(
        Route::ImageBuild,
        Method::Post,
        "/v1/images/{image}/build",
        Answer::Lines,
        "build an image (ImageBuild -> BuildLine…)",
    ),
    line(Route::ImageGet, Method::Get, "/v1/images/{image}", Answer::Json, "an image by its name (Image)"),
    line(
        Route::ImageDetails,
        Method::Get,
        "/v1/images/{image}/details",
        Answer::Json,
        "what is in it and where it came from (ImageDetails)",
    ),
    line(
        Route::ImageVerify,
        Method::Post,
        "/v1/images/{image}/verify",
        Answer::Json,
        "read all of it and compare it with its digests (ImageVerified)",
    ),
    line(
        Route::ImageTag,
        Method::Post,
        "/v1/images/{image}/tags",
        Answer::Json,
        "give it one more name (ImageTag -> Image)",
    ),
    line(
        Route::ImagePrune,
        Method::Post,
        "/v1/prune/images",
        Answer::Json,
        "remove what no image has, and downloads that broke off (Pruned)",
    ),
    line(Route::VolumeList, Method::Get, "/v1/volumes", Answer::Json, "all volumes, by name ([Volume])"),
    line(
        Route::VolumeCreate,
        Method::Post,
        "/v1/volumes",
        Answer::Json,
        "make a volume, empty (VolumeCreate -> Volume)",
    ),
    line(Route::VolumeGet, Method::Get, "/v1/volumes/{volume}", Answer::Json, "a volume (Volume)"),
    line(
        Route::VolumeRemove,
        Method::Delete,
        "/v1/volumes/{volume}",
        Answer::Json,
        "remove a volume that no VM is described with, and what is in it (Volume)",
    ),
    line(
        Route::Prune,
        Method::Post,
        "/v1/prune",
        Answer::Json,
        "remove what nothing that is listed has (HostPrune -> HostPruned)",
    ),
    line(Route::ImageRemove, Method::Delete, "/v1/images/{image}", Answer::Json, "remove an image (Image)"),
    line(
        Route::SnapshotCreate,
        Method::Post,
        "/v1/vms/{vm}/snapshots",
        Answer::Json,
        "save a live VM's state, memory and disks as they are at one moment (SnapshotCreate -> Snapshot)",
    ),
    line(
        Route::SnapshotList,
        Method::Get,
        "/v1/snapshots",
        Answer::Json,
        "all snapshots, oldest first ([Snapshot])",
    ),
    line(
        Route::SnapshotGet,
        Method::Get,
        "/v1/snapshots/{snapshot}",
        Answer::Json,
        "a snapshot by name, id or the beginning of its id (Snapshot)",
    ),
    line(
        Route::SnapshotRemove,
        Method::Delete,
        "/v1/snapshots/{snapshot}",
        Answer::Json,
        "remove a snapshot; VMs that came from it live on (Snapshot)",
    ),
    line(
        Route::SnapshotVerify,
        Method::Post,
        "/v1/snapshots/{snapshot}/verify",
        Answer::Json,
        "read all of it and compare it with its checksums (Snapshot)",
    ),
    line(
        Route::SnapshotDiff,
        Method::Post,
        "/v1/snapshots/{snapshot}/diff",
        Answer::Json,
        "what differs between it and another one (SnapshotOther -> SnapshotDiff)",
    ),
    line(
        Route::SnapshotExport,
        Method::Post,
        "/v1/snapshots/{snapshot}/export",
        Answer::Lines,
        "write it to a new tar file of the host (SnapshotFile -> WorkLine<Snapshot>…)",
    ),
    line(
        Route::SnapshotImport,
        Method::Post,
        "/v1/snapshots/import",
        Answer::Lines,
        "take one from a tar file of the host, after comparing all of it with its checksums (SnapshotFile -> WorkLine<Snapshot>…)",
    ),
    line(
        Route::SnapshotRestore,
        Method::Post,
        "/v1/snapshots/{snapshot}/restore",
        Answer::Json,
        "a new VM that goes on from it (SnapshotRestore -> Vm)",
    ),
    line(
        Route::VmRollback,
        Method::Post,
        "/v1/vms/{vm}/rollback",
        Answer::Json,
        "the VM goes on from a snapshot of it; what it has become since is lost (VmRollback -> Vm)",
    ),
    line(
        Route::VmFork,
        Method::Post,
        "/v1/vms/{vm}/fork",
        Answer::Json,
        "new VMs that go on from where a live one is, beside it (VmFork -> [Vm])",
    ),
    line(
        Route::VmCommit,
        Method::Post,
        "/v1/vms/{vm}/commit",
        Answer::Lines,
        "make an image of a VM that does not run (ImageCommit -> BuildLine…)",
    ),
    line(
        Route::VmExport,
        Method::Post,
        "/v1/vms/{vm}/export",
        Answer::Lines,
        "write a disk of a VM that does not run, or the VM as an OVA, to a new file of the host (DiskExport -> WorkLine<Exported>…)",
    ),
    line(
        Route::ImagePush,
        Method::Post,
        "/v1/images/{image}/push",
        Answer::Lines,
        "send an image to a registry (ImagePush -> WorkLine<Pushed>…)",
    ),
    line(
        Route::ImageExport,
        Method::Post,
        "/v1/images/{image}/export",
        Answer::Lines,
        "write an image to a new file of the host: an OCI archive, or an OVA (ImageExport -> WorkLine<Exported>…)",
    ),
    line(
        Route::ImageImport,
        Method::Post,
        "/v1/images/import",
        Answer::Lines,
        "make an image of a machine of another program, which is in files of the host (ImageImport -> WorkLine<Imported>…)",
    ),
    line(
        Route::OperationList,
        Method::Get,
        "/v1/operations",
        Answer::Json,
        "long works, oldest first: those that go on, and the last thousand that have ended ([Operation])",
    ),
    line(
        Route::OperationGet,
        Method::Get,
        "/v1/operations/{operation}",
        Answer::Json,
        "a long work by its number: how far it is, or what became of it (Operation)",
    ),
    line(
        Route::OperationFollow,
        Method::Get,
        "/v1/operations/{operation}/lines",
        Answer::Lines,
        "a long work as it goes on, to its end (WorkLine…)",
    ),
    line(
        Route::OperationCancel,
        Method::Post,
        "/v1/operations/{operation}/cancel",
        Answer::Json,
        "have a long work give up; it ends a moment later (Operation)",
    ),
];

impl Route {
    /// Its line of [`TABLE`].
    pub fn endpoint(self) -> &'static Endpoint {
        TABLE.iter().find(|line| line.route == self).expect("a test finds every route in the table")
    }

    /// Its path with `arguments` in the places of `{…}`.
    pub fn path(self, arguments: &[&str]) -> String {
        let mut arguments = arguments.iter();
        let mut path = String::new();
        for segment in self.endpoint().path.split('/').skip(1) {
            path.push('/');
            match segment.starts_with('{') {
                true => path.push_str(&encode(arguments.next().copied().unwrap_or_default())),
                false => path.push_str(segment),
            }
        }
        path
    }
}

#[cfg(test)]
mod tests;
