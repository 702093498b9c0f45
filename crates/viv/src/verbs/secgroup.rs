//! `viv secgroup`: what may open a flow to a VM, or from it.
use super::{Context, each_of};
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::secgroup::{Explain, Explanation, RuleAdd, SecGroupCreate, SecGroupInfo, SecGroupJoin};
use viv_api::vm::Vm;
use viv_model::{Fault, Rule};

#[derive(clap::Args, Debug)]
#[command(after_help = "A rule: [allow|deny] in|out any|icmp|tcp[/PORT[-PORT]]|udp[/PORT[-PORT]]\n\
                  [from|to any|ADDRESS|CIDR|group:NAME|label:NAME=VALUE]. Whoever may open a flow is answered.\n\
                  A VM in no group may do all that its network lets it do. One in groups is reached only as a rule allows; what\n\
                  it opens itself needs a rule only if there is one with out. What denies is stronger than what allows.\n\n\
                  viv secgroup create db \"in tcp/5432 from group:web\" \"in icmp\"\n\
                  viv run -d --name db --net shop --secgroup db debian\n\
                  viv secgroup explain web db tcp/5432")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: SecGroupVerb,
}

#[derive(clap::Subcommand, Debug)]
enum SecGroupVerb {
    /// Make a security group
    Create {
        /// Its name
        name: String,
        /// Its first rules, each in quotes
        #[arg(value_name = "RULE")]
        rules: Vec<String>,
    },
    /// List security groups
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show the rules of a group, with their numbers, and its VMs
    Show {
        /// Its name
        group: String,
    },
    /// Forget groups that no VM is in
    Rm {
        /// Names
        #[arg(required = true, value_name = "GROUP")]
        groups: Vec<String>,
    },
    /// Add a rule; it takes effect at once
    AddRule {
        /// The group
        group: String,
        /// The rule, in quotes or not
        #[arg(required = true, value_name = "RULE")]
        rule: Vec<String>,
    },
    /// Take a rule out; at once, also for open flows
    RmRule {
        /// The group
        group: String,
        /// Its number: viv secgroup show
        number: String,
    },
    /// Put a VM into a group, also while it runs
    Join {
        /// The group
        group: String,
        /// Name or id
        vm: String,
        /// Only its card in this network
        #[arg(long, value_name = "NETWORK|user")]
        net: Option<String>,
    },
    /// Take a VM out of a group, also while it runs
    Leave {
        /// The group
        group: String,
        /// Name or id
        vm: String,
        /// Only its card in this network
        #[arg(long, value_name = "NETWORK|user")]
        net: Option<String>,
    },
    /// Say whether a flow would be let through, and which rule decides
    Explain {
        /// Who opens it: a VM, or an address outside
        from: String,
        /// To whom: a VM, or an address outside
        to: String,
        /// What: tcp/PORT, udp/PORT or icmp
        what: String,
    },
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let client = &context.client;
    match args.verb {
        SecGroupVerb::Create { name, rules } => {
            let rules = rules.iter().map(|rule| rule.parse()).collect::<Result<Vec<Rule>, Fault>>()?;
            let ask = SecGroupCreate { name, rules };
            let group: SecGroupInfo = client.json(Request::new(Route::SecGroupCreate, &[]).body(&ask))?;
            name_or_json(context, &group);
        }
        SecGroupVerb::Ls { quiet } => ls(context, quiet)?,
        SecGroupVerb::Show { group } => {
            let group = client.json(Request::new(Route::SecGroupGet, &[&group]))?;
            rules_or_json(context, &group);
        }
        SecGroupVerb::Rm { groups } => return rm(context, &groups),
        SecGroupVerb::AddRule { group, rule } => {
            let ask = RuleAdd { rule: rule.join(" ") };
            let group = client.json(Request::new(Route::SecGroupRuleAdd, &[&group]).body(&ask))?;
            rules_or_json(context, &group);
        }
        SecGroupVerb::RmRule { group, number } => {
            let group = client.json(Request::new(Route::SecGroupRuleRemove, &[&group, &number]))?;
            rules_or_json(context, &group);
        }
        SecGroupVerb::Join { group, vm, net } => {
            let ask = SecGroupJoin { vm, network: net };
            moved(context, &client.json(Request::new(Route::SecGroupJoin, &[&group]).body(&ask))?);
        }
        SecGroupVerb::Leave { group, vm, net } => {
            let query = net.map(|net| format!("network={net}")).unwrap_or_default();
            moved(context, &client.json(Request::new(Route::SecGroupLeave, &[&group, &vm]).query(&query))?);
        }
        SecGroupVerb::Explain { from, to, what } => {
            let ask = Explain { from, to, what };
            let explanation: Explanation = client.json(Request::new(Route::Explain, &[]).body(&ask))?;
            explain(context, &explanation);
        }
    }
    Ok(0)
}

fn name_or_json(context: &Context, group: &SecGroupInfo) {
    match context.json {
        true => output::json(group),
        false => output::print(&format!("{}\n", group.name)),
    }
}

/// The groups that the VM is in now.
fn moved(context: &Context, vm: &Vm) {
    match context.json {
        true => output::json(vm),
        false if vm.groups.is_empty() => {}
        false => output::print(&format!("{}\n", vm.groups.join(", "))),
    }
}

fn explain(context: &Context, explanation: &Explanation) {
    if context.json {
        return output::json(explanation);
    }
    let verdict = if explanation.allowed { "allowed" } else { "denied" };
    let because: String = explanation.because.iter().map(|line| format!("  {line}\n")).collect();
    output::print(&format!("{verdict}\n{because}"));
}

fn ls(context: &Context, quiet: bool) -> Result<(), Fault> {
    let groups: Vec<SecGroupInfo> = context.client.json(Request::new(Route::SecGroupList, &[]))?;
    if context.json {
        output::json(&groups);
    } else if quiet {
        output::print(&groups.iter().map(|group| group.name.clone() + "\n").collect::<String>());
    } else {
        let row = |group: &SecGroupInfo| {
            let vms = if group.vms.is_empty() { "-".to_string() } else { group.vms.join(", ") };
            vec![group.name.clone(), group.rules.len().to_string(), vms]
        };
        output::table(&["NAME", "RULES", "VMS"], &groups.iter().map(row).collect::<Vec<_>>());
    }
    Ok(())
}

fn rules_or_json(context: &Context, group: &SecGroupInfo) {
    if context.json {
        return output::json(group);
    }
    let vms = if group.vms.is_empty() { "none".to_string() } else { group.vms.join(", ") };
    output::print(&format!("group  {}\nVMs    {vms}\n\n", group.name));
    let rows = group.rules.iter().enumerate();
    let decided = |index: usize| group.decided.get(index).copied().unwrap_or(0).to_string();
    let rows = rows.map(|(index, rule)| vec![(index + 1).to_string(), rule.to_string(), decided(index)]);
    output::table(&["NUMBER", "RULE", "DECIDED"], &rows.collect::<Vec<_>>());
}

fn rm(context: &Context, names: &[String]) -> Result<u8, Fault> {
    let remove = |name: &str| context.client.json(Request::new(Route::SecGroupRemove, &[name])).map(Some);
    each_of(context, names, remove, |it: &SecGroupInfo| it.name.clone())
}
