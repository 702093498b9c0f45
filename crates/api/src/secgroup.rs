//! Security groups as the host service shows and takes them.
use serde::{Deserialize, Serialize};
use viv_model::{ProjectName, Rule};

/// A group to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SecGroupCreate {
    /// Its name.
    pub name: String,
    /// Its first rules.
    pub rules: Vec<Rule>,
}

/// A rule to add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RuleAdd {
    /// As users write it: `in tcp/5432 from group:web`.
    pub rule: String,
}

/// A VM that joins a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SecGroupJoin {
    /// Its name or id.
    pub vm: String,
    /// Only its card in this network joins.
    pub network: Option<String>,
}

/// A group, with the VMs that are in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SecGroupInfo {
    /// Its name.
    pub name: String,
    /// The project that it belongs to: only VMs of it are in it.
    #[serde(default)]
    pub project: ProjectName,
    /// Its rules, which are counted from 1.
    pub rules: Vec<Rule>,
    /// For each rule, how often it has decided in the networks that run: about a flow, or about a packet that it denied.
    #[serde(default)]
    pub decided: Vec<u64>,
    /// The names of its VMs.
    pub vms: Vec<String>,
}

/// Would a flow be let through, and why?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Explain {
    /// Who opens it: a VM's name or id, or an address outside.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What it carries: `tcp/5432`, `udp/53`, `icmp`.
    pub what: String,
}

/// What decides about a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// It would be let through.
    pub allowed: bool,
    /// What decides, a sentence each, in the order in which the flow meets it; the last one denies it, if it is denied.
    pub because: Vec<String>,
}
