//! Network and vsock ports: real I/O of a VM's process, on threads of its own.
//!
//! ```text
//!  guest ◄─► devices::virtio::Vsock ◄─ machine implements vsock::VsockGuest ─► vsock::VsockMuxer ◄─► Unix sockets
//!  guest ◄─► devices::virtio::Net ◄─ machine: the card's thread ─► port::NetPort ◄─► switch::Engine ◄─► IP sockets
//! ```
//! This crate knows no device: what it needs of a guest is a trait that the machine implements.
//! Start reading at [`vsock`], or at [`switch`].
#![deny(unsafe_code)]

pub mod capture;
pub mod offload;
pub mod port;
pub mod switch;
pub mod tap;
pub mod vsock;
