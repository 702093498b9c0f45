//! `viv wait`: until VMs are something.
use super::Context;
use super::lifecycle::each_vm;
use std::time::{Duration, Instant};
use viv_api::client::Request;
use viv_api::contract::WAIT_S_MAX;
use viv_api::endpoint::Route;
use viv_api::goal::Goal;
use viv_model::Fault;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit status: 0 when all are that, 7 when the time is over, 4 for one that has ended and cannot be it any more."
)]
pub(crate) struct Args {
    /// What to wait for: running, paused, healthy, unhealthy, ended, stopped, failed, removed
    #[arg(long, value_name = "STATE", default_value = "ended")]
    state: Goal,
    /// Give up after this many seconds, and say so by the exit status 7
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=WAIT_S_MAX))]
    timeout: Option<u64>,
    /// Names or ids
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let deadline = args.timeout.map(|limit| Instant::now() + Duration::from_secs(limit));
    each_vm(context, &args.vms, |name| {
        let mut query = format!("state={}", args.state);
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            query.push_str(&format!("&timeout={}", left.as_millis().div_ceil(1000)));
        }
        context.client.json(Request::new(Route::VmWait, &[name]).query(query)).map(Some)
    })
}
