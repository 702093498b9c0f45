//! Numbered writes, from which can be told what a disk may have after it was cut off.

use viv_block::Disk;

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const BLOCKS: u64 = 2048;

fn place(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

/// Whether a write makes some blocks zero.
fn is_zero(number: u64) -> bool {
    number % 11 == 7
}

/// The blocks that a write is to.
fn range(number: u64) -> std::ops::Range<u64> {
    let first = place(number) % BLOCKS;
    first..first + if is_zero(number) { 4.min(BLOCKS - first) } else { 1 }
}

/// Does one of the writes: each block then says which it was.
pub(crate) fn write_number(disk: &dyn Disk, number: u64) {
    let range = range(number);
    let at = range.start * BLOCK;
    match is_zero(number) {
        true => disk.write_zeroes(at, (range.end - range.start) * BLOCK, true).unwrap(),
        false => disk.write(at, &number.to_le_bytes().repeat(BLOCK as usize / 8)).unwrap(),
    }
}

/// For each block the writes that it may have, if the first `flushed` are durable and `last` have begun.
pub(crate) fn expected(flushed: u64, last: u64) -> Vec<Vec<u64>> {
    let mut blocks = vec![vec![0]; BLOCKS as usize];
    for number in 1..=last {
        let range = range(number);
        for block in &mut blocks[range.start as usize..range.end as usize] {
            if number <= flushed {
                block.clear();
            }
            block.push(if is_zero(number) { 0 } else { number });
        }
    }
    blocks
}
