//! A network for one guest that needs no privilege: the guest's flows end here and go on as sockets of the host.
//!
//! ```text
//!  card ◄─ NetPort ─► Engine ─┬─ ARP, DHCP: answered here
//!                             ├─ TCP: user/tcp.rs, a peer for each connection ◄─► a socket
//!                             └─ UDP, echo: user/datagram.rs, a socket for each flow
//! ```
//! One thread does it all, woken by the port, by sockets (edge-triggered) and by deadlines. When the port is full, nothing
//! more is read from sockets: the guest's slowness reaches whoever sends to it. The guest chooses every number, and each
//! table has a bound. [`Listeners`] are opened while the process still may, the rest needs only `socket(2)`.

pub mod address;
mod datagram;
mod dhcp;
mod engine;
mod frame;
mod input;
mod listen;
mod pipe;
mod tcp;
#[cfg(test)]
mod tests;

pub use engine::UserNet;
pub use input::parse_frame;
pub use listen::{ListenError, Listeners};
