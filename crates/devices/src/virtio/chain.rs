//! A descriptor chain as the device sees it: what it may read, then what it may write.

use super::CHAIN_LEN_MAX;
use crate::Unfit;
use viv_arch::saved::{ChainSaved, SegmentSaved};
use viv_mem::{Gpa, GuestMemory};

/// A piece of guest memory. The queue has checked that it is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub gpa: Gpa,
    /// Bytes, not 0.
    pub len: u32,
}

/// A descriptor chain, without its empty buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    /// What the device may read.
    pub readable: Vec<Segment>,
    /// What the device may write.
    pub writable: Vec<Segment>,
}

impl Chain {
    pub(super) fn new(head: u16) -> Chain {
        Chain { head, readable: Vec::new(), writable: Vec::new() }
    }

    /// For a saved state.
    pub(super) fn save(&self) -> ChainSaved {
        let each = |segment: &Segment| SegmentSaved { gpa: segment.gpa.0, len: segment.len };
        ChainSaved {
            head: self.head,
            readable: self.readable.iter().map(each).collect(),
            writable: self.writable.iter().map(each).collect(),
        }
    }

    /// From a saved state: all of it must be memory.
    pub(super) fn load(saved: &ChainSaved, memory: &GuestMemory) -> Result<Chain, Unfit> {
        let each = |segment: &SegmentSaved| {
            let segment = Segment { gpa: Gpa(segment.gpa), len: segment.len };
            let range = memory.host_range(segment.gpa, u64::from(segment.len));
            range.map(|_| segment).map_err(|error| Unfit::new(format!("a buffer: {error}")))
        };
        if saved.readable.len() + saved.writable.len() > CHAIN_LEN_MAX {
            return Err(Unfit::new("a descriptor chain that is too long"));
        }
        let all = |segments: &[SegmentSaved]| segments.iter().map(each).collect::<Result<_, Unfit>>();
        Ok(Chain { head: saved.head, readable: all(&saved.readable)?, writable: all(&saved.writable)? })
    }

    pub(super) fn set_head(&mut self, head: u16) {
        self.head = head;
    }

    /// What gives the chain back to its queue: its first descriptor's index in a split ring, its ID in a packed one.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies up to `data.len()` readable bytes from `offset`; returns how many there were.
    pub fn read_at(&self, memory: &GuestMemory, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in cut(&self.readable, offset, data.len() as u64) {
            let target = data.get_mut(done..done + piece.len as usize);
            let Some(target) = target else { break };
            if memory.read(piece.gpa, target).is_err() {
                break;
            }
            done += target.len();
        }
        done
    }

    /// Copies `data` into the writable bytes from `offset`; returns how much fitted.
    pub fn write_at(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in cut(&self.writable, offset, data.len() as u64) {
            let source = data.get(done..done + piece.len as usize);
            let Some(source) = source else { break };
            if memory.write(piece.gpa, source).is_err() {
                break;
            }
            done += source.len();
        }
        done
    }
}

/// Bytes in `segments`.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The part of `segments` that holds bytes `offset` to `offset + len`, as far as there are any.
pub fn cut(segments: &[Segment], offset: u64, len: u64) -> Vec<Segment> {
    let (mut skip, mut left) = (offset, len);
    let mut pieces = Vec::new();
    for segment in segments {
        let whole = u64::from(segment.len);
        if left == 0 {
            break;
        }
        if skip >= whole {
            skip -= whole;
            continue;
        }
        let take = (whole - skip).min(left);
        let Some(gpa) = segment.gpa.checked_add(skip) else { break };
        // take <= segment.len, which is a u32.
        pieces.push(Segment { gpa, len: take as u32 });
        (skip, left) = (0, left - take);
    }
    pieces
}
