//! The table in the documentation.
use super::*;

/// The table in `docs/api.md` is this one. VIV_GOLDEN=1 writes it anew.
#[test]
fn the_documentation_has_the_same_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- table -->\n").expect("where the table begins");
    let (_, after) = rest.split_once("<!-- end -->\n").expect("where the table ends");
    let mut table = String::from("| request | answer | what it does |\n|---|---|---|\n");
    for Endpoint { method, path, answer, summary, .. } in TABLE {
        let answer = match answer {
            Answer::Json => "JSON",
            Answer::Lines => "JSON lines",
            Answer::Bytes => "bytes",
            Answer::Events => "events",
            Answer::Stream => "stream",
            Answer::Socket => "WebSocket",
        };
        table.push_str(&format!("| `{method} {path}` | {answer} | {summary} |\n"));
    }
    let now = format!("{before}<!-- table -->\n{table}<!-- end -->\n{after}");
    if std::env::var_os("VIV_GOLDEN").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    assert_eq!(text, now, "docs/api.md differs; write it anew: VIV_GOLDEN=1 cargo test -p viv-api");
}
