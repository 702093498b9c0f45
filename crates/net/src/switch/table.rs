//! Tables that are looked at for every packet.

use foldhash::quality::RandomState;
use std::collections::HashMap;

/// A table by hashes that are quick to compute, other ones in each process: a guest that chooses keys cannot know which
/// of them share a place.
pub(super) type Table<Key, Value> = HashMap<Key, Value, RandomState>;
