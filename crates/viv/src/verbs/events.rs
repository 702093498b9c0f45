//! `viv events`: what happens, as it happens.
use super::Context;
use crate::output;
use std::io::{BufRead, BufReader, Read};
use std::thread::sleep;
use std::time::Duration;
use viv_api::client::Request;
use viv_api::endpoint::{Route, encode};
use viv_api::event::{Event, Since, What};
use viv_model::{End, Fault, Kind};

/// Most bytes of a line of the stream.
const LINE_MAX: u64 = 1 << 20;
/// How long to wait before a stream that broke off is taken up again.
const AGAIN: Duration = Duration::from_millis(200);
/// How often in a row without an event.
const TRIES: u32 = 25;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Begin after this revision, or so long ago: 1234, 90s, 10m, 2h, 1d [default: 1h; with -f only what is new]
    #[arg(long, value_name = "REVISION|TIME", value_parser = since)]
    since: Option<String>,
    /// Only these kinds: vm, image, snapshot, network, secgroup, or one like vm.state; several with commas
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kind)]
    event: Vec<String>,
    /// Only what happens to the VM, image or network of this name
    #[arg(value_name = "NAME")]
    of: Option<String>,
}

fn since(text: &str) -> Result<String, String> {
    text.parse::<Since>().map(|_| text.to_string())
}

fn kind(text: &str) -> Result<String, String> {
    match What::ALL.iter().any(|what| what.noun() == text) {
        true => Ok(text.to_string()),
        false => text.parse::<What>().map(|what| what.to_string()),
    }
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let default = if args.follow { "" } else { "1h" };
    let mut since = args.since.clone().unwrap_or_else(|| default.to_string());
    let mut tries = 0;
    loop {
        let mut query = format!("follow={}&event={}", args.follow, encode(&args.event.join(",")));
        query.push_str(&format!("&of={}", encode(args.of.as_deref().unwrap_or_default())));
        if !since.is_empty() {
            query.push_str(&format!("&since={since}"));
        }
        let read = context.client.open(Request::new(Route::Events, &[]).query(&query)).and_then(|body| {
            follow(body, |event| {
                (since, tries) = (event.revision.to_string(), 0);
                print(context, &event);
            })
        });
        match read {
            Ok(()) if !args.follow => return Ok(0),
            Err(fault) if !args.follow || fault.kind != Kind::Error || tries >= TRIES => return Err(fault),
            _ => {
                // The service was ended or replaced: the next one goes on where it was.
                tries += 1;
                sleep(AGAIN);
            }
        }
    }
}

/// Reads server-sent events (WHATWG HTML, 9.2.6): the data of each is one line here.
fn follow(body: impl Read, mut each: impl FnMut(Event)) -> Result<(), Fault> {
    let broken = |why: String| {
        Fault::new(Kind::Error, format!("the events broke off: {why}"), "ask for them again: viv events")
    };
    let mut reader = BufReader::new(body);
    let (mut line, mut is_gap) = (String::new(), false);
    loop {
        line.clear();
        let length = reader.by_ref().take(LINE_MAX).read_line(&mut line);
        if length.map_err(|error| broken(error.to_string()))? == 0 {
            return Ok(());
        }
        match line.trim_end().split_once(": ") {
            Some(("event", kind)) => is_gap = kind == "gap",
            Some(("data", _)) if is_gap => output::note("events from before are not kept any more"),
            Some(("data", data)) => {
                each(serde_json::from_str(data).map_err(|error| broken(error.to_string()))?)
            }
            _ => {}
        }
    }
}

fn print(context: &Context, event: &Event) {
    if context.json {
        output::print(&(serde_json::to_string(event).unwrap_or_default() + "\n"));
        return;
    }
    let mut words = vec![event.at.to_string(), event.event.to_string(), event.name.clone()];
    words.extend(event.state.map(|state| state.to_string()));
    words.extend(event.end.as_ref().map(|end| match end {
        End::Command { status } => format!("(command, status {status})"),
        End::Failed { message } => format!("({message})"),
        end => format!(
            "({})",
            serde_json::to_value(end).unwrap_or_default()["reason"].as_str().unwrap_or_default()
        ),
    }));
    words.extend(event.message.clone());
    output::print(&(words.join("  ") + "\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_signs_of_life_passed_over() {
        let text = "id: 4\nevent: vm.created\ndata: {\"revision\":4,\"at\":\"2026-11-21T08:00:00Z\",\
                    \"event\":\"vm.created\",\"name\":\"web\"}\n\n: nothing new\n\nevent: gap\ndata: {\"fix\":\"x\"}\n\n";
        let mut names = Vec::new();
        follow(text.as_bytes(), |event| names.push((event.revision, event.name))).unwrap();
        assert_eq!(names, [(4, "web".to_string())]);
        assert!(follow(&b"data: {\n"[..], drop).is_err());
        assert_eq!(follow(&b""[..], drop), Ok(()));
    }
}
