//! Network and vsock ports: real I/O.
