//! The `viv` command.
fn main() {}
