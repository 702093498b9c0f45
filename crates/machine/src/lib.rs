//! A board built from a table.
