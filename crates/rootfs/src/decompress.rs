//! Layers as they are stored: gzip, zstd or plain, told by their first bytes (OCI image specification, "Image Layer
//! Filesystem Changeset", media types; RFC 1952 §2.3.1; RFC 8878 §3.1).
use crate::fault;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use viv_model::Fault;

/// Bytes that are read, and handed from thread to thread, at once.
const CHUNK: usize = 256 << 10;
/// Chunks that the decompressing thread may be ahead.
const AHEAD: usize = 4;

/// A layer's archive, decompressed while it is read, in a thread of its own: decompressing is most of the work.
pub struct Decompress {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Decompress {
    /// Reads the layer `source`; its first bytes tell how it is compressed.
    pub fn new(source: impl Read + Send + 'static) -> Result<Decompress, Fault> {
        let mut source = BufReader::with_capacity(CHUNK, source);
        let mut first = Vec::new();
        // A source may give its first bytes one by one: they are put back in front of it.
        source.by_ref().take(4).read_to_end(&mut first).map_err(|error| fault::reading(&error))?;
        let gzip = first.starts_with(&[0x1f, 0x8b]);
        let zstd = first.len() == 4 && is_zstd(&first);
        let source = BufReader::with_capacity(CHUNK, io::Cursor::new(first).chain(source));
        let (sender, chunks) = sync_channel(AHEAD);
        let work = move || {
            let mut content: Box<dyn Read> = match (gzip, zstd) {
                (true, _) => Box::new(MultiGzDecoder::new(source)),
                (_, true) => Box::new(Frames { source, decoder: FrameDecoder::new(), inside: false }),
                _ => Box::new(source),
            };
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = content.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
                // What came before an error is good; nothing, without an error, is the end. A send fails when nobody reads.
                let last = chunk.is_empty() || read.is_err();
                let good = if chunk.is_empty() && read.is_err() { Ok(()) } else { sender.send(Ok(chunk)) };
                let bad = read.map_or_else(|error| sender.send(Err(error)), |_| Ok(()));
                if last || good.is_err() || bad.is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("decompress".into()).spawn(work).map_err(|error| {
            Fault::new(
                viv_model::Kind::NoCapacity,
                format!("cannot start a thread to decompress the layer: {error}"),
                "end some processes, or raise the limit of processes (ulimit -u)",
            )
        })?;
        Ok(Decompress { chunks, chunk: io::Cursor::default(), ended: false })
    }
}

impl Read for Decompress {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.chunk.read(buffer)?;
            if read > 0 || self.ended || buffer.is_empty() {
                return Ok(read);
            }
            let chunk = self.chunks.recv().map_err(|_| io::Error::other("its decompression broke off"))??;
            self.ended = chunk.is_empty();
            self.chunk = io::Cursor::new(chunk);
        }
    }
}

fn is_zstd(first: &[u8]) -> bool {
    first == [0x28, 0xb5, 0x2f, 0xfd] || matches!(first, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// Zstandard frames one after the other; skippable ones are skipped (RFC 8878 §3.1.2).
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// In a frame, or before one.
    inside: bool,
}

impl<R: BufRead> Frames<R> {
    /// Starts the next frame; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(false)
    }
}

fn broken(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.decoder.can_collect() > 0 || buffer.is_empty() {
                return self.decoder.read(buffer);
            }
            if self.inside && !self.decoder.is_finished() {
                let some = BlockDecodingStrategy::UptoBytes(CHUNK);
                self.decoder.decode_blocks(&mut self.source, some).map_err(|error| broken(&error))?;
            } else {
                self.inside = self.next()?;
                if !self.inside {
                    return Ok(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use io::Write;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    /// Gives its bytes one by one.
    struct Slow(io::Cursor<Vec<u8>>);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn read(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompress::new(Slow(io::Cursor::new(bytes))).unwrap().read_to_end(&mut out)?;
        Ok(out)
    }

    fn content() -> Vec<u8> {
        (0..700_000u32).flat_map(|number| (number.wrapping_mul(number) / 7).to_le_bytes()).collect()
    }

    #[test]
    fn all_forms_of_layers_are_read() {
        let content = content();
        let halves = content.split_at(1_234_567);
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        for stored in [
            content.clone(),
            gzip(&content),
            [gzip(halves.0), gzip(halves.1)].concat(),
            zstd(&content),
            [&skippable[..], &zstd(halves.0), &skippable, &zstd(b""), &zstd(halves.1), &skippable].concat(),
        ] {
            assert!(read(stored).unwrap() == content);
        }
        for short in [&b""[..], b"a", b"\x1f", b"\x28\xb5\x2f"] {
            assert_eq!(read(short.to_vec()).unwrap(), short);
        }
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        let content = content();
        for stored in [gzip(&content), zstd(&content)] {
            for cut in [5, 20, stored.len() / 2, stored.len() - 1] {
                read(stored[..cut].to_vec()).unwrap_err();
            }
            assert!(read([&stored[..], b"\x1f\x8b\x28\xb5"].concat()).is_err());
        }
        let mut flipped = gzip(&content);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0xff;
        read(flipped).unwrap_err();
        // A window that no host has the memory for.
        read(b"\x28\xb5\x2f\xfd\x00\xf8\x01\0\0".to_vec()).unwrap_err();
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_thread() {
        let (sender, dropped) = std::sync::mpsc::channel();
        struct Source(std::sync::mpsc::Sender<()>);
        impl Read for Source {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(1);
                Ok(buffer.len())
            }
        }
        impl Drop for Source {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let mut decompress = Decompress::new(Source(sender)).unwrap();
        decompress.read_exact(&mut [0; 1 << 20]).unwrap();
        drop(decompress);
        dropped.recv().unwrap();
    }
}
