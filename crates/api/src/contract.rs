//! What holds for each endpoint besides its line of the table: who may use it, what its query may say, whether it takes a body.
//! The matches on roles have no default: an endpoint without one does not compile.
use crate::encoding::decode;
use crate::endpoint::{Answer, Method, Route};
use crate::operation::OperationKind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use viv_model::{Fault, Kind, NetKind};

/// The longest that a request waits for an agent, seconds.
pub const AGENT_WAIT_S_MAX: u64 = 3600;

/// The longest limit that a request may have, seconds.
pub const WAIT_S_MAX: u64 = 24 * 3600;

/// Most characters of a text in a query.
pub const TEXT_MAX: usize = 1024;

/// What somebody may do; each may do all that those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look at everything but secrets and what is in guests.
    Viewer,
    /// And let VMs come, run and go, save them, and be in them: console and commands.
    Operator,
    /// And all the rest: files of the host, images, networks, tokens, the audit log.
    Admin,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Operator, Role::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Role, String> {
        Role::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| format!("no role is called {text:?}; there are viewer, operator and admin"))
    }
}

/// Whose is what an endpoint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// In no project: everybody may have it. Who is bound to a project sees that one of the projects.
    Everybody,
    /// A project's: what is named is looked up there, and nowhere else. `?project=` says which.
    Project,
    /// A project's, but nothing for those who are bound to one: it is done with files, networks or limits of the host.
    Owner,
    /// The host's: nothing for those who are bound to a project.
    Host,
}

impl Reach {
    /// Whether `?project=` means something.
    pub fn is_of_project(self) -> bool {
        matches!(self, Reach::Project | Reach::Owner)
    }

    /// Whether those who are bound to a project may have it.
    pub fn is_for_bound(self) -> bool {
        matches!(self, Reach::Project | Reach::Everybody)
    }
}

/// What a value of a query may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `true` or `false`; nothing is `true`.
    Flag,
    /// A number of seconds, up to [`AGENT_WAIT_S_MAX`].
    Seconds,
    /// A number of seconds, up to [`WAIT_S_MAX`]; for ever, if it is not said.
    Limit,
    /// A number from 1 to 100,000.
    Count,
    /// How many of a list, from 1 to 100,000; all, if it is not said.
    Part,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Text of up to [`TEXT_MAX`] characters; none is as if it were not said.
    Text,
}

/// One value that a query may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub shape: Shape,
    /// What it does.
    pub does: &'static str,
}

const fn parameter(name: &'static str, shape: Shape, does: &'static str) -> Parameter {
    Parameter { name, shape, does }
}

const LIMIT: Parameter = parameter("limit", Shape::Part, "so many at most; Link leads to the next ones");
const AFTER: Parameter =
    parameter("after", Shape::Text, "only what comes after this place, which Link names");
const NAME: Parameter = parameter("name", Shape::Text, "only what is called so; * stands for anything");
const LIST: &[Parameter] = &[NAME, LIMIT, AFTER];
const NETWORK: &[Parameter] =
    &[parameter("network", Shape::Text, "the port in this network; the first one, if it is not said")];
const AGENT_WAIT: Parameter = parameter("wait", Shape::Seconds, "how long to wait for the agent");
const AGENT_BOOT: Parameter = parameter("boot", Shape::Seconds, "how long to wait on while the guest boots");
const TICKET: Parameter = parameter(
    "ticket",
    Shape::Text,
    "a ticket for this path, in the place of a token, which a page cannot send with a WebSocket",
);
const DETACH: Parameter = parameter(
    "detach",
    Shape::Flag,
    "answer at once with the operation (202), which goes on by itself, also when the service begins anew",
);
const LINES: Parameter =
    parameter("lines", Shape::Flag, "answer with JSON lines, as things happen; the last one is the outcome");

const PROJECT: Parameter = parameter(
    "project",
    Shape::Text,
    "the project in which this is; that of who asks, or default, if it is not said",
);
const ALL_PROJECTS: Parameter =
    parameter("all-projects", Shape::Flag, "of all projects that who asks may see");

