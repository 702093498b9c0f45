//! Chores: `cargo xtask NAME`.
fn main() {}
