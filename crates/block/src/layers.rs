//! A disk in layers: each has the pieces in which it differs from those below it. What a VM has below its own disk when it goes on
//! from a differential snapshot; nobody writes to it.
//!
//! As a file, it is a text that names the others: `viv-layers 1`, `bytes N`, then a line for each layer, the top one first: its file, and
//! but for the lowest that of its map (docs/snapshot-format.md).

use crate::host_file::HostFile;
use crate::{Disk, Extent, OpenError, RawDisk, check_range};
use std::io;
use std::sync::Arc;

/// How the text begins.
pub(crate) const MAGIC: &str = "viv-layers 1\n";
/// Most bytes of the text.
const TEXT_MAX: u64 = 64 << 10;
const NAME: &str = "layers";

/// Which pieces a layer has: a bit for each, in ascending order from the lowest bit of the first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceMap {
    words: Vec<u64>,
    pieces: u64,
}

impl PieceMap {
    /// Bytes of a piece.
    pub const PIECE: u64 = 4 << 10;

    /// That of a layer which has nothing of so many bytes.
    pub fn new(bytes: u64) -> PieceMap {
        let pieces = bytes.div_ceil(PieceMap::PIECE);
        PieceMap { words: vec![0; pieces.div_ceil(64) as usize], pieces }
    }

    /// Bytes of the map of a layer of so many bytes.
    pub fn len_for(bytes: u64) -> u64 {
        bytes.div_ceil(PieceMap::PIECE).div_ceil(64).saturating_mul(8)
    }

    /// What [`PieceMap::to_bytes`] gave; none if it is of another length.
    pub fn of(bytes: u64, map: &[u8]) -> Option<PieceMap> {
        if map.len() as u64 != PieceMap::len_for(bytes) {
            return None;
        }
        let words = map.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Some(PieceMap { words, pieces: bytes.div_ceil(PieceMap::PIECE) })
    }

    /// As bytes, for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn has(&self, piece: u64) -> bool {
        let word = usize::try_from(piece / 64).ok().and_then(|word| self.words.get(word));
        piece < self.pieces && word.is_some_and(|word| word >> (piece % 64) & 1 != 0)
    }

    /// The layer has this piece.
    pub fn set(&mut self, piece: u64) {
        let word = usize::try_from(piece / 64).ok().and_then(|word| self.words.get_mut(word));
        if let Some(word) = word {
            *word |= 1 << (piece % 64);
        }
    }

    /// How far the pieces from this one on are like it, at most to `end`.
    fn run_end(&self, piece: u64, end: u64) -> u64 {
        let (has, end) = (self.has(piece), end.min(self.pieces).max(piece));
        let (mut at, same) = (piece, if has { u64::MAX } else { 0 });
        while at < end {
            let whole = at.is_multiple_of(64).then(|| self.words.get((at / 64) as usize)).flatten();
            match whole {
                Some(word) if *word == same => at = (at + 64).min(end),
                _ if self.has(at) == has => at += 1,
                _ => return at,
            }
        }
        end
    }
}

/// The layers as one disk, for reading.
pub struct Layers {
    size: u64,
    /// The top one first; the lowest has all, whatever its map.
    layers: Vec<Layer>,
}

/// A layer. Below its end, everything is zero.
pub struct Layer {
    /// What it has, each piece in its place.
    pub disk: Arc<dyn Disk>,
    /// Which pieces those are.
    pub map: PieceMap,
}

impl Layers {
    /// A disk of so many bytes over `layers`, the top one first, and the lowest.
    pub fn new(size: u64, mut layers: Vec<Layer>, lowest: Arc<dyn Disk>) -> Layers {
        layers.push(Layer { disk: lowest, map: PieceMap::new(0) });
        Layers { size, layers }
    }

