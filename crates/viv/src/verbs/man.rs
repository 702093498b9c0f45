//! `viv man`: the manual page, made from the same grammar as the help texts.
use crate::cli::Cli;
use crate::output;
use clap::{Arg, Command, CommandFactory};
use viv_model::Fault;

pub(crate) fn run() -> Result<u8, Fault> {
    output::print(&page());
    Ok(0)
}

/// The page for man(1), in the macros of man(7).
fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let mut page = format!(".TH VIV 1 \"\" \"viv {}\"\n", env!("CARGO_PKG_VERSION"));
    let about = root.get_about().map(ToString::to_string).unwrap_or_default();
    page.push_str(&format!(".SH NAME\nviv \\- {}\n", escape(&about)));
    page.push_str(".SH SYNOPSIS\n.B viv\n[OPTIONS] VERB ...\n.SH OPTIONS\n");
    arguments(&root, &mut page, true);
    page.push_str(".SH VERBS\n");
    for verb in root.get_subcommands_mut().filter(|verb| !verb.is_hide_set()) {
        describe(verb, &mut page);
    }
    if let Some(notes) = root.get_after_help() {
        page.push_str(&format!(".SH NOTES\n{}", preformatted(&notes.to_string())));
    }
    page
}

fn describe(verb: &mut Command, page: &mut String) {
    let usage = verb.render_usage().to_string();
    let usage = usage.trim().trim_start_matches("Usage: ");
    page.push_str(&format!(".SS {}\n", escape(usage)));
    let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
    page.push_str(&format!("{}.\n", escape(&about)));
    arguments(verb, page, false);
    if let Some(notes) = verb.get_after_help() {
        page.push_str(&preformatted(&notes.to_string()));
    }
    for inner in verb.get_subcommands_mut() {
        describe(inner, page);
    }
}

/// Options that every verb has stand at the begin of the page only.
fn arguments(command: &Command, page: &mut String, of_all: bool) {
    let is_of_all = |arg: &Arg| arg.is_global_set() || arg.get_id() == "help";
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set() && (of_all || !is_of_all(arg)));
    for arg in shown {
        let short = arg.get_short().filter(|_| arg.get_long().is_some());
        let short = short.map(|short| format!("-{short}, ")).unwrap_or_default();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        page.push_str(&format!(".TP\n.B {}\n{}\n", escape(&format!("{short}{arg}")), escape(&help)));
    }
}

fn preformatted(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escape).collect();
    format!(".PP\n.nf\n{}\n.fi\n", lines.join("\n"))
}

/// Text that is no macro: hyphens that can be typed, backslashes and dots as they are.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
