//! The contract between command and host service.
