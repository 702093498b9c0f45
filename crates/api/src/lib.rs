//! The contract between command and host service.
pub mod agent;
