//! A network of VMs that needs no privilege: VMs reach one another as by a switch, and the outside as by a router whose
//! every flow ends here and goes on as a socket of the host.
//!
//! ```text
//!  cards ◄─ a socket pair each ─► Engine: input.rs looks who sent it
//!             ├─ ARP, neighbours and routers of IPv6, DHCP, DNS: answered here
//!             ├─ to another card: handed to its port, if Filter lets it pass
//!             └─ to the outside: Nat ─┬─ TCP: tcp.rs, a peer for each connection ◄─► a socket
//!                                     └─ UDP, echo: datagram.rs, a socket for each flow
//! ```
//! One thread does it all, woken by ports, by sockets (edge-triggered), by [`Controls`] and by deadlines. When a port is
//! full, nothing more is read from the sockets of its flows: the guest's slowness reaches whoever sends to it. What other
//! VMs send to a full port is lost, as on any switch. The guests choose every number, and each table has a bound.

pub mod address;
mod command;
#[cfg(test)]
mod crowd;
mod datagram;
mod dhcp;
mod discovery;
mod dns;
mod engine;
mod filter;
mod fragments;
mod frame;
mod input;
#[cfg(test)]
mod insight;
mod limit;
mod listen;
mod nat;
#[cfg(test)]
mod neighbours;
pub mod nft;
mod pipe;
mod poll;
mod ports;
#[cfg(test)]
mod published;
mod queue;
pub mod rules;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble;

pub use command::{Controls, PlugError};
pub use engine::Engine;
pub use input::parse_frame;
pub use listen::{ListenError, Listeners, resolver};
