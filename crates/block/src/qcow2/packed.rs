//! Compressed clusters: raw deflate, or zstd. However they were made, no more than a cluster comes out.

use super::header::Compression;
use super::state::Mapping;
use super::{Qcow2, corrupt};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::StreamingDecoder;
use std::io::{self, Read};
use std::sync::PoisonError;

impl Qcow2 {
    /// Reads from a compressed cluster. The last one is kept, for a guest reads on.
    pub(super) fn read_packed(
        &self,
        mapping: Mapping,
        mut offset: u64,
        mut data: &mut [u8],
        cluster: u64,
    ) -> io::Result<()> {
        let Mapping::Packed { host, len } = mapping else { return Err(corrupt("a cluster is not packed")) };
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let content = match kept.take() {
            Some((place, content)) if place == host => content,
            _ => self.unpack(host, len, cluster)?,
        };
        while !data.is_empty() {
            let within = (offset % cluster) as usize;
            let part = content.get(within..).unwrap_or_default();
            let len = part.len().min(data.len());
            let (now, later) = data.split_at_mut(len);
            now.copy_from_slice(part.get(..len).unwrap_or_default());
            if len == 0 {
                return Err(corrupt("a compressed cluster is too short"));
            }
            offset += len as u64;
            data = later;
        }
        *kept = Some((host, content));
        Ok(())
    }

    fn unpack(&self, host: u64, len: u64, cluster: u64) -> io::Result<Vec<u8>> {
        // The length is a number of sectors: at most two clusters. It ends somewhere in the last.
        let packed = self.file.read_vec(host, len as usize)?;
        let mut content = vec![0; cluster as usize];
        let complete = match self.compression {
            Compression::Deflate => {
                let mut inflate = Box::new(DecompressorOxide::new());
                let (_, _, written) = decompress(&mut inflate, &packed, &mut content, 0, 0);
                written == content.len()
            }
            Compression::Zstd => StreamingDecoder::new(packed.as_slice())
                .map_err(|error| error.to_string())
                .and_then(|mut decoder| decoder.read_exact(&mut content).map_err(|error| error.to_string()))
                .is_ok(),
        };
        if complete { Ok(content) } else { Err(corrupt("a compressed cluster cannot be unpacked")) }
    }
}