    /// Which layer has what is at `at`, and up to where, at most `end`.
    fn run(&self, at: u64, end: u64) -> (Option<&Layer>, u64) {
        let (piece, mut until) = (at / PieceMap::PIECE, end.div_ceil(PieceMap::PIECE));
        for (index, layer) in self.layers.iter().enumerate() {
            let lowest = index + 1 == self.layers.len();
            if !lowest {
                // Beyond the end of a smaller layer, it has nothing.
                if piece < layer.map.pieces {
                    until = until.min(layer.map.run_end(piece, until));
                }
                if !layer.map.has(piece) {
                    continue;
                }
            }
            return (Some(layer), until.saturating_mul(PieceMap::PIECE).min(end));
        }
        (None, end)
    }

    /// The ranges that are not in the lowest layer: offset and bytes, ascending.
    pub fn above_lowest(&self) -> Vec<(u64, u64)> {
        let (mut ranges, mut at) = (Vec::<(u64, u64)>::new(), 0);
        let lowest = self.layers.last().map(|layer| &layer.disk);
        while at < self.size {
            let (layer, end) = self.run(at, self.size);
            if layer.map(|layer| Arc::as_ptr(&layer.disk)) != lowest.map(Arc::as_ptr) {
                match ranges.last_mut() {
                    Some((start, len)) if *start + *len == at => *len += end - at,
                    _ => ranges.push((at, end - at)),
                }
            }
            at = end.max(at + 1);
        }
        ranges
    }
}

impl Disk for Layers {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len() as u64)?;
        let end = offset + data.len() as u64;
        while !data.is_empty() {
            let (layer, until) = self.run(offset, end);
            let (part, rest) = std::mem::take(&mut data).split_at_mut((until - offset) as usize);
            let there = layer.map_or(0, |layer| layer.disk.size()).saturating_sub(offset);
            let (known, beyond) = part.split_at_mut(there.min(part.len() as u64) as usize);
            if let Some(layer) = layer.filter(|_| !known.is_empty()) {
                layer.disk.read(offset, known)?;
            }
            beyond.fill(0);
            (offset, data) = (until, rest);
        }
        Ok(())
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        check_range(self.size, offset, len)?;
        if len == 0 {
            return Ok(Extent { len, zero: false });
        }
        let (layer, until) = self.run(offset, offset + len);
        let len = until - offset;
        match layer.map(|layer| (layer, layer.disk.size().saturating_sub(offset).min(len))) {
            Some((layer, there @ 1..)) => layer.disk.extent(offset, there),
            _ => Ok(Extent { len, zero: true }),
        }
    }
}

/// A text that names layers: bytes, the files with their maps, and the lowest.
struct Text {
    bytes: u64,
    above: Vec<(String, String)>,
    lowest: String,
}

/// The text of a disk of so many bytes; names have no white space.
pub fn text(bytes: u64, above: &[(String, String)], lowest: &str) -> String {
    let lines: String = above.iter().map(|(file, map)| format!("{file} {map}\n")).collect();
    format!("{MAGIC}bytes {bytes}\n{lines}{lowest}\n")
}

fn parse(file: &HostFile) -> Result<Text, OpenError> {
    let damaged = |what: &str| file.damaged(NAME, what.to_string());
    let len = file.measure()?;
    if len > TEXT_MAX {
        return Err(damaged("its text is too long"));
    }
    let text = file.read_vec(0, len as usize).map_err(|source| file.failed("read", source))?;
    let text = String::from_utf8(text).map_err(|_| damaged("it is no text"))?;
    let lines = text.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin like one"))?;
    let mut lines = lines.lines();
    let bytes = lines.next().and_then(|line| line.strip_prefix("bytes ")?.parse().ok());
    let bytes = bytes.ok_or_else(|| damaged("it does not say its size"))?;
    let (mut above, mut lowest) = (Vec::new(), None);
    for line in lines {
        if lowest.is_some() {
            return Err(damaged("something is below its lowest layer"));
        }
        match line.split_once(' ') {
            Some((name, map)) => above.push((name.to_string(), map.to_string())),
            None => lowest = Some(line.to_string()),
        }
    }
    let lowest = lowest.ok_or_else(|| damaged("it has no lowest layer"))?;
    Ok(Text { bytes, above, lowest })
}

/// The files that the text in `file` names.
pub(crate) fn names(file: &HostFile) -> Result<Vec<String>, OpenError> {
    let Text { above, lowest, .. } = parse(file)?;
    Ok(above.into_iter().flat_map(|(name, map)| [name, map]).chain([lowest]).collect())
}

