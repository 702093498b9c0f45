//! One VM's process.
