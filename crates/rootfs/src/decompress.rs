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
                let last = chunk.is_empty() || read.is_err();
                // What came before an error is good. A send fails when nobody reads any more.
                let sent = sender
                    .send(Ok(chunk))
                    .and_then(|()| read.map_or_else(|error| sender.send(Err(error)), |_| Ok(())));
                if last || sent.is_err() {
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