/// Opens the disk whose text is in `file`; `beside` opens a file that it names.
pub(crate) fn open(
    file: &HostFile,
    beside: &mut dyn FnMut(&str) -> Result<HostFile, OpenError>,
) -> Result<Layers, OpenError> {
    let Text { bytes, above, lowest } = parse(file)?;
    crate::raw::check_size(bytes).map_err(|source| file.failed("open", source))?;
    let mut layers = Vec::new();
    for (name, map) in above {
        let disk = RawDisk::from_file(beside(&name)?)?;
        let map = beside(&map)?;
        let len = map.measure()?;
        let short = || map.damaged(NAME, format!("it has {len} bytes, which are no map of {name}"));
        if len != PieceMap::len_for(disk.size()) {
            return Err(short());
        }
        let bits = map.read_vec(0, len as usize).map_err(|source| map.failed("read", source))?;
        let map = PieceMap::of(disk.size(), &bits).ok_or_else(short)?;
        layers.push(Layer { disk: Arc::new(disk), map });
    }
    Ok(Layers::new(bytes, layers, Arc::new(RawDisk::from_file(beside(&lowest)?)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDisk;
    use proptest::prelude::*;

    const SIZE: u64 = 90 * 4096 + 512;

    fn filled(size: u64, byte: u8) -> Arc<dyn Disk> {
        let disk = MemoryDisk::zeroed(size / 512);
        disk.write(0, &vec![byte; size as usize]).unwrap();
        Arc::new(disk)
    }

    proptest! {
        /// Each piece comes from the highest layer that has it, whatever is asked for at once.
        #[test]
        fn the_highest_that_has_it_has_it(
            maps in prop::collection::vec(prop::collection::vec(0u64..91, 0..60), 0..4),
            shorter in prop::collection::vec(0u64..91, 4),
            asked in prop::collection::vec((0..SIZE, 1..SIZE), 1..20),
        ) {
            let mut model = vec![1u8; SIZE as usize];
            let lowest = filled(SIZE - shorter[0] * 512, 1);
            model[lowest.size() as usize..].fill(0);
            let mut layers = Vec::new();
            for (index, pieces) in maps.iter().enumerate() {
                // As a disk that was made larger later on.
                let size = SIZE - shorter[index] * 512;
                let (byte, mut map) = (index as u8 + 2, PieceMap::new(size));
                for piece in pieces {
                    map.set(*piece);
                    let range = piece * 4096..((piece + 1) * 4096).min(SIZE);
                    if range.start < size {
                        model[range.start as usize..range.end as usize].fill(0);
                        model[range.start as usize..range.end.min(size) as usize].fill(byte);
                    }
                }
                let same = PieceMap::of(size, &map.to_bytes());
                prop_assert_eq!(same.as_ref(), Some(&map));
                layers.insert(0, Layer { disk: filled(size, byte), map });
            }
            let disk = Layers::new(SIZE, layers, lowest);
            for (at, len) in asked {
                let len = len.min(SIZE - at);
                let mut data = vec![0xee; len as usize];
                disk.read(at, &mut data).unwrap();
                prop_assert!(data == model[at as usize..(at + len) as usize]);
                let extent = disk.extent(at, len).unwrap();
                prop_assert!((1..=len).contains(&extent.len));
                let seen = &model[at as usize..(at + extent.len) as usize];
                prop_assert!(!extent.zero || seen.iter().all(|byte| *byte == 0));
            }
            for (at, len) in disk.above_lowest() {
                prop_assert!(maps.iter().flatten().any(|piece| (at..at + len).contains(&(piece * 4096))));
            }
        }
    }

    #[test]
    fn nobody_writes_to_it() {
        let disk = Layers::new(SIZE, Vec::new(), filled(SIZE, 1));
        assert!(disk.read_only() && disk.write(0, &[0; 512]).is_err() && disk.discard(0, 512).is_err());
        assert!(disk.write_zeroes(0, 512, true).is_err() && disk.read(SIZE, &mut [0]).is_err());
    }
}
