//! System behaviour (paging, privilege, exceptions, mode switches) in small guests of its own.
//!
//! Each guest is a list of probes: a few instructions, and the trace that the manuals demand of them. The same
//! guest runs on the software CPU, again with a save and a load at each probe, and in the lab (`VIVARIUM_LAB`) on
//! KVM. A difference that is right there has its own trace, with the reason.
//!
//! Start reading at [`exceptions`]; how to write a probe is in [`guest`].

mod code;
mod debug;
mod events;
mod exceptions;
mod guest;
mod image;
mod modes;
mod paging;
mod protected;
mod trace;
mod transfers;
mod units;
