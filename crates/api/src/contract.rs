//! What holds for each endpoint besides its line of the table: who may use it, what its query may say, whether it takes a body.
//! The matches on roles have no default: an endpoint without one does not compile.
use crate::encoding::decode;
use crate::endpoint::{Method, Route};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use viv_model::{Fault, Kind};

/// The longest that a request waits for an agent, seconds.
pub const AGENT_WAIT_S_MAX: u64 = 3600;

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

/// What a value of a query may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `true` or `false`; nothing is `true`.
    Flag,
    /// A number of seconds, up to [`AGENT_WAIT_S_MAX`].
    Seconds,
    /// Text of 1 to 255 bytes.
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

const NETWORK: &[Parameter] =
    &[parameter("network", Shape::Text, "the port in this network; the first one, if it is not said")];
const JOB: &[Parameter] = &[parameter("job", Shape::Text, "names the work, so that it can be cancelled")];

impl Route {
    /// The least role that may use it over the network. What names files of the host takes an admin besides.
    pub fn role(self) -> Role {
        use Route::*;
        match self {
            Info | OpenApi | Metrics | VmList | VmGet | VmWait | VmStats | VmLogs | NetworkList
            | NetworkGet | PortList | PortGet | SecGroupList | SecGroupGet | Explain | ImageList
            | ImageGet | ImageDetails | SnapshotList | SnapshotGet => Role::Viewer,
            VmCreate | VmRemove | VmStart | VmPause | VmResume | VmStop | VmKill | VmMemory | VmConsole
            | VmConsoleSize | VmAgent | VmConnect | ImageBuild | ImageVerify | SnapshotCreate
            | SnapshotRemove | SnapshotVerify | SnapshotDiff | SnapshotRestore | VmRollback | VmFork
            | JobCancel => Role::Operator,
            VmDiskLimits | VmDiskSize | VmDiskAttach | VmDiskDetach | VmShareAttach | VmShareDetach
            | VmNicAttach | VmNicDetach | VmCommit | VmExport | NetworkCreate | NetworkRemove
            | NetworkConnect | NetworkDisconnect | PortLimits | PortRebind | PortCapture | SecGroupCreate
            | SecGroupRemove | SecGroupRuleAdd | SecGroupRuleRemove | SecGroupJoin | SecGroupLeave
            | ImageTag | ImagePrune | ImagePush | ImageExport | ImageImport | ImageRemove
            | SnapshotExport | SnapshotImport => Role::Admin,
        }
    }

    /// What its query may say.
    pub fn parameters(self) -> &'static [Parameter] {
        use Route::*;
        match self {
            VmRemove => const { &[parameter("force", Shape::Flag, "kill it first, if it runs")] },
            VmDiskDetach | VmShareDetach => {
                const { &[parameter("force", Shape::Flag, "also if its guest uses it")] }
            }
            VmNicDetach => {
                const { &[parameter("force", Shape::Flag, "has no effect: a guest lets its cards go")] }
            }
            VmLogs => const { &[parameter("follow", Shape::Flag, "go on until it ends")] },
            VmAgent => {
                const {
                    &[
                        parameter("wait", Shape::Seconds, "how long to wait for the agent"),
                        parameter("boot", Shape::Seconds, "how long to wait on while the guest boots"),
                    ]
                }
            }
            PortGet | PortLimits | PortRebind | PortCapture | SecGroupLeave => NETWORK,
            ImageBuild | VmCommit | VmExport | ImagePush | ImageExport | ImageImport => JOB,
            _ => &[],
        }
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
                    | SnapshotCreate
                    | SnapshotRestore
            )
    }

    /// Checks a query: every name in it is known, once, with a value that it may have.
    pub fn check_query(self, query: &str) -> Result<(), Fault> {
        let refused = |why: String| {
            let allowed = self.parameters();
            let fix = match allowed {
                [] => "leave the query out".to_string(),
                _ => format!(
                    "it may have: {}",
                    allowed.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
                ),
            };
            Err(Fault::new(Kind::Usage, format!("the query was not understood: {why}"), fix))
        };
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(known) = self.parameters().iter().find(|known| known.name == name) else {
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
                Shape::Text if (1..=255).contains(&value.len()) => {}
                Shape::Text => return refused(format!("{name} has {} bytes; use 1 to 255", value.len())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::TABLE;

    #[test]
    fn whoever_only_looks_changes_nothing() {
        for endpoint in TABLE {
            let looks = endpoint.method == Method::Get || endpoint.route == Route::Explain;
            assert!(looks || endpoint.route.role() > Role::Viewer, "{}", endpoint.path);
        }
        for inside in [Route::VmConsole, Route::VmAgent, Route::VmConnect, Route::PortCapture] {
            assert!(inside.role() > Role::Viewer);
        }
        assert!(Role::ALL.is_sorted());
        assert!(Role::ALL.into_iter().all(|role| role.to_string().parse() == Ok(role)));
    }

    #[test]
    fn a_query_is_checked_name_by_name() {
        let fault = |route: Route, query| route.check_query(query).unwrap_err().to_string();
        assert!(Route::VmRemove.check_query("force=true").is_ok());
        assert!(Route::VmRemove.check_query("force").is_ok());
        assert!(Route::VmAgent.check_query("wait=3&boot=60%30").is_ok());
        assert!(fault(Route::VmRemove, "froce=true").contains("\"froce\""));
        assert!(fault(Route::VmRemove, "froce=true").contains("force"));
        assert!(fault(Route::VmList, "a=b").contains("leave the query out"));
        assert!(fault(Route::VmRemove, "force=maybe").contains("true or false"));
        assert!(fault(Route::VmAgent, "wait=-1").contains("3600"));
        assert!(fault(Route::VmAgent, "wait=1&wait=2").contains("twice"));
        assert!(fault(Route::PortGet, "network=").contains("0 bytes"));
        assert!(fault(Route::PortGet, "network=%ff").contains("UTF-8"));
    }
}
