//! A board built from a table.
pub mod boot;
pub mod layout;
