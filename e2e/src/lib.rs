//! Whole-product tests through the command.
