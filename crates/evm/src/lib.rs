//! An Ethereum chain as a virtual machine.
//!
//! ```text
//!  clients ──► server (HTTP) ─┬─► rpc (methods) ──► chain ──► exec (revm)
//!              socket (WS) ───┘     │                 │  └──► store (a log on disk)
//!                                   └── workers       └─────► state ──► trie
//! ```
//! The state is a persistent trie: a snapshot, a fork and an old block's state are clones of it that cost a pointer. Calls
//! run on such a clone, on threads of their own, under a gas cap and a watch.
//!
//! This crate never takes part in a network of nodes and never keeps a key of value: its accounts are everybody's.
//! Start reading at [`chain`].
#![forbid(unsafe_code)]

pub mod accounts;
pub mod chain;
pub mod client;
pub mod exec;
pub mod hardfork;
pub mod hold;
pub mod memory;
pub mod node;
pub mod remote;
pub mod rpc;
pub mod server;
pub mod socket;
pub mod state;
pub mod store;
pub mod trie;
pub mod workers;
