//! Unpacks the compressed kernel in a bzImage on the host, which is much faster than in the guest.
use super::BootError;
use super::bytes::{array, u32_at};
use std::io::Read;

/// Largest kernel that is unpacked: no file can make us take more memory than this.
const UNPACKED_MAX: usize = 1 << 30;
/// Uncompressed bytes of a full block of the LZ4 legacy frame.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// The ELF file in `payload`, or `None` for a compression that we do not read.
///
/// Linux's build adds the unpacked size to the compressed data as four bytes (gzip has them anyway).
pub fn unpack(payload: &[u8]) -> Result<Option<Vec<u8>>, BootError> {
    let damaged = |what| BootError::Damaged { what };
    let size = payload.len().checked_sub(4).and_then(|at| u32_at(payload, at)).unwrap_or(0) as usize;
    let Some(magic) = array::<6>(payload, 0) else { return Ok(None) };
    let unpacked = match magic {
        [0x7f, b'E', b'L', b'F', ..] => payload.to_vec(),
        [0x1f, 0x8b, ..] => gzip(payload).ok_or(damaged("its gzip payload does not unpack"))?,
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            lz4_legacy(payload, size).ok_or(damaged("its LZ4 payload does not unpack"))?
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let reader = lzma_rust2::XzReader::new(payload, false);
            bounded(reader).ok_or(damaged("its XZ payload does not unpack"))?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let reader = ruzstd::decoding::StreamingDecoder::new(payload).ok();
            reader.and_then(bounded).ok_or(damaged("its zstd payload does not unpack"))?
        }
        _ => return Ok(None),
    };
    Ok(Some(unpacked))
}

fn bounded(reader: impl Read) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(UNPACKED_MAX as u64 + 1).read_to_end(&mut out).ok()?;
    (out.len() <= UNPACKED_MAX).then_some(out)
}

/// RFC 1952 §2.3: the header's optional fields, then deflate.
fn gzip(data: &[u8]) -> Option<Vec<u8>> {
    const FHCRC: u8 = 2;
    const FEXTRA: u8 = 4;
    const FNAME: u8 = 8;
    const FCOMMENT: u8 = 16;
    let flags = *data.get(3)?;
    let mut at = 10usize;
    if flags & FEXTRA != 0 {
        at = at.checked_add(2 + usize::from(u16::from_le_bytes(array(data, at)?)))?;
    }
    for text in [FNAME, FCOMMENT] {
        if flags & text != 0 {
            at += data.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
        }
    }
    if flags & FHCRC != 0 {
        at += 2;
    }
    miniz_oxide::inflate::decompress_to_vec_with_limit(data.get(at..)?, UNPACKED_MAX).ok()
}

/// The legacy frame (LZ4 frame format, "Legacy frame"): blocks of 8 MiB, each with its compressed size.
fn lz4_legacy(data: &[u8], size: usize) -> Option<Vec<u8>> {
    if size > UNPACKED_MAX {
        return None;
    }
    let mut out = Vec::new();
    let mut at = 4usize;
    while out.len() < size {
        let len = u32_at(data, at)? as usize;
        let block = data.get(at + 4..(at + 4).checked_add(len)?)?;
        let filled = out.len();
        out.resize(filled.checked_add(LZ4_LEGACY_BLOCK)?, 0);
        let written = lz4_flex::block::decompress_into(block, out.get_mut(filled..)?).ok()?;
        if written == 0 {
            return None;
        }
        out.truncate(filled + written);
        at += 4 + len;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_do_not_read_is_left_packed() {
        assert_eq!(unpack(b"LZO!......"), Ok(None));
        assert_eq!(unpack(b""), Ok(None));
    }

    #[test]
    fn a_damaged_payload_is_an_error_not_a_panic() {
        for magic in
            [&[0x1f, 0x8b, 8, 0][..], b"\xfd7zXZ\0", &[0x28, 0xb5, 0x2f, 0xfd], &[2, 0x21, 0x4c, 0x18]]
        {
            let mut data = magic.to_vec();
            data.resize(64, 0xa5);
            assert!(unpack(&data).is_err(), "{magic:x?}");
        }
    }

    #[test]
    fn a_legacy_lz4_frame_of_two_blocks_unpacks() {
        let first = vec![7u8; LZ4_LEGACY_BLOCK];
        let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
        for block in [&first[..], b"the end"] {
            let packed = lz4_flex::block::compress(block);
            frame.extend((packed.len() as u32).to_le_bytes());
            frame.extend(packed);
        }
        frame.extend((LZ4_LEGACY_BLOCK as u32 + 7).to_le_bytes());
        let unpacked = unpack(&frame).unwrap().unwrap();
        assert_eq!(unpacked.len(), LZ4_LEGACY_BLOCK + 7);
        assert!(unpacked.ends_with(b"the end"));
    }
}
