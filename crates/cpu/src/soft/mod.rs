//! The software CPU.

pub mod fpu;
