//! What goes to standard output and standard error.
use serde::Serialize;
use std::io::{ErrorKind, Write};
use viv_api::client::ErrorBody;
use viv_model::Fault;

/// 128 + SIGPIPE: what a shell shows for a program whose reader went away.
const READER_GONE: i32 = 141;

/// Prints text as it is. A reader that went away (`| head`) ends the command without a complaint.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(READER_GONE),
        Err(error) => {
            eprintln!("viv: cannot write to standard output: {error}; see that its disk has space");
            std::process::exit(1);
        }
        Ok(()) => {}
    }
}

/// Prints a JSON document.
pub(crate) fn json<T: Serialize>(value: &T) {
    print(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"));
}

/// Prints an error on standard error.
pub(crate) fn fault(fault: &Fault, json: bool) {
    let text = match json {
        true => serde_json::to_string(&ErrorBody { error: fault.clone() }).unwrap_or_default(),
        // A message that goes on with the guest's last words has the way out on a line of its own.
        false if fault.message.contains('\n') => format!("viv: {}\nviv: {}", fault.message, fault.fix),
        false => format!("viv: {fault}"),
    };
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says something by the way, on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "viv: {text}");
}

/// Prints a table.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    print(&table_text(head, rows));
}

/// A table: columns as wide as they must be, two spaces between them.
pub(crate) fn table_text(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([title.len()]).max().unwrap_or_default()
        })
        .collect();
    let head: Vec<String> = head.iter().map(|title| title.to_string()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
