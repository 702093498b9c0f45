//! A board built from a table.
pub mod acpi;
pub mod boot;
pub mod layout;
pub mod vsock;
