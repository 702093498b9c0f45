//! The software CPU.
