//! Maps of sparse files (GNU tar manual, "Storing Sparse Files").
use super::pax::number;
use crate::fault::damaged;
use viv_model::Fault;

/// A piece of a file that has content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it begins in the file, bytes.
    pub(crate) offset: u64,
    /// Bytes of it.
    pub(crate) length: u64,
}

/// Offsets and lengths in turn.
pub(super) fn from_pairs(numbers: &[u64]) -> Result<Vec<Segment>, Fault> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(damaged("the map of a sparse file ends with an offset"));
    };
    Ok(pairs.iter().map(|[offset, length]| Segment { offset: *offset, length: *length }).collect())
}

/// Segments stand in order, in the file, and have as much content as was stored.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), Fault> {
    let (mut end, mut content) = (0u64, 0u64);
    for segment in segments {
        let next = segment.offset.checked_add(segment.length).filter(|end| *end <= size);
        let Some(next) = next.filter(|_| segment.offset >= end) else {
            return Err(damaged("the map of a sparse file has pieces out of order or behind its end"));
        };
        end = next;
        content = content.saturating_add(segment.length);
    }
    if content == stored {
        Ok(())
    } else {
        Err(damaged(format!("a sparse file has {stored} bytes of content, and its map {content}")))
    }
}

/// A pax 1.0 map as it is read: the count of segments, then offsets and lengths, a line each.
#[derive(Default)]
pub(super) struct Lines {
    digits: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl Lines {
    pub(super) fn complete(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() as u64 >= count.saturating_mul(2))
    }

    pub(super) fn read(&mut self, record: &[u8]) -> Result<(), Fault> {
        for byte in record {
            if self.complete() {
                break;
            }
            if *byte != b'\n' {
                self.digits.push(*byte);
                continue;
            }
            let number = number(&std::mem::take(&mut self.digits));
            let number = number.ok_or_else(|| damaged("the map of a sparse file is none"))?;
            if self.count.is_none() {
                self.count = Some(number);
            } else {
                self.numbers.push(number);
            }
        }
        Ok(())
    }

    pub(super) fn segments(&self) -> Result<Vec<Segment>, Fault> {
        from_pairs(&self.numbers)
    }
}
