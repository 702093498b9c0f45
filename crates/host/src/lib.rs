//! One host's service.