impl Route {
    /// The least role that may use it over the network. What names files of the host takes an admin besides.
    pub fn role(self) -> Role {
        use Route::*;
        match self {
            Info | Events | LimitsGet | ProjectList | ProjectGet | OpenApi | Metrics | Authority | VmList
            | VmGet | VmWait | VmStats | VmLogs | NetworkList | NetworkGet | PortList | PortGet
            | SecGroupList | SecGroupGet | Explain | ImageList | ImageGet | ImageDetails | SnapshotList
            | SnapshotGet | VolumeList | VolumeGet | OperationList | OperationGet => Role::Viewer,
            VmCreate | VmRemove | VmUpdate | VmStart | VmPause | VmResume | VmStop | VmKill | VmMemory
            | VmConsole | VmConsoleSocket | VmConsoleSize | VmAgent | VmAgentSocket | VmConnect
            | VmConnectSocket | TicketCreate | ImageBuild | ImageVerify | SnapshotCreate | SnapshotRemove
            | SnapshotVerify | SnapshotDiff | SnapshotRestore | VmRollback | VmFork | VolumeCreate
            | VolumeRemove | OperationFollow | OperationCancel => Role::Operator,
            VmDiskLimits | VmDiskSize | VmDiskAttach | VmDiskDetach | VmShareAttach | VmShareDetach
            | VmNicAttach | VmNicDetach | VmCommit | VmExport | NetworkCreate | NetworkRemove
            | NetworkConnect | NetworkDisconnect | PortLimits | PortRebind | PortCapture | SecGroupCreate
            | SecGroupRemove | SecGroupRuleAdd | SecGroupRuleRemove | SecGroupJoin | SecGroupLeave
            | ImageTag | ImagePrune | Prune | ImagePush | ImageExport | ImageImport | ImageRemove
            | SnapshotExport | SnapshotImport | TokenList | TokenCreate | TokenRemove | CertificateIssue
            | AuditList | AuditVerify | LimitsSet | ProjectCreate | ProjectRemove => Role::Admin,
        }
    }

    /// Whether what it makes knows its request, by `Idempotency-Key`: then it may be asked for again, and is there once.
    pub fn may_be_repeated(self) -> bool {
        matches!(self, Route::VmCreate | Route::SnapshotRestore | Route::VmFork)
    }

    /// Whose it is.
    pub fn reach(self) -> Reach {
        use Route::*;
        match self {
            OpenApi | Authority | TicketCreate | ImageList | ImageGet | ImageDetails | ImageVerify
            | ImageBuild | ProjectList | ProjectGet => Reach::Everybody,
            Info | Events | Metrics | LimitsGet | VmList | VmCreate | VmGet | VmRemove | VmUpdate
            | VmStart | VmPause | VmResume | VmStop | VmKill | VmMemory | VmWait | VmStats | VmLogs
            | VmConsole | VmConsoleSocket | VmConsoleSize | VmAgent | VmAgentSocket | VmConnect
            | VmConnectSocket | VmDiskLimits | VmDiskSize | VmDiskAttach | VmDiskDetach | VmShareAttach
            | VmShareDetach | VmNicAttach | VmNicDetach | NetworkList | NetworkGet | NetworkConnect
            | NetworkDisconnect | PortList | PortGet | PortLimits | PortRebind | PortCapture
            | SecGroupList | SecGroupGet | SecGroupJoin | SecGroupLeave | Explain | SnapshotCreate
            | SnapshotList | SnapshotGet | SnapshotRemove | SnapshotVerify | SnapshotDiff
            | SnapshotRestore | VmRollback | VmFork | VolumeList | VolumeCreate | VolumeGet
            | VolumeRemove | OperationList | OperationGet | OperationFollow | OperationCancel => {
                Reach::Project
            }
            LimitsSet | VmCommit | VmExport | NetworkCreate | NetworkRemove | SecGroupCreate
            | SecGroupRemove | SecGroupRuleAdd | SecGroupRuleRemove | SnapshotExport | SnapshotImport => {
                Reach::Owner
            }
            ImageTag | ImagePrune | Prune | ImagePush | ImageExport | ImageImport | ImageRemove
            | TokenList | TokenCreate | TokenRemove | CertificateIssue | AuditList | AuditVerify
            | ProjectCreate | ProjectRemove => Reach::Host,
        }
    }

