//! One host's service.
pub mod images;