    /// Whether it is a list that may be of all projects.
    fn is_of_all_projects(self) -> bool {
        use Route::*;
        matches!(
            self,
            Events
                | VmList
                | NetworkList
                | PortList
                | SecGroupList
                | SnapshotList
                | VolumeList
                | OperationList
        )
    }

    /// What its query may say.
    pub fn parameters(self) -> Vec<Parameter> {
        let project = self.reach().is_of_project().then_some(PROJECT);
        let all = self.is_of_all_projects().then_some(ALL_PROJECTS);
        self.own_parameters().iter().copied().chain(project).chain(all).collect()
    }

    fn own_parameters(self) -> &'static [Parameter] {
        use Route::*;
        match self {
            Events => {
                const {
                    &[
                        parameter(
                            "since",
                            Shape::Text,
                            "after this revision, or from so long ago on: 10m, 2h",
                        ),
                        parameter("follow", Shape::Flag, "go on as things happen"),
                        parameter("event", Shape::Text, "only these kinds, with commas between them"),
                        parameter("of", Shape::Text, "only of what is called so"),
                    ]
                }
            }
            VmList => {
                const {
                    &[
                        NAME,
                        parameter(
                            "state",
                            Shape::Text,
                            "only those in one of these states, with commas between them",
                        ),
                        parameter(
                            "label",
                            Shape::Text,
                            "only those with these labels, NAME or NAME=VALUE, with commas between them",
                        ),
                        parameter("image", Shape::Text, "only those of this image; * stands for anything"),
                        parameter("network", Shape::Text, "only those in this network"),
                        LIMIT,
                        AFTER,
                        parameter(
                            "watch",
                            Shape::Flag,
                            "go on with those that change, as server-sent events",
                        ),
                        parameter(
                            "since",
                            Shape::Text,
                            "with watch: only what has changed after this revision",
                        ),
                    ]
                }
            }
            ImageList | NetworkList | SnapshotList => LIST,
            VmWait => {
                const {
                    &[
                        parameter(
                            "state",
                            Shape::Text,
                            "what it is waited for to be: running, healthy …; ended, if it is not said",
                        ),
                        parameter("timeout", Shape::Limit, "how long at most"),
                    ]
                }
            }
            VmCreate => {
                const {
                    &[
                        parameter("dry-run", Shape::Flag, "only say what it would be"),
                        parameter(
                            "warm",
                            Shape::OneOf(&["false", "true", "auto"]),
                            "go on from where a guest of the same image had booted; auto: an image of containers, if it can",
                        ),
                    ]
                }
            }
            VmRemove => const { &[parameter("force", Shape::Flag, "kill it first, if it runs")] },
            VmDiskDetach | VmShareDetach => {
                const { &[parameter("force", Shape::Flag, "also if its guest uses it")] }
            }
            VmNicDetach => {
                const { &[parameter("force", Shape::Flag, "has no effect: a guest lets its cards go")] }
            }
            VmLogs => const { &[parameter("follow", Shape::Flag, "go on until it ends")] },
            VmAgent => &[AGENT_WAIT, AGENT_BOOT],
            VmAgentSocket => &[AGENT_WAIT, AGENT_BOOT, TICKET],
            VmConsoleSocket | VmConnectSocket => &[TICKET],
            AuditList => const { &[parameter("last", Shape::Count, "how many, at most")] },
            PortGet | PortLimits | PortRebind | PortCapture | SecGroupLeave => NETWORK,
            OperationList => {
                const {
                    &[
                        NAME,
                        parameter(
                            "state",
                            Shape::Text,
                            "only those in one of these states, with commas between them",
                        ),
                        LIMIT,
                        AFTER,
                    ]
                }
            }
            _ if self.may_tell_lines() => &[DETACH, LINES],
            _ if self.is_long_work() => &[DETACH],
            _ => &[],
        }
    }

    /// Whether it begins a long work of which is answered what it has made, or, if that is asked for, lines.
    pub fn may_tell_lines(self) -> bool {
        self.is_long_work() && self.endpoint().answer == Answer::Json
    }

    /// Whether it begins a long work, an [`Operation`](crate::operation::Operation).
    pub fn is_long_work(self) -> bool {
        OperationKind::ALL.iter().any(|kind| kind.route() == self)
    }

    /// Whether it takes a JSON document.
    pub fn takes_body(self) -> bool {
        use Route::*;
        self.endpoint().method == Method::Post
            && !matches!(
                self,
                VmPause
                    | VmResume
                    | VmConsole
                    | VmAgent
                    | VmConnect
                    | PortRebind
                    | ImageVerify
                    | ImagePrune
                    | SnapshotVerify
                    | OperationCancel
            )
    }

    /// Whether a request without a document cannot be what is meant; else it is an empty document.
    pub fn needs_body(self) -> bool {
        use Route::*;
        self.takes_body()
            && !matches!(
                self,
                VmCreate
                    | VmStart
                    | VmStop
                    | VmKill
                    | VmRollback
                    | VmFork
                    | VmNicAttach
                    | VmDiskLimits
                    | PortLimits
                    | ImageBuild
                    | Prune
                    | SnapshotCreate
                    | SnapshotRestore
            )
    }

    /// Checks a query: every name in it is known, once, with a value that it may have.
    pub fn check_query(self, query: &str) -> Result<(), Fault> {
        let refused = |why: String| {
            let allowed = self.parameters();
            let fix = match &allowed[..] {
                [] => "leave the query out".to_string(),
                _ => format!(
                    "it may have: {}",
                    allowed.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
                ),
            };
            Err(Fault::new(Kind::Usage, format!("the query was not understood: {why}"), fix))
        };
        let (known_ones, mut seen) = (self.parameters(), Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(known) = known_ones.iter().find(|known| known.name == name) else {
                return refused(format!("{} takes no {name:?}", self.endpoint().path));
            };
            if seen.contains(&name) {
                return refused(format!("{name:?} is there twice"));
            }
            seen.push(name);
            let Some(value) = decode(value) else {
                return refused(format!("the value of {name:?} is no percent-encoded UTF-8"));
            };
            match known.shape {
                Shape::Flag if ["", "true", "false"].contains(&value.as_str()) => {}
                Shape::Flag => return refused(format!("{name}={value:?}: use true or false")),
                Shape::Seconds if value.parse().is_ok_and(|s: u64| s <= AGENT_WAIT_S_MAX) => {}
                Shape::Seconds => {
                    return refused(format!("{name}={value:?}: use a number from 0 to {AGENT_WAIT_S_MAX}"));
                }
                Shape::Limit if value.parse().is_ok_and(|s: u64| s <= WAIT_S_MAX) => {}
                Shape::Limit => {
                    return refused(format!("{name}={value:?}: use a number from 0 to {WAIT_S_MAX}"));
                }
                Shape::Count | Shape::Part
                    if value.parse().is_ok_and(|n: u32| (1..=100_000).contains(&n)) => {}
                Shape::Count | Shape::Part => {
                    return refused(format!("{name}={value:?}: use a number from 1 to 100000"));
                }
                Shape::OneOf(all) if all.contains(&value.as_str()) => {}
                Shape::OneOf(all) => {
                    return refused(format!("{name}={value:?}: use one of {}", all.join(", ")));
                }
                Shape::Text if value.chars().count() <= TEXT_MAX => {}
                Shape::Text => {
                    return refused(format!(
                        "{name} has {} characters; use up to {TEXT_MAX}",
                        value.chars().count()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What of the host, besides VMs, a request names: its files, devices and processes are an admin's, and not another host's.
pub fn host_thing(route: Route, arguments: &[String], body: &[u8]) -> Option<&'static str> {
    use crate::image::is_disk_file;
    use Route::*;
    let in_file = |name: &str| {
        is_disk_file(name)
            || ["oci:", "oci-archive:", "docker-archive:"].iter().any(|way| name.starts_with(way))
    };
    match route {
        VmCreate => {
            let ask: crate::vm::VmCreate = serde_json::from_slice(body).unwrap_or_default();
            let cards = ask.cards().unwrap_or_default();
            let cloud = &ask.cloud_init;
            let things = [
                (ask.kernel.is_some() || ask.initrd.is_some(), "a kernel's file"),
                (ask.image.as_deref().is_some_and(in_file), "an image's file"),
                (!ask.disks.is_empty(), "a disk"),
                (!ask.shares.is_empty(), "a directory"),
                (!ask.files.is_empty(), "a file"),
                (ask.program.is_some_and(|program| program.kind.has_file()), "a program's file"),
                (cloud.user_data.is_some() || cloud.network_config.is_some(), "a file for cloud-init"),
                (ask.console_ports.iter().any(|port| port.path.is_some()), "a console port's socket"),
                (cards.iter().any(|card| card.net.is_of_kernel()), "a network interface"),
                (ask.attended_by.is_some(), "a process"),
            ];
            things.into_iter().find_map(|(is_there, what)| is_there.then_some(what))
        }
        VmStart => {
            let ask: crate::vm::VmStart = serde_json::from_slice(body).unwrap_or_default();
            ask.attended_by.map(|_| "a process")
        }
        ImageBuild => {
            let ask: crate::image::ImageBuild = serde_json::from_slice(body).unwrap_or_default();
            let in_file = arguments.first().is_some_and(|name| in_file(name));
            (ask.agent.is_some() || in_file).then_some("an image's file")
        }
        VmDiskAttach => Some("a disk"),
        VmShareAttach => Some("a directory"),
        VmExport | ImageExport | ImageImport | SnapshotExport | SnapshotImport => Some("a file"),
        _ => None,
    }
}

/// What a request names besides that is not for those who are bound to a project, of whatever role: networks of the host's kernel, and
/// those that reach the host itself, where the ports of all projects' VMs are.
pub fn host_network(route: Route, body: &[u8]) -> Option<&'static str> {
    let reaches_host = |net: &NetKind| net.is_of_kernel() || matches!(net, NetKind::User { host: true });
    let named = match route {
        Route::VmCreate => {
            let ask: crate::vm::VmCreate = serde_json::from_slice(body).unwrap_or_default();
            ask.cards().unwrap_or_default().iter().any(|card| reaches_host(&card.net))
        }
        Route::VmNicAttach => {
            let ask: crate::network::NicAttach = serde_json::from_slice(body).unwrap_or_default();
            reaches_host(&ask.net)
        }
        _ => false,
    };
    named.then_some("a network")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Answer, TABLE};

    #[test]
    fn what_may_be_in_a_project_takes_its_name_and_the_rest_does_not() {
        for endpoint in TABLE {
            let (route, reach) = (endpoint.route, endpoint.route.reach());
            assert_eq!(route.check_query("project=a").is_ok(), reach.is_of_project(), "{}", endpoint.path);
            if route.check_query("all-projects").is_ok() {
                assert_eq!((reach, endpoint.method), (Reach::Project, Method::Get), "{}", endpoint.path);
            }
            // What names VMs is in a project, always.
            let names_vms = ["/v1/vms", "/v1/snapshots", "/v1/ports", "/v1/networks", "/v1/secgroups"];
            if names_vms.iter().any(|path| endpoint.path.starts_with(path)) {
                assert!(reach.is_of_project(), "{}", endpoint.path);
            }
        }
    }

    #[test]
    fn networks_of_the_host_are_told_by_their_name() {
        let create = |text: &str| host_network(Route::VmCreate, text.as_bytes()).is_some();
        let attach = |text: &str| host_network(Route::VmNicAttach, text.as_bytes()).is_some();
        assert!(create(r#"{"net": "user,host"}"#) && create(r#"{"nics": [{"net": "bridge:br0"}]}"#));
        assert!(attach(r#"{"net": "user,host"}"#) && attach(r#"{"net": "tap:tap0"}"#));
        for text in [r#"{"net": "user"}"#, r#"{"net": "lan"}"#, "{}", ""] {
            assert!(!create(text) && !attach(text), "{text}");
        }
    }

    #[test]
    fn whoever_only_looks_changes_nothing() {
        for endpoint in TABLE {
            let looks = endpoint.method == Method::Get && endpoint.answer != Answer::Socket
                || endpoint.route == Route::Explain;
            assert!(looks || endpoint.route.role() > Role::Viewer, "{}", endpoint.path);
        }
        for inside in [Route::VmConsole, Route::VmAgentSocket, Route::VmConnect, Route::PortCapture] {
            assert!(inside.role() > Role::Viewer);
        }
        assert!(Role::ALL.is_sorted());
        assert!(Role::ALL.into_iter().all(|role| role.to_string().parse() == Ok(role)));
    }

    #[test]
    fn what_is_the_hosts_is_told_by_its_name() {
        let create = |text: &str| host_thing(Route::VmCreate, &[], text.as_bytes());
        assert_eq!(create(r#"{"image": "debian", "net": "user", "ports": ["8080:80"]}"#), None);
        assert_eq!(create(""), None);
        for (text, what) in [
            (r#"{"kernel": "/boot/vmlinuz"}"#, "a kernel's file"),
            (r#"{"image": "/etc/shadow"}"#, "an image's file"),
            (r#"{"disks": [{"path": "/dev/sda"}]}"#, "a disk"),
            (r#"{"shares": [{"path": "/", "target": "/x"}]}"#, "a directory"),
            (r#"{"files": [{"path": "/f", "target": "/x"}]}"#, "a file"),
            (r#"{"cloud_init": {"user_data": "/etc/shadow"}}"#, "a file for cloud-init"),
            (r#"{"console_ports": [{"name": "a", "path": "/tmp/a"}]}"#, "a console port's socket"),
            (r#"{"net": "tap:tap0"}"#, "a network interface"),
            (r#"{"nics": [{"net": "bridge:br0"}]}"#, "a network interface"),
            (r#"{"attended_by": {"pid": 1, "start_ticks": 1}}"#, "a process"),
            (r#"{"program": {"kind": "wasm", "file": "/srv/x.wasm"}}"#, "a program's file"),
        ] {
            assert_eq!(create(text), Some(what), "{text}");
        }
        let pull = |name: &str| host_thing(Route::ImageBuild, &[name.to_string()], b"{}");
        assert_eq!(pull("docker.io/library/nginx"), None);
        assert!(pull("oci:/srv/images:x").is_some() && pull("oci-archive:/x.tar").is_some());
    }

    #[test]
    fn a_query_is_checked_name_by_name() {
        let fault = |route: Route, query| route.check_query(query).unwrap_err().to_string();
        assert!(Route::VmRemove.check_query("force=true").is_ok());
        assert!(Route::VmRemove.check_query("force").is_ok());
        assert!(Route::VmAgent.check_query("wait=3&boot=60%30").is_ok());
        assert!(fault(Route::VmRemove, "froce=true").contains("\"froce\""));
        assert!(fault(Route::VmRemove, "froce=true").contains("force"));
        assert!(fault(Route::TokenList, "a=b").contains("leave the query out"));
        assert!(fault(Route::VmGet, "a=b").contains("it may have: project"));
        assert!(Route::VmList.check_query("state=running&label=tier%3Dweb&limit=2&watch").is_ok());
        assert!(fault(Route::VmList, "limit=0").contains("100000"));
        assert!(fault(Route::VmWait, "timeout=86401").contains("86400"));
        assert!(fault(Route::VmRemove, "force=maybe").contains("true or false"));
        assert!(fault(Route::VmAgent, "wait=-1").contains("3600"));
        assert!(fault(Route::VmAgent, "wait=1&wait=2").contains("twice"));
        assert!(Route::Events.check_query("follow=true&event=&of=&since=10m").is_ok());
        let long = format!("network={}", "x".repeat(1025));
        assert!(fault(Route::PortGet, &long).contains("1025 characters"));
        assert!(fault(Route::PortGet, "network=%ff").contains("UTF-8"));
    }
}
